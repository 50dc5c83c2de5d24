"""From a list of files to batches."""

import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_bridle.data.files import FileManifest, ReadReport
from keras_bridle.data.layouts import AudioManifest, ImageManifest, VideoManifest
from keras_bridle.data.readers import (
    as_size,
    check_channels,
    fit_array,
    import_tensorflow,
    read_image,
)
from keras_bridle.data.readers import read_clip as read_with_soundfile
from keras_bridle.data.video_reader import VideoReader


class InputClock:
    """Measures the time that whoever reads a `tf.data.Dataset` waits for batches.

    It works on every backend, also where TensorFlow reads the data set inside a
    compiled training step. Reading that goes on in the background while the model
    computes is no waiting.

    Attributes:
        seconds: float, the waiting so far.
        batches: int, batches that were read.
        examples: int, examples in them.

    Example:
    ```python
    import tensorflow as tf
    from keras_bridle.data.pipeline import InputClock

    clock = InputClock()
    for batch in clock.wrap(tf.data.Dataset.range(10).batch(4)):
        pass
    print(clock.batches, clock.examples)  # 3 10
    ```
    """

    def __init__(self):
        self.seconds = 0.0
        self.batches = 0
        self.examples = 0

    def wrap(self, dataset):
        """Puts the clock at the end of an input pipeline.

        Args:
            dataset: `tf.data.Dataset` of batches.

        Returns:
            A `tf.data.Dataset` of the same batches.
        """
        tf = import_tensorflow()

        # A zipped data set asks its parts for their next elements one after another.
        now = tf.data.Dataset.counter().map(lambda _: tf.timestamp())

        def note(start, batch, end):
            first = tf.nest.flatten(batch)[0]
            noted = tf.numpy_function(
                self._add, [end - start, tf.shape(first)[0]], [], stateful=True
            )
            with tf.control_dependencies([noted]):
                return tf.nest.map_structure(tf.identity, batch)

        options = tf.data.Options()
        # What is read ahead of the clock would hide all waiting.
        options.experimental_optimization.inject_prefetch = False
        timed = tf.data.Dataset.zip((now, dataset, now)).map(note)
        return timed.with_options(options)

    def _add(self, seconds, examples):
        self.seconds += float(seconds)
        self.batches += 1
        self.examples += int(examples)


def reading_speed(dataset, seconds=2.0, max_batches=64):
    """Measures how fast a data set is read when nothing else is done.

    Args:
        dataset: `tf.data.Dataset` of batches.
        seconds: float, stop after so long.
        max_batches: int, or after so many batches.

    Returns:
        float, examples each second after the first batch; `None` if there is but one.

    Example:
    ```python
    import tensorflow as tf
    from keras_bridle.data.pipeline import reading_speed

    print(reading_speed(tf.data.Dataset.range(100).batch(4)))
    ```
    """
    clock = InputClock()
    batches = iter(clock.wrap(dataset))
    # The first one comes after files were listed and buffers filled.
    next(batches, None)
    first, start = clock.examples, time.perf_counter()
    for _ in itertools.islice(batches, max_batches):
        if time.perf_counter() - start > seconds:
            break
    if clock.batches < 2:
        return None
    return (clock.examples - first) / max(time.perf_counter() - start, 1e-9)


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


_CROPS: dict[str, Position | None] = {
    "start": (0.0, 0.0, 0.0),
    "center": (0.5, 0.5, 0.5),
    "random": None,
}


def audio_dataset(
    source: AudioManifest | str | Path | Sequence[str],
    *,
    batch_size: int,
    seconds: float | None = None,
    num_samples: int | None = None,
    sample_rate: int = 16000,
    shuffle: bool = False,
    crop: str | None = None,
    repeat: bool = False,
    drop_remainder: bool | None = None,
    labels: bool = True,
    seed: int = 0,
    initial_epoch: int = 0,
    first_batch: int = 0,
    strict: bool = False,
    report: ReadReport | None = None,
    num_parallel: int | None = None,
    reader: str = "soundfile",
    shard: tuple[int, int] = (0, 1),
) -> Any:
    """Builds a `tf.data.Dataset` of fixed-length mono waveforms from audio files.

    Files are decoded and resampled in parallel; of a long file only the part that is
    used is decoded. Channels are averaged. Recordings that are too short get exact
    zeros after their end; silent ones are let through.

    **Unreadable files** are listed in `report` and skipped, and not tried again. With
    `drop_remainder` (so whenever `shuffle` is on, unless set otherwise), another file
    takes the place of a skipped one, so that every epoch has the same number of full
    batches, which the dataset knows (`dataset.cardinality()`) and `fit()` needs.
    Without it, as in evaluation, they are left out: every readable file comes exactly
    once, and the number of batches is unknown until the first pass ends (Keras may warn
    once that "your input ran out of data").

    **Order and crops** follow from `(seed, epoch)` alone, however many threads read.
    Without `repeat`, each iteration over the dataset is the next epoch, counted from
    `initial_epoch`; the first `fit()` of a model that is not built yet looks at one
    batch before it starts and so uses up one epoch number. With `repeat`, the dataset
    is one endless run of epochs: give `fit()`
    `steps_per_epoch=len(manifest) // batch_size`, and a resumed run that passes its
    epoch as `initial_epoch` sees exactly the batches it would have seen.

    Args:
        source: an `AudioManifest`; or a folder, read with
            `AudioManifest.from_folder`; or a list of files.
        batch_size: int. Waveforms per batch.
        seconds: float. Length of a waveform in seconds. Give this or `num_samples`.
        num_samples: int. Length of a waveform in samples.
        sample_rate: int. Sample rate of the waveforms in Hz.
        shuffle: bool. Whether each epoch has an order of its own, as for training.
        crop: which part of a longer recording to take: `"random"` (another one every
            epoch), `"center"` or `"start"`. Defaults to `"random"` with `shuffle`,
            else `"center"`.
        repeat: bool. Whether to go on without end.
        drop_remainder: bool. Whether to leave out what does not fill a batch, so that
            all shapes are static. Defaults to `shuffle or repeat`.
        labels: bool. Whether to give labels if the manifest has them.
        seed: int. Decides order and crops.
        initial_epoch: int. Number of the first epoch.
        first_batch: int. With `repeat`, the batch of that epoch to start with, for a
            run that goes on within an epoch. Those before are not read.
        strict: bool. Whether an unreadable file is an error instead.
        report: a `ReadReport` to fill, or `None` to keep none. It also gets what the
            manifest lists as missing, which is no error with `strict` either.
        num_parallel: int. Files read at the same time. Defaults to the number of CPUs.
        reader: `"soundfile"` (decodes with soundfile, resamples with soxr) or
            `"tensorflow-io"` (its own decoders and resampler; needs TensorFlow up to
            2.17.1, see `keras_bridle.data.readers`).
        shard: tuple of ints `(part, parts)`, for one of several processes: of every
            batch it reads and gives only that part, `batch_size / parts` of them.
            Together the processes read what one would.

    Returns:
        A dataset of float32 waveforms of shape `(batch_size, num_samples)` in [-1, 1];
        with labels, of tuples `(waveforms, labels)`, where labels are int32 of shape
        `(batch_size,)`, or float32 of shape `(batch_size, classes)` for multi-label
        data. The last batch may be smaller without `drop_remainder`.

    Raises:
        ValueError: for an argument out of range; if no file can be read; if there are
            fewer files than fill one batch; or, with `strict`, if the first file
            cannot be read. While iterating, the same are a `tf.errors.OpError` whose
            text names the file.
        FileNotFoundError: if `source` is a folder that does not exist.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.files import ReadReport
    from keras_bridle.data.pipeline import audio_dataset
    from keras_bridle.data.samples import extract_samples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        report = ReadReport()
        dataset = audio_dataset(
            folder, batch_size=32, seconds=0.5, shuffle=True, report=report
        )
        print(next(iter(dataset)).shape, len(dataset), report)
    ```
    """
    manifest = AudioManifest.from_source(source)
    length = _clip_length(seconds, num_samples, sample_rate)
    position = choose_crop(crop, shuffle, _CROPS)
    check_at_least(1, sample_rate=sample_rate)
    read_clip = _reader(reader)
    report = ReadReport() if report is None else report
    report.add_missing(manifest)
    segments = manifest.segments

    def read(index: int, position: Position) -> np.ndarray:
        return read_clip(
            manifest.files[index],
            num_samples=length,
            sample_rate=sample_rate,
            position=position[0],
            segment=(0.0, None) if segments is None else segments[index],
        )

    return build_dataset(
        manifest,
        read,
        shape=(length,),
        dtype="float32",
        position=position,
        batch_size=batch_size,
        shuffle=shuffle,
        repeat=repeat,
        drop_remainder=drop_remainder,
        labels=labels,
        seed=seed,
        initial_epoch=initial_epoch,
        first_batch=first_batch,
        strict=strict,
        report=report,
        num_parallel=num_parallel,
        shard=shard,
    )


def _clip_length(
    seconds: float | None, num_samples: int | None, sample_rate: int
) -> int:
    if (seconds is None) == (num_samples is None):
        raise ValueError(
            "Give either `seconds` or `num_samples`. Received: "
            f"seconds={seconds}, num_samples={num_samples}"
        )
    length = num_samples if seconds is None else round(seconds * sample_rate)
    if length is None or length < 1:
        raise ValueError(
            "`seconds` or `num_samples` must give at least one sample. Received: "
            f"seconds={seconds}, num_samples={num_samples}"
        )
    return length


def _reader(name: str) -> Callable[..., np.ndarray]:
    if name == "soundfile":
        return read_with_soundfile
    if name == "tensorflow-io":
        from keras_bridle.data.readers import import_tensorflow_io
        from keras_bridle.data.readers import read_clip_tfio_audio as read_clip

        import_tensorflow_io()
        return read_clip
    raise ValueError(
        f"`reader` must be 'soundfile' or 'tensorflow-io'. Received: {name!r}"
    )


_CROPS_IMAGE: dict[str, Position | None] = {"center": (0.5, 0.5, 0.5), "random": None}


def image_dataset(
    source: ImageManifest
    | str
    | Path
    | Sequence[str]
    | np.ndarray
    | tuple[np.ndarray, np.ndarray],
    *,
    batch_size: int,
    image_size: int | Sequence[int],
    channels: int = 3,
    shuffle: bool = False,
    crop: str | None = None,
    repeat: bool = False,
    drop_remainder: bool | None = None,
    labels: bool = True,
    seed: int = 0,
    initial_epoch: int = 0,
    first_batch: int = 0,
    strict: bool = False,
    report: ReadReport | None = None,
    num_parallel: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Any:
    """Builds a `tf.data.Dataset` of pictures of one size, pixels from 0 to 255.

    Files are decoded in parallel, as `read_image` does: scaled until they cover the
    wanted size, and cut off where they stand over. To augment, let the model do it:
    make pictures somewhat larger than needed (256 for 224) and give them to
    `RandomResizedCrop` and `RandomHorizontalFlip`.

    Unreadable files, order and epochs are treated as in `audio_dataset`: in training
    another file takes the place of one that cannot be read, in evaluation it is left
    out; order and crops follow from `(seed, epoch)` alone, however many threads read.

    Args:
        source: an `ImageManifest`; or a folder, read with `ImageManifest.from_folder`;
            or a list of files; or a uint8 array of shape `(n, height, width)` or
            `(n, height, width, 1 or 3)`; or a tuple of such an array and int labels of
            shape `(n,)`.
        batch_size: int. Pictures per batch.
        image_size: int or `(height, width)` of the pictures.
        channels: 3 for color or 1 for gray; files of the other kind are converted.
        shuffle: bool. Whether each epoch has an order of its own, as for training.
        crop: which part of a picture's longer side to take, where the proportions are
            not those of `image_size`: `"random"` (another one every epoch) or
            `"center"`. Defaults to `"random"` with `shuffle`, else `"center"`.
        repeat: bool. Whether to go on without end.
        drop_remainder: bool. Whether to leave out what does not fill a batch, so that
            all shapes are static. Defaults to `shuffle or repeat`.
        labels: bool. Whether to give labels if there are any.
        seed: int. Decides order and crops.
        initial_epoch: int. Number of the first epoch.
        first_batch: int. With `repeat`, the batch of that epoch to start with, for a
            run that goes on within an epoch. Those before are not read.
        strict: bool. Whether an unreadable file is an error instead.
        report: a `ReadReport` to fill, or `None` to keep none.
        num_parallel: int. Files read at the same time. Defaults to the number of CPUs.
        shard: tuple of ints `(part, parts)`, for one of several processes: of every
            batch it reads and gives only that part, `batch_size / parts` of them.
            Together the processes read what one would.

    Returns:
        A dataset of uint8 arrays of shape `(batch_size, height, width, channels)`; with
        labels, of tuples `(images, labels)`, where labels are int32 of shape
        `(batch_size,)`, or float32 of shape `(batch_size, classes)` for multi-label
        data. The last batch may be smaller without `drop_remainder`.

    Raises:
        ValueError: for an argument out of range; if no file can be read; if there are
            fewer files than fill one batch; or, with `strict`, if the first file
            cannot be read. While iterating, the same are a `tf.errors.OpError` whose
            text names the file.
        FileNotFoundError: if `source` is a folder that does not exist.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.layouts import ImageManifest
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.data.pipeline import image_dataset

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        manifest = ImageManifest.from_folder(
            folder + "/fashion_mnist", class_folders=True
        )
        dataset = image_dataset(manifest, batch_size=32, image_size=64, shuffle=True)
        images, labels = next(iter(dataset))
    print(images.shape, images.dtype, labels.shape)
    ```
    """
    size = as_size("image_size", image_size)
    check_channels(channels)
    position = choose_crop(crop, shuffle, _CROPS_IMAGE)
    arrays = _arrays_of(source)
    if arrays is None:
        manifest = ImageManifest.from_source(source)  # type: ignore[arg-type]
    else:
        manifest = _list_arrays(*arrays)

    def read(index: int, position: Position) -> np.ndarray:
        if arrays is not None:
            return fit_array(arrays[0][index], size, channels, position[1:])
        return read_image(manifest.files[index], size, channels, position[1:])

    return build_dataset(
        manifest,
        read,
        shape=(*size, channels),
        dtype="uint8",
        position=position,
        batch_size=batch_size,
        shuffle=shuffle,
        repeat=repeat,
        drop_remainder=drop_remainder,
        labels=labels,
        seed=seed,
        initial_epoch=initial_epoch,
        first_batch=first_batch,
        strict=strict,
        report=ReadReport() if report is None else report,
        num_parallel=num_parallel,
        shard=shard,
    )


def _arrays_of(source: Any) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Returns `(images, labels)` if that is what the source is."""
    if isinstance(source, np.ndarray):
        return source, None
    if isinstance(source, tuple) and source and isinstance(source[0], np.ndarray):
        images, labels = source
        return images, np.asarray(labels)
    return None


def _list_arrays(images: np.ndarray, labels: np.ndarray | None) -> ImageManifest:
    """Gives names to pictures that are no files."""
    colors = images.ndim == 4 and images.shape[-1] in (1, 3)
    if images.dtype != np.uint8 or not (colors or images.ndim == 3):
        raise ValueError(
            "Pictures must be a uint8 array of shape `(n, height, width)` or "
            f"`(n, height, width, 1 or 3)`. Received: {images.dtype} of shape "
            f"{images.shape}"
        )
    names = [f"picture {number}" for number in range(len(images))]
    if labels is None:
        return ImageManifest(names)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"Labels must be ints of shape ({len(images)},). Received: {labels.dtype} "
            f"of shape {labels.shape}"
        )
    class_names = [str(number) for number in range(int(labels.max(initial=-1)) + 1)]
    return ImageManifest(names, labels.tolist(), class_names)


_CROPS_VIDEO: dict[str, Position | None] = {
    "start": (0.0, 0.5, 0.5),
    "center": (0.5, 0.5, 0.5),
    "random": None,
}


def video_dataset(
    source: VideoManifest | str | Path | Sequence[str],
    *,
    batch_size: int,
    image_size: int | Sequence[int],
    num_frames: int = 16,
    sampling_rate: int = 4,
    channels: int = 3,
    shuffle: bool = False,
    crop: str | None = None,
    repeat: bool = False,
    drop_remainder: bool | None = None,
    labels: bool = True,
    seed: int = 0,
    initial_epoch: int = 0,
    first_batch: int = 0,
    strict: bool = False,
    report: ReadReport | None = None,
    num_parallel: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Any:
    """Builds a `tf.data.Dataset` of clips of one shape, pixels from 0 to 255.

    One clip is taken of each file and epoch. Files are decoded in parallel, and of a
    long one only what lies between the clip and the keyframe before it. A clip is
    `num_frames` frames, every `sampling_rate`-th of the file, counted in the order in
    which they are shown (see `keras_bridle.data.video_reader`). Frames are scaled until
    they cover `image_size`, and cut off where they stand over, all frames of a clip
    alike. To augment, let the model do it: make clips somewhat larger than needed (256
    for 224) and give them to `RandomMultiScaleCrop` and `RandomHorizontalFlip`.

    A video **shorter than a clip** ends in its last frame, repeated; a **broken** one
    serves as far as it can be decoded, if that is enough for a clip.
    `report.incomplete` lists both.

    Unreadable files, order and epochs are treated as in `audio_dataset`: in training
    another file takes the place of one that cannot be read, in evaluation it is left
    out; order and clips follow from `(seed, epoch)` alone, however many threads read.

    Args:
        source: a `VideoManifest`; or a folder, read with `VideoManifest.from_folder`;
            or a list of files.
        batch_size: int. Clips per batch.
        image_size: int or `(height, width)` of the frames.
        num_frames: int. Frames per clip.
        sampling_rate: int. From one frame of a clip to the next, so many of the file.
        channels: 3 for color or 1 for gray.
        shuffle: bool. Whether each epoch has an order of its own, as for training.
        crop: which part of a video to take: `"random"` (another one every epoch; also
            another part of the frames' longer side), `"center"` (of time and frames) or
            `"start"` (the first frames' center). Defaults to `"random"` with `shuffle`,
            else `"center"`.
        repeat: bool. Whether to go on without end.
        drop_remainder: bool. Whether to leave out what does not fill a batch, so that
            all shapes are static. Defaults to `shuffle or repeat`.
        labels: bool. Whether to give labels if the manifest has them.
        seed: int. Decides order and clips.
        initial_epoch: int. Number of the first epoch.
        first_batch: int. With `repeat`, the batch of that epoch to start with, for a
            run that goes on within an epoch. Those before are not read.
        strict: bool. Whether an unreadable file is an error instead.
        report: a `ReadReport` to fill, or `None` to keep none. It also gets what the
            manifest lists as missing, which is no error with `strict` either.
        num_parallel: int. Files read at the same time. Defaults to the number of CPUs.
        shard: tuple of ints `(part, parts)`, for one of several processes: of every
            batch it reads and gives only that part, `batch_size / parts` of them.
            Together the processes read what one would.

    Returns:
        A dataset of uint8 arrays of shape `(batch_size, num_frames, height, width,
        channels)`; with labels, of tuples `(clips, labels)`, where labels are int32 of
        shape `(batch_size,)`, or float32 of shape `(batch_size, classes)` for
        multi-label data. The last batch may be smaller without `drop_remainder`.

    Raises:
        ValueError: for an argument out of range; if no file can be read; if there are
            fewer files than fill one batch; or, with `strict`, if the first file
            cannot be read. While iterating, the same are a `tf.errors.OpError` whose
            text names the file.
        FileNotFoundError: if `source` is a folder that does not exist.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.data.pipeline import video_dataset

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        dataset = video_dataset(
            folder, batch_size=2, image_size=64, num_frames=8, shuffle=True
        )
        print(next(iter(dataset)).shape)
    ```
    """
    size = as_size("image_size", image_size)
    reader = VideoReader(num_frames, sampling_rate, size, channels)
    position = choose_crop(crop, shuffle, _CROPS_VIDEO)
    manifest = VideoManifest.from_source(source)
    report = ReadReport() if report is None else report
    report.add_missing(manifest)

    def read(index: int, position: Position) -> np.ndarray:
        path = manifest.files[index]
        clip = reader.read(path, position)
        if clip.missing:
            report.add_incomplete(path, clip.missing)
        return clip.frames

    return build_dataset(
        manifest,
        read,
        shape=(num_frames, *size, channels),
        dtype="uint8",
        position=position,
        batch_size=batch_size,
        shuffle=shuffle,
        repeat=repeat,
        drop_remainder=drop_remainder,
        labels=labels,
        seed=seed,
        initial_epoch=initial_epoch,
        first_batch=first_batch,
        strict=strict,
        report=report,
        num_parallel=num_parallel,
        shard=shard,
    )
