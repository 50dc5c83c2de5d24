import types
from pathlib import Path

import pytest

from keras_bridle.models.presets import (
    backbone_preset,
    decoder_size,
    estimator_size,
    preset_folder,
    preset_names,
)

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
        with pytest.raises(ValueError):
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


def test_directory_of_a_run_and_of_a_preset(tmp_path):
    run, preset = tmp_path / "run", tmp_path / "run" / "preset"
    preset.mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        preset_folder(run)
    (preset / "config.json").write_text("{}")
    assert preset_folder(str(run)) == preset_folder(preset) == str(preset)
    assert preset_folder("hf://user/model") == "hf://user/model"
