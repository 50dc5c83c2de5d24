"""Readers of audio and image files."""

import contextlib
import functools
import math
import os
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import keras
import numpy as np
import soundfile
import soxr
from PIL import Image, ImageOps

from keras_bridle.data.files import check, printable
from keras_bridle.layers.pixels import as_pixels

# Where a clip lies in its file, from 0 (first) to 1 (last): time, height and width.
Position = tuple[float, float, float]
CENTER: Position = (0.5, 0.5, 0.5)


def import_tensorflow():
    """Imports TensorFlow, and hides the GPUs from it on other backends."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError("This needs TensorFlow: pip install tensorflow") from error

    # Otherwise TensorFlow reserves nearly all GPU memory once a pipeline is built.
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


# Encodings in which libsndfile seeks exactly. In others it may return one wrong frame
# (MP3) or land elsewhere, so we decode what we skip: up to 60 s in long files.
_EXACT_SEEK = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")
_LONG_FORMATS, _SEEK_SECONDS = ("MP3", "OGG"), 60
# libsndfile reports more frames than this for streams of unknown length.
_MOST_FRAMES = 2**48
# Samples above this are clipped, including the largest value of 8 bits.
_FULL_SCALE = 0.98
# Upper bounds in bytes: the tags at the end of an MP3 file, and a page of OGG.
_MOST_TAGS, _MOST_OF_PAGE = 8192, 65536
# Channels cancel each other if the power of their mean is below this share of theirs.
_CANCELLED = 1e-4
# With this margin, the cut does not affect the resampled clip.
_MARGIN_SECONDS = 0.02


class AudioReader:
    """Reads mono waveforms of one length and sample rate, for `file_dataset()`.

    Channels are averaged and samples clipped to [-1, 1]. Only the part of a file that
    is used is decoded (OGG and MP3 also up to 60 s before it, ADPCM, ALAC and GSM from
    the start). Short recordings are padded with zeros.

    Args:
        seconds: float. Length of a waveform in seconds. Give this or `num_samples`.
        num_samples: int. Length of a waveform in samples.
        sample_rate: int. Sample rate of the waveforms in Hz.
        decoder: `"soundfile"`, with soxr to resample; or `"tensorflow-io"`, which needs
            TensorFlow up to 2.17.1.

    Call arguments:
        path: an audio file that libsndfile can read.
        position: tuple of floats in [0, 1]. The first is the place of the waveform in a
            longer recording, from 0.0 (the start) to 1.0 (the end).
        segment: optional `(start, end)` in seconds to use; `end` may be `None`.
        report: optional `ReadReport`, which lists recordings that are clipped.

    Returns:
        float32 array of shape `(num_samples,)`.

    Raises:
        ValueError: if the file is empty, broken off, ends before the segment, or holds
            infinities or NaN.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.readers import AudioReader
    from keras_bridle.data.samples import extract_samples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        reader = AudioReader(seconds=0.5)
        print(reader(folder + "/sonic_pi/sonicpi_cc0/ambi_drone.ogg").shape)
    ```
    """

    dtype = "float32"

    def __init__(
        self,
        seconds: float | None = None,
        num_samples: int | None = None,
        sample_rate: int = 16000,
        decoder: str = "soundfile",
    ) -> None:
        is_one = (seconds is None) != (num_samples is None)
        expected = "given if and only if `num_samples` is not"
        check(is_one, "seconds", expected, seconds)
        self.num_samples: Any = num_samples
        if seconds is not None:
            self.num_samples = round(seconds * sample_rate)
        check(self.num_samples >= 1, "num_samples", "at least 1", self.num_samples)
        decoders = ("soundfile", "tensorflow-io")
        check(decoder in decoders, "decoder", f"one of {decoders}", decoder)
        self.sample_rate = sample_rate
        self.shape = (self.num_samples,)
        self._decode = decode_with_soundfile
        if decoder == "tensorflow-io":
            # Imported here, as the module imports this one.
            from keras_bridle.data import tfio

            tfio.import_tensorflow_io()
            self._decode = tfio.decode

    def __call__(
        self,
        path: str,
        position: Position = CENTER,
        segment: tuple[float, float | None] | None = None,
        report: Any = None,
    ) -> np.ndarray:
        cut = functools.partial(self.cut, position[0], segment or (0.0, None))
        waveform = self._decode(path, cut, self.sample_rate)[: self.num_samples]
        if not np.isfinite(waveform).all():
            raise ValueError("holds infinite or NaN samples")
        if report is not None and np.mean(np.abs(waveform) > _FULL_SCALE) > 0.5:
            report.add_incomplete(path, "clipped for most of its length")
        padded = np.zeros(self.num_samples, "float32")
        padded[: len(waveform)] = np.clip(waveform, -1.0, 1.0)
        return padded

    def cut(self, position, segment, frames, rate):
        """Chooses the frames of a file to decode: `(start, frames, skip)`.

        `skip` is the number of samples to drop after resampling.
        """
        if frames < 1:
            raise ValueError("holds no samples")
        first = round(segment[0] * rate)
        last = frames if segment[1] is None else min(round(segment[1] * rate), frames)
        if first >= last:
            end = f"{frames / rate} s"
            raise ValueError(
                f"the segment starts at {segment[0]} s, the file ends at {end}"
            )
        needed = math.ceil(self.num_samples * rate / self.sample_rate)
        room = max(last - first - needed, 0)
        start = first + min(math.floor(position * (room + 1)), room)
        stop = min(start + needed, last)
        if rate == self.sample_rate:
            return start, stop - start, 0
        # With a margin on both sides, the clip equals that part of the resampled
        # recording. Margins of whole units avoid shifts by a fraction of a sample.
        unit = rate // math.gcd(rate, self.sample_rate)
        margin = math.ceil(_MARGIN_SECONDS * rate / unit) * unit
        before = min(margin, (start - first) // unit * unit)
        count = before + stop - start + min(margin, last - stop)
        return start - before, count, before * self.sample_rate // rate


def decode_with_soundfile(path, cut, sample_rate):
    """Decodes, mixes down and resamples a part of a file."""
    # libsndfile takes names that are not UTF-8 as bytes.
    name = path if path == printable(path) else os.fsencode(path)
    date = Path(path).stat().st_mtime_ns
    with soundfile.SoundFile(name) as file:
        rate = file.samplerate
        is_long = file.format in _LONG_FORMATS
        is_known = 0 < file.frames < _MOST_FRAMES
        may_err = is_long or file.format == "FLAC"
        if not is_known or (may_err and not _tells_its_length(path, date)):
            start, frames, skip = cut(_decodable_frames(path, date), rate)
            sound = _decode_from_start(path, start, frames)
        else:
            start, frames, skip = cut(file.frames, rate)
            is_far = is_long and start > _SEEK_SECONDS * rate
            before = 0 if is_far or file.subtype.startswith(_EXACT_SEEK) else start
            if start > before:
                file.seek(start)
            sound = file.read(before + frames, dtype="float32", always_2d=True)[before:]
    if len(sound) < frames:
        raise ValueError(f"broken off after {start + len(sound)} frames")
    mono = _mixed_down(sound)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate, quality="HQ")
    return mono[skip:]


def _mixed_down(sound):
    """Averages channels, or returns the loudest if they cancel each other."""
    if sound.shape[1] == 1:
        return sound[:, 0]
    mono = sound.mean(axis=1)
    powers = np.square(sound).mean(axis=0)
    if np.square(mono).mean() < _CANCELLED * powers.max():
        return np.ascontiguousarray(sound[:, powers.argmax()])
    return mono


@functools.lru_cache(maxsize=100_000)
def _tells_its_length(path, date):
    """Returns whether an MP3 or FLAC states its length, or an OGG is one stream."""
    with Path(path).open("rb") as file:
        head, start = file.read(26), 0
        if head[:4] == b"OggS":
            # The last page has another serial number if several streams are joined.
            file.seek(max(0, file.seek(0, os.SEEK_END) - _MOST_OF_PAGE))
            return file.read().rpartition(b"OggS")[2][10:14] == head[14:18]
        if head[:4] == b"fLaC":
            return _last_frame(path) <= int.from_bytes(head[18:26], "big") % 2**36
        if head[:3] == b"ID3":
            # ID3 sizes use seven bits of each byte.
            size = functools.reduce(lambda x, byte: x << 7 | byte & 127, head[6:10], 0)
            start = 10 + size
        file.seek(start)
        first = file.read(2048)
        size = file.seek(0, os.SEEK_END) - start
    at = max(first.find(b"Xing"), first.find(b"Info"))
    if at < 0:
        return b"VBRI" in first
    flags, *numbers = struct.unpack(">3I", first[at + 4 : at + 16].ljust(12, b"\0"))
    # Joined files keep the first one's table. Tags may follow the sound.
    told = numbers[flags & 1] if flags & 2 else size
    return size <= told + _MOST_TAGS


def _last_frame(path):
    """Returns the end of the last packet of a file in frames, 0 if it is broken."""
    with contextlib.suppress(av.FFmpegError), av.open(path) as container:
        stream = container.streams.audio[0]
        if stream.duration > 65536:  # in those of a block or two, seeking fails
            container.seek(stream.duration - 1, stream=stream)
        ends = [x.pts + x.duration for x in container.demux(stream) if x.size]
        return max(ends, default=0)
    return 0


@functools.lru_cache(maxsize=100_000)
def _decodable_frames(path, date):
    """Counts the frames of a file by decoding it."""
    return sum(map(len, _decoded(path)))


def _decode_from_start(path, start, frames):
    """Decodes a file from its start, and returns some frames `(frames, channels)`."""
    parts, number = [], 0
    for sound in _decoded(path):
        parts.append(sound[max(start - number, 0) : start + frames - number])
        number += len(sound)
        if number >= start + frames:
            break
    return np.concatenate(parts).astype("float32")


def _decoded(path):
    """Yields all decodable parts of a file as floats."""
    with av.open(path) as container:
        stream = container.streams.audio[0]
        setup = ("fltp", stream.layout.name, stream.rate)
        resampler_of = functools.cache(lambda *found: av.AudioResampler(*setup))
        packets = container.demux(stream)
        while True:
            try:
                for frame in next(packets).decode():
                    # Joined files may change from mono to stereo.
                    resampler = resampler_of(frame.layout.name, frame.sample_rate)
                    yield from (x.to_ndarray().T for x in resampler.resample(frame))
            except StopIteration:
                return
            except av.InvalidDataError:
                continue


# Decode JPEG files at 1/2, 1/4 or 1/8 of their size if this many times the wanted size
# remains: it is much faster, and not visible after resizing.
_DRAFT_FACTOR = 2


class ImageReader:
    """Reads images of one size, pixels from 0 to 255, for `file_dataset()`.

    EXIF orientation is applied, transparent images are shown on white, and 16-bit
    images keep their upper 8 bits; for wider integers and floats, the largest number
    decides. Images are scaled to cover the size (bicubic, antialiased) and cropped.

    For augmentation, read images somewhat larger than needed (256 for 224).

    Args:
        image_size: int or `(height, width)` of the images.
        channels: 3 for color or 1 for gray; files of the other kind are converted.

    Call arguments:
        path: a file that Pillow can read (JPEG, PNG, WebP and more).
        position: tuple of floats in [0, 1]. The last two are the place of the crop,
            from 0.0 (top or left) to 1.0 (bottom or right).
        segment, report: not used.

    Returns:
        uint8 array of shape `(height, width, channels)`.

    Raises:
        ValueError: if the file cannot be decoded completely.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.readers import ImageReader
    from keras_bridle.data.samples import extract_samples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        image = ImageReader(image_size=56)(folder + "/fashion_mnist/Bag/03.png")
    print(image.shape, image.dtype)
    ```
    """

    dtype = "uint8"

    def __init__(self, image_size: int | Sequence[int], channels: int = 3) -> None:
        self.shape = (*as_size("image_size", image_size), check_channels(channels))

    def __call__(
        self,
        path: str,
        position: Position = CENTER,
        segment: Any = None,
        report: Any = None,
    ) -> np.ndarray:
        height, width, channels = self.shape
        try:
            with Image.open(path) as image:
                # EXIF orientation may swap the sides.
                least = _DRAFT_FACTOR * max(height, width)
                image.draft(None, (least, least))
                image.load()
                upright: Image.Image = image
                # Broken EXIF data do not make the pixels unusable.
                with contextlib.suppress(Exception):
                    upright = ImageOps.exif_transpose(image)
                picture = _to_mode(upright, "L" if channels == 1 else "RGB")
                _, vertical, horizontal = position
                pixels = ImageOps.fit(
                    picture, (width, height), centering=(horizontal, vertical)
                )
        # Pillow's parsers raise errors of any kind for broken files.
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        return np.asarray(pixels).reshape(self.shape)


def as_size(name, size):
    """Returns an int or a pair as `(height, width)`."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    is_size = len(sides) == 2 and all(int(x) == x and x > 0 for x in sides)
    check(is_size, name, "a positive int or `(height, width)`", size)
    return int(sides[0]), int(sides[1])


def check_channels(channels):
    """Checks that a number of channels is 1 or 3, and returns it."""
    check(channels in (1, 3), "channels", "1 (gray) or 3 (color)", channels)
    return channels


def _to_mode(image, mode):
    if image.mode[0] in "IF":
        # Pillow itself would clip values above 255 and ignore transparency.
        numbers = np.asarray(image)
        is_clear = numbers == image.info.get("transparency")
        pixels = np.where(is_clear, np.uint8(255), as_pixels(numbers, "pixels"))
        return Image.fromarray(pixels).convert(mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert(mode)
