"""From a list of files and a function that reads one of them to batches."""

import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_bridle.data.file_manifest import FileManifest
from keras_bridle.data.read_report import ReadReport
from keras_bridle.data.tensorflow_input import import_tensorflow

# So many files in a row that cannot be read are a lost disk, not broken files.
_MAX_FAILURES = 1000

# Where in a file a clip lies: shares of the room there is, along time and two axes
# of the picture.
Position = tuple[float, float, float]


def unreadable_file(error: BaseException) -> str | None:
    """Finds, in an error of `strict` reading, the line that names the file.

    Args:
        error: what a pipeline raised. TensorFlow puts a traceback around the line.

    Returns:
        That line, or `None` if the error is another one.
    """
    found = re.search(r"Cannot read \w+ file '.*", str(error))
    return None if found is None else found[0].strip()


class Clips:
    """Reads the clip at a place in an epoch: the Python side of a pipeline.

    Args:
        manifest: the files.
        read: function `(index, position) -> array` that reads a file's clip. What it
            raises of `OSError`, `RuntimeError`, `ValueError` and `MemoryError` says
            that the file cannot be read.
        report: a `ReadReport`.
        shuffle: bool. Whether each epoch has an order of its own.
        position: where clips lie, or `None` for a random place.
        replace: bool. Whether other files take the places of unreadable ones.
        strict: bool. Whether an unreadable file is an error.
        seed: int. Decides order and places.
    """

    def __init__(
        self,
        manifest: FileManifest,
        read: Callable[[int, Position], np.ndarray],
        *,
        report: ReadReport,
        shuffle: bool,
        position: Position | None,
        replace: bool,
        strict: bool,
        seed: int,
    ) -> None:
        self.manifest = manifest
        self.report = report
        self.seed = seed
        self.strict = strict
        self._read = read
        self._shuffle = shuffle
        self._position = position
        self._replace = replace
        self._unreadable: set[int] = set()
        self._failed_in_a_row = 0
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def check_readable(self) -> None:
        """Reads up to the first readable file; raises if there is none."""
        for index in range(len(self.manifest)):
            if self._try(index, (0.0, 0.0, 0.0)) is not None:
                return
        first = self.manifest.files[0]
        raise ValueError(
            f"None of the {len(self.manifest)} {self.manifest.kind} files can be read. "
            f"The first is '{first}': {dict(self.report.skipped)[first]}"
        )

    def clip(self, epoch: int, place: int) -> tuple[int, np.ndarray | None]:
        """Returns the file's index and its clip; -1 and `None` if it is skipped."""
        order = self._order(epoch)
        position = self._position
        if position is None:
            generator = np.random.default_rng((self.seed, epoch, place, 1))
            time, vertical, horizontal = generator.random(3).tolist()
            position = (time, vertical, horizontal)
        for index in self._candidates(order, place):
            clip = self._try(index, position)
            if clip is not None:
                self.report.add_read()
                return index, clip
        if self._replace:
            raise ValueError(f"No {self.manifest.kind} file can be read any more.")
        return -1, None

    def _candidates(self, order: np.ndarray, place: int) -> Iterator[int]:
        """Yields the file at a place, then those that may replace it."""
        yield int(order[place])
        if self._replace:
            # From half an epoch away, so that no batch holds the same file twice.
            other = place + len(order) // 2
            for offset in range(len(order)):
                yield int(order[(other + offset) % len(order)])

    def _try(self, index: int, position: Position) -> np.ndarray | None:
        if index in self._unreadable:
            return None
        kind, path = self.manifest.kind, self.manifest.files[index]
        try:
            clip = self._read(index, position)
            self._failed_in_a_row = 0
            return clip
        # soundfile's own error is a RuntimeError; a broken header may ask for any
        # amount of memory.
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            reason = f"{type(error).__name__}: {error}"
        if self.strict:
            raise ValueError(f"Cannot read {kind} file '{path}': {reason}")
        with self._lock:
            self._unreadable.add(index)
            self._failed_in_a_row += 1
        self.report.add_skipped(path, reason)
        if self._failed_in_a_row >= _MAX_FAILURES:
            raise ValueError(
                f"{_MAX_FAILURES} {kind} files in a row cannot be read; the last is "
                f"'{path}': {reason}"
            )
        return None

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                order = np.arange(len(self.manifest))
                if self._shuffle:
                    np.random.default_rng((self.seed, epoch)).shuffle(order)
                # Threads may be at the end of one epoch and the start of the next.
                for old in sorted(self._orders)[:-1]:
                    del self._orders[old]
                self._orders[epoch] = order
            return self._orders[epoch]


def build_dataset(
    manifest: FileManifest,
    read: Callable[[int, Position], np.ndarray],
    *,
    shape: tuple[int, ...],
    dtype: str,
    position: Position | None,
    batch_size: int,
    shuffle: bool,
    repeat: bool,
    drop_remainder: bool | None,
    labels: bool,
    seed: int,
    initial_epoch: int,
    first_batch: int = 0,
    strict: bool,
    report: ReadReport,
    num_parallel: int | None,
    shard: tuple[int, int] = (0, 1),
) -> Any:
    """Builds the `tf.data.Dataset` behind `audio_dataset` and its like.

    Args:
        manifest: see `Clips`, as `read`.
        read: as above.
        shape: shape of the arrays that `read` returns.
        dtype: their dtype.
        position: see `Clips`.
        batch_size: see `audio_dataset`, as the arguments after it.
        shuffle: as above.
        repeat: as above.
        drop_remainder: as above.
        labels: as above.
        seed: as above.
        initial_epoch: as above.
        first_batch: as above.
        strict: as above.
        report: as above.
        num_parallel: as above.
        shard: as above.

    Returns:
        A dataset of arrays of shape `(batch_size, *shape)`, or of tuples of these and
        labels.
    """
    if drop_remainder is None:
        drop_remainder = shuffle or repeat
    check_at_least(1, batch_size=batch_size)
    check_at_least(0, seed=seed, initial_epoch=initial_epoch, first_batch=first_batch)
    if first_batch and not repeat:
        raise ValueError(
            "`first_batch` is for data sets that repeat. Received: "
            f"first_batch={first_batch}, repeat={repeat}"
        )
    if drop_remainder and len(manifest) < batch_size:
        raise ValueError(
            f"`batch_size` ({batch_size}) is larger than the number of files "
            f"({len(manifest)}): not one batch is full. Make it smaller, or pass "
            "`drop_remainder=False`."
        )
    _check_shard(shard, batch_size, drop_remainder)
    if num_parallel is None:
        num_parallel = os.cpu_count() or 1
    check_at_least(1, num_parallel=num_parallel)
    clips = Clips(
        manifest,
        read,
        report=report,
        shuffle=shuffle,
        position=position,
        replace=drop_remainder,
        strict=strict,
        seed=seed,
    )
    clips.check_readable()
    return _pipeline(
        clips,
        shape=shape,
        dtype=dtype,
        batch_size=batch_size,
        repeat=repeat,
        drop_remainder=drop_remainder,
        labels=labels and manifest.labels is not None,
        initial_epoch=initial_epoch,
        first_batch=first_batch,
        num_parallel=num_parallel,
        shard=shard,
    )


def choose_crop(
    crop: str | None, shuffle: bool, positions: dict[str, Position | None]
) -> Position | None:
    """Looks up where clips lie; by default at random with `shuffle`, else centered."""
    crop = crop or ("random" if shuffle else "center")
    if crop not in positions:
        raise ValueError(f"`crop` must be one of {list(positions)}. Received: {crop!r}")
    return positions[crop]


def check_at_least(minimum: int, **arguments: int) -> None:
    """Raises if an argument is too small."""
    for name, value in arguments.items():
        if value < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}. Received: {value}")


def _check_shard(shard: tuple[int, int], batch_size: int, drop_remainder: bool) -> None:
    part, parts = shard
    if not 0 <= part < parts:
        raise ValueError(
            "`shard` must be (part, parts) with 0 <= part < parts. "
            f"Received: {tuple(shard)}"
        )
    if parts > 1 and (batch_size % parts or not drop_remainder):
        raise ValueError(
            "Batches that are divided among processes must be full and a multiple of "
            f"their number. Received: shard={tuple(shard)}, batch_size={batch_size}, "
            f"drop_remainder={drop_remainder}"
        )


def _pipeline(
    clips: Clips,
    *,
    shape: tuple[int, ...],
    dtype: str,
    batch_size: int,
    repeat: bool,
    drop_remainder: bool,
    labels: bool,
    initial_epoch: int,
    first_batch: int,
    num_parallel: int,
    shard: tuple[int, int],
) -> Any:
    tf = import_tensorflow()
    num_batches = len(clips.manifest) // batch_size
    part, parts = shard
    own_size = batch_size // parts
    places = num_batches * own_size if drop_remainder else len(clips.manifest)

    def place_of(number: Any) -> Any:
        # Of each batch, the places from `part * own_size` on are this process's.
        if parts == 1:
            return number
        batch = number // own_size
        return batch * batch_size + part * own_size + number % own_size

    if repeat:
        epochs = tf.data.Dataset.counter(initial_epoch)
    else:
        # Drawn when an iterator is first asked for an element, not when it is made.
        numbers = itertools.count(initial_epoch)
        epochs = tf.data.Dataset.range(1).map(
            lambda _: tf.numpy_function(lambda: next(numbers), [], tf.int64)
        )
    dataset = epochs.flat_map(
        lambda epoch: tf.data.Dataset.range(places).map(
            lambda number: (epoch, place_of(number))
        )
    )
    # Places, not clips: nothing is read for them.
    dataset = dataset.skip(first_batch * own_size)
    outputs = [tf.int64, tf.as_dtype(dtype)]
    label_shape: tuple[int, ...] = ()
    if labels:
        example = clips.manifest.label_array(0)
        label_shape = example.shape
        outputs.append(tf.as_dtype(example.dtype))

    def read(epoch: int, place: int) -> tuple[np.ndarray, ...]:
        index, clip = clips.clip(int(epoch), int(place))
        # A skipped file needs some clip and label: it is filtered out below.
        clip = np.zeros(0, dtype) if clip is None else clip
        label = (clips.manifest.label_array(max(index, 0)),) if labels else ()
        return np.int64(index), clip, *label

    dataset = dataset.map(
        lambda epoch, place: tuple(tf.numpy_function(read, [epoch, place], outputs)),
        num_parallel_calls=num_parallel,
        deterministic=True,
    )
    if not drop_remainder:
        dataset = dataset.filter(lambda index, *_: index >= 0)

    def elements(_: Any, clip: Any, *label: Any) -> Any:
        clip = tf.ensure_shape(clip, shape)
        return (clip, tf.ensure_shape(label[0], label_shape)) if labels else clip

    dataset = dataset.map(elements).batch(own_size, drop_remainder=drop_remainder)
    if repeat:
        dataset = dataset.apply(
            tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        )
    elif drop_remainder:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
    return dataset.prefetch(tf.data.AUTOTUNE)
