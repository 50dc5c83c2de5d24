"""One clip from a file, decoded and resampled by tensorflow-io's native operations.

The second reader of `audio_dataset`, next to soundfile and soxr, for those who use
tensorflow-io. It gives the same clips: WAV and FLAC at the wanted rate exactly, OGG
and MP3 up to rounding; where it must resample, tensorflow-io's Speex filter differs
from soxr (see `resample`).

tensorflow-io 0.37.1 is its last release. Its native operations load with TensorFlow up
to 2.17.1; with 2.18 and later the library has undefined symbols. That TensorFlow needs
NumPy 1, so an environment of its own: `pip install keras-bridle[tfio]`.
"""

import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from keras_bridle.data.soundfile_audio import fit_length, plan_cut
from keras_bridle.data.tensorflow_input import import_tensorflow


@functools.cache
def import_tensorflow_io() -> Any:
    """Imports tensorflow-io and checks that its native operations load.

    Returns:
        The `tensorflow_io` module.

    Raises:
        ImportError: if it is not installed or does not fit the installed TensorFlow.
    """
    tf = import_tensorflow()
    try:
        with warnings.catch_warnings():
            # It warns of what it cannot load; the call below says it more clearly.
            warnings.simplefilter("ignore")
            import tensorflow_io as tfio

            resampled = tfio.audio.resample(tf.zeros((64, 1)), 2, 1)
    except (ImportError, NotImplementedError, RuntimeError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "tensorflow_io":
            problem = "tensorflow-io is not installed."
        else:
            problem = (
                "The native operations of tensorflow-io do not load with TensorFlow "
                f"{tf.__version__}."
            )
        raise ImportError(
            f"{problem} Use TensorFlow 2.17.1 with tensorflow-io 0.37.1 in an "
            "environment of their own (`pip install keras-bridle[tfio]`; with later "
            "TensorFlow tensorflow-io has undefined symbols), or `reader='soundfile'`."
        ) from error
    if len(resampled) != 32:
        raise ImportError("tensorflow-io's resampler does not work here.")
    return tfio


def read_clip(
    path: str,
    num_samples: int,
    sample_rate: int,
    position: float = 0.0,
    segment: tuple[float, float | None] = (0.0, None),
) -> np.ndarray:
    """Reads a mono clip of fixed length, as `soundfile_audio.read_clip` does.

    Args:
        path: a WAV, FLAC, OGG (Vorbis) or MP3 file.
        num_samples: int. Length of the clip in samples.
        sample_rate: int. Its rate in Hz.
        position: float in [0, 1]. Where in a longer recording the clip lies.
        segment: `(start, end)` in seconds: the part of the file to take for the
            recording; an end of `None` is the file's.

    Returns:
        float32 array of shape `(num_samples,)` in [-1, 1].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be decoded, is empty, ends before its header
            says or before the segment starts, or holds infinities or NaN.
    """
    tf = import_tensorflow()
    if not Path(path).is_file():
        raise FileNotFoundError("no such file")
    # tensorflow-io's decoders do not tell the sample rate, and its `AudioIOTensor`,
    # which does, mixes files up when several threads open them.
    header = soundfile.info(path)
    rate = header.samplerate
    cut = plan_cut(header.frames, rate, num_samples, sample_rate, position, segment)
    try:
        mono = _decoder(header.format, header.subtype)(path).numpy()
    except tf.errors.OpError as error:
        raise ValueError(error.message) from error
    if len(mono) < cut.start + cut.frames:
        raise ValueError(f"broken off after {len(mono)} frames")
    mono = mono[cut.start : cut.start + cut.frames]
    if rate != sample_rate:
        mono = resample(mono, rate, sample_rate)
    return fit_length(mono[cut.skip :], num_samples)


def resample(waveform: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Resamples with tensorflow-io, and takes out the delay that it leaves in.

    Its Speex filter (quality 4) comes 32 samples late or more, by a fraction of a
    sample where the rates do not divide; here the input is padded so that the delay
    becomes a whole number of output samples, which are dropped.

    Measured on noise from 8 to 96 kHz to 16 kHz, the difference from soxr is at most
    -86 dB of the signal up to three quarters of the smaller Nyquist frequency, and
    -33 dB up to nine tenths, where Speex's filter already falls off.

    Args:
        waveform: float32 array of shape `(samples,)`.
        rate_in: int. Its sample rate in Hz.
        rate_out: int. The wanted one.

    Returns:
        float32 array of shape `(samples * rate_out / rate_in,)`, rounded up.
    """
    divisor = math.gcd(rate_in, rate_out)
    unit = rate_in // divisor
    delay = _filter_delay(rate_in, rate_out)
    units = math.ceil(delay / unit)
    padded = np.pad(waveform, (units * unit - delay, delay + unit))
    resampled = _resampler(rate_in, rate_out)(padded).numpy()
    skip = units * rate_out // divisor
    return resampled[skip : skip + math.ceil(len(waveform) * rate_out / rate_in)]


def _filter_delay(rate_in: int, rate_out: int) -> int:
    """Returns half the length of Speex's filter, in input samples."""
    length = 64
    if rate_in > rate_out:
        length = (length * rate_in // rate_out - 1) // 8 * 8 + 8
    return length // 2


@functools.cache
def _resampler(rate_in: int, rate_out: int) -> Callable[[np.ndarray], Any]:
    """Compiles the resampler; eager, it would be traced anew for every clip."""
    tf, tfio = import_tensorflow(), import_tensorflow_io()

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32)])
    def run(waveform: Any) -> Any:
        return tfio.audio.resample(waveform, rate_in, rate_out)

    return run


@functools.cache
def _decoder(file_format: str, subtype: str) -> Callable[[str], Any]:
    """Compiles the graph from a file's name to its mono float32 samples."""
    tf, tfio = import_tensorflow(), import_tensorflow_io()
    # The operation to decode with, the type that it gives, and full scale.
    decode, dtype, scale = {
        ("WAV", "PCM_U8"): (tfio.audio.decode_wav, tf.uint8, 2.0**7),
        ("WAV", "PCM_16"): (tfio.audio.decode_wav, tf.int16, 2.0**15),
        ("WAV", "PCM_24"): (tfio.audio.decode_wav, tf.int32, 2.0**31),
        ("WAV", "PCM_32"): (tfio.audio.decode_wav, tf.float32, 2.0**31),
        ("WAV", "FLOAT"): (tfio.audio.decode_wav, tf.float32, 1.0),
        ("FLAC", "PCM_S8"): (tfio.audio.decode_flac, tf.uint8, 2.0**7),
        ("FLAC", "PCM_16"): (tfio.audio.decode_flac, tf.int16, 2.0**15),
        ("FLAC", "PCM_24"): (tfio.audio.decode_flac, tf.int32, 2.0**31),
        ("OGG", "VORBIS"): (tfio.audio.decode_vorbis, None, 1.0),
        ("MP3", "MPEG_LAYER_III"): (tfio.audio.decode_mp3, None, 1.0),
    }.get((file_format.replace("WAVEX", "WAV"), subtype), (None, None, None))
    if decode is None:
        raise ValueError(
            f"tensorflow-io has no decoder for {file_format} with {subtype}; "
            "`reader='soundfile'` has"
        )

    @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
    def run(path: Any) -> Any:
        contents = tf.io.read_file(path)
        samples = decode(contents) if dtype is None else decode(contents, dtype=dtype)
        if subtype == "PCM_32":
            # The operation takes the bits of 32-bit integers for those of floats.
            samples = tf.bitcast(samples, tf.int32)
        samples = tf.cast(samples, tf.float32)
        if dtype == tf.uint8:
            samples -= 128.0
        return tf.reduce_mean(samples / scale, axis=1)

    return run
