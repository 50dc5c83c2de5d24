"""The progress line, speed in numbers and in TensorBoard, traces and memory."""

import io
import os
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from keras_bridle.training.progress import ProfileSteps, RichProgress, SpeedBoard

LOGS = {"loss": 1.5, "accuracy_1": 0.25, "accuracy_2": 0.5, "usage_1": 1.0}
LOGS |= {"token_deviation": 0.5, "rank": 12.3, "knn": 0.75}
LINE = "loss 1.500  accuracy 25/50 %  used 100 %  tokens 0.50  rank 12  k-NN 75%"


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=200)


def run(progress):
    """What `fit()` calls."""
    progress.on_train_begin()
    for epoch in range(progress.epochs):
        progress.on_epoch_begin(epoch)
        for step in range(progress.steps):
            progress.on_train_batch_end(step, LOGS)
        progress.on_epoch_end(epoch, LOGS)
    progress.on_train_end(LOGS)


def test_lines_where_there_is_no_terminal():
    progress = RichProgress("2_encoder", 10, 4, console=console(False))
    progress.watched(types.SimpleNamespace(batch_size=8))
    run(progress)
    lines = progress.console.file.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == [f"{x}/10" for x in (2, 4, 6, 8, 10)]
    for line in lines:
        assert line.startswith("2_encoder") and line.endswith(LINE)
        assert "examples/s" in line


def test_the_terminal_is_free_after_an_error():
    """A second bar could not start while the first is alive."""
    progress = RichProgress("phase", 2, 4, console=console(True))
    progress.on_train_begin()
    progress.on_epoch_begin(0)
    progress.close()
    progress.close()
    run(RichProgress("phase", 1, 4, console=progress.console))
    assert "epoch 1/1" in progress.console.file.getvalue()


@pytest.fixture
def now(monkeypatch):
    """The time that the clock tells, in a list."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


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


def test_numbers(now):
    clock = types.SimpleNamespace(seconds=100.0, batches=3, examples=18)
    speed = RichProgress("phase", 4, 5, 250.4, console(False))
    speed.watched(types.SimpleNamespace(clock=clock))
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
    speed.on_epoch_end(3, LOGS)
    line = " ".join(speed.console.file.getvalue().split("\n"))
    expected = "2.0 examples/s, 3.0 s/step, 50% waiting for input (alone 250/s), "
    assert expected in line


def test_tensorboard_has_the_numbers_and_history_has_not(tmp_path):
    speed = RichProgress("phase", 2, 3, console=Console(quiet=True))
    speed.watched(types.SimpleNamespace(batch_size=4))
    history = fit([speed, SpeedBoard(tmp_path, speed)])
    assert set(history) == {"loss"}
    (path,) = (tmp_path / "train").glob("events*")
    found = {}
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(value.tensor.float_val[0])
    for name in ("step_seconds", "examples_per_second", "memory_gb", "seconds_left"):
        assert len(found[f"epoch_speed/{name}"]) == 2
    assert found["epoch_speed/seconds_left"][1] == 0.0
    np.testing.assert_allclose(found["epoch_loss"], history["loss"], rtol=1e-5)


@pytest.mark.parametrize("steps", [2, 100])
def test_trace(tmp_path, steps):
    """Also where training ends before the trace would."""
    trace = ProfileSteps(tmp_path / "profile")
    trace.first_step, trace.steps = 2, steps
    fit([trace])
    files = [path for path in (tmp_path / "profile").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) > 1000


PROGRAM = """
import resource
import jax
import numpy as np
from keras_bridle.training.progress import tune_jax

tune_jax()

@jax.jit
def step(x):
    for _ in range(3):  # 64 MB between two products
        x = x @ np.eye(4, dtype="float32")
    return x.sum()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

x = np.ones((1 << 22, 4), "float32")
faults()
print(faults())
"""


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX has a cache")
@pytest.mark.parametrize("own", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_memory_and_what_is_compiled_are_kept(tmp_path, own):
    folder = tmp_path / ("mine" if own else "keras_bridle")
    env = {name: os.environ[name] for name in os.environ if "CACHE" not in name}
    env["XDG_CACHE_HOME"] = str(tmp_path)
    if own:
        env["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert own != (tmp_path / "keras_bridle").exists()
    assert any(path.is_file() for path in folder.rglob("*"))
    if sys.platform == "linux":
        # If memory is returned, there are ten steps of 64 MB or more in pages of 4 KB.
        assert int(done.stdout.split()[-1]) < 10 * 16384 / 10
