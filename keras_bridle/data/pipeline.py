"""From a list of files to batches."""

import itertools
import os
import time
from typing import Any

import numpy as np

from keras_bridle.data.clips import CROPS, Clips, Position
from keras_bridle.data.files import FileList, ReadReport, check
from keras_bridle.data.readers import import_tensorflow


def file_dataset(
    files: FileList,
    reader: Any,
    *,
    batch_size: int,
    shuffle: bool = False,
    crop: str | Position | None = None,
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
    """Builds a `tf.data.Dataset` of clips of one shape from files.

    One clip is taken of each file and epoch. Files are decoded in parallel, and of a
    long one little more than the part that is used.

    **Unreadable files** are listed in `report`, skipped, and not tried again. With
    `drop_remainder`, another file replaces a skipped one, so that every epoch has
    `len(dataset)` full batches. Without it, as in evaluation, every readable file comes
    exactly once, and the number of batches is unknown.

    **Order and crops** follow from `(seed, epoch)` alone, however many threads read.
    Without `repeat`, each iteration over the dataset is the next epoch. With `repeat`,
    the dataset is one endless run of epochs: give `fit()`
    `steps_per_epoch=len(files) // batch_size`.

    Args:
        files: `FileList`, see `list_files()`.
        reader: `AudioReader`, `ImageReader` or `VideoReader`; or any function
            `(path, position, segment, report)` with the attributes `shape` and `dtype`
            of the arrays that it returns.
        batch_size: int. Clips per batch.
        shuffle: bool. Whether each epoch has an order of its own, as for training.
        crop: which part to take of a file that is longer or of other proportions:
            `"random"` (another one every epoch), `"center"`, `"start"`, or numbers in
            [0, 1] along time, height and width. Defaults to `"random"` with `shuffle`,
            else `"center"`.
        repeat: bool. Whether to repeat without end.
        drop_remainder: bool. Whether to leave out what does not fill a batch, so that
            all shapes are static. Defaults to `shuffle or repeat`.
        labels: bool. Whether to give labels if there are any.
        seed: int. Decides order and crops.
        initial_epoch: int. Number of the first epoch, to resume a run.
        first_batch: int. With `repeat`, the batch of that epoch to start with. Those
            before are not read.
        strict: bool. Whether an unreadable file is an error instead.
        report: optional `ReadReport` to fill.
        num_parallel: int. Files read at the same time. Defaults to the number of CPUs.
        shard: tuple of ints `(shard, num_shards)`, for one of several workers: it reads
            only that shard of every batch, `batch_size / num_shards` clips.

    Returns:
        A dataset of arrays of shape `(batch_size, *reader.shape)`; with labels, of
        tuples `(clips, labels)`, where labels are int32 of shape `(batch_size,)`, or
        float32 of shape `(batch_size, classes)` for multi-label data.

    Raises:
        UnreadableFileError: if no file can be read; or, with `strict`, if the first
            file cannot. While iterating, TensorFlow makes other errors of these; the
            `UnreadableFileError` is then `report.error`.

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
    tf = import_tensorflow()
    if drop_remainder is None:
        drop_remainder = shuffle or repeat
    crop = crop or ("random" if shuffle else "center")
    is_crop = not isinstance(crop, str) or crop in CROPS
    check(is_crop, "crop", f"one of {', '.join(CROPS)}", crop)
    check(batch_size >= 1, "batch_size", "at least 1", batch_size)
    check(seed >= 0, "seed", "at least 0", seed)
    check(initial_epoch >= 0, "initial_epoch", "at least 0", initial_epoch)
    starts_well = first_batch == 0 or (repeat and first_batch > 0)
    check(starts_well, "first_batch", "0, or more with `repeat`", first_batch)
    if drop_remainder:
        expected = f"at most {len(files)}, the files"
        check(batch_size <= len(files), "batch_size", expected, batch_size)
    own_shard, num_shards = shard
    is_shard = 0 <= own_shard < num_shards and batch_size % num_shards == 0
    check(is_shard, "shard", f"one of the equal shards of {batch_size} files", shard)
    fits = drop_remainder or num_shards == 1
    check(fits, "drop_remainder", "`True` with shards", drop_remainder)
    report = ReadReport() if report is None else report
    report.add_missing(files)
    clips = Clips(
        files,
        reader,
        report=report,
        shuffle=shuffle,
        position=CROPS[crop] if isinstance(crop, str) else crop,
        replace=drop_remainder,
        strict=strict,
        seed=seed,
    )
    clips.check_readable()
    num_batches, own_size = len(files) // batch_size, batch_size // num_shards
    places = num_batches * own_size if drop_remainder else len(files)

    def place_of(number: Any) -> Any:
        """The worker's places are those of its shard in each batch."""
        batch, place = number // own_size, number % own_size
        return batch * batch_size + own_shard * own_size + place

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
    shapes, dtypes = [reader.shape], [tf.as_dtype(reader.dtype)]
    labels = labels and files.labels is not None
    if labels:
        example = files.label_array(0)
        shapes.append(example.shape)
        dtypes.append(tf.as_dtype(example.dtype))

    def read(epoch: int, place: int) -> tuple[np.ndarray, ...]:
        index, clip = clips.clip(int(epoch), int(place))
        # A skipped file needs some clip and label: it is filtered out below.
        clip = np.zeros(0, reader.dtype) if clip is None else clip
        label = (files.label_array(max(index, 0)),) if labels else ()
        return np.int64(index), clip, *label

    dataset = dataset.map(
        lambda epoch, place: tuple(
            tf.numpy_function(read, [epoch, place], [tf.int64, *dtypes])
        ),
        num_parallel_calls=num_parallel or os.cpu_count() or 1,
        deterministic=True,
    )
    if not drop_remainder:
        dataset = dataset.filter(lambda index, *_: index >= 0)

    def element(_: Any, *values: Any) -> Any:
        values = tuple(map(tf.ensure_shape, values, shapes))
        return values if labels else values[0]

    dataset = dataset.map(element).batch(own_size, drop_remainder=drop_remainder)
    if drop_remainder or repeat:
        length = tf.data.INFINITE_CARDINALITY if repeat else num_batches
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(length))
    return dataset.prefetch(tf.data.AUTOTUNE)


class InputClock:
    """Measures how long readers of a `tf.data.Dataset` wait, on every backend.

    Reading in the background, while the model computes, is no waiting. Attributes:
    `seconds` so far, `batches` and `examples` that were read.
    """

    def __init__(self):
        self.seconds = 0.0
        self.batches = 0
        self.examples = 0

    def wrap(self, dataset):
        """Puts the clock at the end of an input pipeline."""
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
    """Examples read each second when nothing else runs; `None` for a single batch."""
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
