import types
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

SIZES = ("hidden_dim", "num_layers", "num_heads", "mlp_dim")
pytestmark = pytest.mark.one_backend


def test_published_sizes():
    published = {
        "bridle_audio_small": (384, 12, 6, 1536, (16, 16)),
        "bridle_audio_base": (768, 12, 12, 3072, (16, 16)),
        "bridle_audio_large": (1024, 24, 16, 4096, (16, 16)),
        "bridle_image_base": (768, 12, 12, 3072, (16, 16)),
        "bridle_video_base": (768, 12, 12, 3072, (2, 16, 16)),
        "bridle_video_huge": (1280, 32, 16, 5120, (2, 16, 16)),
    }
    for name, size in published.items():
        config = backbone_preset(name)
        assert tuple(config[key] for key in (*SIZES, "patch_size")) == size
    assert backbone_preset("bridle_image_base")["input_dims"] == (224, 224, 3)
    video = backbone_preset("bridle_video_base")
    assert video["input_dims"] == (16, 224, 224, 3)
    assert not video["use_class_token"]
    assert video["position_layout"] == "sequence"


def test_names(tmp_path, monkeypatch):
    assert preset_names("video") == [
        f"bridle_video_{size}" for size in ("tiny", "small", "base", "large", "huge")
    ]
    assert set(preset_names("image")) < set(preset_names())
    assert backbone_preset("some/folder") is None
    for name in ("bridle_image_huge", "bridle_smell_base", "bridle_birds"):
        with pytest.raises(ValueError, match=name):
            backbone_preset(name)
    # Directories may be called like sizes.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bridle_birds").mkdir()
    assert backbone_preset("bridle_birds") is None
    assert backbone_preset(Path("bridle_audio_tiny"))["hidden_dim"] == 128


def encoder(layout="grid", patch_size=(16, 16)):
    sizes = dict(zip(SIZES, (768, 12, 12, 3072), strict=True))
    return types.SimpleNamespace(**sizes, patch_size=patch_size, position_layout=layout)


def test_decoder_and_estimator_sizes():
    def size(*numbers, layout="grid"):
        return {**dict(zip(SIZES, numbers, strict=True)), "position_layout": layout}

    for layout in ("grid", "learned"):
        assert decoder_size(encoder(layout)) == size(512, 8, 16, 2048)
        assert estimator_size(encoder(layout)) == size(768, 3, 12, 3072)
    for layout in ("sequence", "learned"):
        clips = encoder(layout, (2, 16, 16))
        half = size(384, 4, 6, 1536, layout="sequence")
        assert decoder_size(clips) == estimator_size(clips) == half
    assert decoder_size(encoder(), num_layers=2) == size(512, 2, 16, 2048)


@pytest.mark.parametrize(("width", "heads"), [(96, 3), (112, 2), (200, 5), (20, 1)])
def test_heads_divide_any_width(width, heads):
    size = decoder_size(encoder(), hidden_dim=width)
    assert (size["hidden_dim"], size["num_heads"]) == (width, heads)


@pytest.mark.parametrize("modality", ["audio", "image", "video"])
def test_networks_of_a_tiny_preset_go_together(modality):
    backbone = BridleBackbone.from_preset(
        f"bridle_{modality}_tiny", load_weights=False, num_layers=2
    )
    shape = [4000] if modality == "audio" else backbone.input_dims
    inputs = np.random.default_rng(0).uniform(0, 1, (1, *shape)).astype("float32")
    maps, padding_mask = backbone.maps(inputs)
    grid = backbone.grid(maps)
    tokenizer = RandomProjectionTokenizer(
        backbone.patch_size, 16, ResidualQuantizer(2, 8, dim=4)
    )
    quantized = tokenizer(maps, padding_mask)
    mask = TubeMask(0.75) if modality == "video" else RandomMask(0.75)
    mask = mask(quantized.codes, grid=grid)
    decoder = CodeDecoder(
        2, 8, use_class_token=backbone.use_class_token, **decoder_size(backbone)
    )
    tokens = backbone.encode(maps, padding_mask, mask.visible)
    logits = decoder(tokens, mask, grid=grid)
    assert tuple(logits.shape) == (1, mask.masked.shape[1], 2, 8)
    estimator = FeatureEstimator(backbone.hidden_dim, **estimator_size(backbone))
    patches = backbone.drop_class_token(backbone(inputs))
    found = estimator(quantized.quantized, grid=grid)
    assert tuple(found.shape) == tuple(patches.shape)


def test_directory_of_a_run_and_of_a_preset(tmp_path):
    run, preset = tmp_path / "run", tmp_path / "run" / "preset"
    preset.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no preset"):
        preset_folder(run)
    (preset / "config.json").write_text("{}")
    assert preset_folder(str(run)) == preset_folder(preset) == str(preset)
    assert preset_folder("hf://user/model") == "hf://user/model"
