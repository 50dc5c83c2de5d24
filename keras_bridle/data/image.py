"""Picture files to batches of pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_bridle.data.image_file import as_size, check_channels, fit_array, read_image
from keras_bridle.data.image_manifest import ImageManifest
from keras_bridle.data.pipeline import Position, build_dataset, choose_crop
from keras_bridle.data.read_report import ReadReport

_CROPS: dict[str, Position | None] = {"center": (0.5, 0.5, 0.5), "random": None}


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
    from keras_bridle.data import ImageManifest, extract_samples, image_dataset

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
    position = choose_crop(crop, shuffle, _CROPS)
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
