"""Raw input of any form to what the networks take."""

import importlib

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_bridle.models.backbone import BridleBackbone


def array_functions(array):
    """Finds the functions that an array's kind is computed with.

    In a `tf.data` pipeline arrays are TensorFlow's on every backend, and `keras.ops`
    are not for them.

    Args:
        array: NumPy array, tensor of the backend, or tensor of a `tf.data` pipeline.

    Returns:
        A module, `numpy`, `keras.ops` or `tensorflow`, whose `pad`, `reshape`, `shape`,
        `stack`, `minimum` and `maximum` take such arrays.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converters import array_functions

    print(array_functions(np.ones(3)).__name__)  # numpy
    ```
    """
    if isinstance(array, np.ndarray):
        return np
    if type(array).__module__.startswith("tensorflow"):
        return importlib.import_module("tensorflow")
    return ops


def as_float32(array):
    """Casts an array of any kind, see `array_functions()`, to float32.

    Args:
        array: NumPy array, tensor of the backend, or tensor of a `tf.data` pipeline.

    Returns:
        Array of the same kind.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converters import as_float32

    print(as_float32(np.arange(3)).dtype)  # float32
    ```
    """
    if isinstance(array, np.ndarray):
        return array.astype("float32", copy=False)
    return array_functions(array).cast(array, "float32")


def sides_of(array):
    """Tells an array's shape, with tensors only where a side is not known yet.

    Args:
        array: NumPy array, tensor of the backend, or tensor of a `tf.data` pipeline.

    Returns:
        Tuple of ints, or int tensors in TensorFlow graphs.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converters import sides_of

    print(sides_of(np.ones((2, 3))))  # (2, 3)
    ```
    """
    known = tuple(array.shape)
    if None not in known:
        return known
    now = array_functions(array).shape(array)
    return tuple(now[axis] if side is None else side for axis, side in enumerate(known))


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleAudioConverter(keras_hub.layers.AudioConverter):
    """Makes one batch of mono waveforms of clips of any length.

    What is too short gets zeros at its end, which the encoder takes for padding; of
    what is too long, without such zeros, the middle is kept, as when files are read.
    The encoder itself computes the log-mel spectrogram.

    Args:
        sampling_rate: int, samples per second that the encoder takes. Nothing is
            resampled here: `keras_bridle.data` does it as it reads files.
        num_samples: optional int, the length of all waveforms. `None` leaves a batch as
            long as its longest clip.
        dtype: dtype policy; float32 by default, whatever the global one is.
        **kwargs: keyword arguments of `keras_hub.layers.AudioConverter`.

    Call arguments:
        audio: list of arrays of shape `(samples,)` or `(samples, channels)`; or an
            array or tensor of shape `(samples,)`, `(batch, samples)` or
            `(batch, samples, channels)`; or a ragged tensor. Floats in [-1, 1], or
            16-bit integers.

    Returns:
        float32 array or tensor of shape `(batch, samples)`, or `(samples,)` for a
        single clip.

    Raises:
        ValueError: for a length that is not positive, no clips or clips of another
            rank, or other integers.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converters import BridleAudioConverter

    converter = BridleAudioConverter(num_samples=16000)
    clips = [np.ones(12000, "float32"), np.ones((20000, 2), "float32")]
    print(converter(clips).shape)  # (2, 16000)
    ```
    """

    backbone_cls = BridleBackbone

    def __init__(
        self, sampling_rate=16000, num_samples=None, dtype="float32", **kwargs
    ):
        super().__init__(dtype=dtype, **kwargs)
        for name, value in (
            ("sampling_rate", sampling_rate),
            ("num_samples", num_samples),
        ):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {value}")
        self.sampling_rate = sampling_rate
        self.num_samples = num_samples
        self.built = True

    def audio_shape(self):
        return (self.num_samples,)

    def call(self, audio):
        if isinstance(audio, list | tuple) and not audio:
            raise ValueError("`audio` must hold clips. Received: none")
        if isinstance(audio, list | tuple) and np.ndim(audio[0]) > 0:
            clips = [_mono(np.asarray(clip), 1) for clip in audio]
            longest = max(len(clip) for clip in clips)
            length = self.num_samples or longest
            return np.stack([_fitted(clip[None], length)[0] for clip in clips])
        if isinstance(audio, list | tuple):
            audio = np.asarray(audio)
        if hasattr(audio, "to_tensor"):
            audio = audio.to_tensor()  # ragged
        if len(audio.shape) == 1:
            return self._converted(audio[None])[0]
        return self._converted(audio)

    def _converted(self, audio):
        audio = _mono(audio, 2)
        if self.num_samples in (None, audio.shape[1]):
            return audio
        return _fitted(audio, self.num_samples)

    def get_config(self):
        return {
            **super().get_config(),
            "sampling_rate": self.sampling_rate,
            "num_samples": self.num_samples,
        }


def _mono(audio, rank):
    """Clips as float32 in [-1, 1], without the last axis if there is one too many."""
    if len(audio.shape) not in (rank, rank + 1):
        raise ValueError(
            "A clip must have the shape (samples,) or (samples, channels). "
            f"Received: an array of shape {tuple(audio.shape)}, of which the first "
            f"{rank - 1} axes count clips"
        )
    if audio.shape[rank - 1] == 0:
        raise ValueError(
            f"A clip must hold samples. Received: shape {tuple(audio.shape)}"
        )
    dtype = keras.backend.standardize_dtype(audio.dtype)
    if dtype == "int16":
        audio = as_float32(audio) / 32768.0
    elif "float" not in dtype:
        raise ValueError(
            "Waveforms must be floats in [-1, 1] or 16-bit integers. "
            f"Received: dtype {dtype}"
        )
    audio = as_float32(audio)
    if len(audio.shape) == rank:
        return audio
    # By hand, as these operators are the same for arrays of all kinds.
    channels = [audio[..., index] for index in range(audio.shape[-1])]
    return sum(channels[1:], channels[0]) / len(channels)


def _fitted(audio, length):
    """Zero-pads a batch of waveforms to a length, or takes the middle of each."""
    functions = array_functions(audio)
    there = sides_of(audio)[1]
    is_known = isinstance(there, int)
    if is_known and there > length:
        return _middle(audio, length)
    missing = length - there if is_known else functions.maximum(length - there, 0)
    padded = functions.pad(audio, [[0, 0], [0, missing]])
    return padded if is_known else _middle(padded, length)


def _middle(audio, length):
    """The middle of each waveform, of which zeros at the end are padding."""
    kind = array_functions(audio)
    is_tensorflow = kind.__name__ == "tensorflow"
    arange = kind.range if is_tensorflow else kind.arange
    largest = kind.reduce_max if is_tensorflow else kind.max
    places = arange(sides_of(audio)[1])
    ends = largest(kind.where(audio != 0.0, places + 1, 0), axis=1)
    first = kind.maximum(ends - length + 1, 0) // 2
    places = first[:, None] + arange(length)
    if is_tensorflow:
        return kind.gather(audio, places, axis=1, batch_dims=1)
    return kind.take_along_axis(audio, places, axis=1)


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
    from keras_bridle.models.converters import BridleImageConverter

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
    from keras_bridle.models.converters import BridleVideoConverter

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


def check_input_dims(backbone, rank, expected):
    """Raises a `ValueError` for an encoder of another kind of input.

    Args:
        backbone: `BridleBackbone`.
        rank: int, how many sides one input has, channels included.
        expected: string, what inputs of that rank are.
    """
    if len(backbone.input_dims) != rank:
        raise ValueError(
            f"This is for encoders that take {expected}. Received: one with "
            f"input_dims={backbone.input_dims}. Pass `preprocessor=None` to feed it "
            "as it is"
        )


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
    from keras_bridle.models.converters import (
        BridleAudioConverter, BridleAudioPreprocessor,
    )

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
    from keras_bridle.models.converters import (
        BridleImageConverter, BridleImagePreprocessor,
    )

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
    from keras_bridle.models.converters import (
        BridleVideoConverter, BridleVideoPreprocessor,
    )

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
