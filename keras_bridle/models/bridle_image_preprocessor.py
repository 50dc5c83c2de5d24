"""Brings labelled pictures to the form that an image classifier takes."""

import keras
import keras_hub

from keras_bridle.models.bridle_backbone import BridleBackbone
from keras_bridle.models.bridle_image_converter import BridleImageConverter
from keras_bridle.models.bridle_preprocessor import check_input_dims


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleImagePreprocessor(keras_hub.models.ImageClassifierPreprocessor):
    """Converts pictures with a `BridleImageConverter`, and hands on their labels.

    Args:
        image_converter: `BridleImageConverter`.
        **kwargs: keyword arguments of `keras_hub.models.Preprocessor`.

    Call arguments:
        x: pictures, see `BridleImageConverter`.
        y: labels, which stay as they are.
        sample_weight: weights, likewise.

    Returns:
        `x`, or a tuple `(x, y)` or `(x, y, sample_weight)` of what there is.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models import BridleImageConverter, BridleImagePreprocessor

    preprocessor = BridleImagePreprocessor(BridleImageConverter((32, 32), channels=3))
    x, y = preprocessor(np.zeros((2, 28, 28, 1), "uint8"), np.array([0, 1]))
    print(x.shape)  # (2, 32, 32, 3)
    ```
    """

    backbone_cls = BridleBackbone
    image_converter_cls = BridleImageConverter

    def __init__(self, image_converter, **kwargs):
        super().__init__(image_converter=image_converter, **kwargs)
        self.built = True

    @classmethod
    def for_backbone(cls, backbone, **kwargs):
        """Makes the preprocessor that fits an encoder.

        Args:
            backbone: `BridleBackbone` that takes pictures.
            **kwargs: arguments of `BridleImageConverter` that replace the encoder's,
                such as `image_size`.

        Returns:
            A `BridleImagePreprocessor`.

        Raises:
            ValueError: if the encoder takes no pictures.
        """
        check_input_dims(backbone, 3, "pictures (rows, columns, channels)")
        *size, channels = backbone.input_dims
        settings = {
            "image_size": known_size(size),
            "channels": known_channels(channels),
        }
        return cls(BridleImageConverter(**{**settings, **kwargs}))

    def call(self, x, y=None, sample_weight=None):
        x = self.image_converter(x)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)


def known_size(size):
    """The size of pictures that an encoder is made for, `None` if it is for any."""
    return None if None in size else tuple(size)


def known_channels(channels):
    """The channels to make of others, `None` where they are neither gray nor color."""
    return channels if channels in (1, 3) else None
