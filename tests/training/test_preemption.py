"""SIGTERM: noted once, obeyed in the end, and left to others outside."""

import os
import signal

import numpy as np
import pytest

from keras_bridle.training import checkpoint as module
from keras_bridle.training.checkpoint import Preempted, Preemption


@pytest.fixture(autouse=True)
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
def others(monkeypatch):
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
