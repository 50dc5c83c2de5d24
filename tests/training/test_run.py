"""The directory of a run: never overwritten, one process at a time, phases kept."""

import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_bridle
from keras_bridle.training import checkpoint as module
from keras_bridle.training.checkpoint import Preempted, Preemption
from keras_bridle.training.run import RunDirectory, run_lock

SETTINGS = {
    "rounds": 2,
    "plan": [("0_cold_start", 3)],
    "mask": {"ratio": 0.8, "registered_name": "mask", "module": "before"},
}


def test_settings_and_done_phases_are_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    # To resume what is not there starts it.
    run = RunDirectory(tmp_path / "a" / "b", SETTINGS, resume=True)
    written = json.loads((run.path / "settings.json").read_text())
    assert written["settings"] == {**SETTINGS, "plan": [["0_cold_start", 3]]}
    assert written["about"]["keras_bridle"] == keras_bridle.__version__
    assert written["about"]["backend"] == keras.config.backend()
    assert not run.is_done("0_cold_start")
    run.mark_done("0_cold_start")
    with pytest.raises(FileExistsError):
        RunDirectory(run.path, SETTINGS)
    again = RunDirectory(str(run.path), SETTINGS, resume=True)
    assert again.is_done("0_cold_start") and not again.is_done("1_tokenizer")
    RunDirectory(tmp_path, SETTINGS)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_other_settings_are_named(tmp_path):
    RunDirectory(tmp_path, SETTINGS)
    # What one version alone knows is no difference, nor is where a class is.
    known = {
        "mask": {"ratio": 0.8, "new": 1, "module": "moved", "registered_name": "mask"},
        "seed": 1,
    }
    RunDirectory(tmp_path, known, resume=True)
    other = {"rounds": 3, "plan": SETTINGS["plan"], "mask": {"ratio": 0.7}}
    with pytest.raises(ValueError) as caught:
        RunDirectory(tmp_path, other, resume=True)
    message = str(caught.value)
    assert "rounds: 2 then, 3 now" in message
    assert "mask: {'ratio': 0.8" in message
    assert "plan" not in message


@pytest.mark.parametrize("name", ["settings.json", "state.json"])
def test_damaged_files_are_named(tmp_path, name):
    RunDirectory(tmp_path, SETTINGS).mark_done("0_cold_start")
    (tmp_path / name).write_text('{"settings": ')
    with pytest.raises(ValueError, match=name):
        RunDirectory(tmp_path, SETTINGS, resume=True)


def test_a_killed_process_leaves_no_lock(tmp_path):
    program = (
        "import filelock, sys, time\n"
        "lock = filelock.FileLock(sys.argv[1])\n"
        "lock.acquire()\n"
        "print('locked', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run.lock")],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError), run_lock(tmp_path):
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    with run_lock(tmp_path), pytest.raises(BlockingIOError), run_lock(tmp_path):
        pass
    with run_lock(tmp_path):
        pass


# SIGTERM is noted once, obeyed in the end, and left to others outside.


@pytest.fixture
def heard():
    """Handles the signal as a program around might, and gives it back after."""
    found = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, before)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_program_ends_where_it_is_safe(heard):
    with pytest.raises(SystemExit) as ended, Preemption() as preemption:
        preemption.stop_if_requested()
        terminate()
        assert preemption.is_requested
        preemption.stop_if_requested()
    assert isinstance(ended.value, Preempted)
    assert ended.value.code == 143
    assert not heard


def test_a_second_signal_is_not_held_back(heard):
    with pytest.raises(Preempted), Preemption() as preemption:
        terminate()
        terminate()
        assert len(heard) == 1
        preemption.stop_if_requested()


def test_a_signal_that_came_too_late_is_passed_on(heard):
    with Preemption():
        terminate()
        assert not heard
    assert len(heard) == 1
    terminate()
    assert len(heard) == 2


@pytest.fixture
def others(monkeypatch, heard):
    """What the other one of two processes says; this one is the chief."""
    said = {"requests": 0, "asked": 0}

    def gather(numbers):
        said["asked"] += 1
        return np.array([numbers, [said["requests"], 0]])

    monkeypatch.setattr(module, "is_alone", lambda: False)
    monkeypatch.setattr(module, "gather", gather)
    return said


def test_a_signal_to_another_process_stops_this_one(others, heard):
    with pytest.raises(Preempted), Preemption() as preemption:
        assert not preemption.is_due()
        preemption.stop_if_requested()
        others["requests"] = 1
        while not preemption.is_due():
            assert others["asked"] < 100
        others["requests"] = 0
        preemption.stop_if_requested()
    assert not preemption.is_requested


def test_processes_ask_each_other_about_once_a_second(others, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Preemption() as preemption:
        for seconds, steps, expected in ((0.01, 1000, 16), (5.0, 50, 49)):
            for _ in range(steps):
                now[0] += seconds
                preemption.is_due()
            assert others["asked"] == pytest.approx(expected, abs=2)
            # Another phase may have longer steps.
            preemption.stop_if_requested()
            others["asked"] = 0
            preemption.is_due()
            assert others["asked"] == 1
            others["asked"] = 0


def test_signals_passed_on_twice_do_not_end_one_process_of_several(others, heard):
    with pytest.raises(Preempted), Preemption() as preemption:
        terminate()
        terminate()
        assert preemption.is_due()
        preemption.stop_if_requested()
    # Sent by what saw another process end first.
    terminate()
    assert not heard
