import itertools

import keras
import numpy as np
import pytest
from sound_files import noise, which, write, write_constants

from keras_bridle.data import clips
from keras_bridle.data import readers as soundfile_audio
from keras_bridle.data.files import ReadReport
from keras_bridle.data.layouts import AudioManifest
from keras_bridle.data.pipeline import audio_dataset


def batches(dataset, count=None):
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def broken(folder, *names):
    for name in names:
        (folder / name).write_text("no sound in here")


# What comes out


def test_evaluation_gives_every_file_once_in_order(tmp_path):
    write_constants(tmp_path, 10)
    dataset = audio_dataset(tmp_path, batch_size=4, seconds=0.05)
    result = batches(dataset)
    assert [batch.shape for batch in result] == [(4, 800), (4, 800), (2, 800)]
    assert all(batch.dtype == np.float32 for batch in result)
    assert which(np.concatenate(result)) == list(range(10))
    assert batches(dataset)[2].shape == (2, 800)


def test_training_gives_full_static_batches_and_no_file_twice(tmp_path):
    write_constants(tmp_path, 11)
    dataset = audio_dataset(tmp_path, batch_size=4, seconds=0.05, shuffle=True)
    assert dataset.element_spec.shape == (4, 800)
    assert len(dataset) == 2
    orders = [which(np.concatenate(batches(dataset))) for _ in range(6)]
    assert all(len(set(order)) == 8 for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    # What does not fill a batch is another rest each time.
    assert set().union(*orders) == set(range(11))


@pytest.mark.parametrize("repeat", [False, True])
def test_processes_share_each_batch_without_overlap_or_loss(tmp_path, repeat):
    """A broken file is replaced by the same one, whoever should have read it."""
    write_constants(tmp_path, 13)
    broken(tmp_path, "broken.wav")

    def dataset(**options):
        return audio_dataset(
            tmp_path,
            batch_size=6,
            seconds=0.05,
            shuffle=True,
            repeat=repeat,
            seed=3,
            initial_epoch=2,
            **options,
        )

    whole = batches(dataset(), 4 if repeat else None)
    parts = [batches(dataset(shard=(part, 3)), len(whole)) for part in range(3)]
    assert [len(part) for part in parts] == [len(whole)] * 3
    assert {batch.shape for part in parts for batch in part} == {(2, 800)}
    for batch, *pieces in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate(pieces), batch)


@pytest.mark.parametrize(
    "options",
    [{"shard": (2, 2)}, {"shard": (0, 4)}, {"shard": (0, 3), "drop_remainder": False}],
)
def test_shards_are_checked(tmp_path, options):
    write_constants(tmp_path, 8)
    with pytest.raises(ValueError, match="shard"):
        audio_dataset(tmp_path, batch_size=6, seconds=0.05, shuffle=True, **options)


def test_remainder_can_be_kept_in_training(tmp_path):
    write_constants(tmp_path, 11)
    dataset = audio_dataset(
        tmp_path, batch_size=4, seconds=0.05, shuffle=True, drop_remainder=False
    )
    result = np.concatenate(batches(dataset))
    assert sorted(which(result)) == list(range(11))
    assert which(result) != list(range(11))


def test_rates_and_formats_may_be_mixed(tmp_path):
    for name, rate in (("a.wav", 8000), ("b.flac", 44100), ("c.ogg", 22050)):
        time = np.arange(rate) / rate
        write(tmp_path / name, 0.5 * np.sin(2000 * np.pi * time), rate)
    (batch,) = batches(audio_dataset(tmp_path, batch_size=3, seconds=0.5))
    power = np.abs(np.fft.rfft(batch)) ** 2
    # 1 kHz is bin 500 of a 0.5 s clip at 16 kHz.
    assert (power.argmax(axis=1) == 500).all()
    np.testing.assert_allclose(np.abs(batch).max(axis=1), 0.5, atol=0.03)


def test_length_in_samples_and_another_rate(tmp_path):
    write_constants(tmp_path, 2)
    dataset = audio_dataset(tmp_path, batch_size=2, num_samples=123, sample_rate=8000)
    assert batches(dataset)[0].shape == (2, 123)
    seconds = audio_dataset(tmp_path, batch_size=2, seconds=0.05, sample_rate=8000)
    assert batches(seconds)[0].shape == (2, 400)


def test_a_list_of_paths_is_a_source(tmp_path):
    files = write_constants(tmp_path, 3)
    dataset = audio_dataset(files[::-1], batch_size=3, seconds=0.05)
    assert which(batches(dataset)[0]) == [2, 1, 0]


def test_labels_stay_with_their_files(tmp_path):
    files = write_constants(tmp_path, 12)
    broken(tmp_path, "004.wav", "007.wav")
    manifest = AudioManifest(files, list(range(12)), [str(i) for i in range(12)])
    for shuffle in (False, True):
        dataset = audio_dataset(
            manifest, batch_size=5, seconds=0.05, shuffle=shuffle, num_parallel=4
        )
        for waveforms, labels in batches(dataset):
            assert labels.dtype == np.int32
            assert which(waveforms) == labels.tolist()
    alone = audio_dataset(manifest, batch_size=5, seconds=0.05, labels=False)
    assert batches(alone)[0].shape == (5, 800)


def test_multi_labels_are_zeros_and_ones(tmp_path):
    files = write_constants(tmp_path, 3)
    manifest = AudioManifest(files, [(0, 2), (), (1,)], ["a", "b", "c"])
    dataset = audio_dataset(manifest, batch_size=3, seconds=0.05)
    assert dataset.element_spec[1].shape == (None, 3)
    labels = batches(dataset)[0][1]
    np.testing.assert_array_equal(labels, [[1, 0, 1], [0, 0, 0], [0, 1, 0]])


def test_segments_of_one_file_are_recordings_of_their_own(tmp_path):
    values = np.repeat([0.001, 0.002, 0.003], 1600)
    file = write(tmp_path / "a.wav", values, subtype="FLOAT")
    segments = [(0.2, 0.3), (0.0, 0.1), (0.1, 0.2)]
    manifest = AudioManifest([file] * 3, segments=segments)
    dataset = audio_dataset(manifest, batch_size=3, num_samples=1600)
    assert which(batches(dataset)[0]) == [2, 0, 1]


# Crops


def ramp(tmp_path, frames=16000):
    return write(tmp_path / "ramp.wav", np.arange(frames) / 2**15, subtype="PCM_16")


@pytest.mark.parametrize(("crop", "start"), [("start", 0), ("center", 7500)])
def test_fixed_crops(tmp_path, crop, start):
    dataset = audio_dataset([ramp(tmp_path)], batch_size=1, num_samples=1000, crop=crop)
    for _ in range(2):
        clip = batches(dataset)[0][0] * 2**15
        np.testing.assert_array_equal(clip, np.arange(start, start + 1000))


def test_random_crops_are_uniform(tmp_path):
    manifest = [ramp(tmp_path)] * 1000
    dataset = audio_dataset(manifest, batch_size=1000, num_samples=1000, shuffle=True)
    starts = np.round(batches(dataset)[0][:, 0] * 2**15)
    assert starts.min() >= 0 and starts.max() <= 15000
    # 1,000 draws: a tenth holds 100 with a deviation of 9.5.
    counts = np.histogram(starts, bins=10, range=(0, 15000))[0]
    assert counts.min() > 60 and counts.max() < 140


def test_every_epoch_draws_other_crops(tmp_path):
    files = [ramp(tmp_path)] * 20
    dataset = audio_dataset(files, batch_size=20, num_samples=100, crop="random")
    first, second = epochs(dataset, 2)
    assert (first[:, 0] != second[:, 0]).mean() > 0.9


def test_both_ends_can_be_drawn(tmp_path):
    manifest = [ramp(tmp_path, 1003)] * 200
    dataset = audio_dataset(manifest, batch_size=200, num_samples=1000, crop="random")
    starts = np.round(batches(dataset)[0][:, 0] * 2**15)
    assert sorted(set(starts)) == [0, 1, 2, 3]


# Seeds and epochs


def epochs(dataset, count):
    return [np.concatenate(batches(dataset)) for _ in range(count)]


def test_seed_decides_order_and_crops_however_many_threads_read(tmp_path):
    for i in range(12):
        write(tmp_path / f"{i}.wav", noise(0.2, seed=i))
    options = {"batch_size": 4, "num_samples": 800, "shuffle": True}
    first = epochs(audio_dataset(tmp_path, seed=3, num_parallel=1, **options), 2)
    again = epochs(audio_dataset(tmp_path, seed=3, num_parallel=8, **options), 2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    other = epochs(audio_dataset(tmp_path, seed=4, **options), 1)[0]
    assert not np.array_equal(first[0], other)


def test_repeat_runs_through_the_same_epochs(tmp_path):
    for i in range(10):
        write(tmp_path / f"{i}.wav", noise(0.2, seed=i))
    options = {"batch_size": 4, "num_samples": 800, "shuffle": True, "seed": 5}
    apart = np.concatenate(epochs(audio_dataset(tmp_path, **options), 3))
    endless = audio_dataset(tmp_path, repeat=True, **options)
    np.testing.assert_array_equal(np.concatenate(batches(endless, 6)), apart)
    # A new iterator starts again, as `fit()` needs after its look at one batch.
    np.testing.assert_array_equal(np.concatenate(batches(endless, 2)), apart[:8])
    assert int(endless.cardinality()) == -1
    later = audio_dataset(tmp_path, repeat=True, initial_epoch=2, **options)
    np.testing.assert_array_equal(np.concatenate(batches(later, 2)), apart[16:])
    resumed = audio_dataset(tmp_path, initial_epoch=1, **options)
    np.testing.assert_array_equal(np.concatenate(epochs(resumed, 2)), apart[8:])


# Unreadable files


def test_evaluation_leaves_unreadable_files_out(tmp_path):
    files = write_constants(tmp_path, 8)
    broken(tmp_path, "000.wav", "003.wav")
    (tmp_path / "007.wav").unlink()
    report = ReadReport()
    dataset = audio_dataset(files, batch_size=4, seconds=0.05, report=report)
    for _ in range(2):
        result = np.concatenate(batches(dataset))
        assert which(result) == [1, 2, 4, 5, 6]
    assert int(dataset.cardinality()) == -2
    assert report.read == 10
    assert [item.path for item in report.skipped] == [files[0], files[3], files[7]]
    reasons = [item.reason for item in report.skipped]
    assert "LibsndfileError" in reasons[0]
    assert reasons[2] == "FileNotFoundError: no such file"


def test_training_replaces_unreadable_files(tmp_path):
    files = write_constants(tmp_path, 12)
    bad = [1, 2, 3, 8]
    broken(tmp_path, *(f"{i:03}.wav" for i in bad))
    report = ReadReport()
    dataset = audio_dataset(
        files, batch_size=4, seconds=0.05, shuffle=True, report=report
    )
    assert len(dataset) == 3
    for _ in range(5):
        result = batches(dataset)
        assert [len(batch) for batch in result] == [4, 4, 4]
        # All readable files come, and the replacements are spread over them.
        counts = np.bincount(which(np.concatenate(result)), minlength=12)
        assert not counts[bad].any() and counts.sum() == 12
        assert np.delete(counts, bad).min() >= 1
    assert [item.path for item in report.skipped] == [files[i] for i in bad]
    assert report.read == 60


def test_files_that_vanish_between_epochs_are_replaced(tmp_path):
    files = write_constants(tmp_path, 8)
    report = ReadReport()
    dataset = audio_dataset(
        files, batch_size=4, seconds=0.05, shuffle=True, report=report
    )
    batches(dataset)
    assert not report.skipped
    (tmp_path / "005.wav").unlink()
    result = np.concatenate(batches(dataset))
    assert len(result) == 8 and 5 not in which(result)
    assert [item.path for item in report.skipped] == [files[5]]


def test_unreadable_files_are_tried_once(tmp_path, monkeypatch):
    write_constants(tmp_path, 4)
    broken(tmp_path, "002.wav")
    tried = []
    original = soundfile_audio.soundfile.SoundFile.__init__

    def open_file(self, path, *args, **options):
        tried.append(path)
        original(self, path, *args, **options)

    monkeypatch.setattr(soundfile_audio.soundfile.SoundFile, "__init__", open_file)
    dataset = audio_dataset(tmp_path, batch_size=2, seconds=0.05, shuffle=True)
    for _ in range(3):
        batches(dataset)
    assert sum(path.endswith("002.wav") for path in tried) == 1


def test_nothing_readable_is_an_error_at_once(tmp_path):
    broken(tmp_path, "a.wav", "b.wav")
    for shuffle in (False, True):
        with pytest.raises(ValueError, match=r"None of the 2 audio files .*a.wav'"):
            audio_dataset(tmp_path, batch_size=1, seconds=0.1, shuffle=shuffle)


def test_nothing_readable_any_more_is_an_error_not_an_endless_loop(tmp_path):
    files = write_constants(tmp_path, 4)
    dataset = audio_dataset(files, batch_size=2, seconds=0.05, repeat=True)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(Exception, match="No audio file can be read any more"):
        batches(dataset, 100)


def test_a_lost_disk_is_an_error(tmp_path):
    files = write_constants(tmp_path, 1)
    missing = [str(tmp_path / f"none{i}.wav") for i in range(1200)]
    dataset = audio_dataset(files + missing, batch_size=4, seconds=0.05)
    with pytest.raises(Exception, match="1000 audio files in a row cannot be read"):
        batches(dataset)


def test_many_unreadable_files_among_readable_ones_are_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "_MAX_FAILURES", 10)
    files = write_constants(tmp_path, 8)
    missing = [str(tmp_path / f"none{i}.wav") for i in range(24)]
    mixed = [name for i in range(8) for name in (files[i], *missing[3 * i : 3 * i + 3])]
    dataset = audio_dataset(mixed, batch_size=4, seconds=0.05, num_parallel=1)
    assert which(np.concatenate(batches(dataset))) == list(range(8))


def test_strict_names_the_file(tmp_path):
    write_constants(tmp_path, 4)
    broken(tmp_path, "002.wav")
    report = ReadReport()
    dataset = audio_dataset(
        tmp_path, batch_size=2, seconds=0.05, strict=True, report=report
    )
    with pytest.raises(Exception, match=r"Cannot read audio file '.*002.wav'.*Lib"):
        batches(dataset)
    broken(tmp_path, "000.wav")
    with pytest.raises(ValueError, match=r"Cannot read audio file '.*000.wav'"):
        audio_dataset(tmp_path, batch_size=2, seconds=0.05, strict=True)


def test_what_a_data_set_misses_is_reported(tmp_path):
    files = write_constants(tmp_path, 1)
    report = ReadReport()
    manifest = AudioManifest(files, missing=["abc", "def"])
    audio_dataset(manifest, batch_size=1, seconds=0.05, strict=True, report=report)
    assert [item.path for item in report.skipped] == ["abc", "def"]
    assert report.skipped[0].reason == "listed, but not in the folder"


# With Keras


@pytest.mark.parametrize("repeat", [False, True])
def test_fit_sees_the_same_number_of_batches_every_epoch(tmp_path, repeat):
    files = write_constants(tmp_path, 10)
    broken(tmp_path, "001.wav", "006.wav")
    manifest = AudioManifest(files, [i % 2 for i in range(10)], ["even", "odd"])
    train = audio_dataset(
        manifest, batch_size=3, seconds=0.05, shuffle=True, repeat=repeat
    )
    validation = audio_dataset(manifest, batch_size=3, seconds=0.05)
    steps = []
    count = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: steps.append(0),
        on_train_batch_end=lambda batch, logs: steps.append(steps.pop() + 1),
    )
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(
        train,
        epochs=3,
        steps_per_epoch=3 if repeat else None,
        validation_data=validation,
        callbacks=[count],
        shuffle=False,
        verbose=0,
    )
    assert steps == [3, 3, 3]
    assert np.isfinite(history.history["val_loss"]).all()


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either `seconds` or `num_samples`. Received: seconds=None"),
        ({"seconds": 1, "num_samples": 5}, "either `seconds` or `num_samples`"),
        ({"seconds": 0.00001}, "at least one sample. Received: seconds=1e-05"),
        ({"num_samples": 0}, "at least one sample"),
        ({"num_samples": 5, "crop": "end"}, r"`crop` must be one of .*'end'"),
        ({"num_samples": 5, "reader": "ffmpeg"}, "`reader` must be .*'ffmpeg'"),
        ({"num_samples": 5, "batch_size": 0}, "`batch_size` must be at least 1"),
        ({"num_samples": 5, "sample_rate": 0}, "`sample_rate` must be at least 1"),
        ({"num_samples": 5, "num_parallel": 0}, "`num_parallel` must be at least 1"),
        ({"num_samples": 5, "seed": -1}, "`seed` must be at least 0"),
        ({"num_samples": 5, "initial_epoch": -1}, "`initial_epoch` must be at least 0"),
        (
            {"num_samples": 5, "shuffle": True, "batch_size": 3},
            r"`batch_size` \(3\) is larger than the number of files \(2\)",
        ),
    ],
)
def test_arguments_are_checked(tmp_path, arguments, message):
    write_constants(tmp_path, 2)
    with pytest.raises(ValueError, match=message):
        audio_dataset(tmp_path, **{"batch_size": 2, **arguments})


def test_folders_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        audio_dataset(tmp_path / "none", batch_size=1, seconds=1)
    with pytest.raises(ValueError, match="No audio file in"):
        audio_dataset(tmp_path, batch_size=1, seconds=1)
