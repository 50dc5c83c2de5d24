"""Many small files of each kind, some of which cannot be read."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import av
import image_files
import numpy as np
import pytest
import sound_files
import soundfile
from PIL import Image
from video_files import write_video

from keras_bridle.data.files import ReadReport
from keras_bridle.data.layouts import list_files
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.readers import AudioReader, ImageReader
from keras_bridle.data.video_reader import VideoReader

pytestmark = pytest.mark.one_backend

DISTINCT, COUNT = 20, 200
# Of any ending.
BROKEN = {
    "empty": b"",
    "text": b"nothing of that kind in here",
    "zeros": bytes(4096),
    "noise": np.random.default_rng(0).bytes(4096),
}


class Kind(NamedTuple):
    """How files of a kind are written, read, and told apart."""

    name: str
    ending: str
    write: Callable
    reader: Callable
    which: Callable
    opener: tuple[Any, str]


def write_videos(folder, count):
    files = []
    for number in range(count):
        frames = np.full((2, 16, 16, 3), 10 * number, "uint8")
        files.append(write_video(folder / f"{number:03}.mp4", "mpeg4", frames))
    return files


def which_videos(clips):
    return np.round(clips.mean(axis=(1, 2, 3, 4)) / 10).astype(int).tolist()


SOUNDFILE, PILLOW, PYAV = (soundfile, "SoundFile"), (Image, "open"), (av, "open")
AUDIO, IMAGE = sound_files, image_files
KINDS = (
    Kind(
        "audio",
        ".wav",
        AUDIO.write_constants,
        AudioReader(0.05),
        AUDIO.which,
        SOUNDFILE,
    ),
    Kind("image", ".png", IMAGE.write_gray, ImageReader((10, 12)), IMAGE.which, PILLOW),
    Kind("video", ".mp4", write_videos, VideoReader(16, 2, 1), which_videos, PYAV),
)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def write_many(kind, folder, count):
    """Files with a few contents, each of them many times."""
    (folder / "contents").mkdir()
    contents = kind.write(folder / "contents", DISTINCT)
    paths = []
    for number in range(count):
        path = folder / "found" / f"{number % 7}" / f"{number:05}{kind.ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(contents[number % DISTINCT], path)
        paths.append(path)
    return paths


def forbid(monkeypatch, kind, name):
    """Keeps a file from being opened, which its mode does not for every user."""
    module, function = kind.opener
    real = getattr(module, function)

    def opened(path, *args, **kwargs):
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(module, function, opened)


@each_kind
def test_all_that_can_be_read_is_read(kind, tmp_path, monkeypatch):
    paths = write_many(kind, tmp_path, COUNT)
    folder = tmp_path / "found"
    for name, content in BROKEN.items():
        (folder / f"{name}{kind.ending}").write_bytes(content)
    (folder / f"dangling{kind.ending}").symlink_to("nowhere")
    (folder / f"folder{kind.ending}").mkdir()
    locked = f"locked{kind.ending}"
    os.link(paths[0], folder / locked)
    forbid(monkeypatch, kind, locked)

    report = ReadReport()
    files = list_files(kind.name, folder)
    dataset = file_dataset(files, kind.reader, batch_size=20, report=report)
    batches = list(iter(dataset))
    numbers = np.concatenate([kind.which(batch) for batch in batches])
    np.testing.assert_array_equal(np.bincount(numbers), COUNT // DISTINCT)
    reasons = {Path(path).stem: reason for path, reason in report.skipped}
    assert {*BROKEN, "locked"} <= reasons.keys() <= {*BROKEN, "locked", "dangling"}
    assert "PermissionError" in reasons["locked"]
    assert all(reasons.values())


@each_kind
def test_files_that_vanish_while_they_are_read(kind, tmp_path):
    paths = write_many(kind, tmp_path, 40)
    report = ReadReport()
    dataset = file_dataset(
        list_files(kind.name, tmp_path / "found"),
        kind.reader,
        batch_size=4,
        shuffle=True,
        repeat=True,
        report=report,
        num_parallel=1,
    )
    batches = iter(dataset)
    list(itertools.islice(batches, 3))
    gone = paths[::2]
    for path in gone:
        path.unlink()
    later = list(itertools.islice(batches, 60))[20:]
    numbers = {number for batch in later for number in kind.which(batch)}
    assert numbers == set(range(1, DISTINCT, 2))
    skipped = {Path(path) for path, _ in report.skipped}
    assert skipped
    assert skipped <= set(gone)
