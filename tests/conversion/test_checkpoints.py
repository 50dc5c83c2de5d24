"""Public encoders in their own layouts, against the libraries that they come from."""

import json

import keras
import numpy as np
import pytest
from programs import load
from public_encoders import DECODER, FOLDER, normalized, pixels, randomized

from keras_bridle.evaluation.features import FeatureExtractor, load_file_features
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import BridleImageClassifier

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
}


@pytest.fixture(scope="module")
def mae():
    config = transformers.ViTMAEConfig(
        **SIZES,
        image_size=32,
        patch_size=8,
        mask_ratio=0.0,
        **DECODER,
    )
    return randomized(transformers.ViTMAEForPreTraining(config))


@pytest.fixture(scope="module")
def video_mae():
    config = transformers.VideoMAEConfig(
        **SIZES,
        image_size=16,
        patch_size=8,
        num_frames=4,
        use_mean_pooling=False,
        **DECODER,
    )
    return randomized(transformers.VideoMAEForPreTraining(config))


def mae_tokens(model, images):
    """In the order of the patches, which MAE shuffles even if it hides none."""
    count = (images.shape[1] // 8) * (images.shape[2] // 8)
    noise = torch.arange(count).float()[None].repeat(len(images), 1)
    with torch.no_grad():
        out = model.vit(normalized(images), noise=noise, interpolate_pos_encoding=True)
    return out.last_hidden_state.numpy()


def check(backbone, inputs, expected):
    found = keras.ops.convert_to_numpy(backbone(inputs))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.every_backend
@pytest.mark.parametrize("safe", [True, False])
def test_mae_of_transformers(mae, tmp_path, safe, capsys):
    mae.save_pretrained(tmp_path)
    if not safe:
        (tmp_path / "model.safetensors").unlink()
        torch.save(mae.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\nA model.\n")
    backbone = BridleBackbone.from_preset(str(tmp_path))
    said = capsys.readouterr().out
    assert "cc-by-nc-4.0" in said and "decoder" in said
    images = pixels(2, 32, 32, 3)
    check(backbone, images, mae_tokens(mae, images))
    # At another size, positions are interpolated.
    wider = BridleBackbone.from_preset(str(tmp_path), input_dims=(48, 64, 3))
    images = pixels(2, 48, 64, 3)
    check(wider, images, mae_tokens(mae, images))
    # What was loaded is saved as any encoder.
    backbone.save_to_preset(str(tmp_path / "ours"))
    again = BridleBackbone.from_preset(str(tmp_path / "ours"))
    images = pixels(2, 32, 32, 3)
    check(again, images, mae_tokens(mae, images))


@pytest.mark.every_backend
def test_video_mae_of_transformers(video_mae, tmp_path):
    video_mae.save_pretrained(tmp_path)
    backbone = BridleBackbone.from_preset(tmp_path)
    clips = pixels(2, 4, 16, 16, 3)
    with torch.no_grad():
        expected = video_mae.videomae(normalized(clips)).last_hidden_state.numpy()
    check(backbone, clips, expected)


def timm_state(model, prefix=""):
    """The encoder's weights as timm and the original code name them."""
    state, found = model.state_dict(), {}
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
    }
    parts = {
        "attention.o_proj": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for name, array in state.items():
        name = name.removeprefix("vit.")
        for old, new in names.items():
            if name.startswith(old):
                found[name.replace(old, new)] = array
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            for old, new in parts.items():
                if rest.startswith(old):
                    found[f"blocks.{index}.{rest.replace(old, new)}"] = array
    for index in range(2):
        stem = f"vit.layers.{index}.attention."
        for kind in ("weight", "bias"):
            joined = [state[f"{stem}{x}_proj.{kind}"] for x in "qkv"]
            found[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(joined)
    return {prefix + name: array for name, array in found.items()}


@pytest.mark.parametrize("layout", ["timm", "original"])
def test_mae_of_timm_and_the_original_code(mae, tmp_path, layout):
    state, path = timm_state(mae), tmp_path
    if layout == "timm":
        from safetensors.torch import save_file

        save_file(state, tmp_path / "model.safetensors")
        about = {"architecture": "vit_base_patch16_224"}
        about["pretrained_cfg"] = {"mean": [0.485, 0.456, 0.406]}
        (tmp_path / "config.json").write_text(json.dumps(about))
    else:
        path = tmp_path / "mae_visualize_vit_base.pth"
        torch.save({"model": state | {"decoder_pred.weight": torch.zeros(3)}}, path)
    options = {"num_heads": 3, "layer_norm_epsilon": 1e-12}
    backbone = BridleBackbone.from_preset(str(path), **options)
    images = pixels(2, 32, 32, 3)
    check(backbone, images, mae_tokens(mae, images))
    with pytest.raises(ValueError, match="num_heads"):
        BridleBackbone.from_preset(str(path))


def test_audio_mae(mae, tmp_path):
    """One channel, 16 x 8 patches: a table of its own shape, on log-mel."""
    state = timm_state(mae)
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :1]
    state["pos_embed"] = torch.randn(1, 1 + 32, 24)
    torch.save({"model": state}, tmp_path / "audiomae.pth")
    backbone = BridleBackbone.from_preset(str(tmp_path / "audiomae.pth"), num_heads=3)
    front_end = backbone.front_end
    assert (front_end.mean, front_end.std) == (-4.2677393, 4.5689974)
    assert front_end.num_mel_bins == 64 and backbone.trained_grid == (4, 8)
    positions = keras.ops.convert_to_numpy(backbone.position_encoding.positions)
    np.testing.assert_allclose(positions, state["pos_embed"][:, 1:], atol=1e-6)
    assert backbone(np.ones((1, 4000), "float32")).shape[-1] == 24


def test_bad_files(mae, tmp_path):
    from safetensors.torch import save_file

    def fails(match, kind=ValueError, path=tmp_path):
        with pytest.raises(kind, match=match):
            BridleBackbone.from_preset(str(path), num_heads=3)

    (tmp_path / "config.json").write_text('{"model_type": "vit_mae"}')
    fails("no weights", FileNotFoundError)
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    fails("no encoder of MAE")
    state = timm_state(mae)
    save_file(state | {"rope.table": torch.zeros(2)}, tmp_path / "model.safetensors")
    fails("rope.table")
    del state["blocks.1.norm2.bias"]
    save_file(state, tmp_path / "model.safetensors")
    fails("blocks.1.norm2.bias")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    fails("damaged")


@pytest.mark.parametrize("name", ["mae", "beit_v2"])
def test_recipes_start_from_public_encoders(name, tmp_path):
    from PIL import Image

    encoder = FOLDER / name
    (tmp_path / "images").mkdir()
    for number in range(6):
        image = Image.fromarray(pixels(6, 40, 36, 3)[number])
        image.save(tmp_path / "images" / f"{number}.png")
    options = [f"--data={tmp_path}/images", "--quiet"]
    load("recipes/pretrain_image.py").main(
        [
            *options,
            f"--preset={encoder}",
            f"--directory={tmp_path}/run",
            *("--rounds=0", "--cold-start-epochs=1", "--batch-size=3"),
            *("--num-levels=1", "--codebook-size=4", "--mask-ratio=0.5"),
        ]
    )
    trained = BridleBackbone.from_preset(str(tmp_path / "run"))
    assert trained.hidden_dim == 12 and trained.input_dims == (16, 16, 3)
    load("recipes/extract_features.py").main(
        [*options, f"--from={encoder}", f"--directory={tmp_path}/features"]
    )
    backbone = BridleBackbone.from_preset(str(encoder))
    expected = FeatureExtractor(backbone).files(tmp_path / "images").features
    found = load_file_features(tmp_path / "features").features
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_classifiers_start_from_public_encoders(mae, tmp_path):
    mae.save_pretrained(tmp_path / "mae")
    images = pixels(2, 40, 48, 3)
    classifier = BridleImageClassifier.from_preset(
        str(tmp_path / "mae"), class_names=["shirt", "shoe"]
    )
    expected = classifier.predict(images, verbose=0)
    classifier.save_to_preset(str(tmp_path / "ours"))
    again = BridleImageClassifier.from_preset(str(tmp_path / "ours"))
    np.testing.assert_allclose(again.predict(images, verbose=0), expected, atol=1e-5)
