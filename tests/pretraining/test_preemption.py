"""SIGTERM: noted once, obeyed in the end, and left to others outside."""

import os
import signal
import threading

import pytest

from keras_bridle.pretraining.preemption import Preempted, Preemption


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


def test_other_threads_leave_signals_alone(heard):
    def run():
        with Preemption():
            pass

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    terminate()
    assert len(heard) == 1
