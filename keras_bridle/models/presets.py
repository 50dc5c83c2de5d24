"""Sizes of the networks, by modality and name, and saved presets."""

import json
import math
from pathlib import Path
from typing import Any

import keras

from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.layers.pixels import PixelNormalization
from keras_bridle.layers.positions import LAYOUTS

# Keys are the rank of one raw input.
MODALITIES_BY_RANK = {1: "audio", 3: "image", 4: "video"}

# hidden_dim, num_layers, num_heads
_SIZES = {
    "tiny": (128, 3, 4),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
# Sides of an input and of a patch.
_TINY_SIDES = {"image": (32, 4), "video": (64, 8)}


def _modality_arguments(modality, size):
    """Returns the arguments of a `BridleBackbone` that depend on its modality."""
    if modality == "audio":
        return {
            # Tiny encoders are for short clips: a consonant lasts 20 to 50 ms.
            "patch_size": (2, 32) if size == "tiny" else (16, 16),
            "input_dims": (None,),
            "front_end": LogMelSpectrogram(name="log_mel"),
        }
    side, patch = _TINY_SIDES[modality] if size == "tiny" else (224, 16)
    found: dict[str, Any] = {
        "patch_size": (patch, patch),
        "input_dims": (side, side, 3),
        "front_end": PixelNormalization(name="pixel_normalization"),
        "trained_grid": "input",
    }
    if modality == "video":
        found |= {"patch_size": (2, patch, patch), "input_dims": (16, side, side, 3)}
        found |= {"use_class_token": False, "position_layout": "sequence"}
    return found


def backbone_preset(name):
    """Returns the arguments of a named size, `None` for a path or address."""
    name = str(name)
    if not name.startswith("bridle_"):
        return None
    if name not in preset_names():
        if Path(name).is_dir():
            return None
        expected = f"Expected a directory or one of {preset_names()}"
        raise ValueError(f"There is no preset {name!r}. {expected}")
    _, modality, size = name.split("_")
    sizes = zip(("hidden_dim", "num_layers", "num_heads"), _SIZES[size], strict=True)
    mlp_dim = 4 * _SIZES[size][0]
    return {**dict(sizes), "mlp_dim": mlp_dim, **_modality_arguments(modality, size)}


def preset_names(modality=None):
    """Lists the names of sizes, of all modalities or one."""
    return [
        f"bridle_{name}_{size}"
        for name in MODALITIES_BY_RANK.values()
        for size in _SIZES
        # The paper has a huge encoder for video only.
        if modality in (None, name) and (size != "huge" or name == "video")
    ]


def preset_folder(preset):
    """Returns the preset in the directory of a run; anything else as it is."""
    # Imported here, as the module imports the encoder.
    from keras_bridle.conversion.checkpoints import is_checkpoint

    path = Path(preset)
    is_preset = (path / "config.json").exists() or is_checkpoint(path)
    if not path.is_dir() or is_preset:
        return str(preset)
    if (path / "preset" / "config.json").exists():
        return str(path / "preset")
    raise FileNotFoundError(
        "There is no preset in this folder: neither a config.json nor a folder "
        f"`preset`, which a run saves at its end. Received: {str(preset)!r}"
    )


def saved_encoder_config(preset):
    """Returns the encoder's arguments in a local preset, or `None`."""
    from keras_bridle.conversion import checkpoints

    preset = preset_folder(checkpoints.fetched(preset))
    if checkpoints.is_checkpoint(preset):
        return checkpoints.encoder_config(preset)
    path = Path(preset, "config.json")
    if not path.exists():
        return None
    config = json.loads(path.read_text())["config"]
    return config.get("backbone", {"config": config})["config"]


def saved_classifier_config(preset):
    """Returns the classifier's arguments in a local preset, or `None`."""
    path = Path(preset, "task.json")
    return json.loads(path.read_text())["config"] if path.exists() else None


def saved_classifier_class(preset):
    """Returns the class of the classifier in a local preset."""
    task = json.loads(Path(preset, "task.json").read_text())
    return keras.saving.get_registered_object(task["registered_name"])


def preset_modality(preset):
    """Returns the modality of a preset's encoder, `None` if unknown."""
    config = saved_encoder_config(preset)
    return config and MODALITIES_BY_RANK.get(len(config["input_dims"]))


def decoder_size(backbone, hidden_dim=None, num_layers=None):
    """Returns arguments of a light `CodeDecoder` for an encoder.

    As published: 512 x 8 layers x 16 heads for base encoders of audio and images, half
    the encoder's width x 4 layers for clips.
    """
    size = _half_size(backbone)
    if not _is_for_clips(backbone):
        hidden_dim = hidden_dim or min(512, backbone.hidden_dim)
        size["num_layers"] = math.ceil(backbone.num_layers * 2 / 3)
    if hidden_dim is not None:
        size["hidden_dim"] = hidden_dim
        size["num_heads"] = _heads(hidden_dim, hidden_dim // 32)
        size["mlp_dim"] = 4 * hidden_dim
    if num_layers is not None:
        size["num_layers"] = num_layers
    return size


def estimator_size(backbone):
    """Returns arguments of a `FeatureEstimator` for an encoder.

    As published: 3 layers of the encoder's width, and 4 of half that width for clips.
    """
    size = _half_size(backbone)
    if not _is_for_clips(backbone):
        for name in ("hidden_dim", "num_heads", "mlp_dim"):
            size[name] = getattr(backbone, name)
        size["num_layers"] = min(3, size["num_layers"])
    return size


def _half_size(backbone):
    hidden_dim = backbone.hidden_dim // 2
    return {
        "hidden_dim": hidden_dim,
        "num_layers": min(4, math.ceil(backbone.num_layers / 2)),
        "num_heads": _heads(hidden_dim, backbone.num_heads // 2),
        "mlp_dim": backbone.mlp_dim // 2,
        "position_layout": fixed_layout(backbone),
    }


def fixed_layout(backbone):
    """Returns the encoder's position layout, or a fixed one if it is learned."""
    if backbone.position_layout in LAYOUTS:
        return backbone.position_layout
    return "sequence" if _is_for_clips(backbone) else "grid"


def _heads(hidden_dim, num_heads):
    """Returns the largest number of heads, up to `most`, that divides a width."""
    return next(n for n in range(max(1, num_heads), 0, -1) if hidden_dim % n == 0)


def _is_for_clips(backbone):
    return len(backbone.patch_size) == 3
