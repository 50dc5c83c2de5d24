"""Public encoders give the tokens of the libraries that they come from."""

import json
import shutil

import keras
import numpy as np
import pytest
from public_encoders import ENCODERS, FOLDER, STORED, pixels, written

from keras_bridle.conversion.checkpoints import encoder_config
from keras_bridle.layers.masks import RandomMask
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import BridleImageClassifier
from keras_bridle.training.interleaved import InterleavedPretraining


def read(path, *names):
    with np.load(path / "tokens.npz") as arrays:
        return [arrays[name] for name in names]


def check(backbone, inputs, expected):
    found = keras.ops.convert_to_numpy(backbone(inputs))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def check_folder(folder):
    backbone = BridleBackbone.from_preset(str(folder))
    inputs, tokens = read(folder, "inputs_0", "tokens_0")
    check(backbone, inputs, tokens)
    if "video" not in folder.name:
        # At another size, positions are interpolated.
        inputs, tokens = read(folder, "inputs_1", "tokens_1")
        wider = BridleBackbone.from_preset(str(folder), input_dims=inputs.shape[1:])
        check(wider, inputs, tokens)


@pytest.mark.parametrize("name", STORED)
def test_stored(name):
    check_folder(FOLDER / name)


@pytest.mark.one_backend
@pytest.mark.parametrize("name", [*STORED, "../beats.pt"])
def test_arguments_are_read_without_weights(name):
    backbone = BridleBackbone.from_preset(FOLDER / name)
    other = type(backbone).from_config(encoder_config(FOLDER / name))
    config, expected = other.get_config(), backbone.get_config()
    for one in (config, expected):
        del one["name"], one["front_end"]["build_config"]
    assert config == expected


@pytest.mark.parametrize("name", ENCODERS)
def test_reference(name, tmp_path):
    for library in ("timm",) if "v2" in name else ("torch", "transformers"):
        pytest.importorskip(library)
    check_folder(written(name, tmp_path / name))


@pytest.mark.one_backend
def test_original_code(tmp_path, capsys):
    """A file of pretraining: timm's names, what follows from the grid, and heads."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    state = load_file(FOLDER / "beit_v2" / "model.safetensors")
    state = {k: v for k, v in state.items() if not k.startswith("head")}
    index = torch.zeros((17, 17), dtype=torch.int64)
    state |= {f"blocks.{x}.attn.relative_position_index": index for x in range(2)}
    state |= {"mask_token": torch.ones((1, 1, 12)), "lm_head.bias": torch.ones(9)}
    early = {k: v for k, v in state.items() if k.startswith("blocks.0.")}
    state |= {k.replace("blocks", "cls_pt_layers"): v for k, v in early.items()}
    path = tmp_path / "beitv2_base.pth"
    torch.save({"model": state, "epoch": 3}, path)
    backbone = BridleBackbone.from_preset(str(path))
    assert "cls_pt_layers, fc_norm, lm_head, mask_token" in capsys.readouterr().out
    check(backbone, *read(FOLDER / "beit_v2", "inputs_0", "tokens_0"))


# One of them where compiling takes most of a minute.
TRAINED = [
    ("beit_pretraining", "mixed_bfloat16"),
    ("beit_v2", "float32"),
    ("beit", "mixed_float16"),
]


@pytest.mark.parametrize(
    ("name", "policy"),
    TRAINED if keras.backend.backend() == "torch" else TRAINED[:1],
)
def test_training_starts_from_them(name, policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    backbone = BridleBackbone.from_preset(str(FOLDER / name))
    images, before = pixels(8, 16, 16, 3), weights_of(backbone)
    pretraining = InterleavedPretraining(
        backbone, RandomMask(0.5, seed=0), num_levels=1, codebook_size=4, code_dim=4
    )
    epochs = dict.fromkeys(("cold_start_epochs", "tokenizer_epochs"), 1)
    pretraining.fit(
        images, rounds=1, **epochs, encoder_epochs=1, batch_size=4, verbose=0
    )
    after = weights_of(pretraining.backbone)
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert not still
    assert all(np.isfinite(array).all() for array in after.values())
    pretraining.backbone.save_to_preset(str(tmp_path))
    classifier = BridleImageClassifier(
        BridleBackbone.from_preset(str(tmp_path)), num_classes=2
    )
    classifier.fit(images, np.arange(8) % 2, epochs=1, batch_size=4, verbose=0)
    assert np.isfinite(classifier.predict(images, verbose=0)).all()


def weights_of(model):
    return {x.path: keras.ops.convert_to_numpy(x) for x in model.trainable_variables}


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FOLDER / "beit", tmp_path / "beit")


@pytest.mark.one_backend
def test_bad_files(folder):
    from safetensors.numpy import load_file, save_file

    state = load_file(folder / "model.safetensors")

    def fails(match, without=(), **more):
        changed = {k: v for k, v in state.items() if not k.endswith(without)}
        save_file({**changed, **more}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=match):
            BridleBackbone.from_preset(str(folder))

    table = "layer.1.attention.attention.relative_position_bias"
    table = f"encoder.{table}.relative_position_bias_table"
    fails("rel_pos_bias.1", without=(table,))
    fails("blocks.1.gamma_2", without=("layer.1.lambda_2",))
    fails("gamma_1", without=("lambda_2", "0.lambda_1"))
    fails("norm.weight", without=("layernorm.weight",))
    fails("pos_embed", **{"embeddings.position_embeddings": np.zeros((1, 17, 12), "f")})
    fails("rel_pos_bias.1", **{table: state[table][:-1]})
    fails("rel_pos_bias.2", **{table.replace("layer.1", "layer.2"): state[table]})
    config = json.loads((folder / "config.json").read_text())
    config["image_size"] = 24
    (folder / "config.json").write_text(json.dumps(config))
    # The tables tell the grid where a configuration is wrong.
    save_file(state, folder / "model.safetensors")
    assert BridleBackbone.from_preset(str(folder)).input_dims == (16, 16, 3)
