"""Learning rates against the published ones."""

import contextlib

import keras
import numpy as np
import pytest
from golden_files import golden_files, load
from harness import to_numpy

from keras_bridle.pretraining import warmup_cosine

TOLERANCE = 1e-12
# The published code's multiplier of its one group that has one.
GROUP_MULTIPLIER = 0.3


def cases():
    return [
        pytest.param(path, name.removesuffix(".args"), id=f"{path.stem}-{name}")
        for path in golden_files("lr_sched*.npz")
        for name in load(path)[1]
        if name.endswith(".args")
    ]


@pytest.fixture
def float64():
    """Makes Keras compute in float64, which JAX has to be asked for."""
    enabled = contextlib.nullcontext()
    if keras.backend.backend() == "jax":
        import jax

        enabled = jax.enable_x64(True)
    keras.config.set_floatx("float64")
    with enabled:
        yield
    keras.config.set_floatx("float32")


@pytest.mark.parametrize(("path", "case"), cases())
def test_schedule(path, case, float64):
    arrays = load(path)[1]
    rate, lowest, warmup, epochs = arrays[f"{case}.args"].tolist()
    schedule = warmup_cosine(rate, epochs, warmup, lowest)
    found = np.array([to_numpy(schedule(e)) for e in arrays[f"{case}.epoch"].tolist()])
    np.testing.assert_allclose(found, arrays[f"{case}.lr"], TOLERANCE, 0)
    groups = np.stack([found * GROUP_MULTIPLIER, found], axis=1)
    np.testing.assert_allclose(groups, arrays[f"{case}.group_lr"], TOLERANCE, 0)
