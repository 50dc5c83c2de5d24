"""Progress on consoles that are terminals and on those that are none."""

import io
import re
import types

import keras
import numpy as np
import pytest
from rich.console import Console

from keras_bridle.training.progress import RichProgress

LOGS = {"loss": 1.5, "accuracy_1": 0.25, "accuracy_2": 0.5, "usage_1": 1.0}
LINE = "loss 1.500  accuracy 25/50 %  used 100 %"


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=200)


def run(progress, epochs=10, steps=4, initial_epoch=0):
    """What `fit()` calls."""
    progress.set_params({"epochs": epochs, "steps": steps, "verbose": 0})
    progress.set_model(keras.Model())
    progress.on_train_begin()
    for epoch in range(initial_epoch, epochs):
        progress.on_epoch_begin(epoch)
        for step in range(steps or 4):
            progress.on_train_batch_end(step, LOGS)
        progress.on_epoch_end(epoch, LOGS)
    progress.on_train_end(LOGS)


def test_lines_where_there_is_no_terminal():
    progress = RichProgress("2_encoder", batch_size=8, console=console(False), lines=5)
    run(progress)
    lines = progress.console.file.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == [
        "2/10",
        "4/10",
        "6/10",
        "8/10",
        "10/10",
    ]
    for line in lines:
        assert line.startswith("2_encoder")
        assert line.endswith(LINE)
        assert "examples/s" in line


def test_the_last_epoch_has_a_line():
    progress = RichProgress("phase", console=console(False), lines=2)
    run(progress, epochs=5)
    lines = progress.console.file.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["3/5", "5/5"]
    assert "steps/s" in lines[0]


@pytest.mark.parametrize("steps", [4, None])
def test_bar_on_a_terminal(steps):
    progress = RichProgress("2_encoder", console=console(True))
    run(progress, steps=steps)
    written = progress.console.file.getvalue()
    assert "2_encoder" in written
    assert "epoch 10/10" in written
    assert LINE in written
    assert "100 %" in written or steps is None


def test_resumed_bar_starts_where_it_was():
    progress = RichProgress("phase", console=console(True))
    progress.set_params({"epochs": 10, "steps": 4, "verbose": 0})
    progress.on_train_begin()
    progress.on_epoch_begin(7)
    task = progress._progress.tasks[0]
    assert (task.completed, task.total) == (28, 40)
    progress.on_train_batch_end(0, LOGS)
    assert task.completed == 29
    progress.close()


def test_the_terminal_is_free_after_an_error():
    """A second bar could not start while the first is alive."""
    progress = RichProgress("phase", console=console(True))
    progress.set_params({"epochs": 2, "steps": 4, "verbose": 0})
    progress.on_train_begin()
    progress.close()
    progress.close()
    run(RichProgress("phase", console=progress.console), epochs=1)
    assert "epoch 1/1" in progress.console.file.getvalue()


def test_share_of_the_time_spent_waiting(monkeypatch):
    clock = types.SimpleNamespace(seconds=0.0, batches=0, examples=0)
    progress = RichProgress(
        "phase", console=console(False), clock=clock, reading_speed=250.4
    )
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress.set_params({"epochs": 1, "steps": 4, "verbose": 0})
    progress.on_train_begin()
    progress.on_epoch_begin(0)
    for step in range(4):
        # A second of waiting and three of work for each batch of 6.
        now[0] += 4.0
        clock.seconds, clock.batches, clock.examples = (
            step + 1.0,
            step + 1,
            6 * step + 6,
        )
        progress.on_train_batch_end(step, {"loss": np.float32(1.5)})
    progress.on_epoch_end(0, LOGS)
    written = progress.console.file.getvalue()
    line = "1.5 examples/s, 4.0 s/step, 25% waiting for input (alone 250/s), "
    assert line in " ".join(written.split("\n"))


def test_numbers_of_slow_models(monkeypatch):
    progress = RichProgress("phase", console=console(False))
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress.set_params({"epochs": 10, "steps": 3, "verbose": 0})
    progress.on_train_begin()
    for epoch in range(2):
        progress.on_epoch_begin(epoch)
        for step in range(3):
            # The first step compiles, and tells nothing about the others.
            now[0] += 200.0 if now[0] == 0.0 else 8.0
            progress.on_train_batch_end(step, LOGS)
        progress.on_epoch_end(epoch, LOGS)
    written = progress.console.file.getvalue()
    assert re.search(
        r"epoch 2/10  0\.1 steps/s, 8\.0 s/step, \d+\.\d GB( on the device)?, "
        r"3\.2 min left  loss",
        written,
    )


def test_the_rest_of_an_epoch():
    """A phase that goes on within an epoch begins with a `fit()` of its rest."""
    progress = RichProgress("phase", console=console(True))
    progress.throughput.in_rest_of_epoch(first_step=3, steps=4, epochs=10)
    progress.set_params({"epochs": 8, "steps": 1, "verbose": 0})
    progress.on_train_begin()
    progress.on_epoch_begin(7)
    task = progress._progress.tasks[0]
    assert (task.completed, task.total) == (31, 40)
    progress.on_train_batch_end(0, LOGS)
    assert task.completed == 32
    progress.on_train_end()
    progress.set_params({"epochs": 10, "steps": 4, "verbose": 0})
    progress.on_train_begin()
    progress.on_epoch_begin(8)
    task = progress._progress.tasks[0]
    assert (task.completed, task.total) == (32, 40)
    progress.close()
