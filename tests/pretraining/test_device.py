"""Memory of the process; traces are tested with the recipes."""

import subprocess
import sys

import keras
import pytest

PROGRAM = """
import resource
import numpy as np
from keras_bridle.training.progress import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(8_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
assert keep_freed_memory()
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(
    keras.backend.backend() != "jax" or not sys.platform.startswith("linux"),
    reason="only JAX on Linux wants it",
)
def test_freed_memory_is_there_for_the_next_step():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    given_back, kept = map(int, done.stdout.split()[-2:])
    # 64 MB of pages of 4 KB, ten times; of larger pages, fewer.
    assert kept < given_back / 10
