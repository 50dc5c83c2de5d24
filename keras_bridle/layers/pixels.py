"""Normalization of pixels."""

import keras
import numpy as np
from keras import ops

from keras_bridle.config import ArgumentError
from keras_bridle.layers.base import ConfiguredLayer, check

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def as_pixels(numbers, name="inputs"):
    """Converts the numbers of an image to uint8 pixels.

    The dtype and the largest number decide: 8 bits, 16 bits (the upper 8 are kept), or
    floats up to 1, as fractions of white. Other numbers are an error.
    """
    if numbers.dtype == "uint8":
        return numbers
    if numbers.dtype == bool:
        return numbers.astype("uint8") * 255
    least, most = (float(x) for x in (np.min(numbers), np.max(numbers)))
    if not 0 <= least <= most <= 65535:
        expected = "pixels of 8 or 16 bits, or floats from 0 to 1"
        raise ArgumentError(name, expected, f"numbers from {least:g} to {most:g}")
    if numbers.dtype.kind == "f":
        factor = 255.0 if most <= 1 else 1.0 if most <= 255 else 1 / 257
        return np.rint(numbers * factor).astype("uint8")
    is_deep = numbers.dtype.itemsize == 2 or most > 255
    return (numbers >> 8 if is_deep else numbers).astype("uint8")


def on_white(pixels):
    """Composites transparent pixels `(..., 4)` on white, `(..., 3)`."""
    colors, opacity = pixels[..., :3].astype("float32"), pixels[..., 3:] / 255.0
    shown = colors * opacity + 255.0 * (1.0 - opacity)
    return np.rint(shown).astype(pixels.dtype)


@keras.saving.register_keras_serializable(package="keras_bridle")
class PixelNormalization(ConfiguredLayer):
    """Normalizes the pixels of images or clips.

    `(pixels / scale - mean) / std`, computed in float32 whatever the dtype policy. As a
    front end, it lets a model take raw pixels from 0 to 255.

    Args:
        mean: float or tuple of floats, one for each channel, of the pixels divided by
            `scale`. The default is ImageNet's.
        std: float or tuple of floats, the standard deviation likewise.
        scale: float, the value of white; 1.0 for pixels in [0, 1].
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        pixels: integer or float tensor of shape `(..., channels)`. Gray pixels are
            normalized by the average over the channels.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: for a `std` or `scale` that is not positive, `mean` and `std` of
            different lengths, or pixels of another number of channels.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.pixels import PixelNormalization

    images = np.full((2, 32, 32, 3), 255, "uint8")
    print(PixelNormalization(mean=0.5, std=0.25)(images)[0, 0, 0])  # 2, 2, 2
    ```

    Reference:
        - [He et al., 2015](https://arxiv.org/abs/1512.03385), the usual statistics
    """

    def __init__(self, mean=IMAGENET_MEAN, std=IMAGENET_STD, scale=255.0, **kwargs):
        # Half precision would round the pixels before they are normalized.
        kwargs.setdefault("autocast", False)
        super().__init__(locals())
        self.mean = _as_config(mean)
        self.std = _as_config(std)
        self._mean = np.atleast_1d(np.asarray(mean, "float64"))
        self._std = np.atleast_1d(np.asarray(std, "float64"))
        lengths = {len(self._mean), len(self._std)} - {1}
        check(len(lengths) < 2, "std", "as many values as `mean` has", std)
        check((self._std > 0).all(), "std", "positive", std)
        check(scale > 0, "scale", "positive", scale)
        self._num_channels = lengths.pop() if lengths else None

    @classmethod
    def for_data(cls, pixels, scale=255.0, **kwargs):
        """Makes a layer that standardizes each channel of given pixels."""
        axes = tuple(range(np.ndim(pixels) - 1))
        pixels = np.asarray(pixels) / scale
        mean, std = pixels.mean(axes), pixels.std(axes)
        return cls(tuple(mean.tolist()), tuple(std.tolist()), scale, **kwargs)

    def call(self, pixels):
        pixels = ops.convert_to_tensor(pixels)
        channels = pixels.shape[-1]
        is_right = channels == 1 or self._num_channels in (None, channels)
        expected = f"pixels of {self._num_channels} channels"
        check(is_right, "pixels", expected, tuple(pixels.shape))
        mean, std = self._mean, self._std
        if channels == 1:
            mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
        # This takes one multiplication and one addition for each pixel.
        factor = ops.convert_to_tensor(1.0 / (self.scale * std), dtype="float32")
        offset = ops.convert_to_tensor(-mean / std, dtype="float32")
        pixels = ops.cast(pixels, "float32") * factor + offset
        return ops.cast(pixels, self.compute_dtype)


def _as_config(value):
    """Returns a float, or several as a tuple."""
    return float(value) if np.ndim(value) == 0 else tuple(map(float, value))
