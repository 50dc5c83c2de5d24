"""Brings pictures to the form that an image encoder takes."""

import keras
import keras_hub
import numpy as np

from keras_bridle.models.bridle_backbone import BridleBackbone
from keras_bridle.models.converter_arrays import array_functions, as_float32

# How bright red, green and blue are, as in Pillow's and TensorFlow's gray.
_BRIGHTNESS = (0.299, 0.587, 0.114)


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleImageConverter(keras_hub.layers.ImageConverter):
    """Resizes pictures until they cover a size, and cuts off what stands over.

    Gray becomes color or color gray where the encoder wants it. Pixels keep their range
    from 0 to 255: the encoder normalizes them itself. Pictures that are right already
    stay as they are.

    Args:
        image_size: optional tuple of 2 ints, `(height, width)`. `None` does not resize.
        channels: optional int, 1 for gray or 3 for color. `None` keeps what comes.
        interpolation: string, such as `"bicubic"` or `"bilinear"`.
        dtype: dtype policy; float32 by default, whatever the global one is.
        **kwargs: keyword arguments of `keras_hub.layers.ImageConverter`, but for
            `scale` and `offset`: the encoder normalizes pixels itself.

    Call arguments:
        images: array or tensor of shape `(height, width, channels)`,
            `(batch, height, width, channels)` or, gray, `(batch, height, width)`; or a
            list of arrays of shape `(height, width, channels)` or `(height, width)`, of
            any sizes if there is an `image_size`. Pixels from 0 to 255.

    Returns:
        Array or tensor of shape `(batch, height, width, channels)`, or without the
        batch for a single picture; float32 if anything had to be done.

    Raises:
        ValueError: for numbers of channels that cannot be made of each other.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models import BridleImageConverter

    converter = BridleImageConverter(image_size=(32, 32), channels=3)
    images = [np.zeros((28, 28), "uint8"), np.zeros((60, 40, 3), "uint8")]
    print(converter(images).shape)  # (2, 32, 32, 3)
    ```
    """

    backbone_cls = BridleBackbone

    def __init__(
        self,
        image_size=None,
        channels=None,
        interpolation="bicubic",
        dtype="float32",
        **kwargs,
    ):
        check_no_scaling(kwargs)
        super().__init__(
            image_size=None if image_size is None else tuple(image_size),
            interpolation=interpolation,
            dtype=dtype,
            **{"antialias": True, **kwargs},
        )
        if channels not in (None, 1, 3):
            raise ValueError(
                f"`channels` must be 1, 3 or None. Received: channels={channels}"
            )
        self.channels = channels

    def call(self, images):
        if isinstance(images, list | tuple):
            images = [np.asarray(image) for image in images]
            images = [x[..., None] if x.ndim == 2 else x for x in images]
            converted = [self._converted(image[None])[0] for image in images]
            return array_functions(converted[0]).stack(converted, axis=0)
        rank = len(images.shape)
        if rank == 3 and images.shape[-1] not in (1, 3, 4):
            images, rank = images[..., None], 4  # a gray batch
        if rank == 3:
            return self._converted(images[None])[0]
        return self._converted(images)

    def _converted(self, images):
        images = with_channels(images, self.channels)
        if self.image_size in (None, tuple(images.shape[-3:-1])):
            return images
        images = self.resizing(as_float32(images))
        # Bicubic filters overshoot at edges.
        functions = array_functions(images)
        return functions.minimum(functions.maximum(images, 0.0), 255.0)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


def check_no_scaling(kwargs):
    """Raises a `ValueError` for what makes KerasHub's converters scale pixels."""
    given = [name for name in ("scale", "offset") if kwargs.get(name) is not None]
    if given:
        raise ValueError(
            f"Converters leave pixels at 0 to 255, the encoder normalizes them "
            f"itself (`PixelNormalization`). Received: {given[0]}={kwargs[given[0]]}"
        )


def with_channels(images, channels):
    """Makes gray of color or color of gray, or leaves out transparency.

    Args:
        images: array or tensor of shape `(..., channels)`.
        channels: optional int, 1 or 3.

    Returns:
        Array of shape `(..., channels)`: float32, or `images` as they are.

    Raises:
        ValueError: for numbers of channels that cannot be made of each other.
    """
    there = images.shape[-1]
    if channels in (None, there):
        return images
    if there not in (1, 3, 4):
        raise ValueError(
            f"Images must have 1, 3 or 4 channels to get {channels}. "
            f"Received: images of shape {tuple(images.shape)}"
        )
    if there == 4:
        return with_channels(images[..., :3], channels)
    images = as_float32(images)
    if channels == 3:
        return images * np.ones(3, "float32")
    return sum(
        images[..., index : index + 1] * weight
        for index, weight in enumerate(_BRIGHTNESS)
    )
