"""Brings labelled clips to the form that a video classifier takes."""

import keras
import keras_hub

from keras_bridle.models.bridle_backbone import BridleBackbone
from keras_bridle.models.bridle_image_preprocessor import known_channels, known_size
from keras_bridle.models.bridle_preprocessor import check_input_dims
from keras_bridle.models.bridle_video_converter import BridleVideoConverter


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleVideoPreprocessor(keras_hub.models.Preprocessor):
    """Converts clips with a `BridleVideoConverter`, and hands on their labels.

    Args:
        video_converter: `BridleVideoConverter`.
        **kwargs: keyword arguments of `keras_hub.models.Preprocessor`.

    Call arguments:
        x: clips, see `BridleVideoConverter`.
        y: labels, which stay as they are.
        sample_weight: weights, likewise.

    Returns:
        `x`, or a tuple `(x, y)` or `(x, y, sample_weight)` of what there is.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models import BridleVideoConverter, BridleVideoPreprocessor

    preprocessor = BridleVideoPreprocessor(BridleVideoConverter(num_frames=8))
    x, y = preprocessor(np.zeros((2, 12, 16, 16, 3), "uint8"), np.array([0, 1]))
    print(x.shape)  # (2, 8, 16, 16, 3)
    ```
    """

    backbone_cls = BridleBackbone
    video_converter_cls = BridleVideoConverter

    def __init__(self, video_converter, **kwargs):
        super().__init__(**kwargs)
        self.video_converter = video_converter
        self.built = True

    @classmethod
    def for_backbone(cls, backbone, **kwargs):
        """Makes the preprocessor that fits an encoder.

        Args:
            backbone: `BridleBackbone` that takes clips.
            **kwargs: arguments of `BridleVideoConverter` that replace the encoder's,
                such as `num_frames`.

        Returns:
            A `BridleVideoPreprocessor`.

        Raises:
            ValueError: if the encoder takes no clips.
        """
        check_input_dims(backbone, 4, "clips (frames, rows, columns, channels)")
        frames, *size, channels = backbone.input_dims
        settings = {
            "image_size": known_size(size),
            "channels": known_channels(channels),
            "num_frames": frames,
        }
        return cls(BridleVideoConverter(**{**settings, **kwargs}))

    def call(self, x, y=None, sample_weight=None):
        x = self.video_converter(x)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
