"""Readers of audio and image files."""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import soundfile
import soxr
from PIL import Image, ImageOps


def import_tensorflow() -> Any:
    """Imports TensorFlow and keeps it off the GPUs if another backend needs them.

    Left alone, TensorFlow takes nearly all memory of every GPU as soon as a pipeline
    is built, also when JAX or PyTorch train there.

    Returns:
        The `tensorflow` module.

    Raises:
        ImportError: if TensorFlow is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "Reading files needs TensorFlow for `tf.data`, whatever the backend: "
            "`pip install tensorflow`."
        ) from error
    if keras.backend.backend() != "tensorflow" and tf.config.get_visible_devices("GPU"):
        try:
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:
            warnings.warn(
                "TensorFlow was already started and holds the GPUs that the "
                f"'{keras.backend.backend()}' backend needs. Build input pipelines "
                "before other TensorFlow code runs.",
                stacklevel=2,
            )
    return tf


# Seeking in these, libsndfile may give one wrong frame (MP3, where frames build on
# those before) or land some milliseconds away (OGG, near its end). So up to this many
# seconds we decode what we skip.
_INEXACT_SEEK = ("MP3", "OGG")
_SEEK_SECONDS = 60
# Beyond this, the resampling filter no longer feels where a clip was cut.
_MARGIN_SECONDS = 0.02


class Cut(NamedTuple):
    """The part of a file to decode, in frames, and of it the part to keep.

    Attributes:
        start: first frame to decode.
        frames: how many to decode.
        skip: resampled samples to drop from the front, so much margin was decoded.
    """

    start: int
    frames: int
    skip: int


def read_clip(
    path: str,
    num_samples: int,
    sample_rate: int,
    position: float = 0.0,
    segment: tuple[float, float | None] = (0.0, None),
) -> np.ndarray:
    """Reads a mono clip of fixed length, decoding no more of the file than it needs.

    OGG and MP3 are the exception: up to 60 s, what lies before the clip is decoded too,
    because libsndfile does not seek exactly in them. A clip further in may begin with
    one wrong frame, or some milliseconds away.

    Args:
        path: a file that soundfile can read (WAV, FLAC, OGG, MP3 and more).
        num_samples: int. Length of the clip in samples.
        sample_rate: int. Its rate in Hz.
        position: float in [0, 1]. Where in a longer recording the clip lies: 0 is its
            start, 0.5 the middle, 1 the end.
        segment: `(start, end)` in seconds: the part of the file to take for the
            recording; an end of `None` is the file's.

    Returns:
        float32 array of shape `(num_samples,)`: the mean of the channels, clipped to
        [-1, 1], with zeros after the end of a shorter recording.

    Raises:
        FileNotFoundError: if there is no such file.
        soundfile.LibsndfileError: if it is no audio file.
        ValueError: if it is empty, ends before its header says or before the segment
            starts, or holds infinities or NaN.
    """
    if not Path(path).is_file():
        raise FileNotFoundError("no such file")
    with soundfile.SoundFile(path) as file:
        rate = file.samplerate
        cut = plan_cut(file.frames, rate, num_samples, sample_rate, position, segment)
        seeks = file.format not in _INEXACT_SEEK or cut.start > _SEEK_SECONDS * rate
        skip = 0 if seeks else cut.start
        file.seek(cut.start - skip)
        # Two dimensions also for mono, so that the mean is over channels.
        sound = file.read(skip + cut.frames, dtype="float32", always_2d=True)[skip:]
    if len(sound) < cut.frames:
        raise ValueError(f"broken off after {cut.start + len(sound)} frames")
    mono = sound[:, 0] if sound.shape[1] == 1 else sound.mean(axis=1)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate, quality="HQ")
    return fit_length(mono[cut.skip :], num_samples)


def plan_cut(
    frames: int,
    rate: int,
    num_samples: int,
    sample_rate: int,
    position: float,
    segment: tuple[float, float | None],
) -> Cut:
    """Chooses which frames of a file to decode for one clip.

    Args:
        frames: int. Length of the file.
        rate: int. Its sample rate in Hz.
        num_samples: see `read_clip`, as the arguments after it.
        sample_rate: as above.
        position: as above.
        segment: as above.

    Returns:
        A `Cut`. Where the rates differ it holds some more frames on either side, so
        that the clip equals that part of the whole recording resampled.
    """
    if frames < 1:
        raise ValueError("holds no samples")
    first = round(segment[0] * rate)
    last = frames if segment[1] is None else min(round(segment[1] * rate), frames)
    if first >= last:
        raise ValueError(
            f"the segment starts at {segment[0]} s, the file ends at {frames / rate} s"
        )
    needed = math.ceil(num_samples * rate / sample_rate)
    room = max(last - first - needed, 0)
    start = first + min(math.floor(position * (room + 1)), room)
    stop = min(start + needed, last)
    if rate == sample_rate:
        return Cut(start, stop - start, 0)
    # `unit` frames are a whole number of resampled samples, so that dropping a margin
    # of some units moves nothing by a fraction of a sample.
    unit = rate // math.gcd(rate, sample_rate)
    margin = math.ceil(_MARGIN_SECONDS * rate / unit) * unit
    before = min(margin, (start - first) // unit * unit)
    after = min(margin, last - stop)
    return Cut(
        start - before, before + stop - start + after, before * sample_rate // rate
    )


def fit_length(mono: np.ndarray, num_samples: int) -> np.ndarray:
    """Cuts or pads a resampled recording to a clip and checks its values."""
    clip = np.zeros(num_samples, "float32")
    length = min(len(mono), num_samples)
    clip[:length] = mono[:length]
    if not np.isfinite(clip).all():
        raise ValueError("holds infinite or undefined samples")
    return np.clip(clip, -1.0, 1.0, out=clip)


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


def read_clip_tfio_audio(
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


# JPEG files are decoded at a half, a quarter or an eighth of their size where this many
# times the wanted size remains: much faster, and not visible after resizing.
_DRAFT_FACTOR = 2


def read_image(
    path: str | Path,
    image_size: int | Sequence[int] | None = None,
    channels: int = 3,
    position: tuple[float, float] = (0.5, 0.5),
) -> np.ndarray:
    """Reads a picture as pixels from 0 to 255.

    The format is told from the contents, whatever the name says. The picture is turned
    as its EXIF orientation says; where it is transparent, white shines through; 16-bit
    pictures keep their upper 8 bits; of an animation the first frame is taken.

    Args:
        path: a file that Pillow can read (JPEG, PNG, WebP and more).
        image_size: int or `(height, width)`. The picture is scaled, its proportions
            kept, until it covers this size (bicubic, with antialiasing), and what
            stands over is cut off. `None` leaves the picture as it is.
        channels: 3 for color or 1 for gray.
        position: `(vertical, horizontal)`, each in [0, 1]: which part to keep of what
            stands over: 0 is the top or left, 0.5 the middle, 1 the bottom or right.

    Returns:
        uint8 array of shape `(height, width, channels)`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be decoded to its end, or for an argument out of range.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.data.readers import read_image

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        image = read_image(folder + "/fashion_mnist/Bag/03.png", image_size=56)
    print(image.shape, image.dtype)
    ```
    """
    size = None if image_size is None else as_size("image_size", image_size)
    check_channels(channels)
    if not Path(path).is_file():
        raise FileNotFoundError("no such file")
    try:
        with Image.open(path) as image:
            if size is not None:
                # Orientation may exchange the sides.
                least = _DRAFT_FACTOR * max(size)
                image.draft(None, (least, least))
            image.load()
            return _to_pixels(_upright(image), size, channels, position)
    # Out of broken files, Pillow's parsers raise whatever comes to them.
    except Exception as error:
        reason = str(error).replace(f" {str(path)!r}", "")
        raise ValueError(f"{type(error).__name__}: {reason}") from error


def fit_array(
    array: np.ndarray,
    size: tuple[int, int],
    channels: int,
    position: tuple[float, float],
) -> np.ndarray:
    """Resizes a picture that is an array, as `read_image` does with a file.

    Args:
        array: uint8 array of shape `(height, width)` or `(height, width, 1 or 3)`.
        size: `(height, width)` of the result.
        channels: 3 for color or 1 for gray.
        position: see `read_image`.

    Returns:
        uint8 array of shape `(height, width, channels)`.
    """
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return _to_pixels(Image.fromarray(array), size, channels, position)


def as_size(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Returns an int or a pair as `(height, width)`, or says what is wrong with it."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(int(side) != side or side < 1 for side in pair):
        raise ValueError(
            f"`{name}` must be a positive int or `(height, width)`. Received: {size}"
        )
    return int(pair[0]), int(pair[1])


def check_channels(channels: int) -> None:
    """Raises unless it is 1 or 3."""
    if channels not in (1, 3):
        raise ValueError(
            f"`channels` must be 1 (gray) or 3 (color). Received: {channels}"
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # The pixels are good, only what is said about them is not.
        return image


def _to_pixels(
    image: Image.Image,
    size: tuple[int, int] | None,
    channels: int,
    position: tuple[float, float],
) -> np.ndarray:
    image = _to_mode(image, "L" if channels == 1 else "RGB")
    if size is not None:
        image = _cover(image, size, position)
    pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow itself would cut all above 255 off.
        return Image.fromarray((np.asarray(image) >> 8).astype("uint8")).convert(mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert(mode)


def _cover(
    image: Image.Image, size: tuple[int, int], position: tuple[float, float]
) -> Image.Image:
    height, width = size
    scale = min(image.width / width, image.height / height)
    top = (image.height - height * scale) * position[0]
    left = (image.width - width * scale) * position[1]
    # Rounding must not lead out of the picture.
    right = min(left + width * scale, image.width)
    bottom = min(top + height * scale, image.height)
    return image.resize(
        (width, height), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
    )
