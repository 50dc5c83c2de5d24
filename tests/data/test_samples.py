import csv
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
    both, labels, names = load()
    np.testing.assert_array_equal(np.bincount(labels), sum(counts(x) for x in parts))
    assert len(both) == sum(len(inputs) for inputs, _, _ in parts)
    assert len(names) == classes and labels.dtype == np.int32
    assert all(counts(part).min() > 0 and part[2] == names for part in parts)
    # Changing the result does not change the next one.
    parts[1][0][:] = 0
    assert load("test")[0].any()
    with pytest.raises(ValueError):
        load("valid")


def counts(part):
    return np.bincount(part[1], minlength=len(part[2]))


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    return extract_samples(tmp_path_factory.mktemp("samples") / "new")


# Syllables and Sonic Pi


def test_splits_share_no_base_syllable():
    train, test = (set(load_syllables(x, "syllable")[1]) for x in ("train", "test"))
    assert train and test and not train & test
    labels, names = load_syllables(field="final")[1:]
    assert len(names) == 36 == len(set(labels.tolist()))
    assert list(names) == sorted(names)


def test_labels_belong_to_their_recordings(extracted):
    table = extracted / "mandarin_syllables" / "mandarin_syllables.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    waveforms, labels, names = load_syllables(field="tone")
    assert [names[label] for label in labels] == [row["tone"] for row in rows]
    lengths = [np.flatnonzero(waveform)[-1] + 1 for waveform in waveforms]
    expected = [16000 * float(row["seconds"]) for row in rows]
    np.testing.assert_allclose(lengths, expected, atol=160)
    short = load_syllables(num_samples=3000)[0]
    np.testing.assert_array_equal(short, waveforms[:, :3000])
    assert np.abs(waveforms).max() <= 1.0 and waveforms.dtype == np.float32


def test_sonic_pi_is_cut_into_segments():
    half, whole = load_sonic_pi(0.5), load_sonic_pi(20.0)
    assert half.dtype == np.float32 and half.shape[1] == 8000
    assert np.abs(half).max() <= 1.0
    # 324 s in all; the last segment of a sound may overlap, a short one is padded.
    assert 324 / 0.5 < len(half) < 324 / 0.5 + 165
    # Every recording starts a segment, whatever their length.
    assert len(whole) == 165
    starts = {waveform[:4000].tobytes() for waveform in half}
    assert {waveform[:4000].tobytes() for waveform in whole} <= starts
    first, three = load_sonic_pi(0.5, per_sound=1), load_sonic_pi(0.5, per_sound=3)
    np.testing.assert_array_equal(first, whole[:, :8000])
    # First and last segment of the longest sound are among its three.
    longest = max(whole, key=np.count_nonzero)
    assert (three == longest[:8000]).all(axis=1).any()
    assert 165 < len(three) < len(half)


# Fashion-MNIST


def test_clothes():
    images, labels, names = load_fashion("train")
    train = {image.tobytes() for image in images}
    assert not any(image.tobytes() in train for image in load_fashion("test")[0])
    means = images.reshape(len(images), -1).mean(axis=1)
    by_class = {name: means[labels == i].mean() for i, name in enumerate(names)}
    # Sandals are mostly background, pullovers fill the image.
    assert min(by_class, key=by_class.get) == "Sandal"
    assert by_class["Pullover"] > 2 * by_class["Sandal"]
    few, few_labels, _ = load_fashion("train", per_class=20)
    assert np.bincount(few_labels).tolist() == [20] * 10
    assert (load_fashion("train", per_class=20)[0] == few).all()
    assert (load_fashion("train", per_class=20, seed=1)[0] != few).any()
    assert all(image.tobytes() in train for image in few)


# Videos


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


@pytest.mark.parametrize("shape", [(8, 32), (21, 32)])
def test_pans_move_as_their_labels_say(shape):
    num_frames, size = shape
    clips, labels, names = synthetic_pans("train", 48, num_frames, size)
    assert clips.shape == (48, num_frames, size, size, 3) and clips.dtype == np.uint8
    assert labels.dtype == np.int32 and np.bincount(labels).tolist() == [6] * 8
    step = size // 16
    signs = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
    found = 0
    for clip, label in zip(clips.astype(float), labels, strict=True):
        # Where the next frame was in this one, by how well the overlap fits.
        first, second = clip[0].mean(axis=-1), clip[1].mean(axis=-1)
        inner = second[4:-4, 4:-4]
        errors = {
            (down, right): np.abs(
                first[4 + down : size - 4 + down, 4 + right : size - 4 + right] - inner
            ).mean()
            for down in range(-3, 4)
            for right in range(-3, 4)
        }
        moves = [signs[part] for part in names[label].split()]
        found += min(errors, key=errors.get) == tuple(step * np.sum(moves, axis=0))
    # The videos themselves move too.
    assert found > 0.75 * 48


def test_pans_of_the_splits_share_no_frame():
    options = {"num_clips": 64, "image_size": 16, "num_frames": 4}
    train, test = (synthetic_pans(x, **options)[0] for x in ("train", "test"))
    seen = {frame.tobytes() for clip in train for frame in clip}
    assert not any(frame.tobytes() in seen for clip in test for frame in clip)
    np.testing.assert_array_equal(train, synthetic_pans(**options)[0])
    assert (train != synthetic_pans(seed=2, **options)[0]).any()


def test_the_position_does_not_tell_the_direction(monkeypatch):
    """With frames that show where they were cut out, paths have the same middles."""
    rows, columns = np.meshgrid(np.arange(72), np.arange(100), indexing="ij")
    video = np.stack([rows, columns, 0 * rows], axis=-1).astype("uint8")
    video = np.repeat(video[None], 200, axis=0)
    monkeypatch.setattr(samples, "_frames", lambda *_: video)
    clips, labels, _ = synthetic_pans(num_clips=4000, image_size=32)
    middles = clips[:, [0, -1], 0, 0, :2].astype(float).mean(axis=1)
    overall, spread = middles.mean(axis=0), middles.std(axis=0)
    for label in range(8):
        of_label = middles[labels == label].mean(axis=0)
        np.testing.assert_allclose(of_label, overall, atol=5 * spread.max() / 500**0.5)
    # All of the image is used: the window's corner, less half of the path.
    assert clips[..., 0].min() == 0 and clips[..., 0].max() == 71


def test_pans_over_videos_of_ones_own(tmp_path):
    options = {"num_clips": 8, "num_frames": 4, "image_size": 16}
    path = write_video(tmp_path / "scene.mp4", "mpeg4", scene(60))
    clips = synthetic_pans(videos=[path], **options)[0]
    assert clips.shape == (8, 4, 16, 16, 3)
    assert (clips != synthetic_pans(**options)[0]).any()
    short = write_video(tmp_path / "short.mp4", "mpeg4", scene(8))
    for wrong in ({"videos": [short]}, {"split": "valid"}, {"num_frames": 22}):
        with pytest.raises(ValueError):
            synthetic_pans(**{**options, **wrong})


# Files


def test_extracted_samples_are_ordinary_files_with_their_notice(extracted):
    assert len(list_files("audio", extracted)) == 1158 + 165
    images = list_files("image", extracted / "fashion_mnist", labels=True)
    assert len(images) == 200 and len(images.class_names) == 10
    videos = list_files("video", extracted).files
    assert [Path(file).name for file in videos] == ["city.mp4", "concert.mp4"]
    notice = (extracted / "NOTICE").read_text("utf-8")
    for text in ("ChionMeilin", "CC BY 3.0", "CC0", "Zalando", "MIT", "CC BY 4.0"):
        assert text in notice
    for kind in ("audio", "image", "video"):
        for file in (FOLDER / kind).iterdir():
            assert f"{kind}/{file.name}" in notice
