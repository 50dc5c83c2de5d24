import itertools
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sound_files import noise, which, write, write_constants

from keras_bridle.data import pipeline
from keras_bridle.data.files import FileList, ReadReport, UnreadableFileError
from keras_bridle.data.layouts import list_files
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.readers import AudioReader

pytestmark = pytest.mark.one_backend


def read(source, num_samples=800, **options):
    files = list_files("audio", source)
    return file_dataset(files, AudioReader(num_samples=num_samples), **options)


def batches(dataset, count=None):
    return list(itertools.islice(iter(dataset), count))


def epochs(dataset, count):
    return [np.concatenate(batches(dataset)) for _ in range(count)]


def broken(folder, *names):
    for name in names:
        (folder / name).write_text("no sound in here")


def test_evaluation_gives_every_file_once_in_order(tmp_path):
    write_constants(tmp_path, 10)
    dataset = read(tmp_path, batch_size=4)
    result = batches(dataset)
    assert [batch.shape for batch in result] == [(4, 800), (4, 800), (2, 800)]
    assert all(batch.dtype == np.float32 for batch in result)
    assert which(np.concatenate(result)) == list(range(10))


def test_training_gives_full_static_batches_and_no_file_twice(tmp_path):
    write_constants(tmp_path, 11)
    dataset = read(tmp_path, batch_size=4, shuffle=True)
    assert len(dataset) == 2
    orders = [which(epoch) for epoch in epochs(dataset, 6)]
    assert all(len(set(order)) == 8 for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    # What does not fill a batch is another rest each time.
    assert set().union(*orders) == set(range(11))
    rest = read(tmp_path, batch_size=4, shuffle=True, drop_remainder=False)
    order = which(np.concatenate(batches(rest)))
    assert sorted(order) == list(range(11)) and order != list(range(11))


def test_order_and_crops_are_those_of_earlier_versions(tmp_path):
    """A run that an earlier version started is resumed with the same batches."""
    path = write(tmp_path / "a.wav", np.arange(1000) / 2**15, subtype="PCM_16")
    files = FileList("audio", [path] * 7, list(range(7)), class_names="abcdefg")
    options = {"seed": 3, "initial_epoch": 2, "first_batch": 1}
    dataset = read(files, 10, batch_size=3, shuffle=True, repeat=True, **options)
    found = [
        (labels.tolist(), np.round(waveforms[:, 0] * 2**15).astype(int).tolist())
        for waveforms, labels in batches(dataset, 2)
    ]
    assert found == [([1, 6, 3], [259, 27, 459]), ([1, 6, 5], [864, 694, 347])]


@pytest.mark.parametrize("repeat", [False, True])
def test_workers_share_each_batch_without_overlap_or_loss(tmp_path, repeat):
    """A broken file is replaced by the same one, whoever should have read it."""
    write_constants(tmp_path, 13)
    broken(tmp_path, "broken.wav")
    options = {"shuffle": True, "repeat": repeat, "seed": 3, "initial_epoch": 2}
    whole = batches(read(tmp_path, batch_size=6, **options), 4 if repeat else None)
    shards = [
        batches(read(tmp_path, batch_size=6, shard=(i, 3), **options), len(whole))
        for i in range(3)
    ]
    assert [len(shard) for shard in shards] == [len(whole)] * 3
    assert {batch.shape for shard in shards for batch in shard} == {(2, 800)}
    for batch, *pieces in zip(whole, *shards, strict=True):
        np.testing.assert_array_equal(np.concatenate(pieces), batch)


def test_labels_stay_with_their_files(tmp_path):
    paths = write_constants(tmp_path, 12)
    broken(tmp_path, "004.wav", "007.wav")
    files = FileList("audio", paths, list(range(12)), [str(i) for i in range(12)])
    for shuffle in (False, True):
        dataset = read(files, batch_size=5, shuffle=shuffle, num_parallel=4)
        for waveforms, labels in batches(dataset):
            assert labels.dtype == np.int32
            assert which(waveforms) == labels.tolist()
    alone = read(files, batch_size=5, labels=False)
    assert batches(alone)[0].shape == (4, 800)
    several = FileList("audio", paths[:3], [(0, 2), (), (1,)], ["a", "b", "c"])
    ((_, labels),) = batches(read(several, batch_size=3))
    np.testing.assert_array_equal(labels, [[1, 0, 1], [0, 0, 0], [0, 1, 0]])


def test_segments_of_one_file_are_recordings_of_their_own(tmp_path):
    values = np.repeat([0.001, 0.002, 0.003], 1600)
    file = write(tmp_path / "a.wav", values, subtype="FLOAT")
    segments = [(0.2, 0.3), (0.0, 0.1), (0.1, 0.2)]
    files = FileList("audio", [file] * 3, segments=segments)
    assert which(batches(read(files, 1600, batch_size=3))[0]) == [2, 0, 1]


class Positions:
    """A reader of where a clip lies."""

    shape, dtype = (3,), "float64"

    def __call__(self, path, position, segment, report):
        return np.array(position)


def test_crops_are_fixed_or_uniform_and_others_in_every_epoch(tmp_path):
    ramp = write(tmp_path / "ramp.wav", np.arange(1003) / 2**15, subtype="PCM_16")
    files, place = list_files("audio", [ramp]), (1.0, 0.2, 0.7)
    fixed = {"start": (0.0, 0.5, 0.5), None: (0.5, 0.5, 0.5), place: place}
    for crop, expected in fixed.items():
        dataset = file_dataset(files, Positions(), batch_size=1, crop=crop)
        for epoch in epochs(dataset, 2):
            np.testing.assert_array_equal(epoch, [expected])
    files = list_files("audio", [ramp] * 1000)
    dataset = file_dataset(files, Positions(), batch_size=1000, shuffle=True)
    first, second = epochs(dataset, 2)
    assert (first != second).all() and np.abs(np.corrcoef(first.T)).sum() < 3.6
    for column in first.T:
        # 1,000 draws: a tenth holds 100 with a deviation of 9.5.
        counts = np.histogram(column, bins=10, range=(0, 1))[0]
        assert counts.min() > 60 and counts.max() < 140
    # Both ends can be drawn.
    (clips,) = epochs(read([ramp] * 200, 1000, batch_size=200, crop="random"), 1)
    assert set(np.round(clips[:, 0] * 2**15)) == {0, 1, 2, 3}


def test_seed_and_epoch_decide_however_many_threads_read(tmp_path):
    for i in range(10):
        write(tmp_path / f"{i}.wav", noise(0.2, seed=i))
    options = {"batch_size": 4, "shuffle": True, "seed": 5}
    first = epochs(read(tmp_path, num_parallel=1, **options), 3)
    again = epochs(read(tmp_path, num_parallel=8, **options), 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    other = epochs(read(tmp_path, **{**options, "seed": 4}), 1)[0]
    assert not np.array_equal(first[0], other)
    apart = np.concatenate(first)
    endless = read(tmp_path, repeat=True, **options)
    np.testing.assert_array_equal(np.concatenate(batches(endless, 6)), apart)
    # A new iterator starts again, as `fit()` needs after its look at one batch.
    np.testing.assert_array_equal(np.concatenate(batches(endless, 2)), apart[:8])
    assert endless.num_batches is None
    later = read(tmp_path, repeat=True, initial_epoch=2, **options)
    np.testing.assert_array_equal(np.concatenate(batches(later, 2)), apart[16:])
    resumed = read(tmp_path, initial_epoch=1, **options)
    np.testing.assert_array_equal(np.concatenate(epochs(resumed, 2)), apart[8:])


@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_a_run_resumed_within_an_epoch_reads_nothing_before(tmp_path, shard):
    write_constants(tmp_path, 13)
    broken(tmp_path, "004.wav")

    def found(count, **options):
        report = ReadReport()
        options |= {"seed": 2, "shard": shard, "report": report, "num_parallel": 1}
        dataset = read(tmp_path, batch_size=4, shuffle=True, repeat=True, **options)
        return batches(dataset, count), report

    whole, _ = found(7, initial_epoch=5)
    rest, _ = found(3, initial_epoch=5, first_batch=2)
    np.testing.assert_array_equal(rest, whole[2:5])
    far, report = found(2, initial_epoch=5, first_batch=3 * 1000)
    assert report.read < 100
    expected, _ = found(2, initial_epoch=1005)
    np.testing.assert_array_equal(far, expected)


def test_evaluation_leaves_unreadable_files_out(tmp_path):
    files = write_constants(tmp_path, 8)
    broken(tmp_path, "000.wav", "003.wav")
    (tmp_path / "007.wav").unlink()
    files.append(str(tmp_path / "dangling.wav"))
    Path(files[-1]).symlink_to("nowhere")
    report = ReadReport()
    for epoch in epochs(read(files, batch_size=4, report=report), 2):
        assert which(epoch) == [1, 2, 4, 5, 6]
    assert report.read == 10
    bad = [files[0], files[3], files[7], files[8]]
    assert [item.path for item in report.skipped] == bad
    assert "LibsndfileError" in report.skipped[0].reason
    assert report.skipped[2].reason == "FileNotFoundError: no such file"


@pytest.mark.parametrize("kind", [PermissionError, RuntimeError, MemoryError])
def test_what_readers_raise_and_report_is_listed(tmp_path, kind):
    class Reader:
        shape, dtype = (1,), "uint8"

        def __call__(self, path, position, segment, report):
            if path == files[1]:
                raise kind("no")
            report.add_incomplete(path, "short")
            return np.zeros(1)

    files = write_constants(tmp_path, 2)
    dataset = file_dataset(list_files("audio", files), Reader(), batch_size=2)
    assert [batch.shape for batch in batches(dataset)] == [(1, 1)]
    assert dataset.report.skipped == [(files[1], f"{kind.__name__}: no")]
    assert dataset.report.incomplete == [(files[0], "short")]


def test_training_replaces_unreadable_files(tmp_path, monkeypatch):
    tried, original = [], AudioReader.__call__

    def counted(self, path, *args):
        tried.append(path)
        return original(self, path, *args)

    monkeypatch.setattr(AudioReader, "__call__", counted)
    files, bad = write_constants(tmp_path, 12), [1, 2, 3, 8]
    broken(tmp_path, *(f"{i:03}.wav" for i in bad))
    report = ReadReport()
    dataset = read(files, batch_size=4, shuffle=True, report=report, num_parallel=1)
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
    # Tried once.
    assert all(tried.count(files[i]) == 1 for i in bad)


def test_files_that_vanish(tmp_path):
    files = write_constants(tmp_path, 8)
    report = ReadReport()
    dataset = read(files, batch_size=4, shuffle=True, report=report)
    batches(dataset)
    (tmp_path / "005.wav").unlink()
    result = np.concatenate(batches(dataset))
    assert len(result) == 8 and 5 not in which(result)
    assert [item.path for item in report.skipped] == [files[5]]
    endless = read(files, batch_size=2, repeat=True, report=report)
    for path in tmp_path.iterdir():
        path.unlink()
    # Not an endless loop.
    with pytest.raises(UnreadableFileError), report.reraise():
        batches(endless, 100)


def test_many_unreadable_files(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_MAX_FAILURES", 10)
    files = write_constants(tmp_path, 8)
    missing = [str(tmp_path / f"none{i}.wav") for i in range(24)]
    mixed = [name for i in range(8) for name in (files[i], *missing[3 * i : 3 * i + 3])]
    assert which(epochs(read(mixed, batch_size=4, num_parallel=1), 1)[0]) == [*range(8)]
    # A lost disk is an error.
    report = ReadReport()
    dataset = read(files + missing, batch_size=4, report=report)
    with pytest.raises(UnreadableFileError), report.reraise():
        batches(dataset)
    with pytest.raises(UnreadableFileError) as caught:
        read(missing[:2], batch_size=1, shuffle=True)
    assert caught.value.path == missing[0]


ENDLESS = """
import itertools, signal, sys, threading, time
import keras
import numpy as np
from keras_bridle.data.files import FileList
from keras_bridle.data.pipeline import file_dataset

class Reader:
    shape, dtype, calls = (2,), "float32", itertools.count(1)

    def __call__(self, *_):
        time.sleep(0.1)
        call = next(self.calls)
        if call == 12:
            print(threading.active_count() > 2, flush=True)
        # JAX may lose an interrupt in a callback: training goes on to the next.
        if call % 200 == 12:
            signal.raise_signal(signal.SIGINT)
        return np.ones(2)

files = FileList("image", [sys.argv[1]] * 64)
dataset = file_dataset(files, Reader(), batch_size=4, repeat=True, num_parallel=4)
model = keras.Sequential([keras.layers.Dense(1)])
model.compile("sgd", lambda y, prediction: prediction)
data = ((x, x) for x in dataset)
model.fit(data, steps_per_epoch=10**6, verbose=0)
"""


def test_an_interrupt_ends_training_and_its_threads(tmp_path):
    (path := tmp_path / "file").write_text("")
    command = [sys.executable, "-c", ENDLESS, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.stdout.split() == ["True"]
    assert ended.stderr.rstrip().endswith("KeyboardInterrupt"), ended.stderr
    assert ended.returncode in (1, 130, -signal.SIGINT)


def test_strict_names_the_file(tmp_path):
    files = write_constants(tmp_path, 4)
    broken(tmp_path, "002.wav")
    report = ReadReport()
    dataset = read(files, batch_size=2, strict=True, report=report)
    for _ in range(2):
        with pytest.raises(UnreadableFileError) as caught, report.reraise():
            batches(dataset)
        assert (caught.value.kind, caught.value.path) == ("audio", files[2])
        assert "LibsndfileError" in caught.value.reason
    listed = FileList("audio", files[:2], missing=["abc", "def"])
    read(listed, batch_size=1, strict=True, report=report)
    assert [item.path for item in report.skipped] == ["abc", "def"]
    with pytest.raises(UnreadableFileError):
        read(files[2:], batch_size=2, strict=True)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("crop", {"crop": "end"}),
        ("batch_size", {"batch_size": 7, "shuffle": True}),
        ("seed", {"seed": -1}),
        ("first_batch", {"first_batch": 1}),
        ("shard", {"shard": (0, 4), "shuffle": True}),
        ("drop_remainder", {"shard": (0, 3)}),
    ],
)
def test_arguments_are_checked(tmp_path, argument, options):
    write_constants(tmp_path, 6)
    with pytest.raises(ValueError) as caught:
        read(tmp_path, **{"batch_size": 6, **options})
    assert caught.value.argument == argument


def test_names_of_version_0_1(tmp_path):
    pytest.importorskip("tensorflow")
    files = write_constants(tmp_path, 3)
    with pytest.warns(DeprecationWarning, match="file_dataset"):
        from keras_bridle.data import audio_dataset
    options = {"sample_rate": 16000, "reader": "soundfile", "batch_size": 3}
    dataset = audio_dataset(files[::-1], seconds=0.05, **options)
    (batch,) = dataset.as_numpy_iterator()
    assert batch.shape == (3, 800) and which(batch) == [2, 1, 0]
