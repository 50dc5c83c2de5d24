"""Converters of raw inputs and preprocessors."""

from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_bridle.config import ArgumentError, check
from keras_bridle.layers.pixels import as_pixels, on_white
from keras_bridle.models.arguments import Configured
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.inputs import as_array, as_samples, in_pipeline, is_symbolic
from keras_bridle.models.presets import MODALITIES_BY_RANK

# The weights of red, green and blue for gray, as in Pillow and TensorFlow.
_BRIGHTNESS = np.array([[0.299], [0.587], [0.114]], "float32")


class _Converter(Configured):
    """Base of the converters, which return NumPy batches."""

    backbone_cls = BridleBackbone
    convert: Any
    compute_output_shape: Any

    def __init__(self, *args, dtype="float32", **kwargs):
        # The encoder normalizes pixels itself (`PixelNormalization`).
        for name in ("scale", "offset"):
            if kwargs.pop(name, None) is not None:
                raise ArgumentError(name, "left to the encoder", "a number")
        super().__init__(*args, dtype=dtype, **kwargs)  # type: ignore[call-arg]
        self.built = True

    def check_positive(self, *names):
        for name in names:
            value = getattr(self, name)
            check(value is None or value >= 1, name, "positive", value)

    def call(self, inputs):
        if is_symbolic(inputs):
            shape = self.compute_output_shape(inputs.shape)
            return in_pipeline(self._as_floats, inputs, "float32", shape)
        if isinstance(inputs, list | tuple) and inputs and np.ndim(inputs[0]) > 0:
            return self.convert_list([as_array(x) for x in inputs])
        inputs = as_array(inputs)
        if inputs.shape[:1] == (0,):
            raise ArgumentError("inputs", "one input or more", f"shape {inputs.shape}")
        return self.convert(inputs)

    def get_config(self):
        config = super().get_config()
        return {k: v for k, v in config.items() if k not in ("scale", "offset")}

    def convert_list(self, inputs):
        """Converts a list of inputs of any sizes."""
        return np.stack([self.convert(x) for x in inputs])

    def _as_floats(self, inputs):
        return self.convert(inputs).astype("float32")


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleAudioConverter(_Converter, keras_hub.layers.AudioConverter):
    """Converts clips of any length to a batch of mono waveforms.

    Short clips are zero-padded at the end, which the encoder treats as padding. Long
    ones are cropped to the middle of their real part, as when reading files.

    Args:
        sampling_rate: int, the sample rate of the encoder. The converter does not
            resample; readers of files do.
        num_samples: optional int, the length of all waveforms, by default the longest.
        **kwargs: keyword arguments of `keras_hub.layers.AudioConverter`. The dtype is
            float32 unless one is given.

    Call arguments:
        inputs: list of clips of shape `(samples,)` or `(samples, channels)`; or an
            array or tensor of shape `(samples,)`, `(batch, samples)` or
            `(batch, samples, channels)`; or a ragged tensor. Floats in [-1, 1], or
            16-bit integers.

    Returns:
        float32 array of shape `(batch, samples)`, or `(samples,)` for a single clip; a
        tensor in a `tf.data` pipeline.

    Raises:
        ValueError: for lengths below 1, empty clips, other ranks or integers.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converters import BridleAudioConverter

    converter = BridleAudioConverter(num_samples=16000)
    clips = [np.ones(12000, "float32"), np.ones((20000, 2), "float32")]
    print(converter(clips).shape)  # (2, 16000)
    ```
    """

    def __init__(self, sampling_rate=16000, num_samples=None, **kwargs):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self.check_positive("sampling_rate", "num_samples")

    def audio_shape(self):
        return (self.num_samples,)

    def compute_output_shape(self, shape):
        *batch, samples = shape[:2]
        return (*batch, self.num_samples or samples)

    def convert(self, clips):
        if clips.ndim == 1:
            return self.convert_list([clips])[0]
        is_right = clips.ndim == 2 and self.num_samples in (None, clips.shape[1])
        if is_right and clips.size and clips.dtype == "float32":
            return clips
        return self.convert_list(clips)

    def convert_list(self, clips):
        clips = [_mono(clip) for clip in clips]
        length = self.num_samples or max(map(len, clips))
        return np.stack([_fitted(clip, length) for clip in clips])


def _mono(clip):
    """Converts a clip to float32 in [-1, 1], of shape `(samples,)`."""
    expected = "clips of shape (samples,) or (samples, channels)"
    check(clip.ndim in (1, 2) and len(clip), "inputs", expected, f"shape {clip.shape}")
    clip = as_samples(clip).astype("float32")
    return clip if clip.ndim == 1 else clip.mean(axis=1)


def _fitted(clip, length):
    """Zero-pads a clip, or crops it to the middle of its real part."""
    if len(clip) > length:
        end = 1 + np.max(np.flatnonzero(clip), initial=-1)
        first = max(end - length + 1, 0) // 2
        clip = clip[first : first + length]
    return np.pad(clip, (0, length - len(clip)))


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleImageConverter(_Converter, keras_hub.layers.ImageConverter):
    """Resizes images until they cover a size, and crops them to it.

    Pixels stay in the range from 0 to 255, as the encoder normalizes them. Images of
    the right size are unchanged.

    Args:
        image_size: optional tuple of 2 ints, `(height, width)`. `None` does not resize.
        channels: optional int, 1 for gray or 3 for color. `None` changes nothing.
        interpolation: string, such as `"bicubic"` or `"bilinear"`.
        **kwargs: keyword arguments of `keras_hub.layers.ImageConverter`, except `scale`
            and `offset`. The dtype is float32 unless one is given.

    Call arguments:
        inputs: array or tensor of shape `(height, width, channels)`,
            `(batch, height, width, channels)` or, gray, `(batch, height, width)`; or a
            list of arrays of shape `(height, width, channels)` or `(height, width)`, of
            any sizes if there is an `image_size`. Pixels from 0 to 255.

    Returns:
        Array of shape `(batch, height, width, channels)`, or without the batch axis for
        a single image, float32 if it changed; a float32 tensor in a `tf.data` pipeline.

    Raises:
        ValueError: for numbers of channels that cannot be converted.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converters import BridleImageConverter

    converter = BridleImageConverter(image_size=(32, 32), channels=3)
    images = [np.zeros((28, 28), "uint8"), np.zeros((60, 40, 3), "uint8")]
    print(converter(images).shape)  # (2, 32, 32, 3)
    ```
    """

    def __init__(
        self, image_size=None, channels=None, interpolation="bicubic", **kwargs
    ):
        super().__init__(
            image_size=None if image_size is None else tuple(image_size),
            interpolation=interpolation,
            **{"antialias": True, "data_format": "channels_last", **kwargs},
        )
        check(channels in (None, 1, 3), "channels", "1, 3 or None", channels)
        self.channels = channels

    def compute_output_shape(self, shape):
        if _is_gray(shape):
            shape = (*shape, 1)
        *batch, height, width, channels = shape
        size = self.image_size or (height, width)
        return (*batch, *size, self.channels or channels)

    def convert(self, images):
        if images.dtype.kind in "biu":
            images = as_pixels(images)
        if images.ndim == 2 or _is_gray(images.shape):
            images = images[..., None]
        images = _with_channels(images, self.channels)
        if self.image_size in (None, images.shape[-3:-1]):
            return images
        images = ops.convert_to_numpy(self.resizing(images.astype("float32")))
        # Bicubic filters overshoot at edges.
        return np.clip(images, 0.0, 255.0)


def _is_gray(shape):
    """Returns whether a shape is a batch of gray images without channels."""
    if len(shape) != 3 or shape[-1] in (1, 2, 3, 4):
        return False
    expected = "images with their channels last (gray ones with an axis of 1)"
    check(shape[0] not in (3, 4), "inputs", expected, f"shape {tuple(shape)}")
    return True


def _with_channels(images, channels):
    """Converts between gray and color; transparent pixels become white."""
    if channels in (None, images.shape[-1]):
        return images
    if images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"Images must have 1, 3 or 4 channels to get {channels}. "
            f"Received: images of shape {images.shape}"
        )
    if images.shape[-1] == 4:
        return _with_channels(on_white(images), channels)
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    return images.astype("float32") @ _BRIGHTNESS


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleVideoConverter(_Converter, keras_hub.layers.VideoConverter):
    """Converts clips to one number of frames, and their frames to one size.

    Long clips keep their middle frames, short ones repeat the last one. Frames are
    converted as by `BridleImageConverter`.

    Args:
        image_size, channels, interpolation, **kwargs: as in `BridleImageConverter`.
        num_frames: optional int. `None` keeps all frames.
        sampling_rate: int, the step between frames to keep, as in `VideoReader`.

    Call arguments:
        inputs: array or tensor of shape `(frames, height, width, channels)` or
            `(batch, frames, height, width, channels)`; or a list of arrays of the
            former shape. Pixels from 0 to 255.

    Returns:
        As in `BridleImageConverter`, with an axis of frames.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converters import BridleVideoConverter

    converter = BridleVideoConverter(image_size=(32, 32), num_frames=8)
    clips = [np.zeros((6, 32, 40, 3), "uint8"), np.zeros((20, 64, 64, 3), "uint8")]
    print(converter(clips).shape)  # (2, 8, 32, 32, 3)
    ```
    """

    def __init__(
        self,
        image_size=None,
        channels=None,
        num_frames=None,
        sampling_rate=1,
        interpolation="bicubic",
        **kwargs,
    ):
        image_size = None if image_size is None else tuple(image_size)
        super().__init__(image_size=image_size, **kwargs)
        self.keep_arguments(locals())
        self.image_converter = BridleImageConverter(
            image_size, channels, interpolation, dtype=self.dtype_policy
        )
        self.check_positive("num_frames", "sampling_rate")

    def compute_output_shape(self, shape):
        *batch, frames, height, width, channels = shape
        image = self.image_converter.compute_output_shape((height, width, channels))
        if self.num_frames is None and frames is not None:
            frames = -(-frames // self.sampling_rate)
        return (*batch, self.num_frames or frames, *image)

    def convert(self, clips):
        if clips.ndim not in (4, 5):
            raise ValueError(
                "A clip must have the shape (frames, height, width, channels). "
                f"Received: shape {clips.shape}"
            )
        *batch, frames, height, width, channels = clips.shape
        clips = clips[..., self._frames(frames), :, :, :]
        images = self.image_converter.convert(
            clips.reshape(-1, height, width, channels)
        )
        return images.reshape(*batch, -1, *images.shape[1:])

    def _frames(self, count):
        """Returns the indices of the frames to keep, as in `VideoReader`."""
        kept, rate = self.num_frames, self.sampling_rate
        if kept in (None, count):
            return slice(None, None, rate if kept is None else 1)
        first = (max(0, count - (kept - 1) * rate - 1) + 1) // 2
        return np.minimum(first + rate * np.arange(kept), count - 1)


def check_modality(kind, backbone):
    """Raises a `ValueError` unless an encoder has the modality of a class."""
    found = MODALITIES_BY_RANK.get(len(backbone.input_dims), "no modality")
    if kind.modality not in (None, found):
        raise ValueError(
            f"`{kind.__name__}` needs an encoder for {kind.modality}. Received: one "
            f"for {found}, with input_dims={backbone.input_dims}"
        )


class _Preprocessor:
    """Base of the preprocessors, which convert inputs and pass labels through."""

    backbone_cls = BridleBackbone
    modality: str
    converter_cls: type

    def call(self, x, y=None, sample_weight=None):
        converter = getattr(self, f"{self.modality}_converter")
        return keras.utils.pack_x_y_sample_weight(converter(x), y, sample_weight)

    @classmethod
    def for_backbone(cls, backbone, **kwargs):
        """Makes the preprocessor for an encoder of the same modality.

        Args:
            backbone: `BridleBackbone`.
            **kwargs: arguments of the converter that replace the encoder's, such as
                `num_samples` or `image_size`.
        """
        check_modality(cls, backbone)
        dims = backbone.input_dims
        if cls.modality == "audio":
            rate = getattr(backbone.front_end, "sample_rate", 16000)
            settings = {"sampling_rate": rate, "num_samples": dims[0]}
        else:
            *frames, height, width, channels = dims
            settings = {
                "image_size": None if None in (height, width) else (height, width),
                "channels": channels if channels in (1, 3) else None,
                **dict(zip(["num_frames"], frames, strict=False)),
            }
        converter = cls.converter_cls(**{**settings, **kwargs})
        return cls(converter)  # type: ignore[call-arg]


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleAudioPreprocessor(_Preprocessor, keras_hub.models.Preprocessor):
    """Converts waveforms with a `BridleAudioConverter`; labels pass through.

    Args:
        audio_converter: `BridleAudioConverter`.
        **kwargs: keyword arguments of `keras_hub.models.Preprocessor`.

    Call arguments:
        x: raw inputs, as the converter takes them.
        y, sample_weight: optional labels and weights.

    Returns:
        `x`, or a tuple `(x, y)` or `(x, y, sample_weight)`, as given.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converters import (
        BridleAudioConverter, BridleAudioPreprocessor,
    )

    preprocessor = BridleAudioPreprocessor(BridleAudioConverter(num_samples=8000))
    x, y = preprocessor([np.ones(5000, "float32"), np.ones(9000, "float32")], [0, 1])
    print(x.shape)  # (2, 8000)
    ```
    """

    modality = "audio"
    converter_cls = audio_converter_cls = BridleAudioConverter

    def __init__(self, audio_converter, **kwargs):
        super().__init__(**kwargs)
        self.audio_converter = audio_converter
        self.built = True


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleImagePreprocessor(
    _Preprocessor, keras_hub.models.ImageClassifierPreprocessor
):
    """Converts images with a `BridleImageConverter`, as `BridleAudioPreprocessor`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converters import (
        BridleImageConverter, BridleImagePreprocessor,
    )

    preprocessor = BridleImagePreprocessor(BridleImageConverter((32, 32), channels=3))
    x, y = preprocessor(np.zeros((2, 28, 28, 1), "uint8"), np.array([0, 1]))
    print(x.shape)  # (2, 32, 32, 3)
    ```
    """

    modality = "image"
    converter_cls = image_converter_cls = BridleImageConverter

    def __init__(self, image_converter, **kwargs):
        super().__init__(image_converter=image_converter, **kwargs)
        self.built = True


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleVideoPreprocessor(_Preprocessor, keras_hub.models.Preprocessor):
    """Converts clips with a `BridleVideoConverter`, as `BridleAudioPreprocessor`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converters import (
        BridleVideoConverter, BridleVideoPreprocessor,
    )

    preprocessor = BridleVideoPreprocessor(BridleVideoConverter(num_frames=8))
    x, y = preprocessor(np.zeros((2, 12, 16, 16, 3), "uint8"), np.array([0, 1]))
    print(x.shape)  # (2, 8, 16, 16, 3)
    ```
    """

    modality = "video"
    converter_cls = video_converter_cls = BridleVideoConverter

    def __init__(self, video_converter, **kwargs):
        super().__init__(**kwargs)
        self.video_converter = video_converter
        self.built = True
