"""Audio files to batches of waveforms."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_bridle.data.manifest import AudioManifest
from keras_bridle.data.pipeline import (
    Position,
    build_dataset,
    check_at_least,
    choose_crop,
)
from keras_bridle.data.read_report import ReadReport
from keras_bridle.data.soundfile_audio import read_clip as read_with_soundfile

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
            2.17.1, see `keras_bridle.data.tfio_audio`).
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
        from keras_bridle.data.tfio_audio import import_tensorflow_io, read_clip

        import_tensorflow_io()
        return read_clip
    raise ValueError(
        f"`reader` must be 'soundfile' or 'tensorflow-io'. Received: {name!r}"
    )
