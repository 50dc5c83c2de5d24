"""What version 0.1 wrote, and the names it had, are good for this version.

Its last code (commit a59c404) wrote the fixtures: PyTorch the presets and the files of
models, and each backend a run that was stopped in its last phase, how that run ends
when it is not, and the first losses of each phase.
"""

import importlib
import json
import shutil
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from programs import BACKEND

import keras_bridle as kb

FIXTURES = Path(__file__).parent / "fixtures"
# Rounding, which differs from one processor to the next, decides the code of a vector
# between two of them. Of 32 codes in a step one or two may differ, and what follows.
OTHER_CODES = 0.15

FIT = {
    "rounds": 1,
    "cold_start_epochs": 2,
    "tokenizer_epochs": 2,
    "encoder_epochs": 3,
    "batch_size": 8,
    "encoder_learning_rate": 1e-3,
    "tokenizer_learning_rate": 1e-3,
    "adapt_batches": 2,
    "verbose": 0,
}


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype("float32")


IMAGES = pixels(40, 16, 16, 1)
INPUTS = {
    "audio": np.random.default_rng(1).uniform(-1, 1, (2, 4000)).astype("float32"),
    "image": IMAGES[:2],
    "video": pixels(2, 4, 16, 16, 3, seed=2),
}


def pretraining():
    """The run of the fixtures."""
    keras.utils.set_random_seed(0)
    backbone = kb.BridleBackbone(
        patch_size=8,
        hidden_dim=8,
        num_layers=1,
        num_heads=2,
        mlp_dim=16,
        input_dims=(16, 16, 1),
        front_end=kb.PixelNormalization(mean=[120.0], std=[60.0]),
        trained_grid="input",
    )
    return kb.InterleavedPretraining(
        backbone,
        num_levels=2,
        codebook_size=8,
        code_dim=4,
        mask=kb.RandomMask(0.5, seed=1),
        augmentation=kb.RandomHorizontalFlip(seed=2),
        decoder_options={"hidden_dim": 8, "num_layers": 1, "num_heads": 2},
        seed=3,
    )


class BatchLosses(keras.callbacks.Callback):
    """Notes the mean loss of an epoch after each of its steps."""

    def __init__(self):
        super().__init__()
        self.phases = []

    def on_train_begin(self, logs=None):
        self.phases.append([])

    def on_train_batch_end(self, batch, logs=None):
        self.phases[-1].append(float(keras.ops.convert_to_numpy(logs["loss"])))


def losses(**settings):
    """The first losses of each phase."""
    notes = BatchLosses()
    pretraining().fit(IMAGES, **{**FIT, **settings}, callbacks=[notes])
    return [phase[:20] for phase in notes.phases]


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
    if name == "classifier":
        # Keras looks for the optimizer where the saving backend had it.
        pytest.importorskip("torch")
    model = keras.saving.load_model(FIXTURES / f"{name}.keras")
    weights = outputs[f"{name}_weights"]
    np.testing.assert_array_equal(flat_weights(model), weights)
    model.set_weights([np.zeros_like(value) for value in model.get_weights()])
    model.load_weights(FIXTURES / f"{name}.weights.h5")
    np.testing.assert_array_equal(flat_weights(model), weights)
    if name in outputs:
        found = keras.ops.convert_to_numpy(model(IMAGES[:2]))
        np.testing.assert_allclose(found, outputs[name], atol=1e-5)
    if f"{name}_codes" in outputs:
        maps = np.random.default_rng(3).normal(size=(2, 16, 16, 1)).astype("float32")
        codes = keras.ops.convert_to_numpy(model(maps).codes)
        np.testing.assert_array_equal(codes, outputs[f"{name}_codes"])


@pytest.mark.parametrize("modality", INPUTS)
def test_presets_load(modality, outputs):
    name, inputs = f"{modality}_preset", INPUTS[modality]
    folder = str(FIXTURES / name)
    classifier_class = getattr(kb, f"Bridle{modality.title()}Classifier")
    classifier = classifier_class.from_preset(folder)
    found = classifier.predict(inputs, verbose=0)
    np.testing.assert_allclose(found, outputs[name], atol=1e-5)
    features = kb.BridleBackbone.from_preset(folder).pooled_features(inputs)
    features = keras.ops.convert_to_numpy(features)
    np.testing.assert_allclose(features, outputs[f"{name}_features"], atol=1e-5)


def test_a_stopped_run_resumes(tmp_path):
    shutil.unpack_archive(FIXTURES / f"stopped_{BACKEND}.zip", tmp_path / "run")
    resumed = pretraining()
    resumed.fit(
        IMAGES, **FIT, directory=tmp_path / "run", resume=True, tensorboard=False
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
    for index, value in enumerate(resumed.backbone.get_weights()):
        np.testing.assert_allclose(value, expected[f"{index:03d}"], atol=5e-3)
    loaded = kb.load_run(tmp_path / "run")
    for value, other in zip(
        loaded.backbone.get_weights(), resumed.backbone.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(value, other)


def test_the_first_losses_are_those_of_before():
    expected = json.loads((FIXTURES / f"losses_{BACKEND}.json").read_text())
    cold_start, tokenizer, encoder = losses(
        cold_start_epochs=4, tokenizer_epochs=4, encoder_epochs=4
    )
    _, joint = losses(cold_start_epochs=1, encoder_epochs=4, joint=True)
    names = ("cold_start", "tokenizer", "encoder", "joint")
    for name, found in zip(names, (cold_start, tokenizer, encoder, joint), strict=True):
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
