"""Features of frozen networks, and plain log-mel features to compare them with."""

from typing import Any

import keras
import numpy as np
from rich.progress import track


def extract_features(
    model,
    inputs,
    batch_size=32,
    pooling="mean",
    segments=1,
    progress=False,
    description="features",
):
    """Runs a frozen network over a data set and returns one vector per example.

    The network runs in inference mode, compiled once: every batch has the same
    shape, the last one is filled up and the filling dropped again.

    Args:
        model: a backbone with a method `pooled_features(inputs)`, or any layer, model
            or function on Keras tensors.
        inputs: array of shape `(examples, ...)`, or an iterable over batches such as
            a `tf.data.Dataset` (in fixed order; of tuples `(inputs, labels, ...)`
            the first entry is taken).
        batch_size: int, examples per step. Of an iterable, the size of its first
            batch is used instead.
        pooling: `"mean"` or a function. `"mean"` calls `model.pooled_features`; a
            model without that method must return `(batch, dim)` or
            `(batch, tokens, dim)`, whose tokens are averaged. A function receives
            what `model(inputs)` returns and must return `(batch, dim)`.
        segments: int. With more than 1, the means of so many equal parts of a clip are
            joined to one vector, by `model.pooled_features(inputs, segments)`: where
            the order of what is heard or seen matters.
        progress: bool, whether to show a progress bar.
        description: string, the text before the progress bar.

    Returns:
        float32 NumPy array of shape `(examples, dim)`.

    Raises:
        ValueError: if `inputs` is empty, or an argument or the network's output does
            not fit.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.evaluation import extract_features

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    features = extract_features(model, np.ones((10, 8), "float32"), batch_size=4)
    assert features.shape == (10, 4)
    ```
    """
    if pooling != "mean" and not callable(pooling):
        raise ValueError(f'pooling must be "mean" or a function; received {pooling!r}')
    if segments != 1 and not (pooling == "mean" and hasattr(model, "pooled_features")):
        raise ValueError(
            'segments need pooling="mean" and a model with a method `pooled_features`; '
            f"received segments={segments}, pooling={pooling!r}, model {model!r}"
        )
    network = _InferenceModel(model, pooling, segments)
    features = _run(network, inputs, batch_size, description if progress else None)
    if features.ndim != 2:
        raise ValueError(
            "model and pooling must give features of shape (batch, dim); received "
            f"shape {features.shape}"
        )
    return features


def extract_split_features(model, splits, **options):
    """Runs `extract_features` over several sets in one go, so that it compiles once.

    Args:
        model: as of `extract_features`.
        splits: dict from a name, such as `"train"`, to an array of examples; all of
            one shape but for their number.
        **options: more arguments of `extract_features`.

    Returns:
        Dict from each name to a float32 NumPy array of shape `(examples, dim)`.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.evaluation import extract_split_features

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    splits = {"train": np.ones((10, 8)), "test": np.zeros((5, 8))}
    features = extract_split_features(model, splits, batch_size=4)
    assert features["test"].shape == (5, 4)
    ```
    """
    examples = np.concatenate(list(splits.values()))
    ends = np.cumsum([len(part) for part in splits.values()])
    features = np.split(extract_features(model, examples, **options), ends[:-1])
    return dict(zip(splits, features, strict=True))


def log_mel_features(
    log_mel_layer,
    waveforms,
    mode="statistics",
    frame_counts=None,
    shape=(64, 16),
    batch_size=64,
):
    """Returns plain log-mel features: what a probe reaches without any learning.

    Args:
        log_mel_layer: layer or function from waveforms `(batch, samples)` to log-mel
            spectrograms `(batch, frames, bins)` or `(batch, frames, bins, 1)`.
        waveforms: float array of shape `(clips, samples)`, or an iterable over
            batches of them, as in `extract_features`.
        mode: `"statistics"` (mean and standard deviation of every bin over time) or
            `"resized"` (the spectrogram itself, brought to `shape` and flattened).
        frame_counts: optional int array of shape `(clips,)`, how many frames of each
            clip are sound and not padding (the row sums of what
            `LogMelSpectrogram.padding_mask` returns). Only those are used; with
            `"resized"` they are stretched to the full `shape[0]`, so that a clip's
            duration no longer shows.
        shape: pair of ints, frames and bins of the resized spectrogram.
        batch_size: int, clips per step.

    Returns:
        float32 NumPy array of shape `(clips, 2 * bins)` or
        `(clips, shape[0] * shape[1])`.

    Raises:
        ValueError: if `mode` is unknown, or `frame_counts` does not fit the
            spectrograms.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.evaluation import log_mel_features

    layer = keras.layers.MelSpectrogram(num_mel_bins=40, sampling_rate=16000)
    waveforms = np.random.default_rng(0).normal(size=(3, 16000)).astype("float32")
    transposed = lambda x: keras.ops.transpose(layer(x), (0, 2, 1))
    assert log_mel_features(transposed, waveforms).shape == (3, 80)
    assert log_mel_features(transposed, waveforms, "resized").shape == (3, 1024)
    ```
    """
    if mode not in ("statistics", "resized"):
        raise ValueError(f'mode must be "statistics" or "resized"; received {mode!r}')
    spectrograms = _run(_InferenceModel(log_mel_layer, None), waveforms, batch_size)
    if spectrograms.ndim == 4 and spectrograms.shape[-1] == 1:
        spectrograms = spectrograms[..., 0]
    if spectrograms.ndim != 3:
        raise ValueError(
            "log_mel_layer must return spectrograms of shape (batch, frames, bins); "
            f"received shape {spectrograms.shape}"
        )
    frames = spectrograms.shape[1]
    if frame_counts is None:
        frame_counts = np.full(len(spectrograms), frames)
    frame_counts = np.asarray(frame_counts)
    if (
        frame_counts.shape != (len(spectrograms),)
        or not ((frame_counts >= 1) & (frame_counts <= frames)).all()
    ):
        raise ValueError(
            f"frame_counts must hold a number between 1 and {frames} for each of the "
            f"{len(spectrograms)} clips; received shape {frame_counts.shape}, values "
            f"{frame_counts.min(initial=frames)} to {frame_counts.max(initial=0)}"
        )
    clips = [
        spectrogram[:count]
        for spectrogram, count in zip(spectrograms, frame_counts, strict=True)
    ]
    if mode == "statistics":
        rows = [np.concatenate([clip.mean(axis=0), clip.std(axis=0)]) for clip in clips]
    else:
        rows = [_resize(clip, shape).reshape(-1) for clip in clips]
    return np.stack(rows).astype("float32")


class _InferenceModel(keras.Model):
    """A network and its pooling as one model, so that Keras compiles them as one."""

    def __init__(self, network, pooling, segments=1):
        super().__init__(name="inference_model")
        self.network = network
        self.pooling = pooling
        self.segments = segments

    def call(self, inputs):
        if self.pooling == "mean" and hasattr(self.network, "pooled_features"):
            options = {} if self.segments == 1 else {"segments": self.segments}
            return self.network.pooled_features(inputs, **options)
        outputs = self.network(inputs)
        if callable(self.pooling):
            return self.pooling(outputs)
        if self.pooling == "mean" and len(outputs.shape) == 3:
            return keras.ops.mean(outputs, axis=1)
        return outputs


def _run(network, inputs, batch_size, description=None):
    """Returns the outputs of all inputs; a description asks for a progress bar."""
    outputs = [
        np.asarray(output, "float32")
        for output, _ in run_batches(network, inputs, batch_size, description)
    ]
    if not outputs:
        raise ValueError("inputs must hold at least one example; received none")
    return np.concatenate(outputs)


def run_batches(network, inputs, batch_size, description=None):
    """Runs a network over inputs, batch by batch.

    Args:
        network: `keras.Model`, not compiled, of one tensor or a dict of them.
        inputs: as of `extract_features`.
        batch_size: int, likewise.
        description: optional string, the text before a progress bar.

    Yields:
        Tuples `(outputs, others)`: NumPy arrays of the real rows of a batch, and what
        came with these rows of inputs, such as labels, a tuple of NumPy arrays.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; received {batch_size}")
    if isinstance(inputs, (list, tuple, dict)):
        raise ValueError(
            "inputs must be one array or an iterable over batches such as a "
            f"tf.data.Dataset; received a {type(inputs).__name__}"
        )
    total = None
    if hasattr(inputs, "shape"):
        batch_size = max(1, min(batch_size, len(inputs)))
        total = -(-len(inputs) // batch_size)
        batches = _filled_batches([inputs], batch_size)
    else:
        batches = _filled_batches(inputs)
    if description is not None:
        batches = track(batches, description=description, total=total)
    network.compile()
    for batch, count, others in batches:
        outputs = network.predict_on_batch(batch)
        if isinstance(outputs, dict):
            outputs = {name: np.asarray(x)[:count] for name, x in outputs.items()}
        else:
            outputs = np.asarray(outputs)[:count]
        yield outputs, others


def _filled_batches(batches, size=None):
    """Yields batches of one size, how many rows are real, and what came with these."""
    for batch in batches:
        others: list[Any] = []
        if isinstance(batch, (tuple, list)):
            batch, *others = batch
        size = size or len(batch)
        for start in range(0, len(batch), size):
            rows = keras.ops.convert_to_numpy(batch[start : start + size])
            filling = np.repeat(rows[-1:], size - len(rows), axis=0)
            with_rows = tuple(
                keras.ops.convert_to_numpy(other[start : start + size])
                for other in others
            )
            yield np.concatenate([rows, filling]), len(rows), with_rows


def _resize(spectrogram, shape):
    over_time = _resize_weights(spectrogram.shape[0], shape[0])
    over_bins = _resize_weights(spectrogram.shape[1], shape[1])
    return over_time @ spectrogram @ over_bins.T


def _resize_weights(old_size, new_size):
    """Returns `(new_size, old_size)` weights: linear, with antialiasing."""
    step = old_size / new_size
    centers = (np.arange(new_size) + 0.5) * step
    distances = np.abs(np.arange(old_size) + 0.5 - centers[:, None])
    weights = np.maximum(0.0, 1.0 - distances / max(step, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)
