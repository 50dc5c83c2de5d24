"""Brings waveforms to the form that an audio encoder takes."""

import keras
import keras_hub
import numpy as np

from keras_bridle.models.bridle_backbone import BridleBackbone
from keras_bridle.models.converter_arrays import array_functions, as_float32, sides_of


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
    from keras_bridle.models import BridleAudioConverter

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
