"""Features and codes of arrays and files."""

import contextlib
import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track

from keras_bridle.data.files import ReadReport
from keras_bridle.data.layouts import MANIFESTS
from keras_bridle.data.pipeline import audio_dataset, image_dataset, video_dataset
from keras_bridle.models.presets import MODALITIES_BY_RANK
from keras_bridle.training.checkpoint import atomic_file
from keras_bridle.training.run import RunDirectory, run_lock


class InputFeatures(keras.Model):
    """Features of raw input that no network has learned.

    Of waveforms: the mean and standard deviation of every log-mel bin in each segment,
    padding left out. Of images and clips: gray pixels, averaged down to a small size.

    Args:
        backbone: `BridleBackbone`, whose `features()` are the log-mel spectrogram or
            the pixels.
        segments: int, equal parts of a recording.
        size: int, rows and columns of the small pictures.

    Call arguments:
        inputs: tensor of shape `(batch, *input_dims)`.

    Returns:
        float32 tensor of shape `(batch, segments * 2 * bins)` or
        `(batch, [frames *] size * size)`.
    """

    def __init__(self, backbone, segments=1, size=16):
        super().__init__(autocast=False, name="input_features")
        self.backbone = backbone
        self.segments = segments
        self.size = size

    def call(self, inputs):
        features, padding_mask = self.backbone.features(inputs)
        features = ops.cast(features, "float32")
        if len(self.backbone.input_dims) == 1:
            return self._statistics(features, padding_mask)
        gray = ops.mean(features, axis=-1, keepdims=True)
        if len(gray.shape) == 5:
            shape = ops.shape(gray)
            gray = self._small(ops.reshape(gray, (-1, *shape[2:])))
            return ops.reshape(gray, (-1, shape[1] * self.size**2))
        return ops.reshape(self._small(gray), (-1, self.size**2))

    def _small(self, pictures):
        if max(pictures.shape[1:3]) <= self.size:
            return _padded(pictures, self.size)
        return ops.image.resize(
            pictures,
            (self.size, self.size),
            antialias=True,
            data_format="channels_last",
        )

    def _statistics(self, features, padding_mask):
        rows, bins = features.shape[1:3]
        values = ops.reshape(features, (-1, rows, bins))
        if padding_mask is None:
            padding_mask = ops.ones(ops.shape(features)[:2], dtype="bool")
        lengths = ops.sum(ops.cast(padding_mask, "float32"), axis=1, keepdims=True)
        # In which segment of the real rows each row begins.
        places = ops.arange(rows, dtype="float32") / ops.maximum(lengths, 1.0)
        found = []
        for segment in range(self.segments):
            inside = ops.logical_and(
                ops.floor(places * self.segments) == segment, padding_mask
            )
            weights = ops.cast(inside, "float32")[:, :, None]
            weights /= ops.maximum(ops.sum(weights, axis=1, keepdims=True), 1.0)
            mean = ops.sum(weights * values, axis=1, keepdims=True)
            variance = ops.sum(weights * ops.square(values - mean), axis=1)
            found += [mean[:, 0], ops.sqrt(variance)]
        return ops.concatenate(found, axis=-1)


def _padded(pictures, size):
    rows, columns = pictures.shape[1:3]
    return ops.pad(pictures, ((0, 0), (0, size - rows), (0, size - columns), (0, 0)))


_DATASETS: dict[str, Callable] = {
    "audio": audio_dataset,
    "image": image_dataset,
    "video": video_dataset,
}


def modality_of(backbone):
    """Tells what an encoder takes: `"audio"`, `"image"` or `"video"`.

    Args:
        backbone: `BridleBackbone`.

    Raises:
        ValueError: if its inputs are none of these.
    """
    found = MODALITIES_BY_RANK.get(len(backbone.input_dims))
    if found is None:
        raise ValueError(
            "There are files for encoders of waveforms, images and clips. Received: "
            f"input_dims={backbone.input_dims}"
        )
    return found


def manifest_of(backbone, source):
    """Lists files of an encoder's modality.

    Args:
        backbone: `BridleBackbone`.
        source: manifest, folder or list of files.

    Returns:
        An `AudioManifest`, `ImageManifest` or `VideoManifest`.
    """
    return MANIFESTS[modality_of(backbone)].from_source(source)


def reading_options(backbone, **options):
    """Fills in how files are read for an encoder.

    Args:
        backbone: `BridleBackbone`.
        **options: what is to be other than the encoder's `input_dims` say, arguments of
            `audio_dataset`, `image_dataset` or `video_dataset`. Those that are `None`
            are filled in.

    Returns:
        A dict of arguments.

    Raises:
        ValueError: if a size is given by neither.
    """
    options = {name: value for name, value in options.items() if value is not None}
    dims = backbone.input_dims
    modality = modality_of(backbone)
    if modality == "audio":
        rate = getattr(backbone.front_end, "sample_rate", 16000)
        defaults = {"sample_rate": rate}
        if not {"seconds", "num_samples"} & options.keys():
            defaults["num_samples"] = dims[0]
            if dims[0] is None:
                raise ValueError(
                    "The encoder takes waveforms of any length: say how many `seconds` "
                    "of each recording to read"
                )
    else:
        defaults = {"image_size": dims[-3:-1], "channels": dims[-1]}
        if modality == "video":
            defaults |= {"num_frames": dims[0], "sampling_rate": 4}
            if dims[0] is None and "num_frames" not in options:
                raise ValueError(
                    "The encoder takes clips of any length: say how many `num_frames` "
                    "of each video to read"
                )
    return {**defaults, **options}


def file_dataset(backbone, manifest, batch_size, **options):
    """Reads files in order, with their places in the list in place of labels.

    Args:
        backbone: `BridleBackbone`.
        manifest: of its modality.
        batch_size: int.
        **options: what `reading_options()` gives, and others of `audio_dataset`,
            `image_dataset` or `video_dataset`.

    Returns:
        A `tf.data.Dataset` of tuples `(inputs, places)`; files that cannot be read are
        left out.
    """
    make_dataset = _DATASETS[modality_of(backbone)]
    return make_dataset(manifest.numbered(), batch_size=batch_size, **options)


def clip_shape(backbone, options):
    """The shape of one input as `reading_options()` has it read."""
    modality = modality_of(backbone)
    if modality == "audio":
        samples = options.get("num_samples")
        if samples is None:
            samples = round(options["seconds"] * options["sample_rate"])
        return (samples,)
    sides = np.broadcast_to(options["image_size"], 2).tolist()
    shape = (*sides, options["channels"])
    return shape if modality == "image" else (options["num_frames"], *shape)


def patch_grid(backbone, shape):
    """Tells how many patches an input of a shape, such as `clip_shape()`, has.

    Args:
        backbone: `BridleBackbone`.
        shape: tuple of ints, without the batch.

    Returns:
        Tuple of ints, the patches along each side.
    """
    shape = (None, *shape)
    if backbone.front_end is not None:
        shape = backbone.front_end.compute_output_shape(shape)
    return backbone.patch_embedding.grid(shape[1:-1])


class FeatureExtractor:
    """A frozen network that gives one vector for each example, compiled but once.

    For features of several sets, or again and again while the network learns; see
    `extract_features` for those of one.

    Args:
        model: as of `extract_features`.
        pooling: likewise.
        segments: likewise.

    Call arguments:
        inputs: as of `extract_features`.
        batch_size: likewise.
        description: optional string, the text before a progress bar.

    Returns:
        float32 NumPy array of shape `(examples, dim)`.

    Raises:
        ValueError: as `extract_features`.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.evaluation.features import FeatureExtractor

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    extract = FeatureExtractor(model)
    train, test = extract(np.ones((10, 8))), extract(np.zeros((5, 8)))
    assert train.shape == (10, 4)
    ```
    """

    def __init__(self, model, pooling="mean", segments=1):
        if pooling != "mean" and not callable(pooling):
            raise ValueError(
                f'pooling must be "mean" or a function; received {pooling!r}'
            )
        if segments != 1 and not (
            pooling == "mean" and hasattr(model, "pooled_features")
        ):
            raise ValueError(
                'segments need pooling="mean" and a model with a method '
                f"`pooled_features`; received segments={segments}, "
                f"pooling={pooling!r}, model {model!r}"
            )
        self.network = InferenceModel(model, pooling, segments)

    def __call__(self, inputs, batch_size=32, description=None):
        features = run(self.network, inputs, batch_size, description)
        if features.ndim != 2:
            raise ValueError(
                "model and pooling must give features of shape (batch, dim); received "
                f"shape {features.shape}"
            )
        return features


class InferenceModel(keras.Model):
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


def run(network, inputs, batch_size, description=None):
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
    if not network.compiled:
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
    from keras_bridle.evaluation.features import extract_features

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
    from keras_bridle.evaluation.features import log_mel_features

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


class PatchFeatures(NamedTuple):
    """What an encoder gives for each patch.

    Args:
        patches: float16 array of shape `(examples, patches, dim)`, to save memory.
        is_real: bool array of shape `(examples, patches)`, `False` at padding.
    """

    patches: np.ndarray
    is_real: np.ndarray

    def mean(self):
        """Averages the real patches, float32 of shape `(examples, dim)`."""
        weights = self.is_real / self.is_real.sum(axis=1, keepdims=True)
        return np.einsum(
            "np,npd->nd", weights.astype("float32"), self.patches.astype("float32")
        )

    def take(self, rows):
        """Returns some of the examples."""
        return PatchFeatures(self.patches[rows], self.is_real[rows])


def extract_patches(
    backbone, inputs, batch_size=32, progress=False, description="patches"
):
    """Runs a frozen encoder over a data set and returns the features of each patch.

    All of them are kept in memory, at two bytes a number.

    Args:
        backbone: `BridleBackbone`.
        inputs: as of `extract_features`.
        batch_size: int, likewise.
        progress: bool, likewise.
        description: string, likewise.

    Returns:
        A `PatchFeatures`, without the class token.

    Raises:
        ValueError: if `inputs` is empty.

    Example:
    ```python
    import numpy as np
    from keras_bridle import BridleBackbone
    from keras_bridle.evaluation.features import extract_patches

    backbone = BridleBackbone.from_preset("bridle_image_tiny", load_weights=False)
    found = extract_patches(backbone, np.zeros((3, 32, 32, 3), "uint8"), batch_size=2)
    print(found.patches.shape)  # (3, 64, 128)
    ```
    """
    network = PatchModel(backbone)
    found = [
        (outputs["patches"].astype("float16"), outputs["is_real"])
        for outputs, _ in run_batches(
            network, inputs, batch_size, description if progress else None
        )
    ]
    if not found:
        raise ValueError("inputs must hold at least one example; received none")
    return PatchFeatures(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


class PatchModel(keras.Model):
    """Raw input to `patches` and `is_real`, see `PatchFeatures`.

    Args:
        backbone: `BridleBackbone`.
    """

    def __init__(self, backbone):
        super().__init__(autocast=False, name="patch_model")
        self.backbone = backbone

    def call(self, inputs):
        return patch_outputs(self.backbone, inputs)


def patch_outputs(backbone, inputs):
    """Encodes raw input, gives a dict as of `PatchModel`."""
    features, padding_mask = backbone.features(inputs)
    tokens = backbone.encode(features, padding_mask)
    patches = ops.cast(backbone.drop_class_token(tokens), "float32")
    is_real = backbone.patch_padding_mask(features, padding_mask)
    if is_real is None:
        is_real = ops.ones(ops.shape(patches)[:2], dtype="bool")
    return {"patches": patches, "is_real": is_real}


def nearest_patches(codes, distances, num_codes=8, num_patches=12):
    """Finds, for some codes, the patches that are most like them.

    The codes are chosen evenly from the most to the least frequent, and of each example
    the nearest patch alone is taken, so that neighbors in one picture do not fill it
    all.

    Args:
        codes: int array of shape `(examples, patches)`, the codes of one level; -1 is
            padding.
        distances: float array of the same shape, from each patch's vector to its code.
        num_codes: int, how many codes to choose.
        num_patches: int, how many patches of each code to find at most.

    Returns:
        A dict from code to an int array of shape `(n, 2)`: example and patch, the
        nearest first.

    Raises:
        ValueError: if the shapes differ, or all is padding.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation.features import nearest_patches

    codes = np.array([[0, 0, 1], [1, 0, 0]])
    distances = np.array([[0.3, 0.1, 0.2], [0.4, 0.5, 0.6]])
    print(nearest_patches(codes, distances)[0])  # [[0 1] [1 1]]
    ```
    """
    codes, distances = np.asarray(codes), np.asarray(distances)
    if codes.ndim != 2 or codes.shape != distances.shape:
        raise ValueError(
            "codes and distances must both have shape (examples, patches); received "
            f"shapes {codes.shape} and {distances.shape}"
        )
    names, counts = np.unique(codes[codes >= 0], return_counts=True)
    if not len(names):
        raise ValueError("codes must hold at least one that is not -1; received none")
    frequent_first = names[np.argsort(-counts, kind="stable")]
    ranks = np.linspace(0, len(names) - 1, min(num_codes, len(names))).round()
    return {
        int(code): _nearest(codes == code, distances, num_patches)
        for code in frequent_first[ranks.astype(int)]
    }


def _nearest(is_code, distances, num_patches):
    distances = np.where(is_code, distances, np.inf)
    patches = distances.argmin(axis=1)
    order = np.argsort(distances.min(axis=1), kind="stable")
    order = order[: min(num_patches, int(is_code.any(axis=1).sum()))]
    return np.stack([order, patches[order]], axis=1)


FORMATS = ("npz", "parquet")


def save_part(stem, columns, about, format):
    """Writes columns to a file of its own, which is there as a whole or not at all.

    Args:
        stem: path without its ending, or `None` to check the format alone.
        columns: dict of arrays of equal length: strings or ints of shape `(rows,)`, or
            numbers of shape `(rows, ...)`.
        about: dict that JSON can hold, kept with them.
        format: `"npz"` or `"parquet"`.

    Raises:
        ValueError: for another format.
        ImportError: for `"parquet"` without pyarrow.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {FORMATS}; received {format!r}")
    pyarrow = _import_pyarrow() if format == "parquet" else None
    if stem is None:
        return
    with atomic_file(stem.with_suffix(f".{format}")) as unfinished:
        if pyarrow is None:
            np.savez(unfinished, about=np.array(json.dumps(about)), **columns)
        else:
            table = _as_arrow(pyarrow, columns, about)
            importlib.import_module("pyarrow.parquet").write_table(table, unfinished)


def load_part(path):
    """Reads what `save_part` has written.

    Args:
        path: path of the file.

    Returns:
        Tuple `(columns, about)`.
    """
    if path.suffix == ".parquet":
        return _load_arrow(path)
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files if name != "about"}
        return columns, json.loads(str(file["about"]))


def _as_arrow(pyarrow, columns, about):
    arrays, shapes = {}, {}
    for name, values in columns.items():
        array = pyarrow.array(values.reshape(-1))
        if values.ndim > 1:
            # A list of one length for each row; how it is folded is in the metadata.
            shapes[name] = values.shape[1:]
            array = pyarrow.FixedSizeListArray.from_arrays(
                array, int(np.prod(values.shape[1:]))
            )
        arrays[name] = array
    table = pyarrow.table(arrays)
    note = json.dumps({"about": about, "shapes": shapes})
    return table.replace_schema_metadata({"keras_bridle": note})


def _load_arrow(path):
    _import_pyarrow()
    table = importlib.import_module("pyarrow.parquet").read_table(path)
    note = json.loads(table.schema.metadata[b"keras_bridle"])
    columns = {}
    for name in table.column_names:
        array = table[name].combine_chunks()
        if name in note["shapes"]:
            values = array.flatten().to_numpy(zero_copy_only=False)
            columns[name] = values.reshape(-1, *note["shapes"][name])
        else:
            values = array.to_numpy(zero_copy_only=False)
            columns[name] = values.astype(str) if values.dtype == object else values
    return columns, note["about"]


def _import_pyarrow():
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise ImportError(
            'Parquet files need pyarrow: pip install "keras-bridle[parquet]". The '
            "format npz needs nothing"
        ) from error


class FileFeatures(NamedTuple):
    """Features of files, a row for each file, or for each patch of each file.

    Args:
        files: string array of shape `(rows,)`, names below the folder they were read
            from. Those that could not be read have no row.
        features: float32 array of shape `(rows, dim)`.
        places: int32 array of shape `(rows,)`, the patch's place in its file's grid,
            row by row; `None` if rows are files.
        codes: int32 array, the tokenizer's codes, -1 at padding: of shape
            `(rows, levels)` if rows are patches, else `(rows, patches, levels)`; `None`
            without a tokenizer.
        labels: string array of shape `(rows,)`, the classes of files that have some
            (several are joined by `"; "`), else `None`.
        grid: tuple of ints, how many patches a file has along each side.
    """

    files: np.ndarray
    features: np.ndarray
    places: np.ndarray | None
    codes: np.ndarray | None
    labels: np.ndarray | None
    grid: tuple[int, ...]


def extract_file_features(
    backbone,
    source,
    tokenizer=None,
    per="file",
    segments=1,
    batch_size=32,
    report=None,
    **reading,
):
    """Runs a frozen encoder over files and returns what it finds in them.

    Args:
        backbone: `BridleBackbone`.
        source: folder, list of files or manifest, of audio, images or video as the
            encoder takes them.
        tokenizer: optional `BridleTokenizer` or `RandomProjectionTokenizer`, to get
            codes as well; `load_run(directory).tokenizer` is that of a run.
        per: string. `"file"`: one row for each file, the mean of its patches.
            `"patch"`: one row for each patch that is not padding.
        segments: int, with `"file"`: the means of so many equal parts are joined to one
            row, as in `extract_features`.
        batch_size: int, files per step.
        report: optional `ReadReport`, to learn which files could not be read.
        **reading: how files are read, arguments of `audio_dataset` (such as
            `seconds=10`, which encoders of waveforms need), `image_dataset` or
            `video_dataset`. By default as the encoder's `input_dims` say.

    Returns:
        `FileFeatures`.

    Raises:
        ValueError: for arguments that do not fit, or if no file can be read.
        FileNotFoundError: if the folder is missing.

    Example:
    ```python
    import tempfile
    from keras_bridle import BridleBackbone
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.evaluation.features import extract_file_features

    backbone = BridleBackbone.from_preset("bridle_image_tiny", load_weights=False)
    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        found = extract_file_features(backbone, folder + "/fashion_mnist/Bag")
    print(found.files[0], found.features.shape)
    ```
    """
    work = _Extraction(backbone, source, tokenizer, per, segments, batch_size, reading)
    report = ReadReport() if report is None else report
    parts = list(work.run(np.arange(len(work.manifest)), report))
    return work.table(_joined(parts))


def write_file_features(
    directory,
    backbone,
    source,
    tokenizer=None,
    per="file",
    segments=1,
    batch_size=32,
    format="npz",
    part_size=1024,
    resume=False,
    progress=True,
    console=None,
    **reading,
):
    """Writes the features of any number of files, part by part.

    A run that was stopped at any time goes on with `resume=True`: parts that are done
    stay, the others are made, and the result is as if it had never been stopped. Files
    that cannot be read are listed in `skipped_files.csv`.

    Args:
        directory: string or path, made if it is missing. It gets `settings.json` and
            `parts/`.
        backbone: as of `extract_file_features`, as `source`, `tokenizer`, `per`,
            `segments` and `batch_size`.
        source: as above.
        tokenizer: as above.
        per: as above.
        segments: as above.
        batch_size: as above.
        format: `"npz"` or `"parquet"`, which needs pyarrow.
        part_size: int, files per part.
        resume: bool, whether to go on with what is in `directory`.
        progress: bool, whether to show a progress bar.
        console: optional `rich.console.Console`.
        **reading: as of `extract_file_features`.

    Returns:
        The `ReadReport` of all files, those of earlier runs included.

    Raises:
        FileExistsError: if `directory` holds parts, or a run of another kind, and
            `resume` is `False`.
        BlockingIOError: if another process is at work in `directory`.
        ValueError: for arguments that do not fit, other ones than `directory` was made
            with, or if no file can be read.
        ImportError: for `"parquet"` without pyarrow.

    Example:
    ```python
    import tempfile
    from keras_bridle import BridleBackbone
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.evaluation.features import load_file_features, write_file_features

    backbone = BridleBackbone.from_preset("bridle_image_tiny", load_weights=False)
    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        pictures = folder + "/fashion_mnist/Bag"
        write_file_features(folder + "/features", backbone, pictures, part_size=8)
        print(load_file_features(folder + "/features").features.shape)
    ```
    """
    work = _Extraction(backbone, source, tokenizer, per, segments, batch_size, reading)
    if part_size < 1:
        raise ValueError(f"part_size must be at least 1; received {part_size}")
    save_part(None, {}, {}, format)  # Is the format known, and its library there?
    settings = {**work.settings(), "format": format, "part_size": part_size}
    count = len(work.manifest)
    report = ReadReport()
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_lock(directory))
        if not is_taken(directory):
            Path(directory, "settings.json").unlink(missing_ok=True)
        folder = RunDirectory(directory, settings, resume).path / "parts"
        folder.mkdir(exist_ok=True)
        numbers = range(-(-count // part_size))
        parts = [_Part(folder, i, part_size, count) for i in numbers]
        todo = [part for part in parts if not part.is_done()]
        advance = _ignore
        if progress:
            advance = stack.enter_context(_progress(console, count, todo))
        _write_parts(work, parts, todo, report, format, advance)
    for part in parts:
        for path, reason in part.about()["skipped"]:
            report.add_skipped(path, reason)
        for path, reason in part.about()["incomplete"]:
            report.add_incomplete(path, reason)
    report.add_missing(work.manifest)
    report.write(directory)
    return report


def is_taken(directory):
    """Tells whether a folder holds a run that is to be gone on with, or left alone.

    One of features that has come to no part, as its files could not be read, is not:
    the next may have other settings.

    Args:
        directory: string or path.
    """
    parts = Path(directory, "parts")
    has_begun = not parts.is_dir() or any(parts.iterdir())
    return has_begun and Path(directory, "settings.json").exists()


def load_file_features(directory):
    """Reads what `write_file_features` has written, in the order of the files.

    Args:
        directory: string or path.

    Returns:
        `FileFeatures`.

    Raises:
        FileNotFoundError: if there are no features.

    Example:
    ```python
    import tempfile
    from keras_bridle import BridleBackbone
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.evaluation.features import load_file_features, write_file_features

    backbone = BridleBackbone.from_preset("bridle_image_tiny", load_weights=False)
    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        pictures = folder + "/fashion_mnist/Bag"
        write_file_features(folder + "/out", backbone, pictures, per="patch")
        found = load_file_features(folder + "/out")
    print(found.files[0], found.places[:3], found.grid)
    ```
    """
    folder = Path(directory, "parts")
    paths = sorted(
        path for path in folder.glob("part-*") if path.suffix in (".npz", ".parquet")
    )
    # A part without its note was being written when the run was stopped.
    paths = [path for path in paths if path.with_suffix(".json").exists()]
    if not paths:
        raise FileNotFoundError(f"There are no features in '{directory}'.")
    columns, about = zip(*map(load_part, paths), strict=True)
    return _as_table(_joined(columns), tuple(about[0]["grid"]))


class _Extraction:
    """What is to be extracted, from which files."""

    def __init__(self, backbone, source, tokenizer, per, segments, batch_size, reading):
        if per not in ("file", "patch"):
            raise ValueError(f'per must be "file" or "patch"; received {per!r}')
        if per == "patch" and segments != 1:
            raise ValueError(f'segments need per="file"; received segments={segments}')
        if segments < 1:
            raise ValueError(f"segments must be at least 1; received {segments}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; received {batch_size}")
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.per = per
        self.segments = segments
        self.manifest = manifest_of(backbone, source)
        self.batch_size = min(batch_size, len(self.manifest))
        self.reading = reading_options(backbone, **reading)
        self.root = source if isinstance(source, (str, Path)) else None
        self.network = FileModel(backbone, tokenizer, per, segments)
        self.grid = patch_grid(backbone, clip_shape(backbone, self.reading))

    def settings(self):
        names = "\n".join(self._name(i) for i in range(len(self.manifest)))
        digest = hashlib.sha256(names.encode()).hexdigest()[:16]
        return {
            "encoder": _fingerprint(self.backbone),
            "tokenizer": None
            if self.tokenizer is None
            else _fingerprint(self.tokenizer),
            "files": f"{len(self.manifest)} files, names' digest {digest}",
            "per": self.per,
            "segments": self.segments,
            "reading": self.reading,
        }

    def run(self, indices, report):
        """Yields columns of a batch's files, with their `index`, in order."""
        manifest = self.manifest.take(indices)
        dataset = file_dataset(
            self.backbone, manifest, self.batch_size, report=report, **self.reading
        )
        for outputs, (places,) in run_batches(self.network, dataset, self.batch_size):
            yield self._columns(indices[places], outputs)

    def table(self, columns):
        return _as_table(columns, self.grid)

    def _columns(self, indices, outputs):
        columns = {"index": indices, "features": outputs["features"]}
        if "codes" in outputs:
            columns["codes"] = outputs["codes"]
        if self.per == "patch":
            rows, places = np.nonzero(outputs["is_real"])
            columns = {
                name: values[rows, places]
                for name, values in columns.items()
                if name != "index"
            }
            columns |= {"index": indices[rows], "places": places.astype("int32")}
        names = [self._name(i) for i in columns["index"]]
        columns["files"] = np.array(names, dtype=str)
        if self.manifest.labels is not None:
            labels = [self._label(i) for i in columns["index"]]
            columns["labels"] = np.array(labels, dtype=str)
        return columns

    def _name(self, index):
        path = Path(self.manifest.files[index])
        if self.root is not None and path.is_relative_to(self.root):
            path = path.relative_to(self.root)
        segments = getattr(self.manifest, "segments", None)
        if segments is None:
            return path.as_posix()
        # The same file may be listed with several.
        start, end = segments[index]
        return (
            f"{path.as_posix()}#t={start:g},{'' if end is None else format(end, 'g')}"
        )

    def _label(self, index):
        numbers = np.atleast_1d(self.manifest.labels[index])
        return "; ".join(str(self.manifest.class_names[n]) for n in numbers)


class FileModel(keras.Model):
    """Raw input to all that is wanted of it.

    Args:
        backbone: as of `extract_file_features`, as the others.
        tokenizer: as above.
        per: as above.
        segments: as above.

    Returns:
        A dict with `features` and, with a tokenizer, `codes`; per patch with `is_real`
        and an axis of patches.
    """

    def __init__(self, backbone, tokenizer=None, per="file", segments=1):
        super().__init__(autocast=False, name="file_model")
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.per = per
        self.segments = segments

    def call(self, inputs):
        if self.per == "patch":
            found = patch_outputs(self.backbone, inputs)
            outputs = {"features": found["patches"], "is_real": found["is_real"]}
        else:
            features = self.backbone.pooled_features(inputs, self.segments)
            outputs = {"features": keras.ops.cast(features, "float32")}
        if self.tokenizer is not None:
            features, padding_mask = self.backbone.features(inputs)
            codes = self.tokenizer(features, padding_mask).codes
            # Of soft codes, all of a level.
            sides = keras.ops.shape(codes)
            outputs["codes"] = keras.ops.reshape(codes, (sides[0], sides[1], -1))
        return outputs


class _Part:
    """A part of the files: its rows, and a note that says that it is done."""

    def __init__(self, folder, number, size, count):
        self.stem = folder / f"part-{number:06d}"
        self.indices = np.arange(number * size, min(count, (number + 1) * size))

    def is_done(self):
        return self.stem.with_suffix(".json").exists()

    def about(self):
        return json.loads(self.stem.with_suffix(".json").read_text())

    def write(self, columns, about, format):
        """Writes the rows, if there are any, and then the note."""
        if columns:
            save_part(self.stem, columns, about, format)
        with atomic_file(self.stem.with_suffix(".json")) as unfinished:
            unfinished.write_text(json.dumps(about, indent=2) + "\n")


def _write_parts(work, parts, todo, report, format, advance):
    """Makes the parts that are to be done, in order."""
    if not todo:
        return
    indices = np.concatenate([part.indices for part in todo])
    waiting, rows = list(todo), []

    def finish(part, rows):
        names = {work.manifest.files[i] for i in part.indices}
        about = {
            "files": len(part.indices),
            "rows": sum(len(columns["index"]) for columns in rows),
            "grid": work.grid,
            "skipped": [x for x in report.skipped if x.path in names],
            "incomplete": [x for x in report.incomplete if x.path in names],
        }
        part.write(_joined(rows) if rows else {}, about, format)
        advance(len(part.indices))

    try:
        for columns in work.run(indices, report):
            rows.append(columns)
            # Files come in order: one of a later part ends all before it.
            while (
                columns["index"].size and columns["index"][-1] > waiting[0].indices[-1]
            ):
                part = waiting.pop(0)
                mine, rows = _parted(rows, part.indices[-1])
                finish(part, mine)
    except ValueError:
        # What is left may be nothing but files that cannot be read.
        unread = {x.path for x in report.skipped}
        if rows or not unread.issuperset(work.manifest.files[i] for i in indices):
            raise
        if not any(part.is_done() and part.about()["rows"] for part in parts):
            raise
    for part in waiting:
        mine, rows = _parted(rows, part.indices[-1])
        finish(part, mine)


def _parted(rows, last):
    """Parts columns into those of files up to an index, and the others."""
    before: list[dict] = []
    after: list[dict] = []
    for columns in rows:
        is_before = columns["index"] <= last
        for group, chosen in ((before, is_before), (after, ~is_before)):
            if chosen.any():
                group.append({name: x[chosen] for name, x in columns.items()})
    return before, after


def _joined(rows):
    return {
        name: np.concatenate([columns[name] for columns in rows]) for name in rows[0]
    }


def _as_table(columns, grid):
    names = ("files", "features", "places", "codes", "labels")
    return FileFeatures(**{name: columns.get(name) for name in names}, grid=grid)


def _fingerprint(model):
    """A short name for weights and settings, equal for equal ones."""
    digest = hashlib.sha256()
    for weight in model.weights:
        array = keras.ops.convert_to_numpy(weight)
        digest.update(np.ascontiguousarray(array).view("uint8").data)
    return digest.hexdigest()[:16]


def _ignore(files):
    """Shows nothing."""


@contextlib.contextmanager
def _progress(console, total, todo):
    """Shows how many files are done; gives the function that moves it on."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} files"),
        TimeRemainingColumn(),
        console=console or Console(),
    )
    done = total - sum(len(part.indices) for part in todo)
    with bar:
        task = bar.add_task("features", total=total, completed=done)
        yield lambda files: bar.advance(task, files)
