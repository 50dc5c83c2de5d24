import csv
import itertools
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from video_files import scene, write_video

from keras_bridle.data import samples
from keras_bridle.data.layouts import list_files
from keras_bridle.data.samples import (
    extract_samples,
    load_clips,
    load_fashion,
    load_sonic_pi,
    load_syllables,
    synthetic_pans,
)

pytestmark = pytest.mark.one_backend
FOLDER = resources.files("keras_bridle.data") / "sample_files"


def distinct(arrays):
    return {array.tobytes() for array in arrays}


@pytest.mark.parametrize(
    ("load", "shapes", "classes"),
    [
        (load_syllables, [(801, 8000), (357, 8000)], 22),
        (load_fashion, [(8000, 28, 28, 1), (2000, 28, 28, 1)], 10),
    ],
)
def test_splits_have_the_documented_sizes_and_add_up(load, shapes, classes):
    parts = [load("train"), load("test")]
    assert [inputs.shape for inputs, _, _ in parts] == shapes
    assert not distinct(parts[0][0]) & distinct(parts[1][0])
    both, labels, names = load()
    assert len(both) == sum(len(inputs) for inputs, _, _ in parts)
    assert len(names) == classes and labels.dtype == np.int32
    counts = [np.bincount(part[1], minlength=classes) for part in parts]
    assert min(counts[0].min(), counts[1].min()) > 0
    np.testing.assert_array_equal(np.bincount(labels), sum(counts))
    # Changing the result does not change the next one.
    parts[1][0][:] = 0
    assert load("test")[0].any()
    with pytest.raises(ValueError):
        load("valid")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    return extract_samples(tmp_path_factory.mktemp("samples") / "new")


def test_labels_belong_to_their_recordings(extracted):
    table = extracted / "mandarin_syllables" / "mandarin_syllables.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    waveforms, labels, names = load_syllables(field="tone")
    assert [names[label] for label in labels] == [row["tone"] for row in rows]
    lengths = [np.flatnonzero(waveform)[-1] + 1 for waveform in waveforms]
    expected = [16000 * float(row["seconds"]) for row in rows]
    np.testing.assert_allclose(lengths, expected, atol=160)
    assert np.abs(waveforms).max() <= 1.0 and waveforms.dtype == np.float32
    # Splits share no syllable.
    train, test = (set(load_syllables(x, "syllable")[1]) for x in ("train", "test"))
    assert train and test and not train & test


def test_sonic_pi_is_cut_into_segments():
    half, whole = load_sonic_pi(0.5), load_sonic_pi(20.0)
    assert half.dtype == np.float32 and half.shape[1] == 8000
    # 324 s in all; the last segment of a sound may overlap, a short one is padded.
    assert 324 / 0.5 < len(half) < 324 / 0.5 + 165
    # Every recording starts a segment, whatever their length.
    assert len(whole) == 165
    assert distinct(whole[:, :4000]) <= distinct(half[:, :4000])
    np.testing.assert_array_equal(load_sonic_pi(0.5, per_sound=1), whole[:, :8000])
    assert 165 < len(load_sonic_pi(0.5, per_sound=3)) < len(half)


def test_clothes():
    images, labels, names = load_fashion("train")
    means = images.reshape(len(images), -1).mean(axis=1)
    by_class = {name: means[labels == i].mean() for i, name in enumerate(names)}
    # Sandals are mostly background, pullovers fill the image.
    assert min(by_class, key=by_class.get) == "Sandal"
    assert by_class["Pullover"] > 2 * by_class["Sandal"]
    few, few_labels, _ = load_fashion("train", per_class=20)
    assert np.bincount(few_labels).tolist() == [20] * 10
    assert (load_fashion("train", per_class=20)[0] == few).all()
    assert (load_fashion("train", per_class=20, seed=1)[0] != few).any()


def test_clips_come_from_their_split_of_the_videos(monkeypatch):
    real = load_clips("train", 8, image_size=(8, 12), channels=1)
    assert real.shape[1:] == (8, 8, 12, 1) and real.dtype == np.uint8
    counts = {"city.mp4": 190, "concert.mp4": 1441}

    def numbers(path, *_):
        return np.arange(counts[Path(path).name])

    monkeypatch.setattr(samples, "_frames", numbers)
    # Half of the 15 frames that a clip covers.
    assert len(real) == len(load_clips("train", 8, stride=7))
    expected = {"train": [], "test": []}
    for count in counts.values():
        border = int(0.7 * count)
        # A clip covers 10 frames. The last training clip ends 10 before the border.
        for start in range(0, border - 20 + 1, 5):
            expected["train"].append(range(start, start + 10, 3))
        for start in range(border, count - 10 + 1, 5):
            expected["test"].append(range(start, start + 10, 3))
    for split in ("train", "test"):
        found = load_clips(split, 4, sampling_rate=3, stride=5)
        np.testing.assert_array_equal(found, expected[split])
    # A video too short for a clip gives none: the last 30 % of the street are 57.
    test = load_clips("test", 16, sampling_rate=4, stride=1)
    assert len(test) == 1441 - int(0.7 * 1441) - 61 + 1


@pytest.mark.parametrize(("num_frames", "size"), [(8, 32), (21, 32)])
def test_pans_move_as_their_labels_say(num_frames, size):
    clips, labels, names = synthetic_pans("train", 48, num_frames, size)
    assert clips.shape == (48, num_frames, size, size, 3) and clips.dtype == np.uint8
    assert labels.dtype == np.int32 and np.bincount(labels).tolist() == [6] * 8
    signs = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
    found = 0
    for clip, label in zip(clips.astype(float), labels, strict=True):
        # Where the next frame was in this one, by how well the overlap fits.
        errors = {
            move: np.abs(np.roll(clip[1], move, (0, 1)) - clip[0])[4:-4, 4:-4].mean()
            for move in itertools.product(range(-3, 4), repeat=2)
        }
        moves = [signs[part] for part in names[label].split()]
        move = size // 16 * np.sum(moves, axis=0)
        found += min(errors, key=errors.get) == tuple(move)
    # The videos themselves move too.
    assert found > 0.75 * 48


def test_splits_seeds_and_other_videos_of_pans(tmp_path):
    options = {"num_clips": 64, "image_size": 16, "num_frames": 4}
    train, test = (synthetic_pans(x, **options)[0] for x in ("train", "test"))
    frames = [distinct(clips.reshape(-1, 16, 16, 3)) for clips in (train, test)]
    assert not frames[0] & frames[1]
    np.testing.assert_array_equal(train, synthetic_pans(**options)[0])
    assert (train != synthetic_pans(seed=2, **options)[0]).any()
    path = write_video(tmp_path / "scene.mp4", "mpeg4", scene(60))
    assert (train != synthetic_pans(videos=[path], **options)[0]).any()
    short = write_video(tmp_path / "short.mp4", "mpeg4", scene(8))
    for wrong in ({"videos": [short]}, {"split": "valid"}, {"num_frames": 22}):
        with pytest.raises(ValueError):
            synthetic_pans(**{**options, **wrong})


def test_extracted_samples_are_ordinary_files_with_their_notice(extracted):
    assert len(list_files("audio", extracted)) == 1158 + 165
    images = list_files("image", extracted / "fashion_mnist", labels=True)
    assert len(images) == 200 and len(images.class_names) == 10
    videos = list_files("video", extracted).files
    assert [Path(file).name for file in videos] == ["city.mp4", "concert.mp4"]
    notice = (extracted / "NOTICE").read_text("utf-8")
    assert all(x in notice for x in ("CC BY 3.0", "CC0", "MIT", "CC BY 4.0"))
    for kind in ("audio", "image", "video"):
        assert all(
            f"{kind}/{file.name}" in notice for file in (FOLDER / kind).iterdir()
        )
