"""N devices with N-th parts of a batch come to the weights of one with all of it."""

import functools

import numpy as np
import programs
import pytest
from programs import BACKEND

SCRIPT = "tests/distribution/training_steps.py"
PHASES = ("encoder", "tokenizer", "joint")
steps = programs.load(SCRIPT)
one_device = functools.cache(steps.trained)


def run_on(folder, model_devices=1, **settings):
    programs.run(SCRIPT, folder, model_devices, *PHASES, **settings)
    return {phase: dict(np.load(folder / f"{phase}.npz")) for phase in PHASES}


@pytest.fixture(scope="module")
def several_devices(tmp_path_factory):
    """What several devices come to: the kind that each backend starts fastest."""
    settings = {
        "torch": {"processes": 2},
        "jax": {"devices": 4},
        "tensorflow": {"devices": 2},
    }
    return run_on(tmp_path_factory.mktemp("several"), **settings[BACKEND])


def assert_same(found, expected):
    assert len(found) == len(expected)
    # Layers are numbered by how many there were before in the process.
    for (name, value), other in zip(found.items(), expected.values(), strict=True):
        np.testing.assert_allclose(value, other, 1e-5, 1e-5, err_msg=name)


@pytest.mark.parametrize("phase", PHASES)
def test_several_devices_train_like_one(phase, several_devices):
    assert_same(several_devices[phase], one_device(phase))


def test_training_is_worth_comparing():
    """Weights move and padding is unevenly spread."""
    logs = one_device("tokenizer")
    assert logs["log loss"][1] < logs["log loss"][0]
    is_padded = (steps.inputs() < -50).any(axis=(1, 2, 3))
    halves = is_padded.reshape(-1, 2, steps.BATCH // 2).sum(axis=2)
    assert (halves[:, 0] != halves[:, 1]).any()


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="torch does above, TensorFlow has one")
@pytest.mark.parametrize(
    "settings",
    [{"processes": 2}, {"model_devices": 2, "devices": 4}],
    ids=["processes", "divided_networks"],
)
def test_jax_trains_like_one_device(settings, tmp_path):
    found = run_on(tmp_path, **settings)
    for phase in PHASES:
        assert_same(found[phase], one_device(phase))
