"""Well-known data sets, and labeled files in any layout."""

import csv
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_bridle.data.files import (
    FileManifest,
    check_some_exist,
    existing_file,
    existing_folder,
    number_labels,
    read_labeled_table,
    read_table,
)


@dataclasses.dataclass(frozen=True)
class AudioManifest(FileManifest):
    """A list of audio files, with labels where there are any.

    Usually made by one of the `from_...` methods. They look at names only; the files
    are opened by `audio_dataset`.

    Args:
        files: paths of the recordings.
        labels: `None`; or one class number per file; or, for multi-label data, one
            tuple of class numbers per file.
        class_names: the names that the class numbers index.
        segments: `None`, or one `(start, end)` in seconds per file: the part of the
            file that is the recording. An end of `None` is the end of the file. The
            same file may be listed with several segments.
        missing: names that a data set's table lists and its folder does not hold.

    Raises:
        ValueError: if the list is empty, the lengths do not fit together, a label
            has no class name, or a segment is empty.

    Example:
    ```python
    from keras_bridle.data.layouts import AudioManifest

    manifest = AudioManifest(
        files=["a.wav", "b.wav"], labels=[0, 1], class_names=["cat", "dog"]
    )
    print(len(manifest), manifest.class_names)
    ```
    """

    kind = "audio"
    extensions = (".wav", ".flac", ".ogg", ".mp3")

    segments: Sequence[tuple[float, float | None]] | None = None
    missing: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_count("segments", self.segments)
        for file, (start, end) in zip(self.files, self.segments or (), strict=False):
            if start < 0 or (end is not None and end <= start):
                raise ValueError(
                    "A segment must start at 0 s or later and end after its start. "
                    f"Received: {start} s to {end} s for '{file}'"
                )

    def _taken(self, indices: list[int]) -> dict[str, Any]:
        taken = super()._taken(indices)
        if self.segments is not None:
            taken["segments"] = [self.segments[i] for i in indices]
        return taken

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        *,
        root: str | Path | None = None,
        file_column: str = "file",
        label_column: str | None = None,
        label_separator: str | None = None,
        start_column: str | None = None,
        end_column: str | None = None,
        split_column: str = "split",
        split: str | Iterable[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "AudioManifest":
        """Reads a table with a header line and one recording per row.

        Args:
            path: the CSV file, in UTF-8.
            root: folder that relative file names start from. Defaults to the CSV's.
            file_column: column with the file's name.
            label_column: column with the class, or `None` for no labels.
            label_separator: if given, the label column may name several classes, or
                none, with this text between them.
            start_column: column with the second at which the recording starts in its
                file; an empty cell is 0.
            end_column: column with the second at which it ends; an empty cell is the
                end of the file.
            split_column: column that `split` is compared with.
            split: text or texts: only rows with one of them are taken. `None` takes
                all rows.
            class_names: the classes in their order. Defaults to all that occur in the
                table, sorted; rows of other splits count, so that every split
                numbers its classes alike.

        Returns:
            An `AudioManifest` in the table's order.

        Raises:
            FileNotFoundError: if the table, or every file it names, is missing.
            ValueError: if a column is missing, no row is left, a label is unknown or
                a time is no number.

        Example:
        ```python
        import tempfile
        from keras_bridle.data.layouts import AudioManifest
        from keras_bridle.data.samples import extract_samples

        with tempfile.TemporaryDirectory() as folder:
            extract_samples(folder)
            manifest = AudioManifest.from_csv(
                folder + "/mandarin_syllables/mandarin_syllables.csv",
                label_column="tone",
                split="test",
            )
        print(len(manifest), manifest.class_names)
        ```
        """
        path = existing_file(path)
        times = [name for name in (start_column, end_column) if name]
        rows, files, labels, names = read_labeled_table(
            path,
            root=root,
            file_column=file_column,
            label_column=label_column,
            label_separator=label_separator,
            split_column=split_column,
            split=split,
            class_names=class_names,
            other_columns=times,
        )
        segments = None
        if times:
            segments = [
                (
                    _seconds(row, start_column, path) or 0.0,
                    _seconds(row, end_column, path),
                )
                for row in rows
            ]
        return cls(files, labels, names, segments)

    @classmethod
    def from_audioset(
        cls,
        segments_csv: str | Path,
        directory: str | Path,
        *,
        class_labels_csv: str | Path | None = None,
        whole_videos: bool = False,
    ) -> "AudioManifest":
        """Reads one of AudioSet's segment tables, for multi-label classification.

        Videos disappear, so nobody has all of them: those without a file are listed
        in `missing`. A file belongs to a video if its name, without the extension, is
        the 11-character id, with or without a `Y` before it and anything that begins
        with `_` after it (`Y--PJHxphWEs.wav`, `--PJHxphWEs_30.000_40.000.flac`).

        Args:
            segments_csv: `balanced_train_segments.csv`, `eval_segments.csv` or
                `unbalanced_train_segments.csv`.
            directory: folder with the recordings, with all its subfolders.
            class_labels_csv: `class_labels_indices.csv`. Defaults to that file next to
                the segment table.
            whole_videos: bool. Whether the files are whole soundtracks, from which the
                segment is to be cut; by default they are the 10-second clips.

        Returns:
            A multi-label `AudioManifest` in the table's order.

        Raises:
            FileNotFoundError: if a table or the folder is missing.
            ValueError: if a table is not in AudioSet's format, or the folder holds no
                file of the table.

        Reference:
            Gemmeke et al., Audio Set: an ontology and human-labeled dataset for audio
            events (ICASSP 2017).
        """
        segments_csv = existing_file(segments_csv)
        if class_labels_csv is None:
            class_labels_csv = segments_csv.parent / "class_labels_indices.csv"
        classes = read_table(
            existing_file(class_labels_csv), ["index", "mid", "display_name"]
        )
        classes.sort(key=lambda row: int(row["index"]))
        number = {row["mid"]: i for i, row in enumerate(classes)}
        rows = list(_audioset_rows(segments_csv, number))
        root = existing_folder(directory)
        paths = _paths_by_id(cls.list_files(root), {row[0] for row in rows})
        found = [row for row in rows if row[0] in paths]
        if not found:
            raise ValueError(
                f"'{root}' holds no recording of the {len(rows)} that "
                f"'{segments_csv}' lists. Expected names such as '{rows[0][0]}.wav' "
                f"or 'Y{rows[0][0]}.flac'"
            )
        return cls(
            [str(root / paths[row[0]]) for row in found],
            [row[3] for row in found],
            [row["display_name"] for row in classes],
            [(row[1], row[2]) for row in found] if whole_videos else None,
            missing=[row[0] for row in rows if row[0] not in paths],
        )

    @classmethod
    def from_esc50(
        cls, directory: str | Path, *, folds: Sequence[int] | None = None
    ) -> "AudioManifest":
        """Reads ESC-50: 2,000 recordings of 5 s in 50 classes and 5 folds.

        Args:
            directory: the data set's folder, with `meta/esc50.csv` and `audio/`.
            folds: which of the folds 1 to 5 to take; `None` takes all. Published
                results are the mean over five runs, each tested on the fold that it
                was not trained on.

        Returns:
            An `AudioManifest` in the table's order.

        Raises:
            FileNotFoundError: if the folder, its table or its files are missing.
            ValueError: for a fold that the table does not have.

        Reference:
            Piczak, ESC: dataset for environmental sound classification (ACM MM 2015).
        """
        root = existing_folder(directory)
        table = existing_file(root / "meta" / "esc50.csv")
        rows = read_table(table, ["filename", "fold", "target", "category"])
        by_target = {int(row["target"]): row["category"] for row in rows}
        return cls.from_csv(
            table,
            root=root / "audio",
            file_column="filename",
            label_column="category",
            split_column="fold",
            split=None if folds is None else [str(fold) for fold in folds],
            class_names=[by_target[target] for target in sorted(by_target)],
        )

    @classmethod
    def from_speech_commands(
        cls, directory: str | Path, *, split: str
    ) -> "AudioManifest":
        """Reads Speech Commands version 2: one spoken word of 35 per second of audio.

        Folders whose name begins with `_` (the background noise) are no class.

        Args:
            directory: the data set's folder, with one folder per word,
                `validation_list.txt` and `testing_list.txt`.
            split: `"train"` (all that neither list names), `"validation"` or `"test"`.

        Returns:
            An `AudioManifest` sorted by path; classes are the words, sorted.

        Raises:
            FileNotFoundError: if the folder or a list is missing.
            ValueError: for another split, or one without files.

        Reference:
            Warden, Speech Commands: a dataset for limited-vocabulary speech recognition
            (arXiv 1804.03209).
        """
        if split not in ("train", "validation", "test"):
            raise ValueError(
                f"`split` must be 'train', 'validation' or 'test'. Received: {split!r}"
            )
        root = existing_folder(directory)
        held_out = {
            name: set(existing_file(root / list_name).read_text("utf-8").split())
            for name, list_name in (
                ("validation", "validation_list.txt"),
                ("test", "testing_list.txt"),
            )
        }
        paths = [
            path
            for path in cls.list_files(root)
            if len(path.parts) == 2 and not path.parts[0].startswith("_")
        ]
        labels, class_names = number_labels([path.parts[0] for path in paths])
        if split == "train":
            named = held_out["validation"] | held_out["test"]
            kept = [i for i, path in enumerate(paths) if path.as_posix() not in named]
        else:
            named = held_out[split]
            kept = [i for i, path in enumerate(paths) if path.as_posix() in named]
        if not kept:
            raise ValueError(
                f"'{root}' holds no {split} file: {len(paths)} files in "
                f"{len(class_names)} class folders, {len(named)} names in the lists"
            )
        return cls(
            [str(root / paths[i]) for i in kept], [labels[i] for i in kept], class_names
        )


def _seconds(row: dict[str, str], column: str | None, path: Path) -> float | None:
    text = row[column].strip() if column else ""
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(
            f"'{path}': column '{column}' must hold seconds. Received: {text!r}"
        ) from None


_Row = tuple[str, float, float, tuple[int, ...]]


def _audioset_rows(path: Path, number: dict[str, int]) -> Iterator[_Row]:
    """Yields `(id, start, end, classes)` of a table with # comment lines."""
    empty = True
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file, skipinitialspace=True):
            if not row or row[0].startswith("#"):
                continue
            try:
                name, start, end, mids = row
                classes = tuple(number[mid] for mid in mids.split(",") if mid)
                yield name, float(start), float(end), classes
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"'{path}' has a row that is not AudioSet's 'id, start, end, "
                    f'"classes"\', or names an unknown class: {row} ({error!r})'
                ) from None
            empty = False
    if empty:
        raise ValueError(f"'{path}' lists no segments.")


def _paths_by_id(paths: list[Path], wanted: set[str]) -> dict[str, Path]:
    """Maps YouTube ids (11 characters, which may be `_` or `-`) to their files."""
    by_id: dict[str, Path] = {}
    for path in paths:
        # The id itself first: it may begin with a Y of its own.
        for text in (path.stem, path.stem[1:] if path.stem.startswith("Y") else ""):
            if text[:11] in wanted and (len(text) == 11 or text[11] == "_"):
                by_id.setdefault(text[:11], path)
                break
    return by_id


@dataclasses.dataclass(frozen=True)
class ImageManifest(FileManifest):
    """A list of JPEG, PNG and WebP files, with labels where there are any.

    Usually made by `from_folder` (a flat folder, any tree, or with `class_folders` one
    folder per class), by `from_csv` or by `from_imagenet`. They look at names only; the
    files are opened by `image_dataset`.

    Args:
        files: paths of the pictures.
        labels: `None`; or one class number per file; or, for multi-label data, one
            tuple of class numbers per file.
        class_names: the names that the class numbers index.

    Raises:
        ValueError: if the list is empty, the lengths do not fit together or a label
            has no class name.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.layouts import ImageManifest
    from keras_bridle.data.samples import extract_samples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        manifest = ImageManifest.from_folder(
            folder + "/fashion_mnist", class_folders=True
        )
    print(len(manifest), manifest.class_names)
    ```
    """

    kind = "image"
    extensions = (".jpg", ".jpeg", ".png", ".webp")

    @classmethod
    def from_imagenet(
        cls,
        directory: str | Path,
        *,
        split: str = "train",
        ground_truth: str | Path | None = None,
        meta: str | Path | None = None,
    ) -> "ImageManifest":
        """Reads ImageNet-1K: folders `train/` and `val/`.

        In `train/`, each class has a folder named by its synset, such as `n01440764`.
        So may `val/`; or its files lie side by side, as they come in the archive, and
        `ground_truth` tells their classes. Classes are numbered in the order of their
        sorted synsets, those of `train/` if it is there.

        Args:
            directory: folder with `train/` and `val/`, or one of them.
            split: `"train"` or `"val"`.
            ground_truth: only for a `val/` without folders, one of: a CSV file with the
                columns `ImageId` and `PredictionString` (`LOC_val_solution.csv`); a
                list with a file's name and its synset, or the number of its class from
                0, on each line; or the development kit's
                `ILSVRC2012_validation_ground_truth.txt`, which needs `meta`.
            meta: the development kit's `meta.mat`, whose order of classes is not that
                of the synsets.

        Returns:
            An `ImageManifest` sorted by path; class names are synsets.

        Raises:
            FileNotFoundError: if a folder or file is missing.
            ValueError: for another split, or if lists and files do not fit.

        Reference:
            Russakovsky et al., ImageNet large scale visual recognition challenge
            (arXiv 1409.0575).
        """
        if split not in ("train", "val"):
            raise ValueError(f"`split` must be 'train' or 'val'. Received: {split!r}")
        root = existing_folder(Path(existing_folder(directory), split))
        paths = cls.list_files(root)
        trained = Path(directory, "train")
        synsets = _folders(trained) if trained.is_dir() else []
        if all(len(path.parts) > 1 for path in paths):
            names = [path.parts[0] for path in paths]
        elif split == "val" and ground_truth is not None:
            names = _classes_of_flat_files(
                [path.name for path in paths],
                existing_file(ground_truth),
                meta,
                synsets,
            )
        else:
            raise ValueError(
                f"'{root}' has pictures outside any class's folder, such as "
                f"'{next(path for path in paths if len(path.parts) < 2)}'. Expected: "
                "folders named by synsets, or `ground_truth` for a flat `val`"
            )
        labels, class_names = number_labels(names, synsets or None)
        return cls([str(root / path) for path in paths], labels, class_names)


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def _classes_of_flat_files(
    files: list[str], path: Path, meta: str | Path | None, synsets: list[str]
) -> list[str]:
    """Returns the synset of each file, which come sorted by name."""
    lines = [line.split() for line in path.read_text("utf-8-sig").splitlines()]
    lines = [line for line in lines if line]
    if path.suffix == ".csv":
        by_stem = _solution(path)
    elif all(len(line) == 1 for line in lines):
        if meta is None:
            raise ValueError(
                f"'{path}' numbers classes in the development kit's order: pass its "
                "`meta.mat` as `meta`"
            )
        if len(lines) != len(files):
            raise ValueError(
                f"'{path}' must have one line for each of the {len(files)} pictures. "
                f"Received: {len(lines)}"
            )
        number = _synsets_of_kit(existing_file(meta))
        by_stem = {
            Path(file).stem: _lookup(number, line[0], path)
            for file, line in zip(files, lines, strict=True)
        }
    else:
        by_number = {str(index): name for index, name in enumerate(synsets)}
        by_stem = {
            Path(line[0]).stem: _lookup(by_number, line[-1], path)
            if line[-1].isdecimal()
            else line[-1]
            for line in lines
        }
    unlisted = [file for file in files if Path(file).stem not in by_stem]
    if unlisted:
        raise ValueError(
            f"'{path}' does not tell the class of {len(unlisted)} pictures, such as "
            f"'{unlisted[0]}'"
        )
    return [by_stem[Path(file).stem] for file in files]


def _solution(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"ImageId", "PredictionString"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"'{path}' must have the columns ImageId and PredictionString. Its "
                f"columns: {reader.fieldnames}"
            )
        return {
            row["ImageId"]: row["PredictionString"].split()[0]
            for row in reader
            if row["PredictionString"]
        }


def _synsets_of_kit(path: Path) -> dict[str, str]:
    """Maps the kit's numbers to synsets; inner nodes of WordNet's tree are no class."""
    from scipy.io import loadmat

    table = loadmat(path, squeeze_me=True)["synsets"]
    return {
        str(int(row["ILSVRC2012_ID"])): str(row["WNID"])
        for row in table
        if int(row["num_children"]) == 0
    }


def _lookup(names: dict[str, str], number: str, path: Path) -> str:
    if number not in names:
        raise ValueError(
            f"'{path}' names class {number}, of {len(names)} known ones. Class numbers "
            "need the folder `train`, whose synsets they number"
        )
    return names[number]


@dataclasses.dataclass(frozen=True)
class VideoManifest(FileManifest):
    """A list of video files, with labels where there are any.

    Usually made by `from_folder` (a flat folder, any tree, or with `class_folders` one
    folder per class), by `from_csv` for a table with a header, or by `from_kinetics`
    for that data set's tables and the list without a header that video models are
    usually trained with. They look at names only; the files are opened by
    `video_dataset`.

    Args:
        files: paths of the videos.
        labels: `None`; or one class number per file; or, for multi-label data, one
            tuple of class numbers per file.
        class_names: the names that the class numbers index.
        missing: names that a data set's table lists and its folder does not hold.

    Raises:
        ValueError: if the list is empty, the lengths do not fit together or a label
            has no class name.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.layouts import VideoManifest
    from keras_bridle.data.samples import extract_samples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        manifest = VideoManifest.from_folder(folder)
    print(manifest.files)
    ```
    """

    kind = "video"
    extensions = (
        ".mp4",
        ".m4v",
        ".mov",
        ".mpg",
        ".mpeg",
        ".webm",
        ".mkv",
        ".avi",
    )

    missing: Sequence[str] = ()

    @classmethod
    def from_kinetics(
        cls,
        path: str | Path,
        *,
        root: str | Path | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "VideoManifest":
        r"""Reads Kinetics' own tables, or a list of `path label` or `path,label` lines.

        **A table** has a header with `youtube_id`, `time_start` and `time_end` (whole
        seconds) and, but for some test sets, `label`. Its videos may lie anywhere below
        `root` and are named `id_000012_000022.mp4` after their times, or by the id
        alone. Videos disappear, so nobody has all of them: those without a file are
        listed in `missing`.

        **A list** has no header. Lines are split at their last comma if all of them
        have one, else at their last space or tab, so that a path may contain spaces.
        Empty lines are left out.

        Args:
            path: the table or list, in UTF-8.
            root: folder with the videos, that relative file names start from. Defaults
                to the list's.
            class_names: the classes in their order. If the labels are numbers, they
                index it; by default, classes are then named by their numbers. If the
                labels are names, the default is all that occur, sorted.

        Returns:
            A `VideoManifest` in the list's order.

        Raises:
            FileNotFoundError: if the list, or every file it names, is missing.
            ValueError: if the list is empty, a line has no label or a label is unknown,
                or a table's times are no whole seconds.

        Example:
        ```python
        import pathlib
        import tempfile
        from keras_bridle.data.layouts import VideoManifest
        from keras_bridle.data.samples import extract_samples

        with tempfile.TemporaryDirectory() as folder:
            extract_samples(folder)
            table = pathlib.Path(folder, "train.csv")
            table.write_text("city.mpg street\nconcert.mp4 concert")
            manifest = VideoManifest.from_kinetics(table, root=folder + "/video")
        print(manifest.labels, manifest.class_names)
        ```
        """
        path = existing_file(path)
        lines = path.read_text("utf-8-sig").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        if not lines:
            raise ValueError(f"'{path}' lists no videos.")
        if "youtube_id" in lines[0].replace('"', "").split(","):
            return cls._from_kinetics_table(path, root, class_names)
        separator = "," if all("," in line for line in lines) else None
        pairs = [line.rsplit(separator, 1) for line in lines]
        for line, pair in zip(lines, pairs, strict=True):
            if len(pair) < 2 or not all(part.strip() for part in pair):
                raise ValueError(
                    f"'{path}': every line must be 'path label' or 'path,label'. "
                    f"Received: {line!r}"
                )
        folder = Path(root) if root is not None else path.parent
        files = [str(folder / pair[0].strip()) for pair in pairs]
        check_some_exist(files, path)
        texts = [pair[1].strip() for pair in pairs]
        if not all(text.isdecimal() for text in texts):
            return cls(files, *number_labels(texts, class_names))
        labels = [int(text) for text in texts]
        if class_names is None:
            class_names = [str(number) for number in range(max(labels) + 1)]
        return cls(files, labels, tuple(class_names))

    @classmethod
    def _from_kinetics_table(
        cls,
        path: Path,
        root: str | Path | None,
        class_names: Sequence[str] | None,
    ) -> "VideoManifest":
        rows = read_table(path, ["youtube_id", "time_start", "time_end"])
        folder = existing_folder(path.parent if root is None else root)
        by_stem = {file.stem: str(folder / file) for file in cls.list_files(folder)}
        stems = [_stem(row, path) for row in rows]
        files = [
            by_stem.get(stem) or by_stem.get(row["youtube_id"])
            for stem, row in zip(stems, rows, strict=True)
        ]
        if not any(files):
            raise FileNotFoundError(
                f"'{folder}' holds none of the {len(rows)} videos that '{path}' lists. "
                f"Expected names such as '{stems[0]}.mp4'; is `root` right?"
            )
        labels, names = None, tuple(class_names or ())
        if "label" in rows[0]:
            numbers, names = number_labels([row["label"] for row in rows], class_names)
            labels = [
                number for number, file in zip(numbers, files, strict=True) if file
            ]
        return cls(
            [file for file in files if file],
            labels,
            names,
            missing=[stem for stem, file in zip(stems, files, strict=True) if not file],
        )


def _stem(row: dict[str, str], path: Path) -> str:
    """The name of a cut-out video's file: the video, start and end in seconds."""
    try:
        start, end = int(row["time_start"]), int(row["time_end"])
    except ValueError:
        raise ValueError(
            f"'{path}': times must be whole seconds. Received: {row['time_start']!r} "
            f"to {row['time_end']!r} for {row['youtube_id']!r}"
        ) from None
    return f"{row['youtube_id']}_{start:06d}_{end:06d}"


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
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.data.layouts import labeled_files

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
