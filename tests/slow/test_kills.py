"""A few random kills; `kill_test.py` does as many as are asked for."""

import argparse

import programs
import pytest

kill_test = programs.load("tests/slow/kill_test.py")


@pytest.mark.slow
def test_random_kills(tmp_path):
    args = argparse.Namespace(kills=4, backend=programs.BACKEND, epochs=3, seed=1)
    kills, different = kill_test.kill_and_compare(args, tmp_path)
    assert kills == 4
    assert not different
