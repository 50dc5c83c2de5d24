"""Lists of files, and reports of those that cannot be read."""

import csv
import dataclasses
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np

Labels = Sequence[int] | Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class FileManifest:
    """A list of files, with labels where there are any.

    The base of `AudioManifest`, `ImageManifest` and `VideoManifest`; use one of these.

    Args:
        files: paths of the files.
        labels: `None`; or one class number per file; or, for multi-label data, one
            tuple of class numbers per file.
        class_names: the names that the class numbers index.

    Raises:
        ValueError: if the list is empty, the lengths do not fit together or a label
            has no class name.
    """

    # What the files are, for messages, and the names that count as such.
    kind: ClassVar[str]
    extensions: ClassVar[tuple[str, ...]]

    files: Sequence[str]
    labels: Labels | None = None
    class_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not len(self.files):
            raise ValueError("`files` must name at least one file. Received none.")
        self._check_count("labels", self.labels)
        if self.labels is not None:
            self._check_labels(self.labels)

    def _check_count(self, name: str, values: Sequence[Any] | None) -> None:
        if values is not None and len(values) != len(self.files):
            raise ValueError(
                f"`{name}` must have one entry per file. Received: "
                f"{len(values)} for {len(self.files)} files"
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
        """Whether a file may have several classes, or none."""
        return self.labels is not None and isinstance(self.labels[0], tuple)

    def label_array(self, index: int) -> np.ndarray:
        """Returns one file's label as a network wants it.

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

    def all_labels(self) -> np.ndarray:
        """Returns the labels of all files, as probes and scores want them.

        Returns:
            int32 array of shape `(files,)`; for multi-label data, uint8 array of shape
            `(files, classes)` of zeros and ones: AudioSet has 2 million files and 527
            classes.

        Raises:
            ValueError: if there are none.
        """
        if self.labels is None:
            raise ValueError("This manifest has no labels.")
        if not self.multi_label:
            return np.asarray(self.labels, "int32")
        hot = np.zeros((len(self), len(self.class_names)), "uint8")
        for row, label in zip(hot, self.labels, strict=True):
            row[list(cast(tuple, label))] = 1
        return hot

    def take(self, indices: Iterable[int]) -> Self:
        """Returns a manifest of some of the files, in the order they are named.

        Args:
            indices: ints, positions in `files`.
        """
        indices = [int(index) for index in indices]
        return dataclasses.replace(self, **self._taken(indices))

    def _taken(self, indices: list[int]) -> dict[str, Any]:
        """The fields of which each file has an entry, for some of the files."""
        labels = self.labels
        return {
            "files": [self.files[i] for i in indices],
            "labels": None if labels is None else [labels[i] for i in indices],
        }

    @classmethod
    def from_source(cls, source: "FileManifest | str | Path | Sequence[str]") -> Self:
        """Returns what a dataset is made from as a manifest of this class.

        Args:
            source: a manifest; or a folder, read with `from_folder`; or files.

        Raises:
            ValueError: for a manifest of another class.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, FileManifest):
            raise ValueError(
                f"`source` must be of class {cls.__name__}. "
                f"Received: {type(source).__name__}"
            )
        if isinstance(source, str | Path):
            return cls.from_folder(source)
        return cls([str(path) for path in source])

    @classmethod
    def from_folder(cls, directory: str | Path, *, class_folders: bool = False) -> Self:
        """Lists every file of the right kind below a folder.

        Files come sorted by their path within the folder. Names that begin with a dot
        are left out, as are names with other extensions. Letter case does not matter.

        Args:
            directory: folder to look through, with all its subfolders.
            class_folders: bool. Whether the first subfolder on the way to a file is
                its class. Classes are numbered in the order of their sorted names.

        Returns:
            A manifest, with labels if `class_folders`.

        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: if it holds no such file, or a file lies outside any class
                folder.
        """
        root = existing_folder(directory)
        paths = cls.list_files(root)
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
        split_column: str = "split",
        split: str | Iterable[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> Self:
        """Reads a table with a header line and one file per row.

        Args:
            path: the CSV file, in UTF-8.
            root: folder that relative file names start from. Defaults to the CSV's.
            file_column: column with the file's name.
            label_column: column with the class, or `None` for no labels. Spaces around
                it do not count.
            label_separator: if given, the label column may name several classes, or
                none, with this text between them.
            split_column: column that `split` is compared with.
            split: text or texts: only rows with one of them are taken. `None` takes
                all rows.
            class_names: the classes in their order. Defaults to all that occur in the
                table, sorted; rows of other splits count, so that every split
                numbers its classes alike.

        Returns:
            A manifest in the table's order.

        Raises:
            FileNotFoundError: if the table, or every file it names, is missing.
            ValueError: if a column is missing, no row is left, a label is unknown or
                missing, or the file is none of text in UTF-8.
        """
        _, files, labels, names = read_labeled_table(
            existing_file(path),
            root=root,
            file_column=file_column,
            label_column=label_column,
            label_separator=label_separator,
            split_column=split_column,
            split=split,
            class_names=class_names,
        )
        return cls(files, labels, names)

    @classmethod
    def list_files(cls, root: Path) -> list[Path]:
        """Lists the right files below a folder as sorted paths relative to it."""
        found, others = [], Counter[str]()
        for path in _walk(root):
            if path.suffix.lower() in cls.extensions:
                found.append(path.relative_to(root))
            else:
                others[path.suffix.lower() or "(no extension)"] += 1
        if not found:
            seen = ", ".join(f"{count} {name}" for name, count in others.most_common(5))
            raise ValueError(
                f"No {cls.kind} file in '{root}' or its subfolders. Looked for "
                f"{', '.join(cls.extensions)} (any letter case); other files seen: "
                f"{others.total()}{f' ({seen})' if seen else ''}"
            )
        return sorted(found, key=Path.as_posix)


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


def check_some_exist(files: Sequence[str], table: Path) -> None:
    """Raises if none of the files that a table names exists: its root is wrong."""
    if not any(Path(file).is_file() for file in files):
        raise FileNotFoundError(
            f"None of the {len(files)} files that '{table}' names exists. "
            f"Looked for '{files[0]}' first; is `root` right?"
        )


def read_labeled_table(
    path: Path,
    *,
    root: str | Path | None,
    file_column: str,
    label_column: str | None,
    label_separator: str | None,
    split_column: str,
    split: str | Iterable[str] | None,
    class_names: Sequence[str] | None,
    other_columns: Sequence[str] = (),
) -> tuple[list[dict[str, str]], list[str], Labels | None, tuple[str, ...]]:
    """Reads a table as `FileManifest.from_csv` says.

    Returns:
        A tuple `(rows, files, labels, class_names)` of the rows that `split` leaves.
    """
    needed = [file_column, *other_columns]
    if label_column:
        needed.append(label_column)
    if split is not None:
        needed.append(split_column)
    rows = read_table(path, needed)
    kept = list(range(len(rows)))
    if split is not None:
        splits = {split} if isinstance(split, str) else set(split)
        parts = [row[split_column].strip() for row in rows]
        kept = [i for i in kept if parts[i] in splits]
        _check_split(kept, splits, set(parts), path)
    texts: list[Any] = []
    if label_column:
        texts = [row[label_column].strip() for row in rows]
    if label_separator is not None:
        texts = [_split_label(text, label_separator) for text in texts]
    elif label_column:
        _check_labeled(texts, kept, path, label_column)
        # Those of other splits need no class.
        texts = [text or () for text in texts]
    labels, names = number_labels(texts, class_names)
    folder = Path(root) if root is not None else path.parent
    files = [str(folder / rows[i][file_column]) for i in kept]
    check_some_exist(files, path)
    kept_labels = [labels[i] for i in kept] if label_column else None
    return [rows[i] for i in kept], files, kept_labels, names


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads a CSV with a header line and checks that it has the columns and rows."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or [])
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{path}' is no CSV file in UTF-8: {error}") from error
    absent = [name for name in columns if name not in header]
    if absent:
        raise ValueError(f"'{path}' has no column {absent}. Its columns: {header}")
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
        texts: one name, or one tuple of names, per file.
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


def _split_label(text: str, separator: str) -> tuple[str, ...]:
    names = (name.strip() for name in text.split(separator))
    return tuple(dict.fromkeys(name for name in names if name))


def _check_labeled(texts: list[str], kept: list[int], path: Path, column: str):
    empty = [i for i in kept if not texts[i]]
    if empty:
        # The header is row 1.
        raise ValueError(
            f"'{path}', row {empty[0] + 2}: no class in the column '{column}'; "
            f"{len(empty)} rows have none. Files with several classes or none need "
            "`label_separator`"
        )


def _check_split(kept: list[int], wanted: set[str], present: set[str], path: Path):
    if wanted - present or not kept:
        raise ValueError(
            f"`split` asks for {sorted(wanted)}, but '{path}' has {sorted(present)}"
        )


class SkippedFile(NamedTuple):
    """A file that could not be read, and why."""

    path: str
    reason: str


class IncompleteFile(NamedTuple):
    """A file that was read although something of it is missing, and what."""

    path: str
    reason: str


class ReadReport:
    """Counts the clips that a pipeline read and lists the files that it skipped.

    Pass one to `audio_dataset`, `image_dataset` or `video_dataset` and look at it, or
    write it, at any time; a pipeline's threads may still be adding to it. Each file is
    listed once however often it was tried.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.files import ReadReport

    report = ReadReport()
    report.add_skipped("broken.wav", "Format not recognised.")
    with tempfile.TemporaryDirectory() as directory:
        print(report.write(directory).read_text())
    ```
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read = 0
        self._skipped: dict[str, str] = {}
        self._incomplete: dict[str, str] = {}

    @property
    def read(self) -> int:
        """Clips read so far, every epoch counted."""
        return self._read

    @property
    def skipped(self) -> list[SkippedFile]:
        """The files skipped so far, sorted by path."""
        with self._lock:
            return [SkippedFile(*item) for item in sorted(self._skipped.items())]

    @property
    def incomplete(self) -> list[IncompleteFile]:
        """The files read although they are too short or broken, sorted by path."""
        with self._lock:
            return [IncompleteFile(*item) for item in sorted(self._incomplete.items())]

    def add_read(self) -> None:
        """Counts one clip as read."""
        with self._lock:
            self._read += 1

    def add_skipped(self, path: str, reason: str) -> None:
        """Lists a file as skipped; its first reason stays."""
        with self._lock:
            self._skipped.setdefault(path, reason)

    def add_incomplete(self, path: str, reason: str) -> None:
        """Lists a file as read in part; its first reason stays."""
        with self._lock:
            self._incomplete.setdefault(path, reason)

    def add_missing(self, manifest: Any) -> None:
        """Lists the files as skipped that a manifest's table names and nobody has."""
        for name in getattr(manifest, "missing", ()):
            self.add_skipped(name, "listed, but not in the folder")

    def write(self, directory: str | Path) -> Path:
        """Writes `skipped_files.csv`, with the columns `file` and `reason`.

        If files were incomplete, `incomplete_files.csv` tells of them in the same way.

        Args:
            directory: folder to write to, usually the run directory; made if it does
                not exist.

        Returns:
            Path of `skipped_files.csv`. With nothing skipped it holds the header alone.
        """
        path = Path(directory) / "skipped_files.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_table(path, self.skipped)
        if self.incomplete:
            _write_table(path.with_name("incomplete_files.csv"), self.incomplete)
        return path

    def __repr__(self) -> str:
        return f"<ReadReport read={self.read} skipped={len(self._skipped)}>"


def _write_table(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "reason"))
        writer.writerows(rows)
