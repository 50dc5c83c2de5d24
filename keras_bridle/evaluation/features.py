"""Features of frozen networks, and plain log-mel features to compare them with."""

import numpy as np

from keras_bridle.evaluation.feature_extractor import (
    FeatureExtractor,
    InferenceModel,
    run,
)


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
    extractor = FeatureExtractor(model, pooling, segments)
    return extractor(inputs, batch_size, description if progress else None)


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
    spectrograms = run(InferenceModel(log_mel_layer, None), waveforms, batch_size)
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
