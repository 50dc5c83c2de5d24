"""Lists of the files of known data sets, and their splits."""

import csv
import inspect
import warnings
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_bridle.data.files import (
    FileList,
    check,
    copies,
    csv_table,
    find_files,
    joined,
    list_folder,
    read_table,
    subfolders,
)

LAYOUTS = {
    "audio": ("folder", "csv", "audioset", "esc50", "speech_commands"),
    "image": ("folder", "csv", "imagenet"),
    "video": ("folder", "csv", "kinetics"),
}
# The length of recordings in data sets where all are equally long.
LAYOUT_SECONDS = {"esc50": 5.0, "speech_commands": 1.0}
# Names of splits. If a data set has several of them, the first one counts.
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "eval", "val", "valid", "validation", "dev")
VALIDATION_NAMES = ("val", "valid", "validation", "dev")


def list_files(
    kind: str,
    data: str | Path | FileList | Iterable[str],
    layout: str = "folder",
    *,
    labels: bool = False,
    split: str | Collection[str] | None = None,
    test_data: str | Path | None = None,
    **options: Any,
) -> FileList:
    """Lists the files of a data set, with labels and splits if it has them.

    Only names and tables are read; the files are opened by `file_dataset()`.

    - `"folder"`: all files below a folder. With `labels=True`, the folder holds one
      folder per class; or folders such as `train`, `test` and `val` that contain these.
    - `"csv"`: a table with a header and one file per row, which `"folder"` takes, too.
    - `"audioset"`: a folder of AudioSet's clips, and its tables of segments. Missing
      clips are listed in `missing`.
    - `"esc50"`: ESC-50, whose five folds are the splits.
    - `"speech_commands"`: Speech Commands version 2, with its three splits.
    - `"imagenet"`: ImageNet-1K, folders `train` and `val`.
    - `"kinetics"`: one of Kinetics' tables, or a list of `path label` or `path,label`
      lines without a header.

    Args:
        kind: `"audio"`, `"image"` or `"video"`.
        data: folder or table; or a list of paths; or a `FileList`, which is returned.
        layout: how the data set is laid out, see above.
        labels: bool. Whether a folder or table must have labels, as other layouts do.
        split: name or names of splits, to list only their files.
        test_data: the test split, if it is elsewhere; `data` is then for training.
        **options: options of the layout; `None` means not given. Folder: `test_split`,
            the folder of the test split. CSV: `root`, the folder that file names start
            from, by default the table's; `file_column` (`"file"`); `label_column`
            (`"label"` with `labels=True`); `label_separator`, the text between several
            classes of a file, for multi-label data; `split_column` (`"split"` if there
            is one). AudioSet: `segments` and `test_segments`, its tables, with
            `class_labels_indices.csv` next to the first. ImageNet: `ground_truth`, the
            classes of a `val` without class folders (the development kit's list,
            `LOC_val_solution.csv`, or lines of a file's name and its synset or class
            number); `meta`, the development kit's `meta.mat`, which its list needs.
            Kinetics: `root`, as of a CSV file.

    Returns:
        A `FileList`. Folders are sorted by path, tables keep their order.

    Raises:
        FileNotFoundError: if a folder or table is missing.
        ValueError: if there is no file, a table is invalid, a file lacks a label, or an
            option is not for the layout.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.layouts import list_files
    from keras_bridle.data.samples import extract_samples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        images = list_files("image", folder + "/fashion_mnist", labels=True)
        print(len(images), images.class_names)
        table = folder + "/mandarin_syllables/mandarin_syllables.csv"
        train = list_files("audio", table, label_column="tone", split="train")
        print(len(train), train.class_names)
    ```
    """
    if isinstance(data, FileList):
        check(data.kind == kind, "data", f"a list of {kind} files", data.kind)
        return data
    if not isinstance(data, str | Path):
        return FileList(kind, [str(path) for path in data])
    layouts = LAYOUTS.get(kind, ())
    expected = f"one of {', '.join(layouts)} for {kind} files"
    check(layout in layouts, "layout", expected, layout)
    if test_data is not None and layout != "audioset":
        train, test = (
            list_files(kind, path, layout, labels=labels, **options)
            for path in (data, test_data)
        )
        files = joined({"train": train, "test": test})
    else:
        if layout == "folder" and Path(data).is_file():
            layout = "csv"
        options["test_data"] = test_data
        if layout in ("folder", "csv"):
            options["labels"] = labels
        options = {name: value for name, value in options.items() if value is not None}
        function = _FUNCTIONS[layout]
        known = inspect.signature(function).parameters
        for name, value in options.items():
            check(name in known, name, f"left out for layout {layout!r}", value)
        files = function(kind, Path(data), **options)
    if labels and files.labels is None:
        raise ValueError(f"The files of '{data}' have no labels.")
    if split is not None:
        wanted = {split} if isinstance(split, str) else set(split)
        splits = files.splits or [""] * len(files)
        expected = f"among the splits {sorted(set(splits))}"
        check(wanted <= set(splits), "split", expected, sorted(wanted))
        files = files.take(i for i, name in enumerate(splits) if name in wanted)
    return files


def _folder(kind, data, labels=False, test_split=None):
    """A folder of files; with labels, of class folders, maybe within splits."""
    if not labels:
        return list_folder(kind, data)
    names = subfolders(data)
    train, test, validation = _roles(names, test_split)
    if train and test:
        splits = [name for name in (train, test, validation) if name]
        return joined({name: list_folder(kind, data / name, True) for name in splits})
    if test_split is not None or _are_splits(data, names):
        raise ValueError(
            f"'{data}' has no folders `train` and `{test_split or 'test'}`. Its "
            f"folders: {names[:10]}"
        )
    return list_folder(kind, data, True)


def _are_splits(root, names):
    """Returns whether folders are splits of a data set rather than classes."""
    # A folder with files alone may be a class that is called like a split.
    with_folders = {name for name in names if subfolders(root / name)}
    named = {x for x in names if x.casefold() in (*TRAIN_NAMES, *TEST_NAMES)}
    for_training = {x for x in named if x.casefold() in TRAIN_NAMES}
    return bool(with_folders & (named if len(named) == len(names) else for_training))


def audioset(kind, data, segments=None, test_segments=None, test_data=None):
    """AudioSet, multi-label: Gemmeke et al., ICASSP 2017."""
    check(segments is not None, "segments", "AudioSet's table of segments", segments)
    labels = Path(str(segments)).parent / "class_labels_indices.csv"
    classes = read_table(labels, ["index", "mid", "display_name"])
    classes.sort(key=lambda row: int(row["index"]))
    tables = {"train": (data, segments), "test": (test_data or data, test_segments)}
    return joined(
        {
            split: _audioset_clips(kind, Path(folder), Path(table), classes)
            for split, (folder, table) in tables.items()
            if table is not None
        }
    )


def _audioset_clips(kind, root, table, classes):
    number = {row["mid"]: i for i, row in enumerate(classes)}
    labels: dict[str, tuple[int, ...]] = {}
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file, skipinitialspace=True):
            if not row or row[0].startswith("#"):
                continue
            try:
                name, _, _, mids = row
                labels[name] = tuple(number[mid] for mid in mids.split(",") if mid)
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"'{table}' has a row that is not AudioSet's 'id, start, end, "
                    f'"classes"\', or names an unknown class: {row}'
                ) from error
    paths = _paths_by_id(find_files(kind, root)[0], labels)
    if not paths:
        raise ValueError(
            f"'{root}' holds none of the {len(labels)} recordings of '{table}'. "
            f"Expected names such as '{next(iter(labels), 'id')}.wav'"
        )
    found = [name for name in labels if name in paths]
    return FileList(
        kind,
        [str(root / paths[name]) for name in found],
        [labels[name] for name in found],
        [row["display_name"] for row in classes],
        missing=[name for name in labels if name not in paths],
    )


def _paths_by_id(paths, wanted):
    """Maps YouTube ids (11 characters, which may be `_` or `-`) to their files.

    Files may be called `Y--PJHxphWEs.wav` or `--PJHxphWEs_30.000_40.000.flac`.
    """
    by_id: dict[str, Path] = {}
    for path in paths:
        # Try the whole stem first, as an id may itself begin with a Y.
        for text in (path.stem, path.stem[1:] if path.stem.startswith("Y") else ""):
            if text[:11] in wanted and (len(text) == 11 or text[11] == "_"):
                by_id.setdefault(text[:11], path)
                break
    return by_id


def esc50(kind, data):
    """ESC-50, 2,000 recordings of 5 s in 50 classes: Piczak, ACM MM 2015."""
    columns = ["filename", "fold", "target", "category"]
    rows = read_table(data / "meta" / "esc50.csv", columns)
    name_of = {int(row["target"]): row["category"] for row in rows}
    classes = [row["category"] for row in rows]
    paths = [str(data / "audio" / row["filename"]) for row in rows]
    files = FileList(kind, paths, splits=[row["fold"] for row in rows])
    return files.with_classes(classes, [name_of[x] for x in sorted(name_of)])


def speech_commands(kind, data):
    """Speech Commands version 2, one of 35 words per second: arXiv 1804.03209."""
    split_of = {
        name: split
        for split, table in (("validation", "validation"), ("test", "testing"))
        for name in (data / f"{table}_list.txt").read_text("utf-8").split()
    }
    # `_background_noise_` is not a class.
    paths = [
        path
        for path in find_files(kind, data)[0]
        if len(path.parts) == 2 and not path.parts[0].startswith("_")
    ]
    splits = [split_of.get(path.as_posix(), "train") for path in paths]
    files = FileList(kind, [str(data / path) for path in paths], splits=splits)
    return files.with_classes([path.parts[0] for path in paths])


def imagenet(kind, data, ground_truth=None, meta=None):
    """ImageNet-1K, whose classes are synsets: arXiv 1409.0575."""
    train, val = data / "train", data / "val"
    synsets = subfolders(train)
    parts = {"train": list_folder(kind, train, True, synsets)}
    if ground_truth is None:
        parts["val"] = list_folder(kind, val, True, synsets)
    else:
        paths, _ = find_files(kind, val)
        synset = _ground_truth(Path(ground_truth), meta, synsets, paths)
        # Images that the list lacks get their file name, which is not a class.
        classes = [synset.get(path.stem, path.name) for path in paths]
        files = FileList(kind, [str(val / path) for path in paths])
        parts["val"] = files.with_classes(classes, synsets)
    return joined(parts)


def _ground_truth(path, meta, synsets, images):
    """Reads the synsets of images by the stem of their file names."""
    if path.suffix == ".csv":
        rows = read_table(path, ["ImageId", "PredictionString"])
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    lines = [line.split() for line in path.read_text("utf-8-sig").splitlines() if line]
    names = {str(index): name for index, name in enumerate(synsets)}
    if all(len(line) == 1 for line in lines):
        check(meta is not None, "meta", f"the kit's `meta.mat` for '{path}'", meta)
        # The kit numbers synsets in its own order, and includes WordNet's inner nodes.
        from scipy.io import loadmat

        names = {
            str(int(row["ILSVRC2012_ID"])): str(row["WNID"])
            for row in loadmat(meta, squeeze_me=True)["synsets"]
            if int(row["num_children"]) == 0
        }
        lines = [[image.name, *line] for image, line in zip(images, lines, strict=True)]
    return {Path(line[0]).stem: names.get(line[-1], line[-1]) for line in lines}


def kinetics(kind, path, root=None):
    """A table of Kinetics, or a list without a header."""
    lines = path.read_text("utf-8-sig").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    folder = path.parent if root is None else Path(root)
    if lines and "youtube_id" in lines[0].replace('"', "").split(","):
        return _kinetics_table(kind, path, folder)
    # Paths may contain spaces.
    separator = "," if all("," in line for line in lines) else None
    files, classes = [], []
    for line in lines:
        parts = [part.strip() for part in line.rsplit(separator, 1)]
        if len(parts) < 2 or not all(parts):
            raise ValueError(
                f"'{path}': every line must be 'path label' or 'path,label'. "
                f"Received: {line!r}"
            )
        files.append(str(folder / parts[0]))
        classes.append(parts[1])
    if not all(name.isdecimal() for name in classes):
        return FileList(kind, files).with_classes(classes)
    labels = [int(name) for name in classes]
    names = [str(number) for number in range(max(labels, default=-1) + 1)]
    return FileList(kind, files, labels, names)


def _kinetics_table(kind, path, folder):
    rows = read_table(path, ["youtube_id", "time_start", "time_end"])
    by_stem = {file.stem: str(folder / file) for file in find_files(kind, folder)[0]}
    files, classes, missing = [], [], []
    for row in rows:
        start, end = int(row["time_start"]), int(row["time_end"])
        stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        file = by_stem.get(stem) or by_stem.get(row["youtube_id"])
        if file is None:
            missing.append(stem)
        else:
            files.append(file)
            classes.append(row.get("label"))
    if not files:
        raise FileNotFoundError(
            f"'{folder}' holds none of the {len(rows)} videos that '{path}' lists. "
            f"Expected names such as '{missing[0]}.mp4'; is `root` right?"
        )
    found = FileList(kind, files, missing=missing)
    if "label" not in rows[0]:
        return found
    return found.with_classes(classes, sorted({row["label"] for row in rows}))


_FUNCTIONS: dict[str, Callable[..., FileList]] = {
    "folder": _folder,
    "csv": csv_table,
    **{x.__name__: x for x in (audioset, esc50, speech_commands, imagenet, kinetics)},
}


def splits_of(files, test_split=None, folds=None, fold=None, seed=0, report=None):
    """Splits labeled files: returns `(train, test)` pairs of indices, and validation's.

    With a test split (`test_split`, or the first match of `TEST_NAMES`), training uses
    the train split, or all other files if there is none, except the validation split.
    Splits that are numbers are folds, each tested in turn. Without splits, files are
    dealt to `folds` (5) random folds, stratified by class. `fold` (from 1) selects a
    single one to test on.

    Files of the same content are kept in one split, test before validation before
    train. A line says so, in `report` or as a warning.
    """
    if files.labels is None:
        raise ValueError("The files have no labels.")
    if not files.multi_label and len(files.class_names) < 2:
        raise ValueError(
            "There must be files of two or more classes. Found only "
            f"{files.class_names[0]!r}, as of '{files.files[0]}'"
        )
    held_out = np.array([], int)
    if test_split is None and all(map(str.isdecimal, files.splits or ())):
        pairs = _pairs_of_folds(files, folds, fold, seed)
    else:
        pair, held_out = _named_splits(files, test_split)
        for name, value in (("folds", folds), ("fold", fold)):
            check(value is None, name, "left out where there is a test split", value)
        pairs = [pair]
    same, found = copies(files), []
    is_tested = np.isin(same[held_out], same[pairs[0][1]])
    held_out, left_out = held_out[~is_tested], 0
    for train, test in pairs:
        is_copy = np.isin(same[train], same[np.r_[test, held_out]])
        left_out = max(left_out, int(is_copy.sum() + is_tested.sum()))
        found.append((train[~is_copy], test))
        expected = "files to train on that are not tested"
        check(not is_copy.all(), "data", expected, "none")
    if left_out:
        note = (
            f"{left_out} files are in several splits: they are tested, not trained on"
        )
        if report is None:
            warnings.warn(note, stacklevel=2)
        else:
            report.notes.append(note)
    return found, held_out if len(held_out) else None


def _pairs_of_folds(files, folds, fold, seed):
    if files.splits is None:
        number_of = deal_folds(files.labels, folds or 5, seed) + 1
    else:
        number_of = np.array(list(map(int, files.splits)))
    numbers = np.unique(number_of).tolist()
    check(fold in (None, *numbers), "fold", f"one of {numbers}", fold)
    tested = [number_of == x for x in (numbers if fold is None else [fold])]
    return [(np.flatnonzero(~x), np.flatnonzero(x)) for x in tested]


def _named_splits(files, test_split):
    splits = np.array(files.splits or [""] * len(files))
    names = np.unique(splits).tolist()
    train, test, validation = _roles(names, test_split)
    if test is None:
        wanted = test_split or " or ".join(TEST_NAMES)
        raise ValueError(f"There is no split {wanted}, but {', '.join(names[:10])}")
    is_held_out = splits == validation
    is_trained = splits == train if train else (splits != test) & ~is_held_out
    if not is_trained.any():
        raise ValueError(f"There is no split to train on, but {', '.join(names)}")
    pair = (np.flatnonzero(is_trained), np.flatnonzero(splits == test))
    return pair, np.flatnonzero(is_held_out)


def _roles(names, test_split):
    """Finds the names of the train, test and validation splits, or `None`."""

    def first(wanted):
        return next((name for name in wanted if name in names), None)

    test = first(TEST_NAMES if test_split is None else (test_split,))
    validation = [name for name in VALIDATION_NAMES if name != test]
    return [first(TRAIN_NAMES), test, first(validation)]


def deal_folds(labels, folds, seed=0):
    """Deals files to folds 0, 1, ... at random, with equal shares of each class."""
    expected = f"from 2 to the {len(labels)} files"
    check(2 <= folds <= len(labels), "folds", expected, folds)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    # Files with several classes are dealt by the first.
    classes = np.array(
        [(*label, -1)[0] if isinstance(label, tuple) else label for label in labels]
    )
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    dealt = np.empty(len(labels), "int64")
    dealt[by_class] = np.arange(len(labels)) % folds
    return dealt
