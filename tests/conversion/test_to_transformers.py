"""Encoders written for transformers, and read by it."""

import keras
import numpy as np
import pytest
from harness import perturb
from public_encoders import FOLDER, normalized, pixels

import keras_bridle as kb
from keras_bridle.config import ArgumentError

safetensors = pytest.importorskip("safetensors.numpy")
SIZES = {"hidden_dim": 24, "num_layers": 2, "num_heads": 3, "mlp_dim": 40}
KINDS = {
    "image": {"patch_size": 8, "input_dims": (32, 32, 3)},
    "learned": {
        "patch_size": 8,
        "input_dims": (32, 32, 3),
        "position_layout": "learned",
    },
    "clip": {
        "patch_size": (2, 8, 8),
        "input_dims": (4, 16, 16, 3),
        "use_class_token": False,
        "position_layout": "sequence",
    },
}


def backbone(kind, **options):
    front_end = kb.PixelNormalization()
    made = kb.BridleBackbone(
        **{**SIZES, **KINDS[kind], "front_end": front_end, **options}
    )
    perturb(made.weights, scale=0.4)
    return made


@pytest.mark.every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read_again(kind, tmp_path):
    model = backbone(kind)
    inputs = pixels(2, *model.input_dims)
    expected = keras.ops.convert_to_numpy(model(inputs))
    kb.to_transformers(model, tmp_path / "one")
    again = kb.BridleBackbone.from_preset(str(tmp_path / "one"))
    found = keras.ops.convert_to_numpy(again(inputs))
    # VideoMAE has no bias of keys, which changes nothing but the rounding.
    tolerance = {"clip": 2e-5}.get(kind, 0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    kb.to_transformers(again, tmp_path / "other")
    names = ("model.safetensors", "config.json", "preprocessor_config.json")
    for name in names:
        one, other = (tmp_path / x / name for x in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.one_backend
@pytest.mark.parametrize("name", ["mae", "video_mae"])
def test_weights_come_back_as_they_were(name, tmp_path):
    kb.to_transformers(kb.BridleBackbone.from_preset(FOLDER / name), tmp_path)
    before = safetensors.load_file(FOLDER / name / "model.safetensors")
    before = {x.split(".", 1)[1]: before[x] for x in before if "." in x}
    before = {x: before[x] for x in before if x.startswith(("embed", "enc", "layern"))}
    found = safetensors.load_file(tmp_path / "model.safetensors")
    if name == "mae":
        # Its token has a position, which is added to it.
        token, positions = "embeddings.cls_token", "embeddings.position_embeddings"
        before[token] = before[token] + before[positions][:, :1]
        before[positions][:, 0] = 0.0
    assert found.keys() == before.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(found[key], array)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_computes_the_same(kind, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = backbone(kind)
    inputs = pixels(2, *model.input_dims)
    kb.to_transformers(model, tmp_path)
    name, options = "ViTMAEModel", {"mask_ratio": 0.0}
    if kind == "clip":
        name, options = "VideoMAEModel", {}
    theirs, info = getattr(transformers, name).from_pretrained(
        tmp_path, output_loading_info=True, **options
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    theirs.eval()
    more = {}
    if kind != "clip":
        # MAE shuffles patches even if it hides none.
        more = {"noise": torch.arange(16.0)[None].repeat(2, 1)}
    with torch.no_grad():
        expected = theirs(normalized(inputs), **more).last_hidden_state.numpy()
    found = keras.ops.convert_to_numpy(model(inputs))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    np.testing.assert_allclose(processor.image_mean, (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("image", {"front_end": None}),
        ("image", {"use_class_token": False}),
        ("image", {"input_dims": (32, 24, 3)}),
        ("image", {"layer_scale": 0.1}),
        ("image", {"position_layout": "relative"}),
        ("clip", {"use_class_token": True}),
    ],
)
def test_encoders_that_transformers_lacks(kind, options, tmp_path):
    with pytest.raises(ArgumentError):
        kb.to_transformers(backbone(kind, **options), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_waveforms_have_no_counterpart(tmp_path):
    audio = kb.BridleBackbone.from_preset("bridle_audio_tiny", load_weights=False)
    with pytest.raises(ArgumentError):
        kb.to_transformers(audio, tmp_path / "none")
