"""A few random kills; `kill_test.py` does as many as are asked for."""

import argparse
import importlib.util
from pathlib import Path

import keras
import pytest

specification = importlib.util.spec_from_file_location(
    "kill_test", Path(__file__).with_name("kill_test.py")
)
kill_test = importlib.util.module_from_spec(specification)
specification.loader.exec_module(kill_test)


@pytest.mark.slow
def test_random_kills(tmp_path):
    args = argparse.Namespace(kills=4, backend=keras.config.backend(), epochs=3, seed=1)
    kills, different = kill_test.kill_and_compare(args, tmp_path)
    assert kills == 4
    assert not different
