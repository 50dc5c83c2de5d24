"""One clip from a file, decoded with soundfile and resampled with soxr."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

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
