"""Sizes of the networks, by modality and name."""

import math

from keras_bridle.layers.log_mel import LogMelSpectrogram

# hidden_dim, num_layers, num_heads
_SIZES = {
    "tiny": (128, 3, 4),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


def backbone_preset(name):
    """Looks up the arguments of a `BridleBackbone`.

    Args:
        name: string, such as `"bridle_audio_base"`.

    Returns:
        A dict of constructor arguments, or `None` if the name is none of ours.

    Raises:
        ValueError: if the name starts like one of ours and is none.
    """
    if not str(name).startswith("bridle_"):
        return None
    modality, _, size = name.removeprefix("bridle_").partition("_")
    if modality not in _MODALITIES or size not in _SIZES:
        raise ValueError(
            f"There is no such preset. Received: {name!r}. Expected a folder or one of "
            f"{preset_names()}"
        )
    hidden_dim, num_layers, num_heads = _SIZES[size]
    return {
        "hidden_dim": hidden_dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "mlp_dim": 4 * hidden_dim,
        **_MODALITIES[modality](size),
    }


def preset_names():
    """Lists the names of the sizes that come with the library."""
    return [f"bridle_{modality}_{size}" for modality in _MODALITIES for size in _SIZES]


def decoder_size(backbone):
    """Chooses a `CodeDecoder` for an encoder: lighter than it, 512 wide at most.

    For the base encoder this is the published 512 x 8 layers x 16 heads.

    Args:
        backbone: `BridleBackbone`.

    Returns:
        A dict of constructor arguments of `CodeDecoder`.
    """
    hidden_dim = min(512, backbone.hidden_dim)
    return {
        "hidden_dim": hidden_dim,
        "num_layers": math.ceil(backbone.num_layers * 2 / 3),
        "num_heads": max(1, hidden_dim // 32),
        "mlp_dim": 4 * hidden_dim,
    }


def estimator_size(backbone):
    """Chooses a `FeatureEstimator` for an encoder: a few layers of its width.

    Args:
        backbone: `BridleBackbone`.

    Returns:
        A dict of constructor arguments of `FeatureEstimator`.
    """
    return {
        "hidden_dim": backbone.hidden_dim,
        "num_layers": min(3, math.ceil(backbone.num_layers / 2)),
        "num_heads": backbone.num_heads,
        "mlp_dim": backbone.mlp_dim,
    }


def _audio(size):
    return {
        # Tiny is for short clips: a syllable has few patches of 160 ms.
        "patch_size": (4, 32) if size == "tiny" else (16, 16),
        "input_dims": (None,),
        "front_end": LogMelSpectrogram(name="log_mel"),
    }


_MODALITIES = {"audio": _audio}
