"""Lists of files, and reports of unreadable ones."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_bridle.config import check

Labels = Sequence[int] | Sequence[tuple[int, ...]]

_ENDINGS = {
    "audio": "wav flac ogg oga opus mp3 aiff aif aifc au caf w64 rf64 sph",
    "image": "jpg jpeg jfif png webp avif jp2 bmp tif tiff gif pgm ppm",
    "video": "mp4 m4v mov 3gp mpg mpeg m2ts mts webm mkv avi wmv flv",
}
EXTENSIONS = {kind: tuple(f".{x}" for x in y.split()) for kind, y in _ENDINGS.items()}
# Fields with one entry for each file.
_COLUMNS = ("files", "labels", "segments", "splits")


@dataclasses.dataclass(frozen=True)
class FileList:
    """A list of audio, image or video files, with labels and splits if known.

    Usually made by `list_files()`.

    Args:
        kind: `"audio"`, `"image"` or `"video"`.
        files: paths of the files.
        labels: `None`; or one class number per file; or, for multi-label data, one
            tuple of class numbers per file.
        class_names: the names that the class numbers index.
        segments: `None`, or one `(start, end)` in seconds per file: the part of an
            audio file to use. If `end` is `None`, it is the end of the file.
        splits: `None`, or the name of each file's split or fold, such as `"train"`.
        missing: names that a data set lists but its folder lacks.
        notes: one line for each kind of omission from the list.

    Example:
    ```python
    from keras_bridle.data.files import FileList

    files = FileList("audio", ["a.wav", "b.wav"], labels=[0, 1], class_names=["x", "y"])
    print(len(files), files.all_labels(), files.take([1]).files)
    ```
    """

    kind: str
    files: Sequence[str]
    labels: Labels | None = None
    class_names: Sequence[str] = ()
    segments: Sequence[tuple[float, float | None]] | None = None
    splits: Sequence[str] | None = None
    missing: Sequence[str] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not len(self.files):
            raise ValueError(f"There are no {self.kind} files.")
        for name in _COLUMNS:
            values = getattr(self, name)
            count = len(self.files if values is None else values)
            check(count == len(self.files), name, f"{len(self.files)} entries", count)
        numbers: Any = () if self.labels is None else self.labels
        if self.multi_label:
            numbers = itertools.chain.from_iterable(numbers)
        wrong = set(numbers).difference(range(len(self.class_names)))
        expected = f"numbers of the {len(self.class_names)} `class_names`"
        check(not wrong, "labels", expected, sorted(wrong)[:5])

    def __len__(self) -> int:
        return len(self.files)

    @property
    def multi_label(self) -> bool:
        """Whether a file may have several classes, or none."""
        return self.labels is not None and isinstance(self.labels[0], tuple)

    def label_array(self, index: int) -> np.ndarray:
        """Returns a file's label: an int32 scalar, or float32 0/1 `(classes,)`."""
        label = self.take([index]).all_labels()[0]
        return label.astype("float32") if self.multi_label else label

    def all_labels(self) -> np.ndarray:
        """Returns all labels: int32 `(files,)`, or uint8 0/1 `(files, classes)`."""
        labels: Any = self.labels
        if not self.multi_label:
            return np.asarray(labels, "int32")
        # AudioSet has 2 million files and 527 classes.
        hot = np.zeros((len(self), len(self.class_names)), "uint8")
        for row, label in zip(hot, labels, strict=True):
            row[list(label)] = 1
        return hot

    def classes(self) -> list[Any]:
        """Returns the class name of each file, or a tuple of names if multi-label."""
        names, labels = self.class_names, self.labels or ()
        return [
            tuple(names[n] for n in label) if isinstance(label, tuple) else names[label]
            for label in labels
        ]

    def take(self, indices: Iterable[int]) -> "FileList":
        """Returns a list of the files at `indices`, in their order."""
        indices = [int(index) for index in indices]
        taken: dict[str, Any] = {
            name: [getattr(self, name)[index] for index in indices]
            for name in _COLUMNS
            if getattr(self, name) is not None
        }
        return dataclasses.replace(self, **taken)

    def with_classes(self, classes, class_names=None) -> "FileList":
        """Returns a list with other classes, see `number_labels()`."""
        labels, names = number_labels(classes, class_names)
        return dataclasses.replace(self, labels=labels, class_names=names)

    def numbered(self) -> "FileList":
        """Returns a list with the indices of files as labels."""
        numbers: Any = range(len(self))
        return dataclasses.replace(self, labels=numbers, class_names=numbers)


# Files that are expected beside data, so no note mentions them.
_COMPANIONS = (".csv", ".tsv", ".txt", ".json", ".md", ".yaml", ".yml", ".xml", "")


def find_files(kind, root):
    """Lists the files of a kind below a folder, and others; sorted relative paths.

    Follows links, but not in circles, and skips names that begin with a dot.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder '{root}'.")
    found: list[Path] = []
    others: list[Path] = []
    visited = {root.resolve()}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in list(folders):
            target = Path(folder, name).resolve()
            if name.startswith(".") or target in visited:
                folders.remove(name)
            visited.add(target)
        for name in names:
            if not name.startswith("."):
                path = Path(folder, name).relative_to(root)
                is_right = path.suffix.lower() in EXTENSIONS[kind]
                (found if is_right else others).append(path)
    if not found:
        raise ValueError(
            f"No {kind} file in '{root}' or its subfolders. Looked for "
            f"{', '.join(EXTENSIONS[kind])}"
        )
    return sorted(found, key=Path.as_posix), sorted(others, key=Path.as_posix)


def subfolders(root):
    """Lists the names of the folders in a folder, except hidden ones."""
    paths = (path for path in root.iterdir() if path.is_dir())
    return sorted(path.name for path in paths if not path.name.startswith("."))


def list_folder(kind, root, labels=False, class_names=None):
    """Lists all files of a kind below a folder; with labels, a folder per class."""
    paths, others = find_files(kind, root)
    unlike = [path for path in others if path.suffix.lower() not in _COMPANIONS]
    notes = []
    if unlike:
        found = _count_endings(unlike)
        notes.append(f"other files in the folder, not read as {kind}: {found}")
    files = FileList(kind, [str(root / path) for path in paths], notes=notes)
    if not labels:
        return files
    for path in paths:
        if len(path.parts) < 2:
            raise ValueError(f"'{root / path}' is not in the folder of a class.")
    classes = [path.parts[0] for path in paths]
    for name in sorted(set(subfolders(root)).difference(classes)):
        found = _count_endings(path for path in others if path.parts[0] == name)
        only = f", only others: {found}" if found else ""
        notes.append(f"the class '{name}' has no {kind} file{only}")
    return files.with_classes(classes, class_names)


def _count_endings(paths):
    endings = Counter(sorted(path.suffix.lower() for path in paths)).most_common(10)
    return ", ".join(f"{n} {x or 'without an ending'}" for x, n in endings)


def joined(parts):
    """Joins the lists of splits into one, with the classes of all."""
    lists = list(parts.values())
    files = FileList(
        lists[0].kind,
        [file for part in lists for file in part.files],
        splits=[name for name, part in parts.items() for _ in part.files],
        missing=[name for part in lists for name in part.missing],
        notes=[note for part in lists for note in part.notes],
    )
    if any(part.labels is None for part in lists):
        return files
    classes = [names for part in lists for names in part.classes()]
    names = dict.fromkeys(name for part in lists for name in part.class_names)
    return files.with_classes(classes, tuple(names))


def csv_table(
    kind,
    path,
    labels=False,
    root=None,
    file_column="file",
    label_column=None,
    label_separator=None,
    split_column=None,
    class_names=None,
):
    """Lists the files of a table with a header, as `list_files()` says."""
    if labels and label_column is None:
        label_column = "label"
    columns = (file_column, label_column, split_column)
    rows = read_table(path, [name for name in columns if name])
    if split_column is None and "split" in rows[0]:
        split_column = "split"
    folder = path.parent if root is None else Path(root)
    paths = [str(folder / _as_path(row[file_column], folder)) for row in rows]
    splits = [row[split_column] for row in rows] if split_column else None
    files = FileList(kind, paths, splits=splits)
    if not label_column:
        return files
    classes = [row[label_column] for row in rows]
    if label_separator is not None:
        several = [map(str.strip, x.split(label_separator)) for x in classes]
        classes = [tuple(filter(None, names)) for names in several]
    elif not all(classes):
        # The header is row 1.
        raise ValueError(
            f"'{path}', row {classes.index('') + 2}: no class in the column "
            f"'{label_column}'. Files with several classes or none need "
            "`label_separator`"
        )
    return files.with_classes(classes, class_names)


def _as_path(name, folder):
    """Returns the path of a name that a spreadsheet or another system wrote."""
    if name.isascii() and "\\" not in name:
        return Path(name).expanduser()
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    paths = [Path(x).expanduser() for x in (name, name.replace("\\", "/"), *forms)]
    return next((path for path in paths if (folder / path).exists()), paths[1])


def read_table(path, columns=()):
    """Reads a table with a header line, which must have some columns.

    It reads what spreadsheets write: commas, semicolons or tabs between columns, names
    of columns in any case, and spaces around cells.
    """
    contents = Path(path).read_bytes()
    is_utf16 = contents[:2] in (b"\xff\xfe", b"\xfe\xff")
    # Keep bytes that are not UTF-8, as in file names.
    text = contents.decode("utf-16" if is_utf16 else "utf-8-sig", "surrogateescape")
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(",;\t", key=first.count)
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        cells = [[cell.strip() for cell in line] for line in lines]
    except csv.Error as error:
        raise ValueError(f"'{path}' is no table: {error}") from error
    header, *lists = [line for line in cells if any(line)] or [[]]
    known = {name.casefold(): name for name in ("split", *columns)}
    header = [known.get(name.casefold(), name) for name in header]
    rows = [
        dict(zip(header, line + [""] * len(header), strict=False)) for line in lists
    ]
    absent = [name for name in columns if name not in header]
    if absent:
        raise ValueError(f"'{path}' has no column {absent}. Its columns: {header}")
    if not rows:
        raise ValueError(f"'{path}' has a header but no rows.")
    return rows


def number_labels(classes, class_names=None):
    """Numbers the classes of files, each a name or a tuple; also returns the names.

    Names are in the given order, or sorted.
    """
    classes = [_composed(names) for names in classes]
    groups = [names if isinstance(names, tuple) else (names,) for names in classes]
    occurring = {name for group in groups for name in group}
    names = _composed(tuple(sorted(occurring) if class_names is None else class_names))
    unknown = sorted(occurring.difference(names))
    if unknown:
        raise ValueError(f"There are files of unknown classes: {unknown[:5]}")
    number = {name: index for index, name in enumerate(names)}
    labels = [
        tuple(number[name] for name in names)
        if isinstance(names, tuple)
        else number[names]
        for names in classes
    ]
    return labels, names


def _composed(names):
    """Composes names (Unicode's NFC), and drops repeated ones."""
    if isinstance(names, tuple):
        return tuple(dict.fromkeys(map(_composed, names)))
    return unicodedata.normalize("NFC", names)


def digest_of(files):
    """Returns the number of files, and a digest of their names, sizes and dates."""
    digest = hashlib.sha256()
    for name in files.files:
        with contextlib.suppress(OSError):
            found = Path(name).stat()
            digest.update(os.fsencode(name))
            digest.update(f"\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return {"files": len(files), "digest": digest.hexdigest()[:16]}


def copies(files):
    """Numbers files so that equal ones have equal numbers.

    Files are compared by size, then by their ends, then by content. Unreadable and
    empty files differ from all others.
    """
    keys: dict[str, Any] = dict.fromkeys(files.files)
    # Read whole files only if their sizes and ends are equal.
    for content in (_size, _ends, _whole):
        counts = Counter(keys.values())
        keys = {
            name: (key, content(name)) if counts[key] > 1 else key
            for name, key in keys.items()
        }
    segments: Any = [None] * len(files) if files.segments is None else files.segments
    numbers: dict[Any, int] = {}
    found = [
        numbers.setdefault((keys[name], segment), index)
        for index, (name, segment) in enumerate(zip(files.files, segments, strict=True))
    ]
    return np.array(found, "int64")


def _size(name):
    try:
        return Path(name).stat().st_size or name
    except OSError:
        return name


def _ends(name):
    with Path(name).open("rb") as file:
        first = file.read(4096)
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        return hashlib.sha256(first + file.read()).digest()


def _whole(name):
    with Path(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def printable(text):
    """Replaces bytes that are not UTF-8, so that a text can be shown."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class UnreadableFileError(ValueError):
    """A file cannot be read; `kind`, `path` and `reason` say which and why."""

    def __init__(self, kind, path, reason, problem=None):
        problem = problem or f"Cannot read {kind} file"
        super().__init__(f"{problem} '{path}': {reason}")
        self.kind, self.path, self.reason = kind, path, reason


class ReportedFile(NamedTuple):
    """A file in a report, and the reason."""

    path: str
    reason: str


class ReadReport:
    """Counts the clips that a pipeline reads and lists the files that it skips.

    Pass one to `file_dataset()`, and look at it or write it at any time. Each file is
    listed once, with the first reason.

    Attributes:
        read: int, clips read so far, in all epochs.
        error: the `UnreadableFileError` that stopped a pipeline, or `None`.

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
        self.read = 0
        self.error: UnreadableFileError | None = None
        self._skipped: dict[str, str] = {}
        self._incomplete: dict[str, str] = {}
        self.notes: list[str] = []

    @property
    def skipped(self) -> list[ReportedFile]:
        """The files skipped so far, sorted by path."""
        return [ReportedFile(*item) for item in sorted(self._skipped.copy().items())]

    @property
    def incomplete(self) -> list[ReportedFile]:
        """The files read in part, as they are too short or broken, sorted by path."""
        return [ReportedFile(*item) for item in sorted(self._incomplete.copy().items())]

    def add_skipped(self, path: str, reason: str) -> None:
        """Lists a file as skipped."""
        self._skipped.setdefault(path, reason)

    def add_incomplete(self, path: str, reason: str) -> None:
        """Lists a file as read in part."""
        self._incomplete.setdefault(path, reason)

    def add_missing(self, files: FileList) -> None:
        """Adds a list's notes, and its missing files as skipped."""
        for name in files.missing:
            self.add_skipped(name, "listed, but not in the folder")
        self.notes += [note for note in files.notes if note not in self.notes]

    @contextlib.contextmanager
    def reraise(self) -> Iterator[None]:
        """Raises the `UnreadableFileError` itself instead of TensorFlow's error."""
        try:
            yield
        except Exception as error:
            if self.error is None or error is self.error:
                raise
            raise self.error from error

    def write(self, directory: str | Path) -> Path:
        """Writes `skipped_files.csv`, and returns its path.

        Incomplete files and notes, if any, go to `incomplete_files.csv` and
        `other_files.csv`, with the same columns `file` and `reason`.
        """
        path = Path(directory, "skipped_files.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        notes = [ReportedFile("", note) for note in self.notes]
        tables = {
            "skipped": self.skipped,
            "incomplete": self.incomplete,
            "other": notes,
        }
        for name, files in tables.items():
            if files or name == "skipped":
                # File names need not be UTF-8.
                table = path.with_name(f"{name}_files.csv")
                with table.open(
                    "w", newline="", encoding="utf-8", errors="surrogateescape"
                ) as file:
                    csv.writer(file).writerows([("file", "reason"), *files])
        return path

    def __repr__(self) -> str:
        return f"<ReadReport read={self.read} skipped={len(self._skipped)}>"
