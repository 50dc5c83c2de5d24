"""Lists of the files of well-known data sets."""

import csv
from pathlib import Path

from keras_bridle.data.files import (
    FileList,
    check,
    find_files,
    joined,
    list_folder,
    number_labels,
    read_table,
    subfolders,
)


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
        # The id itself first: it may begin with a Y of its own.
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
    labels, names = number_labels(classes, [name_of[x] for x in sorted(name_of)])
    files = [str(data / "audio" / row["filename"]) for row in rows]
    return FileList(kind, files, labels, names, splits=[row["fold"] for row in rows])


def speech_commands(kind, data):
    """Speech Commands version 2, one of 35 words per second: arXiv 1804.03209."""
    split_of = {
        name: split
        for split, table in (("validation", "validation"), ("test", "testing"))
        for name in (data / f"{table}_list.txt").read_text("utf-8").split()
    }
    # `_background_noise_` is no class.
    paths = [
        path
        for path in find_files(kind, data)[0]
        if len(path.parts) == 2 and not path.parts[0].startswith("_")
    ]
    labels, names = number_labels([path.parts[0] for path in paths])
    files = [str(data / path) for path in paths]
    splits = [split_of.get(path.as_posix(), "train") for path in paths]
    return FileList(kind, files, labels, names, splits=splits)


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
        # What the list lacks is no class.
        classes = [synset.get(path.stem, path.name) for path in paths]
        labels, names = number_labels(classes, synsets)
        parts["val"] = FileList(kind, [str(val / x) for x in paths], labels, names)
    return joined(parts)


def _ground_truth(path, meta, synsets, images):
    """Reads the synsets of images, by the stem of the file's name."""
    if path.suffix == ".csv":
        rows = read_table(path, ["ImageId", "PredictionString"])
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    lines = [line.split() for line in path.read_text("utf-8-sig").splitlines() if line]
    names = {str(index): name for index, name in enumerate(synsets)}
    if all(len(line) == 1 for line in lines):
        check(meta is not None, "meta", f"the kit's `meta.mat` for '{path}'", meta)
        # The kit has an order of its own, and inner nodes of WordNet's tree.
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
        return FileList(kind, files, *number_labels(classes))
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
    if "label" not in rows[0]:
        return FileList(kind, files, missing=missing)
    labels, names = number_labels(classes, sorted({row["label"] for row in rows}))
    return FileList(kind, files, labels, names, missing=missing)
