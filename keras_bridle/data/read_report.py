"""What was read and what could not be read."""

import csv
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


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
    from keras_bridle.data import ReadReport

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
