"""One picture from a file or an array, decoded and resized with Pillow."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# JPEG files are decoded at a half, a quarter or an eighth of their size where this many
# times the wanted size remains: much faster, and not visible after resizing.
_DRAFT_FACTOR = 2


def read_image(
    path: str | Path,
    image_size: int | Sequence[int] | None = None,
    channels: int = 3,
    position: tuple[float, float] = (0.5, 0.5),
) -> np.ndarray:
    """Reads a picture as pixels from 0 to 255.

    The format is told from the contents, whatever the name says. The picture is turned
    as its EXIF orientation says; where it is transparent, white shines through; 16-bit
    pictures keep their upper 8 bits; of an animation the first frame is taken.

    Args:
        path: a file that Pillow can read (JPEG, PNG, WebP and more).
        image_size: int or `(height, width)`. The picture is scaled, its proportions
            kept, until it covers this size (bicubic, with antialiasing), and what
            stands over is cut off. `None` leaves the picture as it is.
        channels: 3 for color or 1 for gray.
        position: `(vertical, horizontal)`, each in [0, 1]: which part to keep of what
            stands over: 0 is the top or left, 0.5 the middle, 1 the bottom or right.

    Returns:
        uint8 array of shape `(height, width, channels)`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be decoded to its end, or for an argument out of range.

    Example:
    ```python
    import tempfile
    from keras_bridle.data import extract_samples, read_image

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        image = read_image(folder + "/fashion_mnist/Bag/03.png", image_size=56)
    print(image.shape, image.dtype)
    ```
    """
    size = None if image_size is None else as_size("image_size", image_size)
    check_channels(channels)
    if not Path(path).is_file():
        raise FileNotFoundError("no such file")
    try:
        with Image.open(path) as image:
            if size is not None:
                # Orientation may exchange the sides.
                least = _DRAFT_FACTOR * max(size)
                image.draft(None, (least, least))
            image.load()
            return _to_pixels(_upright(image), size, channels, position)
    # Out of broken files, Pillow's parsers raise whatever comes to them.
    except Exception as error:
        reason = str(error).replace(f" {str(path)!r}", "")
        raise ValueError(f"{type(error).__name__}: {reason}") from error


def fit_array(
    array: np.ndarray,
    size: tuple[int, int],
    channels: int,
    position: tuple[float, float],
) -> np.ndarray:
    """Resizes a picture that is an array, as `read_image` does with a file.

    Args:
        array: uint8 array of shape `(height, width)` or `(height, width, 1 or 3)`.
        size: `(height, width)` of the result.
        channels: 3 for color or 1 for gray.
        position: see `read_image`.

    Returns:
        uint8 array of shape `(height, width, channels)`.
    """
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return _to_pixels(Image.fromarray(array), size, channels, position)


def as_size(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Returns an int or a pair as `(height, width)`, or says what is wrong with it."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(int(side) != side or side < 1 for side in pair):
        raise ValueError(
            f"`{name}` must be a positive int or `(height, width)`. Received: {size}"
        )
    return int(pair[0]), int(pair[1])


def check_channels(channels: int) -> None:
    """Raises unless it is 1 or 3."""
    if channels not in (1, 3):
        raise ValueError(
            f"`channels` must be 1 (gray) or 3 (color). Received: {channels}"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # The pixels are good, only what is said about them is not.
        return image


def _to_pixels(
    image: Image.Image,
    size: tuple[int, int] | None,
    channels: int,
    position: tuple[float, float],
) -> np.ndarray:
    image = _to_mode(image, "L" if channels == 1 else "RGB")
    if size is not None:
        image = _cover(image, size, position)
    pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow itself would cut all above 255 off.
        return Image.fromarray((np.asarray(image) >> 8).astype("uint8")).convert(mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert(mode)


def _cover(
    image: Image.Image, size: tuple[int, int], position: tuple[float, float]
) -> Image.Image:
    height, width = size
    scale = min(image.width / width, image.height / height)
    top = (image.height - height * scale) * position[0]
    left = (image.width - width * scale) * position[1]
    # Rounding must not lead out of the picture.
    right = min(left + width * scale, image.width)
    bottom = min(top + height * scale, image.height)
    return image.resize(
        (width, height), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
    )
