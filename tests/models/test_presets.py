from pathlib import Path

import numpy as np
import pytest

from keras_bridle.layers.masks import RandomMask, TubeMask
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.presets import (
    backbone_preset,
    decoder_size,
    estimator_size,
    preset_folder,
    preset_names,
)
from keras_bridle.models.tokenizers import RandomProjectionTokenizer
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer


@pytest.mark.parametrize("name", preset_names())
def test_sizes_fit_together(name):
    config = backbone_preset(name)
    assert config["hidden_dim"] % config["num_heads"] == 0
    assert config["hidden_dim"] % 4 == 0
    assert config["mlp_dim"] == 4 * config["hidden_dim"]


def test_published_sizes():
    sizes = {
        name: tuple(
            backbone_preset(f"bridle_audio_{name}")[key]
            for key in ("hidden_dim", "num_layers", "num_heads", "patch_size")
        )
        for name in ("small", "base", "large")
    }
    assert sizes == {
        "small": (384, 12, 6, (16, 16)),
        "base": (768, 12, 12, (16, 16)),
        "large": (1024, 24, 16, (16, 16)),
    }


def test_published_images_and_clips():
    image = backbone_preset("bridle_image_base")
    assert (image["patch_size"], image["input_dims"]) == ((16, 16), (224, 224, 3))
    assert "position_layout" not in image  # the backbone's own, a class token too
    for size, shape in {"base": (768, 12, 12), "huge": (1280, 32, 16)}.items():
        video = backbone_preset(f"bridle_video_{size}")
        sizes = ("hidden_dim", "num_layers", "num_heads")
        assert tuple(video[key] for key in sizes) == shape
        assert video["patch_size"] == (2, 16, 16)
        assert video["input_dims"] == (16, 224, 224, 3)
        assert video["use_class_token"] is False
        assert video["position_layout"] == "sequence"


def test_names():
    assert preset_names("video") == [
        f"bridle_video_{size}" for size in ("tiny", "small", "base", "large", "huge")
    ]
    assert "bridle_image_huge" not in preset_names()
    assert set(preset_names("image")) < set(preset_names())
    with pytest.raises(ValueError, match=r"no such preset.*'bridle_audio_huge'"):
        backbone_preset("bridle_audio_huge")


def test_other_names():
    assert backbone_preset("some/folder") is None
    with pytest.raises(ValueError, match=r"no such preset.*'bridle_smell_base'"):
        backbone_preset("bridle_smell_base")


def test_folders_may_be_called_like_sizes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bridle_birds").mkdir()
    assert backbone_preset("bridle_birds") is None
    named = backbone_preset(Path("bridle_audio_tiny"))
    assert named["hidden_dim"] == backbone_preset("bridle_audio_tiny")["hidden_dim"]


@pytest.mark.parametrize(("width", "heads"), [(96, 3), (112, 2), (200, 5), (20, 1)])
def test_heads_divide_any_width(width, heads):
    size = decoder_size(Base(), hidden_dim=width)
    assert (size["hidden_dim"], size["num_heads"]) == (width, heads)
    CodeDecoder(1, 4, **size)


class Base:
    hidden_dim, num_layers, num_heads, mlp_dim = 768, 12, 12, 3072
    patch_size, position_layout = (16, 16), "grid"


class VideoBase(Base):
    patch_size, position_layout = (2, 16, 16), "sequence"


def test_decoder_and_estimator_sizes():
    assert decoder_size(Base) == {
        "hidden_dim": 512,
        "num_layers": 8,
        "num_heads": 16,
        "mlp_dim": 2048,
        "position_layout": "grid",
    }
    assert estimator_size(Base) == {
        "hidden_dim": 768,
        "num_layers": 3,
        "num_heads": 12,
        "mlp_dim": 3072,
        "position_layout": "grid",
    }
    half = {
        "hidden_dim": 384,
        "num_layers": 4,
        "num_heads": 6,
        "mlp_dim": 1536,
        "position_layout": "sequence",
    }
    assert decoder_size(VideoBase) == estimator_size(VideoBase) == half


@pytest.mark.parametrize("modality", ["audio", "image", "video"])
def test_parts_of_a_tiny_preset_go_together(modality):
    backbone = BridleBackbone.from_preset(
        f"bridle_{modality}_tiny", load_weights=False, num_layers=2
    )
    shape = [4000] if modality == "audio" else backbone.input_dims
    inputs = np.random.default_rng(0).uniform(0, 1, (1, *shape)).astype("float32")
    features, padding_mask = backbone.features(inputs)
    grid = backbone.grid(features)
    tokenizer = RandomProjectionTokenizer(
        backbone.patch_size, 16, ResidualQuantizer(2, 8, dim=4)
    )
    codes = tokenizer(features, padding_mask).codes
    mask = TubeMask(0.75) if modality == "video" else RandomMask(0.75)
    mask = mask(codes, grid=grid)
    decoder = CodeDecoder(
        2, 8, use_class_token=backbone.use_class_token, **decoder_size(backbone)
    )
    tokens = backbone.encode(features, padding_mask, mask.visible)
    logits = decoder(tokens, mask, grid=grid)
    assert tuple(logits.shape) == (1, mask.masked.shape[1], 2, 8)
    estimator = FeatureEstimator(backbone.hidden_dim, **estimator_size(backbone))
    vectors = tokenizer(features, padding_mask).quantized
    patches = backbone.drop_class_token(backbone(inputs))
    assert tuple(estimator(vectors, grid=grid).shape) == tuple(patches.shape)
    size = decoder_size(backbone)
    assert size["hidden_dim"] % size["num_heads"] == 0


def test_learned_positions_are_the_encoders_alone():
    settings = {"hidden_dim": 8, "num_layers": 1, "num_heads": 1, "mlp_dim": 8}
    for patch_size, dims, layout in (
        (4, (8, 8, 1), "grid"),
        ((2, 4, 4), (4, 8, 8, 1), "sequence"),
    ):
        backbone = BridleBackbone(
            patch_size, input_dims=dims, position_layout="learned", **settings
        )
        assert decoder_size(backbone)["position_layout"] == layout
        assert estimator_size(backbone)["position_layout"] == layout


def test_folder_of_a_run_and_of_a_preset(tmp_path):
    run, preset = tmp_path / "run", tmp_path / "run" / "preset"
    preset.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no preset in this folder.*run"):
        preset_folder(run)
    (preset / "config.json").write_text("{}")
    assert preset_folder(str(run)) == preset_folder(preset) == str(preset)
    assert preset_folder("hf://user/model") == "hf://user/model"
