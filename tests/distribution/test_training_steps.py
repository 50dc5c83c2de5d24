"""N devices with N-th parts of a batch come to the weights of one with all of it."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest

FOLDER = Path(__file__).parent
PHASES = ("encoder", "tokenizer", "joint")
BACKEND = keras.backend.backend()


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


several = load("several_processes")


@pytest.fixture(scope="module")
def one_device():
    """What one device comes to, computed once a phase."""
    steps, found = load("training_steps"), {}

    def of(phase):
        if phase not in found:
            found[phase] = steps.trained(steps.trainers()[phase])
        return found[phase]

    return of


def run_on(folder, *phases, model_devices=1, **settings):
    arguments = (str(folder), str(model_devices), *phases)
    several.run("training_steps.py", *arguments, **settings)
    return {
        phase: dict(np.load(folder / f"{phase}_{model_devices}.npz"))
        for phase in phases
    }


@pytest.fixture(scope="module")
def several_devices(tmp_path_factory):
    """What several devices come to: the kind that each backend starts fastest."""
    settings = {
        "torch": {"processes": 2},
        "jax": {"devices": 4},
        "tensorflow": {"devices": 2},
    }
    folder = tmp_path_factory.mktemp("several")
    return run_on(folder, *PHASES, **settings[BACKEND])


def assert_same(found, expected):
    assert len(found) == len(expected)
    # Layers are numbered by how many there were before in the process.
    for (name, value), other in zip(found.items(), expected.values(), strict=True):
        np.testing.assert_allclose(value, other, 1e-5, 1e-5, err_msg=name)


@pytest.mark.parametrize("phase", PHASES)
def test_several_devices_train_like_one(phase, one_device, several_devices):
    assert_same(several_devices[phase], one_device(phase))


def test_training_is_worth_comparing(one_device):
    """Weights move, codes restart, padding is unevenly spread."""
    logs = one_device("tokenizer")
    assert logs["log loss"][1] < logs["log loss"][0]
    steps = load("training_steps")
    is_padded = (steps.waveforms() == 0.0).mean(axis=1) > 0.3
    halves = is_padded.reshape(-1, 2, steps.BATCH // 2).sum(axis=2)
    assert (halves[:, 0] != halves[:, 1]).any()


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="torch does above, TensorFlow has one")
def test_several_processes_train_like_one(one_device, tmp_path):
    found = run_on(tmp_path, *PHASES, processes=2)
    for phase in PHASES:
        assert_same(found[phase], one_device(phase))


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="JAX alone divides networks")
def test_divided_networks_train_like_whole_ones(one_device, tmp_path):
    found = run_on(tmp_path, *PHASES, model_devices=2, devices=4)
    for phase in PHASES:
        assert_same(found[phase], one_device(phase))
