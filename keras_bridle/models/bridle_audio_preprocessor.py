"""Brings labelled waveforms to the form that an audio classifier takes."""

import keras
import keras_hub

from keras_bridle.models.bridle_audio_converter import BridleAudioConverter
from keras_bridle.models.bridle_backbone import BridleBackbone
from keras_bridle.models.bridle_preprocessor import check_input_dims


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleAudioPreprocessor(keras_hub.models.Preprocessor):
    """Converts waveforms with a `BridleAudioConverter`, and hands on their labels.

    Args:
        audio_converter: `BridleAudioConverter`.
        **kwargs: keyword arguments of `keras_hub.models.Preprocessor`.

    Call arguments:
        x: waveforms, see `BridleAudioConverter`.
        y: labels, which stay as they are.
        sample_weight: weights, likewise.

    Returns:
        `x`, or a tuple `(x, y)` or `(x, y, sample_weight)` of what there is.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models import BridleAudioConverter, BridleAudioPreprocessor

    preprocessor = BridleAudioPreprocessor(BridleAudioConverter(num_samples=8000))
    x, y = preprocessor([np.ones(5000, "float32"), np.ones(9000, "float32")], [0, 1])
    print(x.shape)  # (2, 8000)
    ```
    """

    backbone_cls = BridleBackbone
    audio_converter_cls = BridleAudioConverter

    def __init__(self, audio_converter, **kwargs):
        super().__init__(**kwargs)
        self.audio_converter = audio_converter
        self.built = True

    @classmethod
    def for_backbone(cls, backbone, **kwargs):
        """Makes the preprocessor that fits an encoder.

        Args:
            backbone: `BridleBackbone` that takes waveforms.
            **kwargs: arguments of `BridleAudioConverter` that replace the encoder's,
                such as `num_samples`.

        Returns:
            A `BridleAudioPreprocessor`.

        Raises:
            ValueError: if the encoder takes no waveforms.
        """
        check_input_dims(backbone, 1, "waveforms")
        rate = getattr(backbone.front_end, "sample_rate", 16000)
        settings = {"sampling_rate": rate, "num_samples": backbone.input_dims[0]}
        return cls(BridleAudioConverter(**{**settings, **kwargs}))

    def call(self, x, y=None, sample_weight=None):
        x = self.audio_converter(x)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
