"""The sample data that come with the package."""

import csv
import functools
import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from keras_bridle.data.readers import as_size, check_channels
from keras_bridle.data.video_reader import VideoReader, list_packets, read_video_clip

SAMPLE_RATE = 16000
_FIELDS = ("initial", "final", "tone", "syllable")
_SPLITS = ("train", "test")


def load_syllables(
    split: str | None = None, field: str = "initial", num_samples: int = 8000
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Loads the spoken Mandarin syllables: one speaker, 0.2 to 0.43 s each.

    The test part shares no base syllable with the training part, so a probe must
    recognize an initial next to a final that it never met with it.
    The recordings are by ChionMeilin (voice Chu Lo), CC BY 3.0; see
    `sample_files/NOTICE`.

    Args:
        split: `"train"` (801 syllables), `"test"` (357), or `None` for both.
        field: what the labels say: `"initial"` (22 classes), `"final"` (36),
            `"tone"` (5) or `"syllable"` (the base syllable; classes of the two
            parts are disjoint).
        num_samples: int. Length of each waveform in samples at 16 kHz; longer
            recordings lose their end, shorter ones get zeros after it.

    Returns:
        A tuple `(waveforms, labels, class_names)`: float32 waveforms of shape
        `(n, num_samples)` in [-1, 1], int32 labels of shape `(n,)`, and the names
        that the labels index, the same for every split.

    Raises:
        ValueError: for an unknown split or field or a length below 1.

    Example:
    ```python
    from keras_bridle.data.samples import load_syllables

    waveforms, labels, class_names = load_syllables("train", field="initial")
    print(waveforms.shape, class_names[labels[0]])
    ```
    """
    if split is not None and split not in _SPLITS:
        raise ValueError(
            f"`split` must be 'train', 'test' or None. Received: {split!r}"
        )
    if field not in _FIELDS:
        raise ValueError(f"`field` must be one of {_FIELDS}. Received: {field!r}")
    _check_length("num_samples", num_samples)
    table = _syllable_table()
    class_names = tuple(sorted({row[field] for row in table}))
    number = {name: index for index, name in enumerate(class_names)}
    rows = [row for row in table if split in (None, row["split"])]
    recordings = _recordings("mandarin_syllables.zip")
    waveforms = np.zeros((len(rows), num_samples), "float32")
    for waveform, row in zip(waveforms, rows, strict=True):
        recording = recordings[row["file"]][:num_samples]
        waveform[: len(recording)] = recording
    labels = np.array([number[row[field]] for row in rows], "int32")
    return waveforms, labels, class_names


def load_sonic_pi(seconds: float = 0.5, per_sound: int | None = None) -> np.ndarray:
    """Loads the Sonic Pi samples, music and ambience, cut into equal segments.

    165 unlabeled sounds, 324 s in all, CC0; see `sample_files/NOTICE`. Each sound
    is cut into segments that follow one another; the last one ends where the sound
    ends, so it overlaps the one before. A sound shorter than one segment gets zeros
    after it.

    Args:
        seconds: float. Length of a segment in seconds.
        per_sound: int or `None`. At most so many segments of each sound, its first and
            others spread evenly over it; `None` gives all.

    Returns:
        float32 array of shape `(n, round(16000 * seconds))` in [-1, 1].

    Raises:
        ValueError: for a length below one sample, or less than one segment per sound.

    Example:
    ```python
    from keras_bridle.data.samples import load_sonic_pi

    print(load_sonic_pi(seconds=1.0).shape)
    ```
    """
    length = round(SAMPLE_RATE * seconds)
    _check_length("seconds", length)
    if per_sound is not None and per_sound < 1:
        raise ValueError(
            f"`per_sound` must be None, or 1 or more. Received: {per_sound!r}"
        )
    segments = []
    for recording in _recordings("sonic_pi.zip").values():
        last = max(len(recording) - length, 0)
        starts = np.array([*range(0, last, length), last])
        if per_sound is not None and per_sound < len(starts):
            starts = starts[
                np.linspace(0, len(starts) - 1, per_sound).round().astype(int)
            ]
        for start in starts:
            piece = recording[start : start + length]
            segments.append(np.pad(piece, (0, length - len(piece))))
    return np.stack(segments)


def extract_samples(directory: str | Path) -> Path:
    """Writes the samples as ordinary files, to try the file readers on.

    Args:
        directory: folder to write to; made if it does not exist. It gets
            `mandarin_syllables/` and `sonic_pi/` with Ogg files,
            `mandarin_syllables/mandarin_syllables.csv`, `fashion_mnist/` with a folder
            of 20 PNG files for each class, all of the test part, `video/` with the two
            videos, and the `NOTICE` with authors and licenses.

    Returns:
        The folder as a `pathlib.Path`.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.layouts import AudioManifest
    from keras_bridle.data.samples import extract_samples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        manifest = AudioManifest.from_csv(
            folder + "/mandarin_syllables/mandarin_syllables.csv",
            label_column="initial",
            split="train",
        )
        print(len(manifest))
    ```
    """
    directory = Path(directory)
    for name in ("mandarin_syllables", "sonic_pi"):
        with zipfile.ZipFile(io.BytesIO(_sample_bytes(f"{name}.zip"))) as archive:
            archive.extractall(directory / name)
    table = directory / "mandarin_syllables" / "mandarin_syllables.csv"
    table.write_bytes(_sample_bytes("mandarin_syllables.csv"))
    _extract_fashion(directory / "fashion_mnist")
    (directory / "video").mkdir(exist_ok=True)
    for name in SAMPLE_VIDEOS:
        contents = (_sample_folder() / "video" / name).read_bytes()
        (directory / "video" / name).write_bytes(contents)
    (directory / "NOTICE").write_bytes((_sample_folder() / "NOTICE").read_bytes())
    return directory


def _extract_fashion(directory: Path) -> None:
    images, labels, class_names = load_fashion("test")
    for label, name in enumerate(class_names):
        folder = directory / name.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images[labels == label][:20, ..., 0]):
            Image.fromarray(image).save(folder / f"{number:02}.png")


def _check_length(name: str, length: int) -> None:
    if length < 1:
        raise ValueError(
            f"`{name}` must give at least one sample. Received: {length} samples"
        )


def _sample_folder() -> Traversable:
    return resources.files("keras_bridle.data") / "sample_files"


def _sample_bytes(name: str) -> bytes:
    return (_sample_folder() / "audio" / name).read_bytes()


@functools.cache
def _syllable_table() -> tuple[dict[str, str], ...]:
    text = _sample_bytes("mandarin_syllables.csv").decode("utf-8")
    return tuple(csv.DictReader(io.StringIO(text)))


@functools.cache
def _recordings(archive_name: str) -> dict[str, np.ndarray]:
    """Decodes an archive once per process; callers copy what they hand out."""
    return dict(sorted(_decoded(archive_name)))


def _decoded(archive_name: str) -> Iterator[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(io.BytesIO(_sample_bytes(archive_name))) as archive:
        for name in archive.namelist():
            if name.endswith("/"):
                continue
            samples, _ = soundfile.read(io.BytesIO(archive.read(name)), dtype="float32")
            yield name, np.clip(samples, -1.0, 1.0)


FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_fashion(
    split: str | None = None, per_class: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Loads 10,000 pictures of Fashion-MNIST: clothes in 10 classes, 28 x 28, gray.

    Copyright 2017 Zalando SE, MIT license; see `sample_files/NOTICE`.

    Args:
        split: `"train"` (8,000 pictures), `"test"` (2,000), or `None` for both.
        per_class: int. So many of each class, drawn at random, as for probes with few
            labels. `None` takes all.
        seed: int. Decides which ones `per_class` draws.

    Returns:
        A tuple `(images, labels, class_names)`: uint8 images of shape
        `(n, 28, 28, 1)`, int32 labels of shape `(n,)`, and the names that they index.

    Raises:
        ValueError: for an unknown split, or more per class than there are.

    Example:
    ```python
    from keras_bridle.data.samples import load_fashion

    images, labels, class_names = load_fashion("train", per_class=20)
    print(images.shape, class_names[labels[0]])
    ```

    Reference:
        - [Xiao et al., 2017](https://arxiv.org/abs/1708.07747)
    """
    if split not in ("train", "test", None):
        raise ValueError(
            f"`split` must be 'train', 'test' or None. Received: {split!r}"
        )
    parts = ("train", "test") if split is None else (split,)
    images = np.concatenate([_fashion()[f"x_{part}"] for part in parts])[..., None]
    labels = np.concatenate([_fashion()[f"y_{part}"] for part in parts])
    labels = labels.astype("int32")
    if per_class is not None:
        kept = _draw(labels, per_class, seed)
        images, labels = images[kept], labels[kept]
    return images, labels, FASHION_CLASSES


def _draw(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Returns positions of so many examples of each class, in order."""
    fewest = int(np.bincount(labels).min())
    if not 1 <= per_class <= fewest:
        raise ValueError(
            f"`per_class` must be from 1 to {fewest}. Received: {per_class}"
        )
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(np.flatnonzero(labels == label))[:per_class]
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn))


@functools.cache
def _fashion() -> dict[str, np.ndarray]:
    folder = resources.files("keras_bridle.data") / "sample_files" / "image"
    contents = (folder / "fashion_mnist_10k.npz").read_bytes()
    with np.load(io.BytesIO(contents)) as arrays:
        return dict(arrays)


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
    from keras_bridle.data.samples import load_clips

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
    from keras_bridle.data.samples import synthetic_pans

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
