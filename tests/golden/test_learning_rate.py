"""Learning rates against the published ones."""

import contextlib

import keras
import numpy as np
import pytest
from golden_files import golden_files, load
from harness import to_numpy
from keras import ops

from keras_bridle.training.optimizers import warmup_cosine

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
def float64(monkeypatch):
    """Lets Keras compute in float64, which it takes for float32 on JAX and torch."""
    from keras.src.backend.common import dtypes

    monkeypatch.setattr(dtypes, "BIT64_TO_BIT32_DTYPE", {})
    enabled = contextlib.nullcontext()
    if keras.backend.backend() == "jax":
        import jax

        enabled = jax.enable_x64(True)
    with enabled:
        yield


@pytest.mark.parametrize(("path", "case"), cases())
def test_schedule(path, case, float64):
    arrays = load(path)[1]
    rate, lowest, warmup, epochs = arrays[f"{case}.args"].tolist()
    # The schedule computes in the type of the rate.
    rate = ops.convert_to_tensor(rate, dtype="float64")
    schedule = warmup_cosine(rate, epochs, warmup, lowest)
    epochs_at = ops.convert_to_tensor(arrays[f"{case}.epoch"])
    found = np.array([to_numpy(schedule(e)) for e in epochs_at])
    np.testing.assert_allclose(found, arrays[f"{case}.lr"], TOLERANCE, 0)
    groups = np.stack([found * GROUP_MULTIPLIER, found], axis=1)
    np.testing.assert_allclose(groups, arrays[f"{case}.group_lr"], TOLERANCE, 0)
