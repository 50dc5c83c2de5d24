"""Video files to batches of clips."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_bridle.data.image_file import as_size
from keras_bridle.data.pipeline import Position, build_dataset, choose_crop
from keras_bridle.data.read_report import ReadReport
from keras_bridle.data.video_file import VideoReader
from keras_bridle.data.video_manifest import VideoManifest

_CROPS: dict[str, Position | None] = {
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
    which they are shown (see `keras_bridle.data.video_file`). Frames are scaled until
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
    from keras_bridle.data import extract_samples, video_dataset

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
    position = choose_crop(crop, shuffle, _CROPS)
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
