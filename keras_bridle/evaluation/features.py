"""Features and codes of arrays and files."""

import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import PIL.Image
from rich.progress import track

from keras_bridle.config import ArgumentError, check
from keras_bridle.data.files import ReadReport, UnreadableFileError, printable
from keras_bridle.data.layouts import list_files
from keras_bridle.modalities import modality_of, patch_grid
from keras_bridle.models.data_sets import is_data_set
from keras_bridle.models.feature_extractor import FeatureModel
from keras_bridle.models.inputs import (
    PixelCheck,
    are_batches,
    as_array,
    as_batch,
    as_examples,
    filled_up,
    open_sides,
)
from keras_bridle.training.checkpoint import atomic_file, write_json
from keras_bridle.training.run import RunDirectory, digest_of_arrays, run_lock

FORMATS = ("npz", "parquet")


class PatchFeatures(NamedTuple):
    """Features `(examples, patches, dim)`; `is_real` is `False` at padded patches."""

    patches: np.ndarray
    is_real: np.ndarray

    def mean(self):
        """Averages the real patches, float32 of shape `(examples, dim)`."""
        weights = self.is_real / self.is_real.sum(axis=1, keepdims=True)
        return np.einsum(
            "np,npd->nd", weights.astype("float32"), self.patches.astype("float32")
        )

    def __getitem__(self, rows):
        return PatchFeatures(self.patches[rows], self.is_real[rows])


class FileFeatures(NamedTuple):
    """Features of files, a row for each readable file or patch.

    Arrays of equal length: names of `files` below their folder, float32 `features`, the
    `patch` (its index in its file's grid, `None` per file), int32 `codes` of shape
    `(rows, levels)` or `(rows, patches, levels)`, -1 at padding, and class `labels`,
    joined by `"; "`; and the `grid`, how many patches a file has along each side.
    """

    files: np.ndarray
    features: np.ndarray
    patch: np.ndarray | None
    codes: np.ndarray | None
    labels: np.ndarray | None
    grid: tuple[int, ...]


class FeatureExtractor:
    """Computes features of arrays and files with a frozen encoder.

    It can be called repeatedly, even if the encoder is trained in between.

    Args:
        backbone: `BridleBackbone`.
        tokenizer: optional `BridleTokenizer` or `RandomProjectionTokenizer`, to get
            codes as well, such as `load_run(directory).tokenizer`.
        per: string. `"file"`: one vector for each input, the mean of its patches.
            `"patch"`: one for each patch.
        segments: int, with `"file"`: concatenates the means of this many equal parts of
            an input. Use several if the order in time matters.

    Call arguments:
        inputs: array of shape `(examples, *input_dims)`, or an iterable over batches
            such as a `tf.data.Dataset`; if batches are tuples, the first entry is used.
        batch_size: int, examples of a step, for an array.

    Returns:
        float32 array of shape `(examples, segments * dim)`; per patch a named tuple of
        `patches`, of shape `(examples, patches, dim)`, and `is_real`. With a tokenizer,
        a tuple of it and int32 codes of shape `(examples, patches, levels)`.

    Example:
    ```python
    import tempfile
    import numpy as np
    from keras_bridle import BridleBackbone
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.evaluation.features import FeatureExtractor, load_file_features

    backbone = BridleBackbone.from_preset("bridle_image_tiny", load_weights=False)
    extract = FeatureExtractor(backbone)
    print(extract(np.zeros((3, 32, 32, 3), "uint8")).shape)  # (3, 128)
    with tempfile.TemporaryDirectory() as folder:
        images = extract_samples(folder) / "fashion_mnist" / "Bag"
        print(extract.files(images).files[0])
        extract.write(f"{folder}/features", images)
        print(load_file_features(f"{folder}/features").features.shape)
    ```
    """

    def __init__(self, backbone, tokenizer=None, per="file", segments=1):
        check(per in ("file", "patch"), "per", '"file" or "patch"', per)
        if segments < 1 or (per == "patch" and segments != 1):
            expected = 'at least 1, and 1 with per="patch"'
            raise ArgumentError("segments", expected, segments)
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.per = per
        self.segments = segments
        wanted = ["features"] if per == "file" else ["patches", "is_real"]
        wanted += [] if tokenizer is None else ["codes"]
        self.model = FeatureModel(backbone, tokenizer, wanted, segments)

    def __call__(self, inputs, batch_size=32):
        found = joined(out for out, _ in self.batches(inputs, batch_size))
        codes = found.pop("codes", None)
        features = found["features"] if self.per == "file" else PatchFeatures(**found)
        return features if codes is None else (features, codes)

    def batches(self, inputs, batch_size=32):
        """Yields a dict of arrays for each batch, and what came with its inputs."""
        for batch, size, others in _batches(inputs, batch_size, self.backbone):
            found = self.model.predict_on_batch(filled_up(batch, size))
            # Restore the order, as JAX sorts the keys.
            names = self.model.wanted
            found = {name: np.asarray(found[name])[: len(batch)] for name in names}
            if "codes" in found:
                # Soft quantizers have several codes for each level.
                found["codes"] = found["codes"].reshape(*found["codes"].shape[:2], -1)
            yield found, others

    def files(self, source, batch_size=32, report=None, **reading):
        """Computes the features of files and keeps them in memory.

        Args:
            source: folder, or list of audio, image or video files.
            batch_size: int, files of a step.
            report: optional `ReadReport` for unreadable files.
            **reading: how to read files, such as `seconds=10`. The default follows the
                encoder's `input_dims`.

        Returns:
            `FileFeatures`.
        """
        work = _Files(self, source, batch_size, reading)
        return _table(work.columns(np.arange(len(work.files)), report), work.grid)

    def write(
        self,
        directory,
        source,
        batch_size=32,
        format="npz",
        part_size=1024,
        resume=False,
        progress=True,
        console=None,
        **reading,
    ):
        """Writes the features of any number of files, part by part; returns a report.

        `directory` gets `parts/`, `skipped_files.csv`, `settings.json`. A stopped run
        resumes with `resume=True` and gives the same result, which
        `load_file_features()` reads.

        Args:
            directory: string or path, created if it is missing.
            source: as in `files()`.
            batch_size: as in `files()`.
            format: `"npz"` or `"parquet"`, which needs pyarrow.
            part_size: int, files of a part.
            resume: bool, whether to resume a run in `directory`.
            progress: bool, whether to show a progress bar.
            console: optional `rich.console.Console`.
            **reading: as in `files()`.

        Returns:
            The `ReadReport` of all files, including earlier starts.
        """
        check(format in FORMATS, "format", f"one of {FORMATS}", format)
        check(part_size >= 1, "part_size", "at least 1", part_size)
        if format == "parquet":
            optional_package("pyarrow.parquet", "parquet")  # fail before the work
        work = _Files(self, source, batch_size, reading)
        settings = {**work.settings(), "format": format, "part_size": part_size}
        with run_lock(directory):
            run = RunDirectory(directory, settings, resume)
            indices = np.arange(len(work.files))
            split = np.split(indices, range(part_size, len(indices), part_size))
            # A part is done when its JSON file exists.
            parts = {
                run.path / "parts" / f"part-{number:06d}.json": part
                for number, part in enumerate(split)
            }
            todo = [note for note in parts if not note.exists()]
            for note in track(todo, "features", console=console, disable=not progress):
                work.write_part(note, parts[note], format)
            notes = [json.loads(path.read_text()) for path in parts]
            report = ReadReport()
            for note in notes:
                for skipped in note["skipped"]:
                    report.add_skipped(*skipped)
                for incomplete in note["incomplete"]:
                    report.add_incomplete(*incomplete)
            report.add_missing(work.files)
            report.write(directory)
            if not any(note["rows"] for note in notes):
                for path in (*parts, run.path / "settings.json"):
                    path.unlink()
                raise ValueError(f"None of the {len(indices)} files can be read.")
        return report


def write_file_features(
    directory, backbone, source, tokenizer=None, per="file", segments=1, **options
):
    """Writes features of files: `FeatureExtractor(...).write(directory, ...)`."""
    extract = FeatureExtractor(backbone, tokenizer, per, segments)
    return extract.write(directory, source, **options)


class InputFeatures:
    """Features of raw inputs without a network; called like a `FeatureExtractor`.

    For recordings: mean and standard deviation of each log-mel bin in `segments` equal
    parts; or, with `shape`, the spectrogram resized to `(frames, bins)`. Both ignore
    padding. For images and clips: gray pixels, resized to `shape`.
    """

    def __init__(self, backbone, segments=1, shape=None):
        self.backbone = backbone
        self.segments = segments
        self.shape = shape

    def __call__(self, inputs, batch_size=32):
        return joined(x for x, _ in self.batches(inputs, batch_size))["features"]

    def batches(self, inputs, batch_size=32):
        """Yields dicts and others, as `FeatureExtractor.batches()` does."""
        is_audio = len(self.backbone.input_dims) == 1
        for batch, size, others in _batches(inputs, batch_size, self.backbone):
            maps, mask = self.backbone.features(filled_up(batch, size))
            maps = keras.ops.convert_to_numpy(maps)[: len(batch)].astype("float32")
            if is_audio:
                mask = np.ones(maps.shape[:2], bool) if mask is None else mask
                mask = keras.ops.convert_to_numpy(mask)[: len(batch)]
                pairs = zip(maps, mask, strict=True)
                rows = [self._of_frames(x[is_real, :, 0]) for x, is_real in pairs]
            else:
                rows = [self._of_pixels(x) for x in maps.mean(axis=-1)]
            yield {"features": np.stack(rows).astype("float32")}, others

    def _of_frames(self, frames):
        if self.shape is not None:
            return _resized(frames, self.shape).reshape(-1)
        segment = np.arange(len(frames)) * self.segments // max(len(frames), 1)
        found = []
        for number in range(self.segments):
            part = frames[segment == number]
            part = part if len(part) else np.zeros_like(frames[:1])
            found += [part.mean(axis=0), part.std(axis=0)]
        return np.concatenate(found)

    def _of_pixels(self, pixels):
        frames = pixels.reshape(-1, *pixels.shape[-2:])
        return np.stack([_resized(x, self.shape or (16, 16)) for x in frames]).ravel()


def _resized(array, shape):
    """Resizes a matrix linearly, with antialiasing."""
    bilinear = PIL.Image.Resampling.BILINEAR
    return np.asarray(PIL.Image.fromarray(array).resize(shape[::-1], bilinear))


def _batches(inputs, batch_size, backbone):
    """Yields batches as arrays, the full batch size, and what came with the inputs."""
    check(batch_size >= 1, "batch_size", "at least 1", batch_size)
    size, checked = None, PixelCheck(backbone)
    dims = open_sides(backbone.input_dims)
    if not (is_data_set(inputs) or are_batches(inputs, dims)):
        array = as_batch(inputs, dims)
        size = min(batch_size, len(array))
        inputs = (array[i : i + size] for i in range(0, len(array), size))
    for batch in inputs:
        batch, *others = batch if isinstance(batch, (tuple, list)) else (batch,)
        if len(batch):
            size = size or len(batch)
            yield as_examples(checked(batch)), size, [as_array(x) for x in others]


def joined(parts):
    """Joins dicts of arrays along their rows."""
    parts = list(parts)
    if not parts:
        raise ValueError("There are no inputs that can be read.")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _Files:
    """Files to extract features from, and how to read them."""

    def __init__(self, extract, source, batch_size, reading):
        self.extract = extract
        self.modality = modality_of(extract.backbone)
        self.files = list_files(self.modality.name, source)
        labels = self.files.classes()
        self.labels = np.array(["; ".join(np.atleast_1d(x)) for x in labels], str)
        self.batch_size = batch_size
        self.reading = self.modality.reading(extract.backbone, **reading)
        self.root = source if isinstance(source, (str, Path)) else None
        shape = self.modality.input_shape(self.reading)
        self.grid = patch_grid(extract.backbone, shape)

    def settings(self):
        names = "\n".join(map(self._name, range(len(self.files))))
        digest = hashlib.sha256(os.fsencode(names)).hexdigest()[:16]
        tokenizer = self.extract.tokenizer
        return {
            "encoder": digest_of_arrays(self.extract.backbone.get_weights()),
            "tokenizer": tokenizer and digest_of_arrays(tokenizer.get_weights()),
            "files": f"{len(self.files)} files, names' digest {digest}",
            "per": self.extract.per,
            "segments": self.extract.segments,
            "reading": self.reading,
        }

    def columns(self, indices, report):
        """Reads some files, and returns columns with a row per file or patch."""
        files = self.files.take(indices).numbered()
        dataset = self.modality.dataset(
            files, self.reading, batch_size=self.batch_size, report=report
        )
        parts = []
        for found, (rows,) in self.extract.batches(dataset):
            about = {"files": np.array([self._name(row) for row in indices[rows]])}
            if self.files.labels is not None:
                about["labels"] = self.labels[indices[rows]]
            if self.extract.per == "patch":
                kept = np.nonzero(found.pop("is_real"))
                found["features"] = found.pop("patches")
                found = {name: values[kept] for name, values in found.items()}
                about = {name: values[kept[0]] for name, values in about.items()}
                about["patch"] = kept[1].astype("int32")
            parts.append(found | about)
        return joined(parts)

    def write_part(self, note, indices, format):
        """Writes the rows of some files, then the JSON file that marks them done."""
        report, columns = ReadReport(), {}
        try:
            columns = self.columns(indices, report)
            save_columns(note.with_suffix(f".{format}"), columns)
        except UnreadableFileError:
            pass  # Other parts may have readable files.
        about = {"skipped": report.skipped, "incomplete": report.incomplete}
        rows = len(columns.get("files", ()))
        write_json(note, {"rows": rows, "grid": self.grid, **about})

    def _name(self, index):
        path = Path(self.files.files[index])
        if self.root is not None and path.is_relative_to(self.root):
            path = path.relative_to(self.root)
        if self.files.segments is None:
            return path.as_posix()
        # The same file may be listed with several segments.
        start, end = self.files.segments[index]
        return f"{path.as_posix()}#t={start:g},{'' if end is None else f'{end:g}'}"


def is_taken(directory):
    """Returns whether a directory holds features."""
    return Path(directory, "settings.json").exists()


def load_file_features(directory):
    """Reads the results of `FeatureExtractor.write()`: `FileFeatures` in file order.

    It ignores parts without a JSON file, which were unfinished.
    """
    parts, grid = [], ()
    for note in sorted(Path(directory, "parts").glob("part-*.json")):
        for file in map(note.with_suffix, (".npz", ".parquet")):
            if file.exists():
                parts.append(load_columns(file))
                grid = tuple(json.loads(note.read_text())["grid"])
    if not parts:
        raise FileNotFoundError(f"There are no features in '{directory}'.")
    return _table(joined(parts), grid)


def _table(columns, grid):
    names = FileFeatures._fields[:-1]
    return FileFeatures(**{name: columns.get(name) for name in names}, grid=grid)


def save_columns(path, columns):
    """Writes a dict of arrays of equal length, atomically."""
    with atomic_file(path) as unfinished:
        if path.suffix == ".npz":
            np.savez(unfinished, **columns)
            return
        parquet = optional_package("pyarrow.parquet", "parquet")
        pyarrow = importlib.import_module("pyarrow")
        arrays, shapes = {}, {}
        for name, values in columns.items():
            if values.dtype.kind == "U":
                # Parquet needs UTF-8, file names need not be.
                values = np.array([printable(text) for text in values])
            arrays[name] = array = pyarrow.array(values.reshape(-1))
            if values.ndim > 1:
                # Rows are fixed-size lists; the metadata has their shapes.
                shapes[name] = shape = values.shape[1:]
                as_lists = pyarrow.FixedSizeListArray.from_arrays
                arrays[name] = as_lists(array, int(np.prod(shape)))
        note = {"keras_bridle": json.dumps({"shapes": shapes})}
        table = pyarrow.table(arrays).replace_schema_metadata(note)
        parquet.write_table(table, unfinished)


def load_columns(path):
    """Reads a file of `save_columns()`."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            columns = dict(file)
    else:
        table = optional_package("pyarrow.parquet", "parquet").read_table(path)
        shapes = json.loads(table.schema.metadata[b"keras_bridle"])["shapes"]
        columns = {}
        for name in table.column_names:
            values = table[name].combine_chunks()
            values = values.flatten() if name in shapes else values
            values = values.to_numpy(zero_copy_only=False)
            values = values.astype(str) if values.dtype == object else values
            columns[name] = values.reshape(-1, *shapes.get(name, ()))
    # Version 0.1 had other names.
    columns = {{"places": "patch"}.get(name, name): x for name, x in columns.items()}
    return {name: x for name, x in columns.items() if name not in ("about", "index")}


def optional_package(name, extra):
    """Imports a package, or raises an error that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f'This needs {name}: pip install "keras-bridle[{extra}]"'
        raise ImportError(message) from error
