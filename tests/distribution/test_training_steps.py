"""N devices with N-th parts of a batch come to the weights of one with all of it."""

import functools

import numpy as np
import programs
import pytest
from programs import BACKEND

SCRIPT = "tests/distribution/training_steps.py"
steps = programs.load(SCRIPT)
one_device = functools.cache(steps.trained)


# The kind of several devices that each backend starts fastest.
DEVICES = {
    "torch": {"processes": 2},
    "jax": {"devices": 4},
    "tensorflow": {"devices": 2},
}


def assert_same(found, expected):
    assert len(found) == len(expected)
    # Layers are numbered by how many there were before in the process.
    for (name, value), other in zip(found.items(), expected.values(), strict=True):
        np.testing.assert_allclose(value, other, 1e-5, 1e-5, err_msg=name)


def check(folder, phases, model_devices=1, **devices):
    """Several devices end as one does."""
    programs.run(SCRIPT, folder, model_devices, *phases, **devices)
    for phase in phases:
        assert_same(dict(np.load(folder / f"{phase}.npz")), one_device(phase))


# TensorFlow traces joint steps for each device, which takes most of a minute.
PHASE = "tokenizer" if BACKEND == "tensorflow" else "joint"


def test_steps(tmp_path):
    check(tmp_path, [PHASE], **DEVICES[BACKEND])
    # Weights moved, and padding was unevenly spread.
    logs = one_device(PHASE)
    assert logs["log loss"][1] < logs["log loss"][0]
    assert logs["log skipped_steps"].tolist() == [1, 1]
    is_padded = (steps.inputs() < -50).any(axis=(1, 2, 3))
    halves = is_padded.reshape(-1, 2, steps.BATCH // 2).sum(axis=2)
    assert (halves[:, 0] != halves[:, 1]).any()


@pytest.mark.slow
def test_steps_of_other_phases(tmp_path):
    others = {"encoder", "tokenizer", "joint"} - {PHASE}
    check(tmp_path, sorted(others), **DEVICES[BACKEND])


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="torch does above, TensorFlow has one")
@pytest.mark.parametrize(
    "settings",
    [{"processes": 2}, {"model_devices": 2, "devices": 4}],
    ids=["processes", "divided_networks"],
)
def test_jax_trains_like_one_device(settings, tmp_path):
    check(tmp_path, ["encoder", "tokenizer", "joint"], **settings)
