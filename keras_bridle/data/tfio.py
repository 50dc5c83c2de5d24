"""Audio files by tensorflow-io, whose operations load with TensorFlow up to 2.17.1."""

import functools
import math
import warnings

import numpy as np
import soundfile

from keras_bridle.data.readers import import_tensorflow

# For each format and subtype: the decoding operation, its dtype, and full scale.
_DECODERS = {
    ("WAV", "PCM_U8"): ("decode_wav", "uint8", 2.0**7),
    ("WAV", "PCM_16"): ("decode_wav", "int16", 2.0**15),
    ("WAV", "PCM_24"): ("decode_wav", "int32", 2.0**31),
    ("WAV", "PCM_32"): ("decode_wav", "float32", 2.0**31),
    ("WAV", "FLOAT"): ("decode_wav", "float32", 1.0),
    ("FLAC", "PCM_S8"): ("decode_flac", "uint8", 2.0**7),
    ("FLAC", "PCM_16"): ("decode_flac", "int16", 2.0**15),
    ("FLAC", "PCM_24"): ("decode_flac", "int32", 2.0**31),
    ("OGG", "VORBIS"): ("decode_vorbis", None, 1.0),
    ("MP3", "MPEG_LAYER_III"): ("decode_mp3", None, 1.0),
}


@functools.cache
def import_tensorflow_io():
    """Imports tensorflow-io and checks that its native operations load."""
    tf = import_tensorflow()
    try:
        with warnings.catch_warnings():
            # Ignore warnings about libraries: the call fails if one is needed.
            warnings.simplefilter("ignore")
            import tensorflow_io

            tensorflow_io.audio.resample(tf.zeros((64, 1)), 2, 1)
    except (ImportError, NotImplementedError, RuntimeError, AttributeError) as error:
        raise ImportError(
            "tensorflow-io is not installed, or does not load with TensorFlow "
            f"{tf.__version__}. Use TensorFlow 2.17.1 with tensorflow-io 0.37.1 in an "
            "environment of their own (`pip install keras-bridle[tfio]`), or soundfile."
        ) from error
    return tensorflow_io


def decode(path, cut, sample_rate):
    """Decodes and resamples a part of a file, as `decode_with_soundfile()` does."""
    # tensorflow-io's decoders do not return the sample rate. `AudioIOTensor` does, but
    # it mixes up files that several threads open.
    header = soundfile.info(path)
    start, frames, skip = cut(header.frames, header.samplerate)
    try:
        mono = _decoder(header.format, header.subtype)(path).numpy()
    except import_tensorflow().errors.OpError as error:
        raise ValueError(error.message) from error
    if len(mono) < start + frames:
        raise ValueError(f"broken off after {len(mono)} frames")
    mono = mono[start : start + frames]
    if header.samplerate != sample_rate:
        mono = resample(mono, header.samplerate, sample_rate)
    return mono[skip:]


def resample(waveform, rate_in, rate_out):
    """Resamples a waveform, and removes tensorflow-io's delay.

    Its Speex filter (quality 4) delays by 32 samples or more, and by a fraction of a
    sample if the rates do not divide. Padding the input makes the delay a whole number
    of output samples, which are dropped.
    """
    divisor = math.gcd(rate_in, rate_out)
    unit = rate_in // divisor
    # Half the length of the filter, in input samples.
    length = 64
    if rate_in > rate_out:
        length = (length * rate_in // rate_out - 1) // 8 * 8 + 8
    delay = length // 2
    units = math.ceil(delay / unit)
    padded = np.pad(waveform, (units * unit - delay, delay + unit))
    resampled = _resampler(rate_in, rate_out)(padded).numpy()
    skip = units * rate_out // divisor
    return resampled[skip : skip + math.ceil(len(waveform) * rate_out / rate_in)]


@functools.cache
def _resampler(rate_in, rate_out):
    """Compiles the resampler, as eager calls would trace it for every clip."""
    tf, tfio = import_tensorflow(), import_tensorflow_io()
    return tf.function(
        lambda waveform: tfio.audio.resample(waveform, rate_in, rate_out),
        input_signature=[tf.TensorSpec((None,), tf.float32)],
    )


@functools.cache
def _decoder(file_format, subtype):
    """Compiles a function from a file name to mono float32 samples."""
    key = (file_format.replace("WAVEX", "WAV"), subtype)
    if key not in _DECODERS:
        raise ValueError(f"tensorflow-io has no decoder for {file_format}, {subtype}")
    tf, tfio = import_tensorflow(), import_tensorflow_io()
    name, dtype, scale = _DECODERS[key]
    options = {} if dtype is None else {"dtype": tf.as_dtype(dtype)}
    decode_file = getattr(tfio.audio, name)

    @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
    def run(path):
        samples = decode_file(tf.io.read_file(path), **options)
        if subtype == "PCM_32":
            # The operation reads the bits of 32-bit integers as floats.
            samples = tf.bitcast(samples, tf.int32)
        samples = tf.cast(samples, tf.float32)
        if dtype == "uint8":
            samples -= 128.0
        return tf.reduce_mean(samples / scale, axis=1)

    return run
