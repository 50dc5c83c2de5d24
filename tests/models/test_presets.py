import types
from pathlib import Path

import pytest

from keras_bridle.conversion import checkpoints
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.presets import (
    backbone_preset,
    decoder_size,
    estimator_size,
    preset_folder,
    preset_names,
    saved_encoder_config,
)

SIZES = ("hidden_dim", "num_layers", "num_heads", "mlp_dim")
pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("audio_small", (384, 12, 6, 1536, (16, 16), (None,))),
        ("audio_large", (1024, 24, 16, 4096, (16, 16), (None,))),
        ("image_base", (768, 12, 12, 3072, (16, 16), (224, 224, 3))),
        ("video_huge", (1280, 32, 16, 5120, (2, 16, 16), (16, 224, 224, 3))),
    ],
)
def test_published_sizes(name, size):
    config = backbone_preset(f"bridle_{name}")
    assert tuple(config[key] for key in (*SIZES, "patch_size", "input_dims")) == size
    is_video = name.startswith("video")
    assert config.get("use_class_token", True) != is_video
    assert (config.get("position_layout") == "sequence") == is_video


def test_names(tmp_path, monkeypatch):
    assert preset_names("video") == [
        f"bridle_video_{size}" for size in ("tiny", "small", "base", "large", "huge")
    ]
    assert set(preset_names("image")) < set(preset_names())
    for name in ("bridle_image_huge", "bridle_smell_base", "bridle_birds"):
        with pytest.raises(ValueError):
            backbone_preset(name)
    # Directories may be called like sizes.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bridle_birds").mkdir()
    assert backbone_preset("bridle_birds") is None


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
    # A folder with a public encoder's file is a preset itself.
    (tmp_path / "beats").mkdir()
    (tmp_path / "beats" / "model.pt").touch()
    assert preset_folder(tmp_path / "beats") == str(tmp_path / "beats")


def test_public_encoders_are_read_once(monkeypatch):
    beats = str(Path(__file__).parents[1] / "fixtures" / "beats.pt")
    read, whole = checkpoints.read_published_file, []

    def counted(path, only_shapes):
        if not only_shapes:
            whole.append(path)
        return read(path, only_shapes)

    monkeypatch.setattr(checkpoints, "read_published_file", counted)
    config = saved_encoder_config(beats)
    trained = BridleBackbone.from_preset(beats)
    assert whole == [Path(beats)]
    fresh = BridleBackbone.from_preset(beats, load_weights=False)
    assert fresh.num_layers == trained.num_layers == config["num_layers"]
    first, other = (x.blocks[0].qkv.get_weights()[0] for x in (fresh, trained))
    assert (first != other).any()
