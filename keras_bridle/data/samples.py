"""The sample data that come with the package."""

import functools
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

from keras_bridle.data.files import check, number_labels, read_table
from keras_bridle.data.readers import as_size
from keras_bridle.data.video_reader import VideoReader, list_packets

_FOLDER = Path(__file__).parent / "sample_files"
_VIDEOS = [str(_FOLDER / "video" / name) for name in ("city.mp4", "concert.mp4")]
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_SPLITS = ("train", "test", None)
# The direction (down, right) of a camera pan.
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
# The first part of each video is for training.
_TRAINING_SHARE = 0.7
# A window pans over a larger frame. In sides of the window: the frame's shorter side,
# and the step from one frame to the next.
_SCENE, _STEP = 2.25, 1 / 16


def load_syllables(split=None, field="initial", num_samples=8000):
    """Loads the spoken Mandarin syllables: one speaker, 0.2 to 0.43 s each, 16 kHz.

    Returns float32 waveforms `(n, num_samples)`, int32 labels and class names, of
    `"train"` (801 syllables), `"test"` (357, which share no base syllable with these)
    or both (`None`). `field` selects the labels: `"initial"` (22 classes), `"final"`
    (36), `"tone"` (5) or the base `"syllable"`. By ChionMeilin (voice Chu Lo), CC BY
    3.0; see `sample_files/NOTICE`.
    """
    check(split in _SPLITS, "split", f"one of {_SPLITS}", split)
    table = read_table(_FOLDER / "audio" / "mandarin_syllables.csv")
    labels, class_names = number_labels([row[field] for row in table])
    rows = [i for i, row in enumerate(table) if split in (None, row["split"])]
    recordings = _archive("audio/mandarin_syllables.tar.xz")
    waveforms = np.zeros((len(rows), num_samples), "float32")
    for waveform, row in zip(waveforms, rows, strict=True):
        recording = recordings[table[row]["file"]][:num_samples]
        waveform[: len(recording)] = recording
    return waveforms, np.array(labels, "int32")[rows], class_names


def load_sonic_pi(seconds=0.5, per_sound=None):
    """Loads the Sonic Pi samples, 165 unlabeled sounds of 324 s in all, in segments.

    Returns float32 `(n, round(16000 * seconds))` at 16 kHz. The last segment ends with
    its sound; shorter sounds are padded with zeros. `per_sound` limits the segments of
    each, evenly spread from the first. CC0; see `sample_files/NOTICE`.
    """
    length = round(16000 * seconds)
    segments = []
    for recording in _archive("audio/sonic_pi.tar.xz").values():
        last = max(len(recording) - length, 0)
        starts = np.array([*range(0, last, length), last])
        if per_sound is not None and per_sound < len(starts):
            kept = np.linspace(0, len(starts) - 1, per_sound).round().astype(int)
            starts = starts[kept]
        for start in starts:
            piece = recording[start : start + length]
            segments.append(np.pad(piece, (0, length - len(piece))))
    return np.stack(segments)


def load_fashion(split=None, per_class=None, seed=0):
    """Loads 10,000 images of Fashion-MNIST: clothes in 10 classes, 28 x 28, gray.

    Returns uint8 images `(n, 28, 28, 1)`, int32 labels and class names, of `"train"`
    (8,000 images), `"test"` (2,000) or both (`None`); or `per_class` random ones of
    each class. [Xiao et al., 2017](https://arxiv.org/abs/1708.07747), copyright Zalando
    SE, MIT license; see `sample_files/NOTICE`.
    """
    check(split in _SPLITS, "split", f"one of {_SPLITS}", split)
    arrays = _archive("image/fashion_mnist_10k.tar.xz")
    splits = _SPLITS[:2] if split is None else (split,)
    images = np.concatenate([arrays[f"x_{split}.npy"] for split in splits])[..., None]
    labels = np.concatenate([arrays[f"y_{split}.npy"] for split in splits])
    if per_class is not None:
        generator = np.random.default_rng(seed)
        rows = [
            generator.permutation(np.flatnonzero(labels == label))[:per_class]
            for label in range(len(FASHION_CLASSES))
        ]
        kept = np.sort(np.concatenate(rows))
        images, labels = images[kept], labels[kept]
    return images, labels.astype("int32"), FASHION_CLASSES


def load_clips(
    split="train",
    num_frames=16,
    image_size=64,
    sampling_rate=2,
    stride=None,
    channels=3,
):
    """Loads clips of the two sample videos, a street and a concert.

    Returns uint8 `(n, num_frames, height, width, channels)`, clips of every
    `sampling_rate`-th frame that start every `stride` frames (by default half of a
    clip's span). Training clips end within the first 70 % of each video; test clips
    begin later, with a gap of one clip. CC0 and CC BY 4.0; see `sample_files/NOTICE`.
    """
    size = as_size("image_size", image_size)
    span = (num_frames - 1) * sampling_rate + 1
    stride = max(span // 2, 1) if stride is None else stride
    clips = [
        video[start : start + span : sampling_rate]
        for path in _VIDEOS
        for video in [_frames(path, size, channels)]
        for start in _starts(len(video), split, span)[::stride]
    ]
    return np.stack(clips)


def synthetic_pans(
    split="train",
    num_clips=1000,
    num_frames=8,
    image_size=64,
    channels=3,
    seed=0,
    videos=None,
):
    """Makes clips in which a camera pans in one of 8 directions: a probe for motion.

    Returns uint8 clips `(num_clips, num_frames, height, width, channels)`, int32 labels
    and the directions that they index. The pixels are real, the motion is synthetic: a
    window moves over the frames of the sample videos (or of `videos`) in a straight
    line, by 1/16 of its shorter side a frame, while the videos play. The centers of the
    paths have the same distribution for all directions, so that the position reveals
    none. Splits are as in `load_clips()`. `benchmarks/pan_probe.py` measures simple
    classifiers of pixels.
    """
    size = as_size("image_size", image_size)
    step = max(round(_STEP * min(size)), 1)
    travel = step * (num_frames - 1)
    scene = round(_SCENE * max(size))
    most = (scene - max(size)) // step + 1
    check(num_frames <= most, "num_frames", f"at most {most}", num_frames)
    paths = _VIDEOS if videos is None else list(map(str, videos))
    scenes = [_frames(path, _scene_size(path, scene), channels) for path in paths]
    ranges = [_starts(len(frames), split, num_frames) for frames in scenes]
    counts = np.array([len(starts) for starts in ranges])
    expected = f"longer for clips of {num_frames} frames"
    check(counts.sum() > 0, "videos", expected, paths)
    generator = np.random.default_rng((seed, split == "test"))
    moves = np.array(list(_DIRECTIONS.values()))
    labels = np.arange(num_clips, dtype="int32") % len(moves)
    clips = np.empty((num_clips, num_frames, *size, channels), "uint8")
    for clip, label in zip(clips, labels, strict=True):
        index = generator.choice(len(scenes), p=counts / counts.sum())
        frames, starts = scenes[index], ranges[index]
        first = generator.integers(starts.start, starts.stop)
        room = np.array(frames.shape[1:3]) - np.array(size) - travel
        middle = generator.integers(0, room + 1)
        corner = middle + (travel - moves[label] * travel) // 2
        for number in range(num_frames):
            top, left = corner + number * step * moves[label]
            frame = frames[first + number]
            clip[number] = frame[top : top + size[0], left : left + size[1]]
    return clips, labels, tuple(_DIRECTIONS)


def extract_samples(directory):
    """Writes the samples as ordinary files to folders in a directory; returns it.

    They are called `mandarin_syllables` (with a CSV table), `sonic_pi`,
    `fashion_mnist` (20 images of each class) and `video`.
    """
    directory = Path(directory)
    for name in ("mandarin_syllables", "sonic_pi"):
        with tarfile.open(_FOLDER / "audio" / f"{name}.tar.xz") as archive:
            archive.extractall(directory / name, filter="data")
    table = "mandarin_syllables.csv"
    shutil.copyfile(_FOLDER / "audio" / table, directory / "mandarin_syllables" / table)
    images, labels, class_names = load_fashion("test")
    for label, name in enumerate(class_names):
        folder = directory / "fashion_mnist" / name.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images[labels == label][:20, ..., 0]):
            Image.fromarray(image).save(folder / f"{number:02}.png")
    shutil.copytree(
        _FOLDER / "video",
        directory / "video",
        copy_function=shutil.copyfile,
        dirs_exist_ok=True,
    )
    shutil.copyfile(_FOLDER / "NOTICE", directory / "NOTICE")
    return directory


@functools.cache
def _archive(name):
    """Decodes a sorted archive of recordings or arrays once per process."""
    found = {}
    with tarfile.open(_FOLDER / name) as archive:
        for item in archive:
            file: Any = archive.extractfile(item)
            contents = io.BytesIO(file.read())
            if item.name.endswith(".npy"):
                found[item.name] = np.load(contents)
            else:
                sound, _ = soundfile.read(contents, dtype="float32")
                found[item.name] = np.clip(sound, -1.0, 1.0)
    return found


def _starts(length, split, span):
    """Returns the frames at which clips of a split may start."""
    check(split in _SPLITS[:2], "split", f"one of {_SPLITS[:2]}", split)
    border = int(_TRAINING_SHARE * length)
    if split == "train":
        return range(max(border - 2 * span + 1, 0))
    return range(border, max(length - span + 1, border))


@functools.cache
def _scene_size(path, shorter):
    """Returns a video's `(height, width)`, scaled to a shorter side."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        height, width = stream.height, stream.width
    scale = shorter / min(height, width)
    return round(height * scale), round(width * scale)


@functools.lru_cache(maxsize=4)
def _frames(path, size, channels):
    """Decodes a whole video, and caches it."""
    reader = VideoReader(size, len(list_packets(path).sizes), 1, channels)
    frames, _ = reader.read_at(path, 0)
    frames.flags.writeable = False
    return frames
