"""Speed in numbers, in TensorBoard, and as a trace."""

import types

import keras
import numpy as np
import pytest

from keras_bridle.data.readers import import_tensorflow
from keras_bridle.training.progress import (
    ProfileSteps,
    SpeedBoard,
    Throughput,
    device_memory,
)


def fit(callbacks, epochs=2):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    return model.fit(
        np.ones((12, 4)),
        np.ones((12, 1)),
        batch_size=4,
        epochs=epochs,
        callbacks=callbacks,
        verbose=0,
    ).history


def test_numbers(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = types.SimpleNamespace(seconds=100.0, batches=3, examples=18)
    speed = Throughput(clock=clock)
    speed.set_params({"epochs": 4, "steps": 5})
    speed.on_train_begin()
    assert set(speed.numbers()) == {"memory_gb"}
    speed.on_epoch_begin(1)
    for step, seconds in enumerate([60.0, 2.0, 4.0]):
        now[0] += seconds
        clock.seconds += seconds / 2
        speed.on_train_batch_end(step, {"loss": np.float32(1)})
    found = speed.numbers()
    memory = found.pop("memory_gb")
    assert 0.05 < memory < 200
    assert found == {
        "step_seconds": 3.0,
        "examples_per_second": 2.0,
        "waiting_for_input": 0.5,
        # Two steps of this epoch, and two epochs.
        "seconds_left": 36.0,
    }


def test_memory():
    before, where = device_memory()
    assert where == "process"
    # So large that it is no memory that was freed before.
    kept = np.ones(2**24)
    after, _ = device_memory()
    assert after - before > 0.8 * kept.nbytes


def test_tensorboard_has_the_numbers_and_history_has_not(tmp_path):
    tf = import_tensorflow()
    speed = Throughput(batch_size=4)
    history = fit([speed, SpeedBoard(tmp_path, speed)])
    assert set(history) == {"loss"}
    (path,) = (tmp_path / "train").glob("events*")
    found = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    for name in ("step_seconds", "examples_per_second", "memory_gb", "seconds_left"):
        assert len(found[f"epoch_speed/{name}"]) == 2
    assert found["epoch_speed/seconds_left"][1] == 0.0
    seconds, rates = (
        np.array(found[f"epoch_speed/{name}"])
        for name in ("step_seconds", "examples_per_second")
    )
    np.testing.assert_allclose(seconds * rates, 4.0, rtol=1e-5)
    np.testing.assert_allclose(found["epoch_loss"], history["loss"], rtol=1e-5)


@pytest.mark.parametrize("steps", [2, 100])
def test_trace(tmp_path, steps):
    """Also where training ends before the trace would."""
    fit([ProfileSteps(tmp_path / "profile", first_step=2, steps=steps)])
    files = [path for path in (tmp_path / "profile").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) > 1000
