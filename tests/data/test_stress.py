"""Folders as they are found on disks: a pipeline reads what it can."""

import itertools
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sound_files import which, write, write_constants

from keras_bridle.data.files import ReadReport
from keras_bridle.data.pipeline import audio_dataset
from keras_bridle.training.progress import device_memory

COUNT = 120
NO_SOUNDS = {
    "empty.wav": b"",
    "empty.flac": b"",
    "text.wav": b"no sound in here",
    "picture.mp3": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "header.wav": b"RIFF\xff\xff\xff\x7fWAVEfmt ",
    "zeros.ogg": bytes(4096),
    "noise.flac": np.random.default_rng(0).bytes(4096),
}


def write_huge(path, seconds=60_000):
    """A WAV file of almost 2 GB of silence, which takes no room on the disk."""
    size = 2 * 16000 * seconds
    riff = struct.pack("<4sI4s", b"RIFF", size + 36, b"WAVE")
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
    path.write_bytes(riff + layout + struct.pack("<4sI", b"data", size))
    os.truncate(path, size + 44)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings, files that are none, and some that only look strange."""
    folder = tmp_path_factory.mktemp("found")
    write_constants(folder, COUNT)
    for name, content in NO_SOUNDS.items():
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / name).write_bytes(content)
    (folder / "dangling.wav").symlink_to("nowhere.wav")
    (folder / "folder.wav").mkdir()
    # What a file holds decides, not its name.
    sound = np.full(1600, (COUNT + 1) / 1000)
    write(folder / "flac.flac", sound, subtype="PCM_24")
    (folder / "flac.flac").rename(folder / "mislabelled.wav")
    write_huge(folder / "huge.wav")
    write(folder / "locked.wav", np.full(1600, (COUNT + 2) / 1000), subtype="FLOAT")
    return folder


@pytest.fixture
def locked(monkeypatch):
    """A file that must not be read, by no user at all."""
    real = soundfile.SoundFile

    def opened(path, *args, **kwargs):
        if Path(path).name == "locked.wav":
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(soundfile, "SoundFile", opened)


def test_a_folder_of_everything(folder, locked):
    report = ReadReport()
    dataset = audio_dataset(
        folder, batch_size=8, seconds=0.05, shuffle=True, report=report
    )
    before, _ = device_memory()
    counts = np.zeros(COUNT + 3, int)
    for _ in range(3):
        batches = list(dataset.as_numpy_iterator())
        assert {batch.shape for batch in batches} == {(8, 800)}
        for number in which(np.concatenate(batches)):
            counts[number] += 1
    # The huge one is silence, -1, and only what is wanted of it is read.
    assert (counts[: COUNT + 1] >= 2).all()
    assert counts[-1] >= 2
    assert counts[COUNT + 1] == 0
    assert device_memory()[0] - before < 300e6
    skipped = {Path(path).name: reason for path, reason in report.skipped}
    expected = {*NO_SOUNDS, "locked.wav"}
    assert expected <= set(skipped) <= expected | {"dangling.wav"}
    assert all(reason for reason in skipped.values())


@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_a_run_that_goes_on_within_an_epoch_reads_nothing_before(tmp_path, shard):
    files = write_constants(tmp_path, 13)
    (tmp_path / "004.wav").write_text("no sound in here")

    def batches(count, **options):
        report = ReadReport()
        dataset = audio_dataset(
            files,
            batch_size=4,
            seconds=0.02,
            shuffle=True,
            repeat=True,
            seed=2,
            shard=shard,
            report=report,
            num_parallel=1,
            **options,
        )
        return list(itertools.islice(dataset.as_numpy_iterator(), count)), report

    whole, _ = batches(7, initial_epoch=5)
    rest, report = batches(3, initial_epoch=5, first_batch=2)
    for found, expected in zip(rest, whole[2:], strict=False):
        np.testing.assert_array_equal(found, expected)
    far, report = batches(2, initial_epoch=5, first_batch=3 * 1000)
    assert report.read < 100
    expected, _ = batches(2, initial_epoch=1005)
    np.testing.assert_array_equal(far, expected)
    with pytest.raises(ValueError, match="first_batch"):
        audio_dataset(files, batch_size=4, seconds=0.02, first_batch=1)
