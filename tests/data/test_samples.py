import csv
import time
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from keras_bridle.data.layouts import AudioManifest, ImageManifest, VideoManifest
from keras_bridle.data.samples import extract_samples, load_sonic_pi, load_syllables


def test_splits_have_the_documented_sizes_and_add_up():
    train, train_labels, names = load_syllables("train")
    test, test_labels, test_names = load_syllables("test")
    both, both_labels, _ = load_syllables()
    assert train.shape == (801, 8000) and test.shape == (357, 8000)
    assert both.shape == (1158, 8000)
    assert names == test_names and len(names) == 22
    assert train_labels.dtype == np.int32 and train.dtype == np.float32
    # Majority class of the baseline table: 6 % of the test part.
    counts = np.bincount(test_labels, minlength=22)
    assert counts.min() > 0
    together = np.concatenate([train_labels, test_labels])
    np.testing.assert_array_equal(np.bincount(together), np.bincount(both_labels))


@pytest.mark.parametrize(("field", "classes"), [("initial", 22), ("final", 36)])
def test_fields_have_the_documented_classes(field, classes):
    labels, names = load_syllables(field=field)[1:]
    assert len(names) == classes == len(set(labels.tolist()))
    assert list(names) == sorted(names)


def test_splits_share_no_base_syllable():
    train = set(load_syllables("train", "syllable")[1].tolist())
    test = set(load_syllables("test", "syllable")[1].tolist())
    assert train and test and not train & test


def test_waveforms_are_whole_and_padded_with_zeros():
    short, long = load_syllables(num_samples=3000)[0], load_syllables()[0]
    np.testing.assert_array_equal(short, long[:, :3000])
    # No recording is longer than 0.43 s, and all have sound in the first 0.3 s.
    assert not long[:, 6880:].any()
    assert (np.abs(long[:, :4800]).max(axis=1) > 0.005).all()
    assert np.abs(long).max() <= 1.0


def test_labels_belong_to_their_recordings(tmp_path):
    extract_samples(tmp_path)
    with (tmp_path / "mandarin_syllables/mandarin_syllables.csv").open(
        encoding="utf-8"
    ) as file:
        rows = list(csv.DictReader(file))
    waveforms, labels, names = load_syllables(field="tone")
    assert [names[label] for label in labels] == [row["tone"] for row in rows]
    lengths = [np.flatnonzero(waveform)[-1] + 1 for waveform in waveforms]
    expected = [16000 * float(row["seconds"]) for row in rows]
    np.testing.assert_allclose(lengths, expected, atol=160)


def test_changing_the_result_does_not_change_the_next_one():
    first = load_syllables("test")[0]
    first[:] = 0
    assert load_syllables("test")[0].any()
    segments = load_sonic_pi()
    segments[:] = 0
    assert load_sonic_pi().any()


def test_sonic_pi_is_cut_into_segments():
    half = load_sonic_pi(0.5)
    assert half.dtype == np.float32 and half.shape[1] == 8000
    assert np.abs(half).max() <= 1.0
    # 324 s in all; the last segment of a sound may overlap, a short one is padded.
    assert 324 / 0.5 < len(half) < 324 / 0.5 + 165
    # Every recording starts a segment, whatever their length.
    whole = load_sonic_pi(20.0)
    assert len(whole) == 165
    starts = {waveform[:4000].tobytes() for waveform in half}
    assert {waveform[:4000].tobytes() for waveform in whole} <= starts
    # A segment that is padded is a recording shorter than that.
    padded = half[~half[:, -80:].any(axis=1)]
    assert {row[:4000].tobytes() for row in padded} <= {
        row[:4000].tobytes() for row in whole
    } | {row[:4000].tobytes() for row in half}


def test_last_segment_ends_with_the_sound():
    whole = max(load_sonic_pi(20.0), key=lambda row: np.flatnonzero(row).max())
    end = np.flatnonzero(whole).max()
    assert any(
        np.array_equal(segment[-400:], whole[end - 399 + lag : end + 1 + lag])
        for segment in load_sonic_pi(0.5)
        for lag in range(4)
    )


def test_loading_is_fast():
    start = time.perf_counter()
    load_syllables()
    load_sonic_pi()
    assert time.perf_counter() - start < 3


def test_extracted_samples_are_ordinary_files_with_their_notice(tmp_path):
    folder = extract_samples(tmp_path / "new" / "folder")
    assert len(AudioManifest.from_folder(folder)) == 1158 + 165
    images = ImageManifest.from_folder(folder, class_folders=True)
    assert len(images) == 200 and images.class_names == ("fashion_mnist",)
    images = ImageManifest.from_folder(folder / "fashion_mnist", class_folders=True)
    assert len(images.class_names) == 10
    videos = VideoManifest.from_folder(folder).files
    assert [Path(file).name for file in videos] == ["city.mpg", "concert.mp4"]
    notice = (folder / "NOTICE").read_text("utf-8")
    for text in ("ChionMeilin", "CC BY 3.0", "CC0", "Zalando", "MIT", "CC BY 4.0"):
        assert text in notice


def test_every_sample_file_has_its_notice():
    folder = resources.files("keras_bridle.data") / "sample_files"
    notice = (folder / "NOTICE").read_text("utf-8")
    for kind in ("audio", "image", "video"):
        for file in (folder / kind).iterdir():
            assert f"{kind}/{file.name}" in notice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "`split` must be 'train', 'test' or None.*'valid'"),
        ({"field": "vowel"}, "`field` must be one of .*'vowel'"),
        ({"num_samples": 0}, "`num_samples` must give at least one sample"),
    ],
)
def test_syllables_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_syllables(**arguments)


def test_sonic_pi_segments_per_sound():
    every, first = load_sonic_pi(0.5), load_sonic_pi(0.5, per_sound=1)
    whole = load_sonic_pi(20.0)
    assert len(first) == len(whole) == 165
    np.testing.assert_array_equal(first, whole[:, :8000])
    three = load_sonic_pi(0.5, per_sound=3)
    assert 165 < len(three) < len(every)
    # First and last segment of the longest sound are among its three.
    longest = max(whole, key=lambda row: np.flatnonzero(row).max())
    assert (three == longest[:8000]).all(axis=1).any()
    np.testing.assert_array_equal(load_sonic_pi(0.5, per_sound=10**6), every)


def test_sonic_pi_length_is_checked():
    with pytest.raises(ValueError, match="`seconds` must give at least one sample"):
        load_sonic_pi(0)
    with pytest.raises(ValueError, match="per_sound"):
        load_sonic_pi(per_sound=0)
