"""Labeled files and how they are parted for training and testing."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_bridle.data.file_manifest import FileManifest, existing_file, read_table
from keras_bridle.data.image_manifest import ImageManifest
from keras_bridle.data.manifest import AudioManifest
from keras_bridle.data.video_manifest import VideoManifest

MANIFESTS: dict[str, type[FileManifest]] = {
    "audio": AudioManifest,
    "image": ImageManifest,
    "video": VideoManifest,
}
LAYOUTS = {
    "audio": ("folder", "audioset", "esc50", "speech_commands"),
    "image": ("folder", "imagenet"),
    "video": ("folder", "kinetics"),
}
# How long recordings are where all have one length.
LAYOUT_SECONDS = {"esc50": 5.0, "speech_commands": 1.0}
# What the parts of a data set may be called, the first that there is.
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "eval", "val", "valid", "validation", "dev")
# What a part may be called that is neither for training nor for testing.
VALIDATION_NAMES = ("val", "valid", "validation", "dev")
# The arguments that each layout takes; what others are given would change nothing.
_FOLDING = {"folds", "fold"}
_COLUMNS = {"root", "file_column", "label_column", "label_separator", "split_column"}
_ARGUMENTS = {
    "folder": {"test_data", "test_split", *_COLUMNS, *_FOLDING},
    "audioset": {"test_data", "segments", "test_segments"},
    "esc50": {"fold"},
    "speech_commands": {"test_split"},
    "imagenet": {"ground_truth", "meta"},
    "kinetics": {"test_data", "root", *_FOLDING},
}
_DEFAULTS = {
    "file_column": "file",
    "label_column": "label",
    "split_column": "split",
    "folds": 5,
}


class LabeledFiles(NamedTuple):
    """Files with labels, parted once or several times.

    Args:
        manifest: all files, an `AudioManifest`, `ImageManifest` or `VideoManifest` with
            labels. `manifest.take(indices)` is a manifest of some of them.
        splits: list of tuples `(train, test)` of int arrays, positions of files. Of a
            data set with a test part there is one; of folds there is one for each.
        validation: int array, positions of files that a data set keeps for choosing
            settings, in neither part; `None` if it keeps none.
    """

    manifest: Any
    splits: list[tuple[np.ndarray, np.ndarray]]
    validation: np.ndarray | None = None

    def without_validation(self) -> "LabeledFiles":
        """Leaves out the files of the validation part."""
        if self.validation is None:
            return self
        kept = np.setdiff1d(np.arange(len(self.manifest)), self.validation)
        splits = [
            (np.searchsorted(kept, train), np.searchsorted(kept, test))
            for train, test in self.splits
        ]
        return LabeledFiles(self.manifest.take(kept), splits)


def labeled_files(
    modality: str,
    data: str | Path,
    layout: str = "folder",
    *,
    test_data: str | Path | None = None,
    root: str | Path | None = None,
    segments: str | Path | None = None,
    test_segments: str | Path | None = None,
    ground_truth: str | Path | None = None,
    meta: str | Path | None = None,
    file_column: str = "file",
    label_column: str = "label",
    label_separator: str | None = None,
    split_column: str = "split",
    test_split: str | None = None,
    folds: int = 5,
    fold: int | None = None,
    seed: int = 0,
) -> LabeledFiles:
    """Reads labeled files of any layout, and parts them for training and testing.

    A folder holds one folder for each class; or folders `train` (or `training`) and
    `test` (or `testing`, `eval`, `val`, `valid`, `validation`, `dev`) that do. A CSV
    file has a header and a row for each file; if it has the column `split_column`, that
    parts the files. Where nothing parts them, folds are drawn, of which each in turn is
    the test part. A third part called `val`, `valid`, `validation` or `dev` is neither
    trained nor tested on.

    Args:
        modality: `"audio"`, `"image"` or `"video"`.
        data: the folder or CSV file; the data set's folder, or for `"kinetics"` its
            table.
        layout: `"folder"` (or a CSV file); `"audioset"`, `"esc50"` or
            `"speech_commands"`; `"imagenet"`; `"kinetics"`.
        test_data: the test part, where it lies elsewhere.
        root: folder that names in a CSV file or table start from. Defaults to its own.
        segments: AudioSet's CSV file of training segments.
        test_segments: AudioSet's CSV file of test segments.
        ground_truth: as of `ImageManifest.from_imagenet`.
        meta: likewise.
        file_column: column of a CSV file with the file's name.
        label_column: its column with the class.
        label_separator: text between several classes in it, for multi-label data.
        split_column: its column that parts the files.
        test_split: the part to test on: an entry of that column, a folder's name, or
            `"validation"` of Speech Commands. By default the first there is of `"test"`
            and the names above. Training takes the part `"train"` or `"training"`, or
            all others if there is none, as with numbered folds.
        folds: int, how many folds are drawn. ESC-50 has five of its own.
        fold: int from 1, or `None`: the only fold to test on, or each in turn.
        seed: int, seeds the folds.

    Returns:
        A `LabeledFiles`.

    Raises:
        FileNotFoundError: if something is missing.
        ValueError: for an unknown layout, or where there is no label, one class alone,
            no test part or no such fold; or for an argument that would change nothing.

    Example:
    ```python
    import tempfile
    from keras_bridle.data import extract_samples, labeled_files

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        files = labeled_files("image", folder + "/fashion_mnist", folds=4)
    train, test = files.splits[0]
    print(len(files.splits), len(train), len(test), files.manifest.class_names)
    ```
    """
    if layout not in LAYOUTS.get(modality, ()):
        raise ValueError(
            f"`layout` of {modality!r} must be one of "
            f"{', '.join(LAYOUTS.get(modality, ()))}. Received: {layout!r}"
        )
    kind: Any = MANIFESTS[modality]
    given = _given(
        test_data=test_data,
        root=root,
        segments=segments,
        test_segments=test_segments,
        ground_truth=ground_truth,
        meta=meta,
        file_column=file_column,
        label_column=label_column,
        label_separator=label_separator,
        split_column=split_column,
        test_split=test_split,
        folds=folds,
        fold=fold,
    )
    _refuse(given - _ARGUMENTS[layout], f"for the layout {layout!r}")
    if test_data is not None:
        _refuse(given & {"test_split", "split_column", *_FOLDING}, "with `test_data`")
    paths = [Path(path) for path in (data, test_data) if path is not None]
    if layout == "folder" and all(path.is_dir() for path in paths):
        _refuse(given & _COLUMNS, "for folders")
    folding: dict[str, Any] = {"folds": folds, "fold": fold, "seed": seed}
    if layout == "esc50":
        return _esc50(data, fold)
    if layout == "audioset":
        if segments is None or test_segments is None:
            raise ValueError(
                "AudioSet needs `segments` and `test_segments`, its CSV files. "
                f"Received: segments={segments}, test_segments={test_segments}"
            )
        return _parts(
            kind.from_audioset(segments, data),
            kind.from_audioset(
                test_segments,
                data if test_data is None else test_data,
                class_labels_csv=Path(segments).parent / "class_labels_indices.csv",
            ),
        )
    if layout == "speech_commands":
        names = ["train", test_split or "test"]
        if test_split is None:
            names.append("validation")
        return _parts(*(kind.from_speech_commands(data, split=x) for x in names))
    if layout == "imagenet":
        return _parts(
            kind.from_imagenet(data),
            kind.from_imagenet(data, split="val", ground_truth=ground_truth, meta=meta),
        )
    columns = {
        "root": root,
        "file_column": file_column,
        "label_column": label_column,
        "label_separator": label_separator,
    }
    if test_data is not None:
        read = (
            (lambda path: kind.from_kinetics(path, root=root))
            if layout == "kinetics"
            else (lambda path: _table_or_class_folders(kind, path, columns))
        )
        return _parts(read(data), read(test_data))
    if layout == "kinetics":
        return _folded(kind.from_kinetics(data, root=root), **folding)
    if Path(data).is_dir():
        return _folder(kind, Path(data), test_split, folding, given)
    return _table(kind, data, columns, split_column, test_split, folding, given)


def deal_folds(labels: Sequence[Any], folds: int, seed: int = 0) -> np.ndarray:
    """Deals rows to folds at random, so that each has about as many of every class.

    Args:
        labels: one class number, or for multi-label data one tuple of them, per row.
        folds: int, at least 2.
        seed: int.

    Returns:
        Int array of shape `(rows,)` of values from 0 to `folds - 1`.
    """
    if not 2 <= folds <= len(labels):
        raise ValueError(
            f"`folds` must lie between 2 and the {len(labels)} files. Received: {folds}"
        )
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    # Of several classes, the first will do.
    classes = np.array(
        [(*label, -1)[0] if isinstance(label, tuple) else label for label in labels]
    )
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    dealt = np.empty(len(labels), "int64")
    dealt[by_class] = np.arange(len(labels)) % folds
    return dealt


def _esc50(data: str | Path, fold: int | None) -> LabeledFiles:
    manifest = AudioManifest.from_esc50(data)
    table = read_table(Path(data, "meta", "esc50.csv"), ["fold"])
    return _by_fold(manifest, np.array([int(row["fold"]) - 1 for row in table]), fold)


def _given(**arguments: Any) -> set[str]:
    return {name for name, value in arguments.items() if value != _DEFAULTS.get(name)}


def _refuse(names: set[str], where: str) -> None:
    if names:
        listed = ", ".join(f"`{name}`" for name in sorted(names))
        raise ValueError(f"{listed} would change nothing {where}")


def _folder(
    kind: Any,
    data: Path,
    test_split: str | None,
    folding: dict[str, Any],
    given: set[str],
) -> LabeledFiles:
    names = {path.name for path in data.iterdir() if path.is_dir()}
    train, test = _first_of(TRAIN_NAMES, names), _test_name(names, test_split)
    if train is not None and test is not None:
        _refuse(given & _FOLDING, "where there is a test part")
        parts = [train, test, _validation_name(names, test)]
        return _parts(
            *(kind.from_folder(data / x, class_folders=True) for x in parts if x)
        )
    if test_split is not None or _are_parts(data, names):
        raise ValueError(
            f"'{data}' has no folders `train` and "
            f"`{test_split or '` or `'.join(TEST_NAMES)}`. Its folders: "
            f"{sorted(names)[:10]}"
        )
    return _folded(kind.from_folder(data, class_folders=True), **folding)


def _table(
    kind: Any,
    data: str | Path,
    columns: dict[str, Any],
    split_column: str,
    test_split: str | None,
    folding: dict[str, Any],
    given: set[str],
) -> LabeledFiles:
    manifest = kind.from_csv(data, **columns)
    rows = read_table(existing_file(data), [columns["file_column"]])
    if split_column not in rows[0]:
        if test_split is not None:
            raise ValueError(
                f"'{data}' has no column '{split_column}'. Its columns: {list(rows[0])}"
            )
        return _folded(manifest, **folding)
    _refuse(given & _FOLDING, "where there is a test part")
    parts = np.array([(row[split_column] or "").strip() for row in rows])
    names = set(parts.tolist())
    test = _test_name(names, test_split)
    if test is None:
        raise ValueError(
            f"'{data}' has no part {test_split or ' or '.join(TEST_NAMES)} in its "
            f"column '{split_column}', but {sorted(names)[:10]}"
        )
    is_test = parts == test
    is_validation = parts == _validation_name(names, test)
    named = _first_of(TRAIN_NAMES, names)
    is_train = ~(is_test | is_validation) if named is None else parts == named
    train, tested, held_out = map(np.flatnonzero, (is_train, is_test, is_validation))
    if not len(train):
        raise ValueError(
            f"'{data}' has no row to train on: its column '{split_column}' has only "
            f"{', '.join(map(repr, sorted(names)))}"
        )
    validation = held_out if len(held_out) else None
    return _of_classes(manifest, [(train, tested)], validation)


def _table_or_class_folders(
    kind: Any, path: str | Path, columns: dict[str, Any]
) -> FileManifest:
    if Path(path).is_dir():
        return kind.from_folder(path, class_folders=True)
    return kind.from_csv(path, **columns)


def _are_parts(data: Path, names: set[str]) -> bool:
    """Whether some folders, or all, are parts of a data set and not classes."""
    # A class may be called so, whose folder holds files alone.
    with_folders = {x for x in names if any(y.is_dir() for y in (data / x).iterdir())}
    named = {x for x in names if x.casefold() in (*TRAIN_NAMES, *TEST_NAMES)}
    for_training = {x for x in named if x.casefold() in TRAIN_NAMES}
    return bool(with_folders & (named if named == names else for_training))


def _first_of(wanted: Sequence[str], names: set[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _test_name(names: set[str], test_split: str | None) -> str | None:
    return _first_of(TEST_NAMES if test_split is None else (test_split,), names)


def _validation_name(names: set[str], test: str) -> str | None:
    return _first_of(VALIDATION_NAMES, names - {test})


def _folded(
    manifest: FileManifest, folds: int, fold: int | None, seed: int
) -> LabeledFiles:
    if manifest.labels is None:
        raise ValueError("The files have no labels.")
    return _by_fold(manifest, deal_folds(manifest.labels, folds, seed), fold)


def _by_fold(
    manifest: FileManifest, fold_of_file: np.ndarray, fold: int | None
) -> LabeledFiles:
    folds = int(fold_of_file.max()) + 1
    if fold is not None and not 1 <= fold <= folds:
        raise ValueError(f"`fold` must lie between 1 and {folds}. Received: {fold}")
    chosen = range(folds) if fold is None else [fold - 1]
    return _of_classes(
        manifest,
        [
            (np.flatnonzero(fold_of_file != i), np.flatnonzero(fold_of_file == i))
            for i in chosen
        ],
    )


def _of_classes(
    manifest: FileManifest,
    splits: list[tuple[np.ndarray, np.ndarray]],
    validation: np.ndarray | None = None,
) -> LabeledFiles:
    if not manifest.multi_label and len(manifest.class_names) < 2:
        raise ValueError(
            "There must be files of two or more classes. Found only "
            f"{manifest.class_names[0]!r}, as of '{manifest.files[0]}'"
        )
    return LabeledFiles(manifest, splits, validation)


def _parts(*parts: Any) -> LabeledFiles:
    """Joins two or three manifests to one, whose classes are those of all."""
    if any(part.labels is None for part in parts):
        raise ValueError("The files have no labels.")
    names = list(dict.fromkeys(name for part in parts for name in part.class_names))
    joined: dict[str, Any] = {"files": [], "labels": [], "class_names": names}
    for part in parts:
        number = np.array([names.index(name) for name in part.class_names])
        joined["files"] += part.files
        joined["labels"] += [
            tuple(number[list(label)].tolist())
            if isinstance(label, tuple)
            else int(number[label])
            for label in part.labels
        ]
    if hasattr(parts[0], "missing"):
        joined["missing"] = [name for part in parts for name in part.missing]
    ends = np.cumsum([len(part) for part in parts])
    places = np.split(np.arange(ends[-1]), ends[:-1])
    return _of_classes(
        dataclasses.replace(parts[0], **joined),
        [(places[0], places[1])],
        places[2] if len(places) > 2 else None,
    )
