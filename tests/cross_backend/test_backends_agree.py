"""Models travel between backends, and all backends compute and learn the same.

Each other backend runs once, in a process of its own.
"""

import importlib.util
import json

import keras
import numpy as np
import programs
import pytest

from keras_bridle.models.backbone import BridleBackbone

SCRIPT = "tests/cross_backend/small_models.py"
OTHERS = [
    name
    for name in ("jax", "tensorflow", "torch")
    if name != programs.BACKEND and importlib.util.find_spec(name)
]
TOLERANCE, WEIGHT_TOLERANCE = 1e-5, 1e-4

small_models = programs.load(SCRIPT)
each_model = pytest.mark.parametrize("name", small_models.MODELS)
each_modality = pytest.mark.parametrize("modality", small_models.CLASSIFIERS)


@pytest.fixture(scope="module", params=OTHERS)
def elsewhere(request, tmp_path_factory):
    """The folder with what another backend has saved, named as that backend."""
    folder = tmp_path_factory.mktemp("elsewhere") / request.param
    folder.mkdir()
    programs.run(SCRIPT, folder, backend=request.param)
    return folder


@pytest.fixture(scope="module")
def trained_here():
    """The training runs of this backend."""
    return {name: small_models.trained(name) for name in small_models.MODELS}


@each_model
def test_model_and_weights_from_another_backend(elsewhere, name):
    model = keras.saving.load_model(elsewhere / f"{name}.keras")
    expected = np.load(elsewhere / f"{name}_outputs.npz")
    found = small_models.outputs(model)
    assert set(found) == set(expected.files)
    for key, value in found.items():
        limit = 0.0 if value.dtype.kind == "i" else TOLERANCE
        np.testing.assert_allclose(value, expected[key], limit, limit, err_msg=key)
    # Equal weights make equal outputs, so one call is enough.
    empty = small_models.MODELS[name]()
    empty.load_weights(elsewhere / f"{name}.weights.h5")
    for other in (empty, small_models.made(name)):
        for ours, right in zip(other.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, right)


@each_model
def test_same_training(elsewhere, trained_here, name):
    found = trained_here[name]
    expected = np.load(elsewhere / f"{name}_trained.npz")
    assert [*found] == expected.files
    for key, value in found.items():
        limit = TOLERANCE if key == "losses" else WEIGHT_TOLERANCE
        if value.dtype.kind == "i":
            limit = 0.0
        np.testing.assert_allclose(value, expected[key], limit, limit, err_msg=key)
    # Training moved weights by more than the tolerance.
    weights = [value for key, value in found.items() if key != "losses"]
    start = small_models.made(name).get_weights()
    moved = [np.abs(x - y).max() for x, y in zip(weights, start, strict=True)]
    assert max(moved) > 10 * WEIGHT_TOLERANCE


@each_modality
def test_classifier_from_another_backend(elsewhere, modality):
    kind, preprocessor = small_models.CLASSIFIERS[modality][:2]
    folder = str(elsewhere / f"{modality}_classifier")
    model = kind.from_preset(folder)
    assert model.class_names == ["low", "middle", "high"]
    expected = np.load(elsewhere / f"{modality}_outputs.npz")
    found = small_models.logits(model, modality)
    np.testing.assert_allclose(found, expected["logits"], TOLERANCE, TOLERANCE)
    converter = preprocessor.converter_cls.from_preset(folder)
    inputs = expected["converted"]
    found = small_models.converted(converter, modality)
    assert found.dtype == inputs.dtype and np.ptp(inputs) > 0.1
    limit = TOLERANCE * np.abs(inputs).max()
    np.testing.assert_allclose(found, inputs, TOLERANCE, limit)
    # The same inputs to the last bit, so that only the encoder is compared.
    found = small_models.tokens(BridleBackbone.from_preset(folder), inputs)
    assert expected["tokens"].std() > 0.1
    np.testing.assert_allclose(found, expected["tokens"], TOLERANCE, TOLERANCE)


def test_a_run_stopped_on_another_backend_resumes(elsewhere):
    resumed = small_models.pretrain(elsewhere / "stopped")
    log = (elsewhere / "stopped" / "log.txt").read_text()
    assert f"Started on {elsewhere.name}, resumed on {programs.BACKEND}" in log
    assert "0_cold_start is resumed after 1 epochs and 2 steps" in log
    folder = elsewhere / "unbroken" / "phases" / "0_cold_start"
    expected = json.loads((folder / "history.json").read_text())
    found = resumed.history["0_cold_start"]
    assert expected.keys() == found.keys()
    assert found["loss"][0] == expected["loss"][0]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, 1e-3, 1e-5, err_msg=name)
    for name in ("backbone", "decoder", "tokenizer"):
        part = getattr(resumed, name)
        ended_here = part.get_weights()
        part.load_weights(folder / f"{name}.weights.h5")
        for ours, theirs in zip(ended_here, part.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, 1e-3, 1e-4)
