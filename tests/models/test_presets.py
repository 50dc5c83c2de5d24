import pytest

from keras_bridle.models import BridleBackbone
from keras_bridle.models.presets import (
    backbone_preset,
    decoder_size,
    estimator_size,
    preset_names,
)


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


def test_other_names():
    assert backbone_preset("some/folder") is None
    with pytest.raises(ValueError, match=r"no such preset.*'bridle_smell_base'"):
        backbone_preset("bridle_smell_base")


def test_decoder_and_estimator_sizes():
    class Base:
        hidden_dim, num_layers, num_heads, mlp_dim = 768, 12, 12, 3072

    assert decoder_size(Base) == {
        "hidden_dim": 512,
        "num_layers": 8,
        "num_heads": 16,
        "mlp_dim": 2048,
    }
    assert estimator_size(Base) == {
        "hidden_dim": 768,
        "num_layers": 3,
        "num_heads": 12,
        "mlp_dim": 3072,
    }
    backbone = BridleBackbone.from_preset("bridle_audio_tiny", load_weights=False)
    size = decoder_size(backbone)
    assert size["hidden_dim"] % size["num_heads"] == 0
