"""Lists of recordings, from folders, tables and well-known data sets."""

import csv
import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")

Labels = Sequence[int] | Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class AudioManifest:
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
    from keras_bridle.data import AudioManifest

    manifest = AudioManifest(
        files=["a.wav", "b.wav"], labels=[0, 1], class_names=["cat", "dog"]
    )
    print(len(manifest), manifest.class_names)
    ```
    """

    files: Sequence[str]
    labels: Labels | None = None
    class_names: Sequence[str] = ()
    segments: Sequence[tuple[float, float | None]] | None = None
    missing: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not len(self.files):
            raise ValueError("`files` must name at least one file. Received none.")
        for name in ("labels", "segments"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.files):
                raise ValueError(
                    f"`{name}` must have one entry per file. Received: "
                    f"{len(values)} for {len(self.files)} files"
                )
        if self.labels is not None:
            self._check_labels(self.labels)
        for file, (start, end) in zip(self.files, self.segments or (), strict=False):
            if start < 0 or (end is not None and end <= start):
                raise ValueError(
                    "A segment must start at 0 s or later and end after its start. "
                    f"Received: {start} s to {end} s for '{file}'"
                )

    def _check_labels(self, labels: Labels) -> None:
        numbers = {n for label in labels for n in np.atleast_1d(label).tolist()}
        classes = len(self.class_names)
        if numbers and not (min(numbers) >= 0 and max(numbers) < classes):
            raise ValueError(
                f"`labels` must number the {classes} `class_names`. Received: "
                f"numbers from {min(numbers)} to {max(numbers)}"
            )

    def __len__(self) -> int:
        return len(self.files)

    @property
    def multi_label(self) -> bool:
        """Whether a recording may have several classes, or none."""
        return self.labels is not None and isinstance(self.labels[0], tuple)

    def label_array(self, index: int) -> np.ndarray:
        """Returns one recording's label as a network wants it.

        Args:
            index: int. Position in `files`.

        Returns:
            int32 scalar array with the class number; for multi-label data, float32
            array of shape `(classes,)` of zeros and ones.
        """
        if self.labels is None:
            raise ValueError("This manifest has no labels.")
        label = self.labels[index]
        if not isinstance(label, tuple):
            return np.asarray(label, "int32")
        hot = np.zeros(len(self.class_names), "float32")
        hot[list(label)] = 1.0
        return hot

    @classmethod
    def from_folder(
        cls, directory: str | Path, *, class_folders: bool = False
    ) -> "AudioManifest":
        """Lists every WAV, FLAC, OGG and MP3 file below a folder.

        Files come sorted by their path within the folder. Names that begin with a dot
        are left out, as are other kinds of files. Letter case does not matter.

        Args:
            directory: folder to look through, with all its subfolders.
            class_folders: bool. Whether the first subfolder on the way to a file is
                its class.

        Returns:
            An `AudioManifest`, with labels if `class_folders`.

        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: if it holds no audio file, or a file lies outside any class
                folder.

        Example:
        ```python
        import tempfile
        from keras_bridle.data import AudioManifest, extract_samples

        with tempfile.TemporaryDirectory() as folder:
            extract_samples(folder)
            manifest = AudioManifest.from_folder(folder, class_folders=True)
        print(len(manifest), manifest.class_names)
        ```
        """
        root = existing_folder(directory)
        paths = list_audio(root)
        files = [str(root / path) for path in paths]
        if not class_folders:
            return cls(files)
        stray = [path for path in paths if len(path.parts) < 2]
        if stray:
            raise ValueError(
                "With `class_folders`, every file must lie in a class's folder. "
                f"Received: {len(stray)} directly in '{root}', such as '{stray[0]}'"
            )
        names = [path.parts[0] for path in paths]
        labels, class_names = number_labels(names)
        return cls(files, labels, class_names)

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
        from keras_bridle.data import AudioManifest, extract_samples

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
        needed = [file_column, label_column, start_column, end_column]
        if split is not None:
            needed.append(split_column)
        rows = read_table(path, [name for name in needed if name is not None])
        texts: list[Any] = []
        if label_column:
            texts = [row[label_column] for row in rows]
        if label_separator is not None:
            texts = [_split_label(text, label_separator) for text in texts]
        labels, names = number_labels(texts, class_names)
        kept = list(range(len(rows)))
        if split is not None:
            splits = {split} if isinstance(split, str) else set(split)
            kept = [i for i in kept if rows[i][split_column] in splits]
            _check_split(kept, splits, {row[split_column] for row in rows}, path)
        folder = Path(root) if root is not None else path.parent
        files = [str(folder / rows[i][file_column]) for i in kept]
        if not any(Path(file).is_file() for file in files):
            raise FileNotFoundError(
                f"None of the {len(files)} files that '{path}' names exists. "
                f"Looked for '{files[0]}' first; is `root` right?"
            )
        segments = None
        if start_column or end_column:
            segments = [
                (
                    _seconds(rows[i], start_column, path) or 0.0,
                    _seconds(rows[i], end_column, path),
                )
                for i in kept
            ]
        return cls(
            files, [labels[i] for i in kept] if label_column else None, names, segments
        )

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
        paths = _paths_by_id(list_audio(root), {row[0] for row in rows})
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
            for path in list_audio(root)
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


def existing_folder(directory: str | Path) -> Path:
    """Returns the folder as a path, or says that there is none."""
    directory = Path(directory)
    if not directory.is_dir():
        kind = "is a file" if directory.exists() else "does not exist"
        raise FileNotFoundError(f"Expected a folder, but '{directory}' {kind}.")
    return directory


def existing_file(path: str | Path) -> Path:
    """Returns the file as a path, or says that there is none."""
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.exists() else "does not exist"
        raise FileNotFoundError(f"Expected a file, but '{path}' {kind}.")
    return path


def list_audio(root: Path) -> list[Path]:
    """Lists the audio files below a folder as sorted paths relative to it."""
    found, others = [], Counter[str]()
    for path in _walk(root):
        if path.suffix.lower() in AUDIO_EXTENSIONS:
            found.append(path.relative_to(root))
        else:
            others[path.suffix.lower() or "(no extension)"] += 1
    if not found:
        seen = ", ".join(f"{count} {name}" for name, count in others.most_common(5))
        raise ValueError(
            f"No audio file in '{root}' or its subfolders. Looked for "
            f"{', '.join(AUDIO_EXTENSIONS)} (any letter case); other files seen: "
            f"{others.total()}{f' ({seen})' if seen else ''}"
        )
    return sorted(found, key=Path.as_posix)


def _walk(root: Path) -> Iterator[Path]:
    """Yields the files below a folder; follows links, but into no folder twice."""
    visited = {root.resolve()}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            target = (Path(folder) / name).resolve()
            if target in visited:
                folders.remove(name)
            visited.add(target)
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads a CSV with a header line and checks that it has the columns and rows."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        absent = [name for name in columns if name not in header]
        if absent:
            raise ValueError(
                f"'{path}' has no column {absent}. Its columns: {list(header)}"
            )
        rows = list(reader)
    if not rows:
        raise ValueError(f"'{path}' has a header but no rows.")
    for line, row in enumerate(rows, start=2):
        if any(row[name] is None for name in columns):
            raise ValueError(f"'{path}', row {line}: too few columns: {list(row)}")
    return rows


def number_labels(
    texts: Sequence[Any], class_names: Sequence[str] | None = None
) -> tuple[Any, tuple[str, ...]]:
    """Turns classes' names (or tuples of them) into numbers.

    Args:
        texts: one name, or one tuple of names, per recording.
        class_names: the classes in order. Defaults to those that occur, sorted.

    Returns:
        A tuple `(labels, class_names)`.
    """
    groups = [text if isinstance(text, tuple) else (text,) for text in texts]
    occurring = {name for group in groups for name in group}
    if class_names is None:
        class_names = sorted(occurring)
    unknown = sorted(occurring - set(class_names))
    if unknown and texts:
        raise ValueError(
            f"`class_names` lacks {len(unknown)} classes that occur: {unknown[:5]}"
        )
    number = {name: index for index, name in enumerate(class_names)}
    labels: list[Any] = [
        tuple(number[name] for name in text)
        if isinstance(text, tuple)
        else number[text]
        for text in texts
    ]
    return labels, tuple(class_names)


def _split_label(text: str, separator: str) -> tuple[str, ...]:
    names = (name.strip() for name in text.split(separator))
    return tuple(dict.fromkeys(name for name in names if name))


def _check_split(kept: list[int], wanted: set[str], present: set[str], path: Path):
    if wanted - present or not kept:
        raise ValueError(
            f"`split` asks for {sorted(wanted)}, but '{path}' has {sorted(present)}"
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
