"""The sample videos that ship with the package, as clips."""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import resources
from pathlib import Path

import numpy as np

from keras_bridle.data.image_file import as_size, check_channels
from keras_bridle.data.video_file import VideoReader, list_packets, read_video_clip

SAMPLE_VIDEOS = ("city.mpg", "concert.mp4")
# (down, right) of a camera that pans.
_DIRECTIONS = {
    "right": (0, 1),
    "down right": (1, 1),
    "down": (1, 0),
    "down left": (1, -1),
    "left": (0, -1),
    "up left": (-1, -1),
    "up": (-1, 0),
    "up right": (-1, 1),
}
# The first so much of each video is for training.
_TRAINING_SHARE = 0.7
# The shorter side of the frames that a panning window moves over, and how far it moves
# from one frame to the next, in sides of the window.
_SCENE, _STEP = 2.25, 1 / 16


def load_clips(
    split: str = "train",
    num_frames: int = 16,
    image_size: int | Sequence[int] = 64,
    sampling_rate: int = 2,
    stride: int | None = None,
    channels: int = 3,
) -> np.ndarray:
    """Loads clips of the two sample videos: a street and a concert.

    They have 190 and 1,441 frames, and are split by time: training clips end within the
    first 70 % of each video, test clips begin after them, and between the two lies at
    least as much as one clip covers. A video whose part is too short for a clip gives
    none. The street is CC0, the concert CC BY 4.0; see `sample_files/NOTICE`.

    Args:
        split: `"train"` or `"test"`.
        num_frames: int. Frames per clip.
        image_size: int or `(height, width)` of the frames, which are scaled until they
            cover it, and cut off on both sides.
        sampling_rate: int. From one frame of a clip to the next, so many of the video.
        stride: int. From one clip's start to the next one's, so many frames. Defaults
            to half of what a clip covers.
        channels: 3 for color or 1 for gray.

    Returns:
        uint8 array of shape `(n, num_frames, height, width, channels)`.

    Raises:
        ValueError: for an argument out of range, or clips longer than the videos.

    Example:
    ```python
    from keras_bridle.data import load_clips

    print(load_clips("train", num_frames=8, image_size=32).shape)
    ```
    """
    size = as_size("image_size", image_size)
    span = (num_frames - 1) * sampling_rate + 1
    stride = max(span // 2, 1) if stride is None else stride
    _check(num_frames=num_frames, sampling_rate=sampling_rate, stride=stride)
    check_channels(channels)
    clips = [
        video[start : start + span : sampling_rate]
        for name in SAMPLE_VIDEOS
        for video in [_frames(name, size, channels)]
        for start in range(*_starts(len(video), split, span), stride)
    ]
    if not clips:
        raise ValueError(
            f"The {split} parts of the videos are shorter than {span} frames, which a "
            f"clip needs: `num_frames` is {num_frames}, `sampling_rate` {sampling_rate}"
        )
    return np.stack(clips)


def synthetic_pans(
    split: str = "train",
    num_clips: int = 1000,
    num_frames: int = 8,
    image_size: int | Sequence[int] = 64,
    channels: int = 3,
    seed: int = 0,
    videos: Sequence[str | Path] | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Makes clips in which a camera pans in one of 8 directions: a probe for motion.

    The pixels are real, **the motion is synthetic**: a window moves over the frames of
    the two sample videos, by 1/16 of its shorter side a frame and in a straight line,
    while the videos go on. (There is no labeled footage small enough to ship.) The
    middles of the paths are spread over the same area for all directions, so that the
    place does not give the direction away. Training clips come from the first 70 % of
    each video and test clips from the rest, with a clip's length between them; longer
    videos give more clips.

    Chance is 12.5 %. `benchmarks/pan_probe.py` has what simple classifiers of pixels
    reach.

    Args:
        split: `"train"` or `"test"`.
        num_clips: int. How many; directions take turns.
        num_frames: int. Frames per clip, up to 21.
        image_size: int or `(height, width)` of the frames.
        channels: 3 for color or 1 for gray.
        seed: int. Decides videos, times and places.
        videos: paths of videos to take instead of the two samples. All their frames
            are kept in memory.

    Returns:
        A tuple `(clips, labels, class_names)`: uint8 clips of shape
        `(num_clips, num_frames, height, width, channels)`, int32 labels of shape
        `(num_clips,)`, and the directions that they index.

    Raises:
        ValueError: for an argument out of range, or videos too short for a clip.

    Example:
    ```python
    from keras_bridle.data import synthetic_pans

    clips, labels, directions = synthetic_pans("train", num_clips=16, image_size=32)
    print(clips.shape, directions[labels[0]])
    ```
    """
    size = as_size("image_size", image_size)
    _check(num_clips=num_clips, num_frames=num_frames)
    check_channels(channels)
    step = max(round(_STEP * min(size)), 1)
    travel = step * (num_frames - 1)
    scene = round(_SCENE * max(size))
    if travel > scene - max(size):
        raise ValueError(
            f"`num_frames` must be at most {(scene - max(size)) // step + 1}, or the "
            f"camera leaves the picture. Received: {num_frames}"
        )
    names = SAMPLE_VIDEOS if videos is None else tuple(map(str, videos))
    scenes = [_frames(name, _scene_size(name, scene), channels) for name in names]
    ranges = [_starts(len(frames), split, num_frames) for frames in scenes]
    counts = np.array([stop - start for start, stop in ranges])
    if not counts.sum():
        raise ValueError(
            f"The {split} parts of the videos are too short for clips of {num_frames} "
            f"frames. Received: videos={names}"
        )
    generator = np.random.default_rng((seed, split == "test"))
    moves = np.array(list(_DIRECTIONS.values()))
    labels = np.arange(num_clips, dtype="int32") % len(moves)
    clips = np.empty((num_clips, num_frames, *size, channels), "uint8")
    for clip, label in zip(clips, labels, strict=True):
        index = generator.choice(len(scenes), p=counts / counts.sum())
        frames, first = scenes[index], generator.integers(*ranges[index])
        room = np.array(frames.shape[1:3]) - np.array(size) - travel
        middle = generator.integers(0, room + 1)
        corner = middle + (travel - moves[label] * travel) // 2
        for number in range(num_frames):
            top, left = corner + number * step * moves[label]
            frame = frames[first + number]
            clip[number] = frame[top : top + size[0], left : left + size[1]]
    return clips, labels, tuple(_DIRECTIONS)


def _check(**arguments: int) -> None:
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {value}")


def _starts(length: int, split: str, span: int) -> tuple[int, int]:
    """Returns the range of the frames where clips of a part of a video may start."""
    border = int(_TRAINING_SHARE * length)
    if split == "train":
        return 0, max(border - 2 * span + 1, 0)
    if split == "test":
        return border, max(length - span + 1, border)
    raise ValueError(f"`split` must be 'train' or 'test'. Received: {split!r}")


@functools.cache
def _scene_size(name: str, shorter: int) -> tuple[int, int]:
    """Returns a video's `(height, width)`, scaled to a shorter side."""
    with _path(name) as path:
        height, width = read_video_clip(path, 0, 1).shape[1:3]
    scale = shorter / min(height, width)
    return round(height * scale), round(width * scale)


@functools.lru_cache(maxsize=4)
def _frames(name: str, size: tuple[int, int], channels: int) -> np.ndarray:
    """Decodes a whole video, and keeps it for the next call."""
    with _path(name) as path:
        reader = VideoReader(len(list_packets(str(path))), 1, size, channels)
        frames = reader.read_at(str(path), 0).frames
    frames.flags.writeable = False
    return frames


def _path(name: str) -> AbstractContextManager[Path]:
    if name not in SAMPLE_VIDEOS:
        return nullcontext(Path(name))
    folder = resources.files("keras_bridle.data") / "sample_files" / "video"
    return resources.as_file(folder / name)
