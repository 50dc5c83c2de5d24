"""Sizes of the networks, by modality and name."""

import json
import math
from pathlib import Path

from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.layers.pixels import PixelNormalization

# By how many sides one raw input has.
MODALITIES_BY_RANK = {1: "audio", 3: "image", 4: "video"}

# hidden_dim, num_layers, num_heads
_SIZES = {
    "tiny": (128, 3, 4),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


def backbone_preset(name):
    """Looks up the arguments of a `BridleBackbone`.

    Args:
        name: string, such as `"bridle_audio_base"`, or path.

    Returns:
        A dict of constructor arguments, or `None` if the name is none of ours.

    Raises:
        ValueError: if the name starts like one of ours and is none, and no folder.
    """
    name = str(name)
    if not name.startswith("bridle_"):
        return None
    modality, _, size = name.removeprefix("bridle_").partition("_")
    if name not in preset_names():
        if Path(name).is_dir():
            return None
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


def preset_names(modality=None):
    """Lists the names of the sizes that come with the library.

    Args:
        modality: optional string, `"audio"`, `"image"` or `"video"`; all by default.

    Returns:
        List of strings, such as `"bridle_audio_base"`.
    """
    modalities = _MODALITIES if modality is None else (modality,)
    return [
        f"bridle_{name}_{size}"
        for name in modalities
        for size in _SIZES
        # Published for video alone.
        if size != "huge" or name == "video"
    ]


def preset_folder(preset):
    """Finds the preset of a run.

    Args:
        preset: string or path, the directory of a run, a preset's own folder, or its
            address.

    Returns:
        String, the preset's folder; what is no directory of a run comes back as it is.

    Raises:
        FileNotFoundError: for the directory of a run that saved no preset yet.
    """
    path = Path(preset)
    if not path.is_dir() or (path / "config.json").exists():
        return str(preset)
    if (path / "preset" / "config.json").exists():
        return str(path / "preset")
    raise FileNotFoundError(
        "There is no preset in this folder: neither a config.json, as presets have it, "
        "nor a folder `preset`, as runs have it once they are done. "
        f"Received: {str(preset)!r}"
    )


def saved_encoder_config(preset):
    """Reads the arguments of a preset's encoder.

    Args:
        preset: string or path, as for `preset_folder()`.

    Returns:
        A dict, of the encoder's own where the preset is that of a classifier; `None`
        for what is no folder of a preset here.

    Raises:
        FileNotFoundError: for the directory of a run that saved no preset yet.
    """
    path = Path(preset_folder(preset), "config.json")
    if not path.exists():
        return None
    config = json.loads(path.read_text())["config"]
    return config.get("backbone", {"config": config})["config"]


def saved_classifier_config(preset):
    """Reads the arguments of a preset's classifier.

    Args:
        preset: string or path, a preset's folder.

    Returns:
        A dict; `None` for presets of an encoder alone, and what is no folder here.
    """
    path = Path(preset, "task.json")
    return json.loads(path.read_text())["config"] if path.exists() else None


def preset_modality(preset):
    """Tells what kind of input the encoder of a preset takes.

    Args:
        preset: string or path, a named preset, the directory of a run, or a preset's
            folder.

    Returns:
        `"audio"`, `"image"` or `"video"`; `None` for encoders of other inputs and for
        what is no folder here.

    Raises:
        FileNotFoundError: for the directory of a run that saved no preset yet.
    """
    if backbone_preset(preset) is not None:
        return str(preset).split("_")[1]
    config = saved_encoder_config(preset)
    return config and MODALITIES_BY_RANK.get(len(config["input_dims"]))


def decoder_size(backbone, hidden_dim=None, num_layers=None):
    """Chooses a `CodeDecoder` for an encoder, lighter than it.

    The published sizes are 512 x 8 layers x 16 heads for the base encoders of audio and
    images, and half the encoder's width x 4 layers for clips.

    Args:
        backbone: `BridleBackbone`.
        hidden_dim: optional int, the width, where it shall be another.
        num_layers: optional int, likewise.

    Returns:
        A dict of constructor arguments of `CodeDecoder`.
    """
    if _is_for_clips(backbone):
        size = _half_size(backbone)
    else:
        size = {
            **_width(min(512, backbone.hidden_dim)),
            "num_layers": math.ceil(backbone.num_layers * 2 / 3),
            "position_layout": _fixed_layout(backbone),
        }
    if hidden_dim is not None:
        size |= _width(hidden_dim)
    if num_layers is not None:
        size["num_layers"] = num_layers
    return size


def _width(hidden_dim):
    return {
        "hidden_dim": hidden_dim,
        "num_heads": _heads(hidden_dim, hidden_dim // 32),
        "mlp_dim": 4 * hidden_dim,
    }


def _heads(hidden_dim, num_heads):
    """The most heads, up to a number, that divide a width."""
    return next(n for n in range(max(1, num_heads), 0, -1) if hidden_dim % n == 0)


def estimator_size(backbone):
    """Chooses a `FeatureEstimator` for an encoder.

    The published sizes are 3 layers of the encoder's width for audio and images, and 4
    of half that width for clips.

    Args:
        backbone: `BridleBackbone`.

    Returns:
        A dict of constructor arguments of `FeatureEstimator`.
    """
    if _is_for_clips(backbone):
        return _half_size(backbone)
    return {
        "hidden_dim": backbone.hidden_dim,
        "num_layers": min(3, math.ceil(backbone.num_layers / 2)),
        "num_heads": backbone.num_heads,
        "mlp_dim": backbone.mlp_dim,
        "position_layout": _fixed_layout(backbone),
    }


def _fixed_layout(backbone):
    """The layout of positions next to an encoder, whose own may be learned."""
    if backbone.position_layout != "learned":
        return backbone.position_layout
    return "sequence" if _is_for_clips(backbone) else "grid"


def _is_for_clips(backbone):
    return len(backbone.patch_size) == 3


def _half_size(backbone):
    hidden_dim = backbone.hidden_dim // 2
    return {
        "hidden_dim": hidden_dim,
        "num_layers": min(4, math.ceil(backbone.num_layers / 2)),
        "num_heads": _heads(hidden_dim, backbone.num_heads // 2),
        "mlp_dim": backbone.mlp_dim // 2,
        "position_layout": _fixed_layout(backbone),
    }


def _audio(size):
    return {
        # Tiny is for short clips: the consonant of a syllable takes 20 to 50 ms.
        "patch_size": (2, 32) if size == "tiny" else (16, 16),
        "input_dims": (None,),
        "front_end": LogMelSpectrogram(name="log_mel"),
    }


def _image(size):
    # Tiny is for small pictures.
    side, patch = (32, 4) if size == "tiny" else (224, 16)
    return {
        "patch_size": (patch, patch),
        "input_dims": (side, side, 3),
        "front_end": PixelNormalization(name="pixel_normalization"),
        "trained_grid": "input",
    }


def _video(size):
    side, patch = (64, 8) if size == "tiny" else (224, 16)
    return {
        "patch_size": (2, patch, patch),
        "input_dims": (16, side, side, 3),
        "front_end": PixelNormalization(name="pixel_normalization"),
        "use_class_token": False,
        "position_layout": "sequence",
        "trained_grid": "input",
    }


_MODALITIES = {"audio": _audio, "image": _image, "video": _video}
