"""Random access to the clips of files: order, crops, unreadable files."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_bridle.data.files import FileList, ReadReport, UnreadableFileError

# Where in a file a clip lies: shares of the room there is, along time, height and
# width.
Position = tuple[float, float, float]
CENTER: Position = (0.5, 0.5, 0.5)
CROPS = {"start": (0.0, 0.5, 0.5), "center": CENTER, "random": None}
# So many files in a row that cannot be read are a lost disk, not broken files.
_MAX_FAILURES = 1000


@dataclasses.dataclass(eq=False)
class Clips:
    """Reads the clip at an index of an epoch, in any order and from any thread.

    Args:
        files: `FileList`.
        reader: function `(path, position, segment, report)` that reads a clip. What it
            raises of `OSError`, `RuntimeError`, `ValueError` and `MemoryError` says
            that the file cannot be read.
        report: `ReadReport`.
        shuffle: bool. Whether each epoch has an order of its own.
        position: where clips lie, or `None` for random crops.
        replace: bool. Whether other files replace unreadable ones.
        strict: bool. Whether an unreadable file is an error.
        seed: int. Decides order and crops.
    """

    files: FileList
    reader: Any
    report: ReadReport
    shuffle: bool = False
    position: Position | None = CENTER
    replace: bool = False
    strict: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self._unreadable: dict[int, str] = {}
        self._failed_in_a_row = 0
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def check_readable(self) -> None:
        """Reads up to the first readable file; raises if there is none."""
        for index in range(len(self.files)):
            if self._try(index, (0.0, 0.0, 0.0)) is not None:
                return
        problem = f"None of the {len(self.files)} {self.files.kind} files can be read:"
        raise self._error(self.files.files[0], self._unreadable[0], problem)

    def clip(self, epoch: int, place: int) -> tuple[int, np.ndarray | None]:
        """Returns the file's index and its clip; -1 and `None` if it is skipped."""
        order = self._order(epoch)
        position = self.position
        if position is None:
            generator = np.random.default_rng((self.seed, epoch, place, 1))
            time, vertical, horizontal = generator.random(3).tolist()
            position = (time, vertical, horizontal)
        for index in self._candidates(order, place):
            clip = self._try(index, position)
            if clip is not None:
                self.report.add_read()
                return index, clip
        if self.replace:
            problem = f"No {self.files.kind} file can be read any more, such as"
            raise self._error(self.files.files[index], self._unreadable[index], problem)
        return -1, None

    def _candidates(self, order: np.ndarray, place: int) -> Iterator[int]:
        """Yields the file at a place, then those that may replace it."""
        yield int(order[place])
        if self.replace:
            # From half an epoch away, so that no batch holds the same file twice.
            other = place + len(order) // 2
            for offset in range(len(order)):
                yield int(order[(other + offset) % len(order)])

    def _try(self, index: int, position: Position) -> np.ndarray | None:
        if index in self._unreadable:
            return None
        path, segments = self.files.files[index], self.files.segments
        segment = None if segments is None else segments[index]
        try:
            if not Path(path).is_file():
                raise FileNotFoundError("no such file")
            clip = self.reader(path, position, segment, self.report)
            self._failed_in_a_row = 0
            return clip
        # soundfile's own error is a RuntimeError; a broken header may ask for any
        # amount of memory.
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            reason = f"{type(error).__name__}: {error}"
        if self.strict:
            raise self._error(path, reason)
        with self._lock:
            self._unreadable[index] = reason
            self._failed_in_a_row += 1
        self.report.add_skipped(path, reason)
        if self._failed_in_a_row >= _MAX_FAILURES:
            kind = self.files.kind
            problem = f"{_MAX_FAILURES} {kind} files in a row cannot be read; the last:"
            raise self._error(path, reason, problem)
        return None

    def _error(
        self, path: str, reason: str, problem: str | None = None
    ) -> UnreadableFileError:
        error = UnreadableFileError(self.files.kind, path, reason, problem)
        self.report.error = error
        return error

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                order = np.arange(len(self.files))
                if self.shuffle:
                    np.random.default_rng((self.seed, epoch)).shuffle(order)
                # Threads may be at the end of one epoch and the start of the next.
                for old in sorted(self._orders)[:-1]:
                    del self._orders[old]
                self._orders[epoch] = order
            return self._orders[epoch]
