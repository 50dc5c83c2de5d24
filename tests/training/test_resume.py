"""A run that is ended in every way comes to the same end as an unbroken one."""

import csv
import errno
import json
import os
import signal

import keras
import numpy as np
import pytest
from tiny_pretraining import AtBatch, Stop, all_weights, assert_same_bits, maps, stop
from tiny_pretraining import pretraining as new_pretraining

from keras_bridle.training.batches import from_batch_on
from keras_bridle.training.checkpoint import SaveError
from keras_bridle.training.run import RunDirectory, run_lock

INPUTS = maps(14)
PHASE = "0_cold_start"
SETTINGS = {
    "rounds": 0,
    "cold_start_epochs": 3,
    "batch_size": 4,
    "encoder_learning_rate": 1e-2,
    "ema_momentum": 0.5,
    "gradient_accumulation_steps": 2,
    "tensorboard": False,
    "verbose": 0,
}


def train(directory, inputs=INPUTS, policy="float32", **kwargs):
    """A run from its start, or resumed."""
    pretraining = new_pretraining(policy, noise=0.1)
    pretraining.fit(inputs, directory=directory, resume=True, **{**SETTINGS, **kwargs})
    return pretraining


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    found = train(tmp_path_factory.mktemp("runs") / "unbroken")
    # Whatever is drawn or counted has made a difference.
    assert len(set(found.history[PHASE]["loss"])) == 3
    return found


def position(directory, phase=PHASE):
    """What the newest checkpoint says."""
    with np.load(directory / "phases" / phase / "checkpoint.npz") as file:
        header = json.loads(str(file["header"]))
    return header["epoch"], header["step"]


@pytest.mark.full_matrix
def test_ended_in_every_way(unbroken, tmp_path, monkeypatch):
    directory = tmp_path / "run"

    def at_batch(count, action, **kwargs):
        train(directory, callbacks=[AtBatch(count, action)], **kwargs)

    # Killed in the second step; the first one was saved.
    with pytest.raises(Stop):
        at_batch(2, stop, checkpoint_every_steps=1)
    assert position(directory) == (0, 1)

    # Asked to end in the second step of the epoch that it goes on with.
    with pytest.raises(SystemExit) as ended:
        at_batch(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert ended.value.code == 143
    assert position(directory) == (0, 2)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    # The disk is full when the next epoch has begun.
    save = np.savez

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill():
        monkeypatch.setattr(np, "savez", full)

    with pytest.raises(SaveError):
        at_batch(3, fill, checkpoint_every_steps=1)
    monkeypatch.setattr(np, "savez", save)
    assert position(directory) == (1, 1)

    # The newest checkpoint is damaged while nothing runs. From the one before, the
    # phase comes to its end, and is killed when it does not yet count as done.
    path = directory / "phases" / PHASE / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:-100])

    def fail(run, name):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "mark_done", fail)
        with pytest.warns(UserWarning, match="damaged"), pytest.raises(Stop):
            train(directory, checkpoint_every_steps=2)
    assert position(directory) == (3, 0)
    assert_same_end(train(directory), unbroken)
    folder = directory / "phases" / PHASE
    with (folder / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    names = {"history.csv", "history.json"}
    names |= {f"{part}.weights.h5" for part in ("backbone", "decoder", "tokenizer")}
    assert {file.name for file in folder.iterdir()} == names
    log = (directory / "log.txt").read_text()
    assert "is resumed after 0 epochs and 1 steps" in log
    for reason in ("Stop", "Preempted", "SaveError"):
        assert f"Stopped by {reason}" in log
    assert log.splitlines()[-1].endswith("All phases are done")


class LossScales(keras.callbacks.Callback):
    """Notes the scale of the loss after each batch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_begin(self, logs=None):
        # Else TensorFlow would trace each step twice.
        assert self.model.optimizer.built

    def on_train_batch_end(self, batch, logs=None):
        scale = self.model.optimizer.dynamic_scale
        self.found.append(float(keras.ops.convert_to_numpy(scale)))


def stopped_and_unbroken(tmp_path, batches, **kwargs):
    """Trains with a stop after so many batches and without one."""
    expected = train(tmp_path / "unbroken", **kwargs)
    directory, actions = tmp_path / "stopped", [AtBatch(batches, stop)]
    with pytest.raises(Stop):
        train(directory, **{**kwargs, "callbacks": actions}, checkpoint_every_steps=1)
    return expected, train(directory, **kwargs)


def assert_same_end(found, expected):
    assert found.history == expected.history
    assert_same_bits(all_weights(found), all_weights(expected))


@pytest.mark.full_matrix
def test_joint_phase(tmp_path):
    settings = {"rounds": 1, "joint": True, "tokenizer_every": 2}
    settings |= {"cold_start_epochs": 1, "encoder_epochs": 2}
    settings["gradient_accumulation_steps"] = None
    # The fifth of its six batches, the last but one of which is saved.
    expected, found = stopped_and_unbroken(tmp_path, 3 + 5, **settings)
    assert list(found.history) == [PHASE, "1_joint"]
    assert_same_end(found, expected)
    log = (tmp_path / "stopped" / "log.txt").read_text()
    assert "1_joint is resumed after 1 epochs and 1 steps" in log


def test_half_precision(tmp_path, monkeypatch):
    scaling = keras.optimizers.LossScaleOptimizer
    make = scaling.__init__

    def soon(self, *args, **kwargs):
        make(self, *args, **{**kwargs, "dynamic_growth_steps": 2})

    monkeypatch.setattr(scaling, "__init__", soon)
    scales = LossScales()
    settings = {"policy": "mixed_float16", "callbacks": [scales]}
    expected, found = stopped_and_unbroken(tmp_path, 5, **settings)
    unbroken, rest = scales.found[:9], scales.found[9:]
    assert len(set(unbroken)) > 1
    # The scale goes on from where it was, not from its start.
    assert rest == unbroken[4:]
    assert_same_end(found, expected)


@pytest.mark.full_matrix
def test_skipped_steps(tmp_path):
    inputs = np.copy(INPUTS)
    inputs[3] = np.nan
    settings = {"inputs": inputs, "adapt_batches": 0, "max_nonfinite_steps": 1}
    expected, found = stopped_and_unbroken(tmp_path, 5, **settings)
    assert sum(found.history[PHASE]["skipped_steps"]) >= 1
    assert_same_end(found, expected)


class Shuffled(keras.utils.PyDataset):
    """The batches of an array in an order of their own for each epoch."""

    def __init__(self, epoch=0):
        super().__init__()
        self.epoch = epoch

    def __len__(self):
        return 3

    def __getitem__(self, index):
        index = (index + self.epoch) % 3
        return INPUTS[4 * index : 4 * index + 4]

    def on_epoch_end(self):
        self.epoch += 1


@pytest.mark.full_matrix
def test_functions_of_epoch_and_batch(tmp_path):
    """Batches that were trained on before are left out; also by a `LaterBatches`."""
    asked = []

    def inputs(epoch, first_batch=0):
        asked.append((epoch, first_batch))
        # Keras resets a data set before it begins, which ends an epoch of its own.
        return from_batch_on(Shuffled(epoch - 1), first_batch)

    assert_same_end(*stopped_and_unbroken(tmp_path, 6, inputs=inputs))
    assert (1, 2) in asked


def test_another_process_is_at_work(tmp_path):
    with run_lock(tmp_path), pytest.raises(BlockingIOError):
        train(tmp_path)
    assert not (tmp_path / "settings.json").exists()
