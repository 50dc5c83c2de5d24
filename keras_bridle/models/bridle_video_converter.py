"""Brings clips to the form that a video encoder takes."""

import keras
import keras_hub
import numpy as np

from keras_bridle.models.bridle_backbone import BridleBackbone
from keras_bridle.models.bridle_image_converter import (
    BridleImageConverter,
    check_no_scaling,
)
from keras_bridle.models.converter_arrays import array_functions, sides_of


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleVideoConverter(keras_hub.layers.VideoConverter):
    """Brings clips to one number of frames, and their frames to one size.

    Of too many frames the middle ones are kept; of too few the last one is repeated.
    A clip that has the right number is taken as it is. Frames are treated as by
    `BridleImageConverter`. Pixels keep their range from 0 to 255: the encoder
    normalizes them itself.

    Args:
        image_size: optional tuple of 2 ints, `(height, width)`. `None` does not resize.
        channels: optional int, 1 for gray or 3 for color. `None` keeps what comes.
        num_frames: optional int. `None` keeps all frames.
        sampling_rate: int. From one frame that is kept to the next, so many of a longer
            clip, as `keras_bridle.data.video_dataset` reads files.
        interpolation: string, such as `"bicubic"` or `"bilinear"`.
        dtype: dtype policy; float32 by default, whatever the global one is.
        **kwargs: keyword arguments of `keras_hub.layers.VideoConverter`, but for
            `scale` and `offset`: the encoder normalizes pixels itself.

    Call arguments:
        clips: array or tensor of shape `(frames, height, width, channels)` or
            `(batch, frames, height, width, channels)`; or a list of arrays of the
            former shape. Pixels from 0 to 255.

    Returns:
        Array or tensor of shape `(batch, frames, height, width, channels)`, or without
        the batch for a single clip; float32 if anything had to be done to the frames.

    Raises:
        ValueError: for clips of another rank, numbers of channels that cannot be made
            of each other, or an unknown number of frames where it must be changed.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models import BridleVideoConverter

    converter = BridleVideoConverter(image_size=(32, 32), num_frames=8)
    clips = [np.zeros((6, 32, 40, 3), "uint8"), np.zeros((20, 64, 64, 3), "uint8")]
    print(converter(clips).shape)  # (2, 8, 32, 32, 3)
    ```
    """

    backbone_cls = BridleBackbone

    def __init__(
        self,
        image_size=None,
        channels=None,
        num_frames=None,
        sampling_rate=1,
        interpolation="bicubic",
        dtype="float32",
        **kwargs,
    ):
        check_no_scaling(kwargs)
        image_size = None if image_size is None else tuple(image_size)
        super().__init__(image_size=image_size, dtype=dtype, **kwargs)
        self.image_converter = BridleImageConverter(
            image_size, channels, interpolation, dtype
        )
        for name, value in (
            ("num_frames", num_frames),
            ("sampling_rate", sampling_rate),
        ):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        self.channels = channels
        self.num_frames = num_frames
        self.sampling_rate = sampling_rate
        self.interpolation = interpolation
        self.built = True

    def call(self, clips):
        if isinstance(clips, list | tuple):
            clips = [self._converted(np.asarray(clip)[None])[0] for clip in clips]
            return array_functions(clips[0]).stack(clips, axis=0)
        if len(clips.shape) == 4:
            return self._converted(clips[None])[0]
        return self._converted(clips)

    def _converted(self, clips):
        if len(clips.shape) != 5:
            raise ValueError(
                "A clip must have the shape (frames, height, width, channels). "
                f"Received: clips of shape {tuple(clips.shape[1:])}"
            )
        clips = self._with_frames(clips)
        _, frames, *picture = sides_of(clips)
        flat = array_functions(clips).reshape(clips, (-1, *picture))
        pictures = self.image_converter(flat)
        *_, height, width, channels = sides_of(pictures)
        return array_functions(pictures).reshape(
            pictures, (-1, frames, height, width, channels)
        )

    def _with_frames(self, clips):
        there, wanted, rate = clips.shape[1], self.num_frames, self.sampling_rate
        if wanted is None:
            return clips if rate == 1 else clips[:, ::rate]
        if wanted == there:
            return clips
        if there is None:
            raise ValueError(
                "The number of frames must be known to be changed. "
                f"Received: clips of shape {tuple(clips.shape)}"
            )
        # Where files are read from: see `VideoReader.read()`.
        first = (max(0, there - (wanted - 1) * rate - 1) + 1) // 2
        frames = [clips[:, min(first + rate * i, there - 1)] for i in range(wanted)]
        return array_functions(clips).stack(frames, axis=1)

    def get_config(self):
        config = {
            **super().get_config(),
            "channels": self.channels,
            "num_frames": self.num_frames,
            "sampling_rate": self.sampling_rate,
            "interpolation": self.interpolation,
        }
        # The encoder scales pixels itself.
        return {
            name: value
            for name, value in config.items()
            if name not in ("scale", "offset")
        }
