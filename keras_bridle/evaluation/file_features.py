"""Features and codes of files: in memory, or written part by part."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from keras_bridle.data.read_report import ReadReport
from keras_bridle.evaluation.feature_extractor import run_batches
from keras_bridle.evaluation.feature_parts import load_part, save_part
from keras_bridle.evaluation.file_inputs import (
    clip_shape,
    file_dataset,
    manifest_of,
    patch_grid,
    reading_options,
)
from keras_bridle.evaluation.patch_features import patch_outputs
from keras_bridle.pretraining.atomic_files import atomic_file
from keras_bridle.pretraining.run_directory import RunDirectory
from keras_bridle.pretraining.run_lock import RunLock


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
    from keras_bridle.data import extract_samples
    from keras_bridle.evaluation import extract_file_features

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
    from keras_bridle.data import extract_samples
    from keras_bridle.evaluation import load_file_features, write_file_features

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
        stack.enter_context(RunLock(directory))
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
    from keras_bridle.data import extract_samples
    from keras_bridle.evaluation import load_file_features, write_file_features

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
