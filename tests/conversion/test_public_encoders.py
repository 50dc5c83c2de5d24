"""Public encoders give the tokens of the libraries that they come from.

`python test_public_encoders.py FOLDER` saves presets of the stored ones.
"""

import json
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import programs
import pytest
from harness import run, to_numpy
from programs import load
from public_encoders import ENCODERS, FOLDER, STORED, pixels, written

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file

from keras_bridle.conversion.checkpoints import encoder_config
from keras_bridle.conversion.published_weights import published_weights
from keras_bridle.evaluation.features import load_file_features
from keras_bridle.layers.masks import RandomMask
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.training.interleaved import InterleavedPretraining


def read(path, *names):
    with np.load(path / "tokens.npz") as arrays:
        return [arrays[name] for name in names]


def check(backbone, inputs, expected):
    found = run(lambda: backbone(inputs), backbone)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def check_folder(folder):
    backbone = BridleBackbone.from_preset(str(folder))
    inputs, tokens = read(folder, "inputs_0", "tokens_0")
    check(backbone, inputs, tokens)
    if folder != FOLDER / "video_mae":
        # At another size, learned positions are interpolated.
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
    is_timms = "v2" in name or "timm" in name
    for library in ("timm",) if is_timms else ("torch", "transformers"):
        pytest.importorskip(library)
    check_folder(written(name, tmp_path / name))


@pytest.mark.every_backend
@pytest.mark.parametrize("count", [1, 2])
def test_files_of_pytorch(count, tmp_path, capsys):
    """One, or several with an index."""
    torch = pytest.importorskip("torch")
    shutil.copy(FOLDER / "mae" / "config.json", tmp_path)
    state = load_file(FOLDER / "mae" / "model.safetensors")
    names = ["pytorch_model.bin"] if count == 1 else ["first.bin", "other.bin"]
    places = {name: names[index % count] for index, name in enumerate(state)}
    for file in names:
        tensors = {x: torch.tensor(state[x]) for x in state if places[x] == file}
        torch.save(tensors, tmp_path / file)
    if count == 2:
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": places}))
    backbone = BridleBackbone.from_preset(str(tmp_path))
    assert "decoder" in capsys.readouterr().out
    inputs, tokens = read(FOLDER / "mae", "inputs_0", "tokens_0")
    check(backbone, inputs, tokens)
    # What was loaded is saved as any encoder.
    backbone.save_to_preset(str(tmp_path / "ours"))
    check(BridleBackbone.from_preset(str(tmp_path / "ours")), inputs, tokens)


@pytest.mark.every_backend
@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="the others read what this one saves"
)
def test_presets_saved_on_pytorch(tmp_path):
    """They need no file of the encoder's own."""
    programs.run("tests/conversion/test_public_encoders.py", tmp_path, backend="torch")
    for name in STORED:
        inputs, tokens = read(FOLDER / name, "inputs_0", "tokens_0")
        check(BridleBackbone.from_preset(str(tmp_path / name)), inputs, tokens)
    beats = BridleBackbone.from_preset(str(tmp_path / "beats"))
    expected = BridleBackbone.from_preset(FOLDER.parent / "beats.pt")
    waveforms = np.random.default_rng(0).normal(0, 0.1, (2, 9000)).astype("float32")
    check(beats, waveforms, to_numpy(expected(waveforms)))


def save_presets(folder):
    for name in (*STORED, "../beats.pt"):
        target = Path(folder, Path(name).stem)
        target.mkdir()
        BridleBackbone.from_preset(FOLDER / name).save_to_preset(str(target))


def timm_state():
    """Those of the stored MAE as timm and the original code name them."""
    state = {
        name: weight.to_published(to_numpy(weight.variable))
        for name, weight in published_weights(
            BridleBackbone.from_preset(FOLDER / "mae")
        ).items()
    }
    state["pos_embed"] = np.pad(state["pos_embed"], ((0, 0), (1, 0), (0, 0)))
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


@pytest.mark.parametrize("layout", ["timm", "original"])
def test_mae_of_timm_and_the_original_code(layout, tmp_path):
    state, path = timm_state(), tmp_path
    if layout == "timm":
        save_file(state, tmp_path / "model.safetensors")
        about = {"architecture": "vit_base_patch16_224"}
        about["pretrained_cfg"] = {"mean": [0.485, 0.456, 0.406]}
        (tmp_path / "config.json").write_text(json.dumps(about))
    else:
        path = tmp_path / "mae_visualize_vit_base.pth"
        save_torch(state | {"decoder_pred.weight": np.zeros(3)}, path)
    options = {"num_heads": 3, "layer_norm_epsilon": 1e-12}
    backbone = BridleBackbone.from_preset(str(path), **options)
    check(backbone, *read(FOLDER / "mae", "inputs_0", "tokens_0"))
    with pytest.raises(ValueError, match="num_heads"):
        BridleBackbone.from_preset(str(path))


def save_torch(state, path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(array) for name, array in state.items()}
    torch.save({"model": tensors, "epoch": 3}, path)


@pytest.mark.one_backend
def test_video_mae_of_the_original_code(tmp_path, capsys):
    """Biases of queries and values alone, and a decoder beside the encoder."""
    weights = published_weights(BridleBackbone.from_preset(FOLDER / "video_mae"))
    state = {"mask_token": np.ones((1, 1, 8)), "decoder.norm.bias": np.ones(8)}
    for name, weight in weights.items():
        array = np.ascontiguousarray(weight.to_published(to_numpy(weight.variable)))
        if name.endswith("qkv.bias"):
            stem = f"encoder.{name.removesuffix('qkv.bias')}"
            query, key, value = np.split(array, 3)
            assert query.any() and value.any() and not key.any()
            state |= {f"{stem}q_bias": query, f"{stem}v_bias": value}
        else:
            state[f"encoder.{name}"] = array
    path = tmp_path / "videomae_base.pth"
    save_torch(state, path)
    capsys.readouterr()
    options = {"num_heads": 3, "layer_norm_epsilon": 1e-12}
    options["input_dims"] = (4, 16, 16, 3)
    backbone = BridleBackbone.from_preset(str(path), **options)
    assert ": decoder, mask_token" in capsys.readouterr().out
    check(backbone, *read(FOLDER / "video_mae", "inputs_0", "tokens_0"))


def tokens_of_pytorch(state, maps):
    """What PyTorch's own layers make of spectrograms `(batch, 16, 32, 1)`."""
    import torch
    from torch import nn

    state = {name: torch.tensor(array) for name, array in state.items()}
    options = {"activation": "gelu", "layer_norm_eps": 1e-6, "batch_first": True}
    with torch.no_grad():
        patches = nn.functional.conv2d(
            torch.tensor(maps).movedim(-1, 1),
            state["patch_embed.proj.weight"],
            state["patch_embed.proj.bias"],
            stride=4,
        )
        token = state["cls_token"].expand(len(maps), -1, -1)
        tokens = torch.cat([token, patches.flatten(2).mT], dim=1) + state["pos_embed"]
        for number in range(2):
            block = nn.TransformerEncoderLayer(12, 3, 20, norm_first=True, **options)
            names = [name.partition(".") for name in block.state_dict()]
            block.load_state_dict(
                {
                    f"{layer}{dot}{rest}": state[
                        f"blocks.{number}.{TIMM.get(layer, layer)}."
                        f"{TIMM.get(rest, rest)}"
                    ]
                    for layer, dot, rest in names
                }
            )
            tokens = block.eval()(tokens)
        norm = state["norm.weight"], state["norm.bias"]
        return nn.functional.layer_norm(tokens, (12,), *norm, 1e-6).numpy()


# What timm calls the weights of PyTorch's layers.
TIMM = {
    "self_attn": "attn",
    "linear1": "mlp.fc1",
    "linear2": "mlp.fc2",
    "in_proj_weight": "qkv.weight",
    "in_proj_bias": "qkv.bias",
    "out_proj.weight": "proj.weight",
    "out_proj.bias": "proj.bias",
}


def test_audio_mae(tmp_path):
    """One channel, 4 x 8 patches: a table of its own shape, on log-mel."""
    pytest.importorskip("torch")
    state = timm_state()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :1]
    table = np.random.default_rng(0).normal(size=(1, 1 + 32, 12)).astype("float32")
    state["pos_embed"] = table
    save_torch(state, tmp_path / "audiomae.pth")
    backbone = BridleBackbone.from_preset(str(tmp_path / "audiomae.pth"), num_heads=3)
    front_end = backbone.front_end
    assert (front_end.mean, front_end.std) == (-4.2677393, 4.5689974)
    assert front_end.num_mel_bins == 32 and backbone.trained_grid == (4, 8)
    # 16 frames.
    waveforms = np.random.default_rng(1).normal(size=(2, 2800)).astype("float32")
    maps = to_numpy(backbone.maps(waveforms)[0])
    check(backbone, waveforms, tokens_of_pytorch(state, maps))
    # Of another grid, positions are interpolated.
    options = {"num_heads": 3, "front_end": None, "input_dims": (32, 32, 1)}
    longer = BridleBackbone.from_preset(str(tmp_path / "audiomae.pth"), **options)
    assert longer.trained_grid == (8, 8)
    assert longer(np.zeros((1, 32, 32, 1), "float32")).shape[-1] == 12


@pytest.mark.one_backend
def test_original_code(tmp_path, capsys):
    """A file of pretraining: timm's names, what follows from the grid, and heads."""
    state = load_file(FOLDER / "beit_v2" / "model.safetensors")
    state = {k: v for k, v in state.items() if not k.startswith("head")}
    index = np.zeros((17, 17), "int64")
    state |= {f"blocks.{x}.attn.relative_position_index": index for x in range(2)}
    state |= {"mask_token": np.ones((1, 1, 12)), "lm_head.bias": np.ones(9)}
    early = {k: v for k, v in state.items() if k.startswith("blocks.0.")}
    state |= {k.replace("blocks", "cls_pt_layers"): v for k, v in early.items()}
    path = tmp_path / "beitv2_base.pth"
    save_torch(state, path)
    backbone = BridleBackbone.from_preset(str(path))
    assert "cls_pt_layers, fc_norm, lm_head, mask_token" in capsys.readouterr().out
    check(backbone, *read(FOLDER / "beit_v2", "inputs_0", "tokens_0"))


@pytest.mark.full_matrix
def test_recipes_start_from_public_encoders(tmp_path):
    from PIL import Image

    encoder = FOLDER / "beit_v2"
    (tmp_path / "images").mkdir()
    for number in range(6):
        image = Image.fromarray(pixels(6, 40, 36, 3)[number])
        image.save(tmp_path / "images" / f"{number}.png")
    options = [f"--data={tmp_path}/images", "--quiet"]
    arguments = [*options, f"--preset={encoder}", f"--directory={tmp_path}/run"]
    arguments += ["--rounds=0", "--cold-start-epochs=1", "--batch-size=3"]
    arguments += ["--num-levels=1", "--codebook-size=4", "--mask-ratio=0.5"]
    load("recipes/pretrain_image.py").main(arguments)
    trained = BridleBackbone.from_preset(str(tmp_path / "run"))
    assert trained.hidden_dim == 12 and trained.input_dims == (16, 16, 3)
    load("recipes/extract_features.py").main(
        [*options, f"--from={encoder}", f"--directory={tmp_path}/features"]
    )
    assert load_file_features(tmp_path / "features").features.shape == (6, 12)


@pytest.mark.full_matrix
@pytest.mark.parametrize(
    ("name", "policy"),
    [("beit_pretraining", "mixed_bfloat16"), ("beit", "mixed_float16")],
)
def test_training_starts_from_them(name, policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    backbone = BridleBackbone.from_preset(str(FOLDER / name))
    images, before = pixels(8, 16, 16, 3), weights_of(backbone)
    pretraining = InterleavedPretraining(
        backbone, RandomMask(0.5, seed=0), num_levels=1, codebook_size=4, code_dim=4
    )
    epochs = {"cold_start_epochs": 1, "tokenizer_epochs": 1, "encoder_epochs": 1}
    pretraining.fit(images, rounds=1, **epochs, batch_size=4, verbose=0)
    after = weights_of(pretraining.backbone)
    still = [name for name in before if np.array_equal(before[name], after[name])]
    assert not still
    assert all(np.isfinite(array).all() for array in after.values())
    pretraining.backbone.save_to_preset(str(tmp_path))
    backbone = BridleBackbone.from_preset(str(tmp_path))
    np.testing.assert_array_equal(
        to_numpy(backbone(images)), to_numpy(pretraining.backbone(images))
    )


def weights_of(model):
    return {x.path: keras.ops.convert_to_numpy(x) for x in model.trainable_variables}


@pytest.mark.one_backend
def test_bad_files(tmp_path):
    folder = shutil.copytree(FOLDER / "beit", tmp_path / "beit")
    path = folder / "model.safetensors"
    state = load_file(path)

    def fails(match, without=(), **more):
        changed = {k: v for k, v in state.items() if not k.endswith(without)}
        save_file({**changed, **more}, path)
        with pytest.raises(ValueError, match=match):
            BridleBackbone.from_preset(str(folder))

    fails("no encoder of MAE", without=("projection.weight",))
    fails("rope", **{"rope.table": np.zeros(2)})
    table = "layer.1.attention.attention.relative_position_bias"
    table = f"encoder.{table}.relative_position_bias_table"
    fails("rel_pos_bias.1", without=(table,))
    fails("blocks.1.gamma_2", without=("layer.1.lambda_2",))
    fails("pos_embed", **{"embeddings.position_embeddings": np.zeros((1, 17, 12), "f")})
    fails("rel_pos_bias.1", **{table: state[table][:-1]})
    fails("rel_pos_bias.2", **{table.replace("layer.1", "layer.2"): state[table]})
    config = json.loads((folder / "config.json").read_text())
    config["image_size"] = 24
    (folder / "config.json").write_text(json.dumps(config))
    # The tables tell the grid where a configuration is wrong.
    save_file(state, folder / "model.safetensors")
    assert BridleBackbone.from_preset(str(folder)).input_dims == (16, 16, 3)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged"):
        BridleBackbone.from_preset(str(folder))
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        BridleBackbone.from_preset(str(folder))
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="no encoder of MAE"):
        BridleBackbone.from_preset(str(folder))
    # Half of a download.
    (folder / "config.json").write_text(json.dumps(config)[:40])
    with pytest.raises(ValueError, match=r"config\.json' is damaged"):
        BridleBackbone.from_preset(str(folder))


if __name__ == "__main__":
    save_presets(sys.argv[1])
