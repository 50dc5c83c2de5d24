"""Data sets that read batches from lists of files."""

import dataclasses
import functools
import itertools
import multiprocessing.pool
import os
import threading
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bridle.data.files import FileList, ReadReport, UnreadableFileError, check
from keras_bridle.data.readers import CENTER, Position, import_tensorflow

CROPS = {"start": (0.0, 0.5, 0.5), "center": CENTER, "random": None}
# Batches to read ahead.
_AHEAD = 2
# This many unreadable files in a row mean a lost disk rather than broken files.
_MAX_FAILURES = 1000


@dataclasses.dataclass(eq=False, repr=False)
class FileDataset(keras.utils.PyDataset):
    """A data set of clips of one shape from files, for `fit()`.

    Files are decoded in parallel, one clip of each per epoch. Unreadable ones are
    listed in `report` and skipped. With `drop_remainder`, other files replace them, so
    that every epoch has `len(dataset)` full batches. Without it, as in evaluation,
    every readable file occurs exactly once, and skipped files make batches smaller.

    Order and crops follow from `(seed, epoch)` alone, however many threads read. Each
    iteration over the data set is the next epoch. With `repeat`, an iteration never
    ends: give `fit()` `steps_per_epoch=len(files) // batch_size`.

    Args:
        files: `FileList`, see `list_files()`.
        reader: `AudioReader`, `ImageReader` or `VideoReader`; or any function
            `(path, position, segment, report)` with the attributes `shape` and `dtype`
            of the arrays that it returns.
        batch_size: int. Clips per batch.
        shuffle: bool. Whether each epoch has its own order, as for training.
        crop: the part of a file to read: `"random"` (another one every epoch),
            `"center"`, `"start"`, or numbers in [0, 1] along time, height and width.
            Defaults to `"random"` with `shuffle`, else `"center"`.
        repeat: bool. Whether to repeat without end.
        drop_remainder: bool. Whether batches are full. Default: `shuffle or repeat`.
        labels: bool. Whether to return labels if there are any.
        seed: int. Seed of order and crops.
        initial_epoch: int. Number of the first epoch, to resume a run.
        first_batch: int. With `repeat`, the batch of that epoch to start with.
        strict: bool. Whether an unreadable file is an error instead.
        report: optional `ReadReport` to fill.
        num_parallel: int. Files read at the same time. Defaults to the number of CPUs.
        shard: tuple of ints `(shard, num_shards)`, for one of several workers: it reads
            only that shard of every batch, `batch_size / num_shards` clips.

    Returns:
        A `keras.utils.PyDataset` of arrays of shape `(batch_size, *reader.shape)`; with
        labels, of tuples `(clips, labels)`: int32 of shape `(batch_size,)`, or float32
        of shape `(batch_size, classes)` for multi-label data. `as_tf_data()` makes a
        `tf.data.Dataset` of it.

    Raises:
        UnreadableFileError: if no file can be read, or, with `strict`, one cannot. On
            TensorFlow, `fit()` raises another error instead; see `report.error`.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.files import ReadReport
    from keras_bridle.data.layouts import list_files
    from keras_bridle.data.pipeline import file_dataset
    from keras_bridle.data.readers import AudioReader
    from keras_bridle.data.samples import extract_samples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        files, report = list_files("audio", folder), ReadReport()
        dataset = file_dataset(
            files, AudioReader(seconds=0.5), batch_size=32, shuffle=True, report=report
        )
        print(next(iter(dataset)).shape, len(dataset), report)
    ```
    """

    files: FileList
    reader: Any
    _: dataclasses.KW_ONLY
    batch_size: int
    shuffle: bool = False
    crop: str | Position | None = None
    repeat: bool = False
    drop_remainder: bool | None = None
    labels: bool = True
    seed: int = 0
    initial_epoch: int = 0
    first_batch: int = 0
    strict: bool = False
    report: Any = None
    num_parallel: int | None = None
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self):
        super().__init__()
        if self.drop_remainder is None:
            self.drop_remainder = self.shuffle or self.repeat
        self.position: Any = self.crop or ("random" if self.shuffle else "center")
        if isinstance(self.position, str):
            expected = f"one of {', '.join(CROPS)}"
            check(self.position in CROPS, "crop", expected, self.crop)
            self.position = CROPS[self.position]
        for name, least in (("batch_size", 1), ("seed", 0), ("initial_epoch", 0)):
            value = getattr(self, name)
            check(value >= least, name, f"at least {least}", value)
        starts_well = self.first_batch == 0 or (self.repeat and self.first_batch > 0)
        expected = "0, or more with `repeat`"
        check(starts_well, "first_batch", expected, self.first_batch)
        count, size = len(self.files), self.batch_size
        fits = size <= count or not self.drop_remainder
        check(fits, "batch_size", f"at most {count}, the files", size)
        shard, num_shards = self.shard
        is_shard = 0 <= shard < num_shards and size % num_shards == 0
        expected = f"one of the equal shards of {size} files"
        check(is_shard, "shard", expected, self.shard)
        fits = self.drop_remainder or num_shards == 1
        check(fits, "drop_remainder", "`True` with shards", self.drop_remainder)
        self.report = ReadReport() if self.report is None else self.report
        self.report.add_missing(self.files)
        self.labels = self.labels and self.files.labels is not None
        self.epoch = self.initial_epoch
        self.clock = InputClock()
        # Examples of an epoch; with `drop_remainder`, those of full batches alone.
        self._places = count // size * size if self.drop_remainder else count
        # Some threads may read the next epoch while others finish this one.
        order = functools.partial(_order_of, count, self.shuffle, self.seed)
        self._order = functools.lru_cache(maxsize=2)(order)
        self._unreadable: dict[int, str] = {}
        self._failed_in_a_row = 0
        self._is_read = False
        self._ahead: dict[tuple[int, int], list] = {}
        self._lock = threading.Lock()
        self._check_readable()

    @property
    def num_batches(self):
        """The number of batches in an epoch; `None` with `repeat`."""
        return None if self.repeat else -(-self._places // self.batch_size)

    def __len__(self):
        if self.num_batches is None:
            raise TypeError("A data set with `repeat` has no length")
        return self.num_batches

    def on_epoch_end(self):
        """Starts the next epoch, unless Keras only inspected the first batch."""
        if self._is_read and not self.repeat:
            self.epoch += 1
        self._is_read = False

    def __iter__(self):
        """Yields the batches of an epoch, and starts the next."""
        epoch = self.epoch
        self.epoch += not self.repeat
        for number in itertools.count() if self.repeat else range(len(self)):
            batch = self._batch(epoch, number)
            # Leave out a batch if all of its files were skipped.
            if len(batch[0] if self.labels else batch):
                yield batch

    def __getitem__(self, index):
        if self.num_batches is not None:
            if index >= self.num_batches:
                raise IndexError(f"There are {self.num_batches} batches, not {index}")
            self._is_read = self._is_read or index == self.num_batches - 1
        return self._batch(self.epoch, index)

    def _batch(self, epoch, number):
        start = time.perf_counter()
        wanted = [(epoch, n) for n in range(number, number + _AHEAD + 1)]
        with self._lock:
            for key in [key for key in self._ahead if key not in wanted]:
                del self._ahead[key]
            for key in wanted:
                if key not in self._ahead and (self.repeat or key[1] < len(self)):
                    self._ahead[key] = self._start(*key)
            waiting = self._ahead.pop((epoch, number))
        clips = [clip for clip in (read.get() for read in waiting) if clip is not None]
        self.clock.seconds += time.perf_counter() - start
        self.clock.batches += 1
        self.clock.examples += len(clips)
        self.report.read += len(clips)
        # An empty batch still needs the right shape.
        batch: Any = np.zeros((len(clips), *self.reader.shape), self.reader.dtype)
        for row, (_, clip) in zip(batch, clips, strict=True):
            row[...] = clip
        if self.labels:
            example = self.files.label_array(0)
            labels = [self.files.label_array(index) for index, _ in clips]
            batch = batch, np.array(labels, example.dtype).reshape(-1, *example.shape)
        return batch

    def _start(self, epoch, number):
        """Starts to read a batch in threads; returns their pending results."""
        shard, num_shards = self.shard
        size = self.batch_size // num_shards
        first = (self.first_batch + number) * self.batch_size + shard * size
        pool = _pool(self.num_parallel or os.cpu_count() or 1, os.getpid())
        reading = []
        for count in range(first, first + size):
            later, place = divmod(count, self._places)
            if self.repeat or not later:
                arguments = (epoch + later, place)
                reading.append(pool.apply_async(self._clip, arguments))
        return reading

    def _check_readable(self):
        """Reads up to the first readable file; raises if there is none."""
        for index in range(len(self.files)):
            if self._read(index, (0.0, 0.0, 0.0)) is not None:
                return
        problem = f"None of the {len(self.files)} {self.files.kind} files can be read:"
        raise self._error(0, self._unreadable[0], problem)

    def _clip(self, epoch, place):
        """Returns a file's index and clip, or `None` if it is skipped; thread-safe."""
        position = self.position
        if position is None:
            generator = np.random.default_rng((self.seed, epoch, place, 1))
            position = tuple(generator.random(3).tolist())
        order = self._order(epoch)
        # Replacements come from half an epoch away, so no batch holds a file twice.
        other = place + len(order) // 2
        others = range(other, other + len(order)) if self.drop_remainder else ()
        for number in itertools.chain([place], others):
            index = int(order[number % len(order)])
            clip = self._read(index, position)
            if clip is not None:
                return index, clip
        if self.drop_remainder:
            problem = f"No {self.files.kind} file can be read any more, such as"
            raise self._error(index, self._unreadable[index], problem)
        return None

    def _read(self, index, position):
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
        # soundfile raises RuntimeErrors; a broken header may ask for any memory.
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            reason = f"{type(error).__name__}: {error}"
        if self.strict:
            raise self._error(index, reason)
        with self._lock:
            self._unreadable[index] = reason
            self._failed_in_a_row += 1
        self.report.add_skipped(path, reason)
        if self._failed_in_a_row >= _MAX_FAILURES:
            kind = self.files.kind
            problem = f"{_MAX_FAILURES} {kind} files in a row cannot be read; the last:"
            raise self._error(index, reason, problem)
        return None

    def _error(self, index, reason, problem=None):
        path = self.files.files[index]
        error = UnreadableFileError(self.files.kind, path, reason, problem)
        self.report.error = error
        return error

    def as_tf_data(self):
        """Returns a `tf.data.Dataset` of the same batches."""
        tf = import_tensorflow()
        size = self.batch_size // self.shard[1] if self.drop_remainder else None
        spec: Any = tf.TensorSpec((size, *self.reader.shape), self.reader.dtype)
        if self.labels:
            label = self.files.label_array(0)
            spec = spec, tf.TensorSpec((size, *label.shape), label.dtype)
        dataset = tf.data.Dataset.from_generator(self.__iter__, output_signature=spec)
        if self.drop_remainder:
            length = tf.data.INFINITE_CARDINALITY if self.repeat else len(self)
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(length))
        return dataset.prefetch(tf.data.AUTOTUNE)

    def reading_speed(self, seconds=2.0, max_batches=64):
        """Measures examples read per second; `None` if there is only one batch."""
        batches, before = iter(self), self.clock.examples
        # The first batch includes start-up costs.
        next(batches, None)
        first, start = self.clock.examples, time.perf_counter()
        for _ in itertools.islice(batches, max_batches):
            if time.perf_counter() - start > seconds:
                break
        read, passed = self.clock.examples - first, time.perf_counter() - start
        return read / max(passed, 1e-9) if read and first > before else None


file_dataset = FileDataset


@functools.cache
def _pool(num_threads, process):
    """Returns the reading threads, which all data sets of a process share."""
    return multiprocessing.pool.ThreadPool(num_threads)


@dataclasses.dataclass
class InputClock:
    """The seconds that training waited for input, and what was read."""

    seconds: float = 0.0
    batches: int = 0
    examples: int = 0


def _order_of(count, shuffle, seed, epoch):
    order = np.arange(count)
    if shuffle:
        np.random.default_rng((seed, epoch)).shuffle(order)
    return order
