"""Audio files to batches of waveforms."""

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_bridle.data.manifest import AudioManifest
from keras_bridle.data.read_report import ReadReport
from keras_bridle.data.soundfile_audio import read_clip as read_with_soundfile
from keras_bridle.data.tensorflow_input import import_tensorflow

_CROPS = {"start": 0.0, "center": 0.5, "random": None}
# So many files in a row that cannot be read are a lost disk, not broken files.
_MAX_FAILURES = 1000


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
    strict: bool = False,
    report: ReadReport | None = None,
    num_parallel: int | None = None,
    reader: str = "soundfile",
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
        strict: bool. Whether an unreadable file is an error instead.
        report: a `ReadReport` to fill, or `None` to keep none. It also gets what the
            manifest lists as missing, which is no error with `strict` either.
        num_parallel: int. Files read at the same time. Defaults to the number of CPUs.
        reader: `"soundfile"` (decodes with soundfile, resamples with soxr) or
            `"tensorflow-io"` (its own decoders and resampler; needs TensorFlow up to
            2.17.1, see `keras_bridle.data.tfio_audio`).

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
    from keras_bridle.data import ReadReport, audio_dataset, extract_samples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        report = ReadReport()
        dataset = audio_dataset(
            folder, batch_size=32, seconds=0.5, shuffle=True, report=report
        )
        print(next(iter(dataset)).shape, len(dataset), report)
    ```
    """
    manifest = _as_manifest(source)
    length = _clip_length(seconds, num_samples, sample_rate)
    crop = crop or ("random" if shuffle else "center")
    if crop not in _CROPS:
        raise ValueError(f"`crop` must be one of {list(_CROPS)}. Received: {crop!r}")
    if drop_remainder is None:
        drop_remainder = shuffle or repeat
    _check_at_least(1, batch_size=batch_size, sample_rate=sample_rate)
    _check_at_least(0, seed=seed, initial_epoch=initial_epoch)
    if drop_remainder and len(manifest) < batch_size:
        raise ValueError(
            f"`batch_size` ({batch_size}) is larger than the number of files "
            f"({len(manifest)}): not one batch is full. Make it smaller, or pass "
            "`drop_remainder=False`."
        )
    if num_parallel is None:
        num_parallel = os.cpu_count() or 1
    _check_at_least(1, num_parallel=num_parallel)
    clips = _Clips(
        manifest,
        functools.partial(_reader(reader), num_samples=length, sample_rate=sample_rate),
        report=report if report is not None else ReadReport(),
        shuffle=shuffle,
        position=_CROPS[crop],
        replace=drop_remainder,
        strict=strict,
        seed=seed,
    )
    clips.check_readable()
    return _pipeline(
        clips,
        length=length,
        batch_size=batch_size,
        repeat=repeat,
        drop_remainder=drop_remainder,
        labels=labels and manifest.labels is not None,
        initial_epoch=initial_epoch,
        num_parallel=num_parallel,
    )


class _Clips:
    """Reads the clip at a place in an epoch: the Python side of the pipeline."""

    def __init__(
        self,
        manifest: AudioManifest,
        read: Callable[..., np.ndarray],
        *,
        report: ReadReport,
        shuffle: bool,
        position: float | None,
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
        for name in manifest.missing:
            report.add_skipped(name, "listed, but not in the folder")

    def check_readable(self) -> None:
        """Reads up to the first readable file; raises if there is none."""
        for index in range(len(self.manifest)):
            if self._try(index, 0.0) is not None:
                return
        first = self.manifest.files[0]
        raise ValueError(
            f"None of the {len(self.manifest)} audio files can be read. The first is "
            f"'{first}': {dict(self.report.skipped)[first]}"
        )

    def clip(self, epoch: int, place: int) -> tuple[int, np.ndarray]:
        """Returns the file's index and its clip; the index is -1 if it is skipped."""
        order = self._order(epoch)
        position = self._position
        if position is None:
            position = np.random.default_rng((self.seed, epoch, place, 1)).random()
        for index in self._candidates(order, place):
            waveform = self._try(index, position)
            if waveform is not None:
                self.report.add_read()
                return index, waveform
        if self._replace:
            raise ValueError("No audio file can be read any more.")
        return -1, np.zeros(0, "float32")

    def _candidates(self, order: np.ndarray, place: int) -> Iterator[int]:
        """Yields the file at a place, then those that may replace it."""
        yield int(order[place])
        if self._replace:
            # From half an epoch away, so that no batch holds the same file twice.
            other = place + len(order) // 2
            for offset in range(len(order)):
                yield int(order[(other + offset) % len(order)])

    def _try(self, index: int, position: float) -> np.ndarray | None:
        if index in self._unreadable:
            return None
        path = self.manifest.files[index]
        segments = self.manifest.segments
        segment = (0.0, None) if segments is None else segments[index]
        try:
            waveform = self._read(path, position=position, segment=segment)
            self._failed_in_a_row = 0
            return waveform
        # soundfile's own error is a RuntimeError; a broken header may ask for any
        # amount of memory.
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            reason = f"{type(error).__name__}: {error}"
        if self.strict:
            raise ValueError(f"Cannot read audio file '{path}': {reason}")
        with self._lock:
            self._unreadable.add(index)
            self._failed_in_a_row += 1
        self.report.add_skipped(path, reason)
        if self._failed_in_a_row >= _MAX_FAILURES:
            raise ValueError(
                f"{_MAX_FAILURES} audio files in a row cannot be read; the last is "
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


def _pipeline(
    clips: _Clips,
    *,
    length: int,
    batch_size: int,
    repeat: bool,
    drop_remainder: bool,
    labels: bool,
    initial_epoch: int,
    num_parallel: int,
) -> Any:
    tf = import_tensorflow()
    num_batches = len(clips.manifest) // batch_size
    places = num_batches * batch_size if drop_remainder else len(clips.manifest)
    if repeat:
        epochs = tf.data.Dataset.counter(initial_epoch)
    else:
        # Drawn when an iterator is first asked for an element, not when it is made.
        numbers = itertools.count(initial_epoch)
        epochs = tf.data.Dataset.range(1).map(
            lambda _: tf.numpy_function(lambda: next(numbers), [], tf.int64)
        )
    dataset = epochs.flat_map(
        lambda epoch: tf.data.Dataset.range(places).map(lambda place: (epoch, place))
    )
    outputs = [tf.int64, tf.float32]
    label_shape: tuple[int, ...] = ()
    if labels:
        example = clips.manifest.label_array(0)
        label_shape = example.shape
        outputs.append(tf.as_dtype(example.dtype))

    def read(epoch: int, place: int) -> tuple[np.ndarray, ...]:
        index, waveform = clips.clip(int(epoch), int(place))
        # A skipped file needs some label: it is filtered out below.
        label = (clips.manifest.label_array(max(index, 0)),) if labels else ()
        return np.int64(index), waveform, *label

    dataset = dataset.map(
        lambda epoch, place: tuple(tf.numpy_function(read, [epoch, place], outputs)),
        num_parallel_calls=num_parallel,
        deterministic=True,
    )
    if not drop_remainder:
        dataset = dataset.filter(lambda index, *_: index >= 0)

    def elements(_: Any, waveform: Any, *label: Any) -> Any:
        waveform = tf.ensure_shape(waveform, (length,))
        return (
            (waveform, tf.ensure_shape(label[0], label_shape)) if labels else waveform
        )

    dataset = dataset.map(elements).batch(batch_size, drop_remainder=drop_remainder)
    if repeat:
        dataset = dataset.apply(
            tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        )
    elif drop_remainder:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches))
    return dataset.prefetch(tf.data.AUTOTUNE)


def _as_manifest(source: AudioManifest | str | Path | Sequence[str]) -> AudioManifest:
    if isinstance(source, AudioManifest):
        return source
    if isinstance(source, str | Path):
        return AudioManifest.from_folder(source)
    return AudioManifest([str(path) for path in source])


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


def _check_at_least(minimum: int, **arguments: int) -> None:
    for name, value in arguments.items():
        if value < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}. Received: {value}")


def _reader(name: str) -> Callable[..., np.ndarray]:
    if name == "soundfile":
        return read_with_soundfile
    if name == "tensorflow-io":
        from keras_bridle.data.tfio_audio import import_tensorflow_io, read_clip

        import_tensorflow_io()
        return read_clip
    raise ValueError(
        f"`reader` must be 'soundfile' or 'tensorflow-io'. Received: {name!r}"
    )
