"""What version 0.1 wrote, and the names it had, are good for this version."""

import importlib
import json
import shutil
import warnings
from pathlib import Path

import keras
import numpy as np
import programs
import pytest
from programs import BACKEND

import keras_bridle as kb

FIXTURES = Path(__file__).parent / "fixtures"
# Rounding, which differs from one processor to the next, decides the code of a vector
# between two of them. Of 32 codes in a step one or two may differ, and what follows.
OTHER_CODES = 0.15

make_fixtures = programs.load("tests/fixtures/make_fixtures.py")


@pytest.fixture(scope="module")
def outputs():
    with np.load(FIXTURES / "outputs.npz") as file:
        return dict(file)


def flat_weights(model):
    return np.concatenate([np.ravel(value) for value in model.get_weights()])


@pytest.mark.parametrize(
    "name",
    ["backbone", "tokenizer", "projection", "decoder", "estimator", "classifier"],
)
def test_networks_load(name, outputs):
    model = keras.saving.load_model(FIXTURES / f"{name}.keras")
    weights = outputs[f"{name}_weights"]
    np.testing.assert_array_equal(flat_weights(model), weights)
    model.set_weights([np.zeros_like(value) for value in model.get_weights()])
    model.load_weights(FIXTURES / f"{name}.weights.h5")
    np.testing.assert_array_equal(flat_weights(model), weights)
    if name in outputs:
        found = keras.ops.convert_to_numpy(model(make_fixtures.images(2)))
        np.testing.assert_allclose(found, outputs[name], atol=1e-5)
    if f"{name}_codes" in outputs:
        maps = np.random.default_rng(3).normal(size=(2, 16, 16, 1)).astype("float32")
        codes = keras.ops.convert_to_numpy(model(maps).codes)
        np.testing.assert_array_equal(codes, outputs[f"{name}_codes"])


@pytest.mark.parametrize(
    ("name", "classifier_class", "make_inputs"),
    [
        ("audio_preset", kb.BridleAudioClassifier, make_fixtures.waveforms),
        ("image_preset", kb.BridleImageClassifier, make_fixtures.images),
        ("video_preset", kb.BridleVideoClassifier, make_fixtures.clips),
    ],
)
def test_presets_load(name, classifier_class, make_inputs, outputs):
    inputs, folder = make_inputs(2), str(FIXTURES / name)
    classifier = classifier_class.from_preset(folder)
    found = classifier.predict(inputs, verbose=0)
    np.testing.assert_allclose(found, outputs[name], atol=1e-5)
    features = kb.BridleBackbone.from_preset(folder).pooled_features(inputs)
    features = keras.ops.convert_to_numpy(features)
    np.testing.assert_allclose(features, outputs[f"{name}_features"], atol=1e-5)


def test_a_stopped_run_resumes(tmp_path):
    shutil.unpack_archive(FIXTURES / f"stopped_{BACKEND}.zip", tmp_path / "run")
    resumed = make_fixtures.pretraining()
    resumed.fit(
        make_fixtures.images(),
        **make_fixtures.FIT,
        directory=tmp_path / "run",
        resume=True,
        tensorboard=False,
    )
    with np.load(FIXTURES / f"unbroken_{BACKEND}.npz") as file:
        expected = dict(file)
    history = json.loads(str(expected.pop("history")))
    assert resumed.history.keys() == history.keys()
    for phase, logs in history.items():
        assert resumed.history[phase].keys() == logs.keys()
        np.testing.assert_allclose(
            resumed.history[phase]["loss"], logs["loss"], rtol=OTHER_CODES
        )
    for name, value in make_fixtures.weights(resumed.backbone).items():
        np.testing.assert_allclose(value, expected[name], atol=5e-3)
    loaded = kb.load_run(tmp_path / "run")
    for value, other in zip(
        loaded.backbone.get_weights(), resumed.backbone.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(value, other)


def test_the_first_losses_are_those_of_before():
    expected = json.loads((FIXTURES / f"losses_{BACKEND}.json").read_text())
    cold_start, tokenizer, encoder = make_fixtures.losses(
        cold_start_epochs=4, tokenizer_epochs=4, encoder_epochs=4
    )
    _, joint = make_fixtures.losses(cold_start_epochs=1, encoder_epochs=4, joint=True)
    for name, found in (
        ("cold_start", cold_start),
        ("tokenizer", tokenizer),
        ("encoder", encoder),
        ("joint", joint),
    ):
        assert len(found) == 20
        np.testing.assert_allclose(
            found, expected[name], rtol=OTHER_CODES, err_msg=name
        )


PUBLIC_NAMES = json.loads((FIXTURES / "public_names.json").read_text())
# Left out on purpose: CHANGELOG.md tells of each.
REMOVED = {
    "data": {"LabeledFiles", "labeled_files", "read_image", "read_video_clip"},
    "distribution": {"all_examples", "array_shard", "distributed_input", "total"},
    "evaluation": {
        "PatchFeatures",
        "PublishedCodeUsage",
        "extract_features",
        "extract_file_features",
        "extract_patches",
        "log_mel_features",
        "plot_masked_codes",
        "plot_picture_codes",
        "published_code_usage",
    },
}


@pytest.mark.one_backend
@pytest.mark.parametrize("address", PUBLIC_NAMES)
def test_public_names_import(address):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = importlib.import_module(address)
        missing = {x for x in PUBLIC_NAMES[address] if not hasattr(module, x)}
    removed = REMOVED.get(address.rpartition(".")[2], set())
    assert missing <= removed, sorted(missing - removed)


@pytest.mark.one_backend
def test_a_moved_name_warns():
    from keras_bridle import pretraining

    with pytest.warns(DeprecationWarning, match="keras_bridle.training"):
        assert pretraining.EncoderPretrainer is kb.EncoderPretrainer
