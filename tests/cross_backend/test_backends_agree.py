"""Models travel between backends, and all backends compute and learn the same.

Each other backend runs once, in a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_bridle.models.backbone import BridleBackbone

SCRIPT = Path(__file__).with_name("small_models.py")
BACKENDS = {"jax": "jax", "tensorflow": "tensorflow", "torch": "torch"}
OTHERS = [
    name
    for name, module in BACKENDS.items()
    if name != keras.backend.backend() and importlib.util.find_spec(module)
]
OUTPUT, LOSS, WEIGHT = 1e-5, 1e-5, 1e-4

specification = importlib.util.spec_from_file_location("small_models", SCRIPT)
small_models = importlib.util.module_from_spec(specification)
specification.loader.exec_module(small_models)

each_model = pytest.mark.parametrize("name", small_models.MODELS)


@pytest.fixture(scope="module", params=OTHERS)
def elsewhere(request, tmp_path_factory):
    """The folder with what another backend has saved."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = os.environ | {
        "KERAS_BACKEND": request.param,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def trained_here():
    """The training runs of this backend, each done once."""
    runs = {}

    def run(name):
        if name not in runs:
            runs[name] = small_models.trained(name)
        return runs[name]

    return run


@each_model
def test_model_and_weights_from_another_backend(elsewhere, name):
    model = keras.saving.load_model(elsewhere / f"{name}.keras")
    expected = np.load(elsewhere / f"{name}_outputs.npz")
    found = small_models.outputs(model)
    assert set(found) == set(expected.files)
    for key, value in found.items():
        limit = 0.0 if value.dtype.kind == "i" else OUTPUT
        np.testing.assert_allclose(value, expected[key], limit, limit, err_msg=key)
    # Equal weights make equal outputs, so one call is enough.
    empty = small_models.MODELS[name]()
    empty.load_weights(elsewhere / f"{name}.weights.h5")
    for other in (empty, small_models.made(name)):
        for ours, right in zip(other.weights, model.weights, strict=True):
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(right)
            )


@each_model
def test_same_training(elsewhere, trained_here, name):
    found = trained_here(name)
    expected = np.load(elsewhere / f"{name}_trained.npz")
    np.testing.assert_allclose(found["losses"], expected["losses"], LOSS, LOSS)
    assert [*found] == expected.files
    moved = 0.0
    start = small_models.made(name).weights
    for (key, value), first in zip([*found.items()][1:], start, strict=True):
        if value.dtype.kind == "i":
            np.testing.assert_array_equal(value, expected[key], err_msg=key)
            continue
        np.testing.assert_allclose(value, expected[key], WEIGHT, WEIGHT, err_msg=key)
        moved = max(moved, np.abs(value - keras.ops.convert_to_numpy(first)).max())
    assert moved > 10 * WEIGHT


@pytest.mark.parametrize("modality", small_models.CLASSIFIERS)
def test_preset_of_a_classifier_from_another_backend(elsewhere, modality):
    folder = str(elsewhere / f"{modality}_classifier")
    model = small_models.CLASSIFIERS[modality][0].from_preset(folder)
    assert model.class_names == ["low", "middle", "high"]
    expected = np.load(elsewhere / f"{modality}_logits.npy")
    found = small_models.logits(model, modality)
    np.testing.assert_allclose(found, expected, OUTPUT, OUTPUT)


@pytest.mark.parametrize("modality", small_models.CLASSIFIERS)
def test_converter_and_encoder_from_another_backend(elsewhere, modality):
    folder = str(elsewhere / f"{modality}_classifier")
    preprocessor = small_models.CLASSIFIERS[modality][1]
    converter = preprocessor.converter_cls.from_preset(folder)
    inputs = np.load(elsewhere / f"{modality}_converted.npy")
    found = small_models.converted(converter, modality)
    assert found.dtype == inputs.dtype and np.ptp(inputs) > 0.1
    np.testing.assert_allclose(found, inputs, OUTPUT, OUTPUT * np.abs(inputs).max())
    # The same inputs to the last bit, so that only the encoder is compared.
    found = small_models.tokens(BridleBackbone.from_preset(folder), inputs)
    expected = np.load(elsewhere / f"{modality}_tokens.npy")
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, OUTPUT, OUTPUT)
