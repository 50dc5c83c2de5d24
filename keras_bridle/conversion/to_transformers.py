"""Writes encoders for the library transformers."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
from keras import ops

from keras_bridle.config import ArgumentError
from keras_bridle.conversion.published_weights import published_weights
from keras_bridle.layers.pixels import PixelNormalization

# In order: what timm's names have, and what those of transformers have.
_NAMES = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.layer.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.layer.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.layer.\1.attention.attention."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
)


def to_transformers(backbone, folder):
    """Writes an encoder that transformers reads as `ViTMAEModel` or `VideoMAEModel`.

    Encoders of images become those of MAE, with their positions as a table; encoders of
    clips become those of VideoMAE. `BridleBackbone.from_preset(folder)` reads them
    again. No decoder is written: transformers makes a new one for pretraining.

    Args:
        backbone: `BridleBackbone` of images with a class token, or of clips without one
            and with `position_layout="sequence"`. Patches, images and frames must be
            square, the last norm in use, and `PixelNormalization` the front end.
        folder: string or path, made if it is not there.

    Returns:
        Path of the folder.

    Raises:
        ArgumentError: if transformers has no such encoder.
        ImportError: if safetensors is not installed.

    Example:
    ```python
    import os
    import tempfile
    from importlib.util import find_spec
    import keras_bridle as kb

    if find_spec("safetensors"):
        name = "bridle_image_tiny"
        backbone = kb.BridleBackbone.from_preset(name, load_weights=False)
        folder = kb.to_transformers(backbone, tempfile.mkdtemp())
        print(sorted(os.listdir(folder)))
    ```
    """
    _check(backbone)
    is_clip = len(backbone.patch_size) == 3
    state = {
        name: weight.to_published(ops.convert_to_numpy(weight.variable))
        for name, weight in published_weights(backbone).items()
    }
    state.pop("pos_embed", None)
    if not is_clip:
        grid = (*backbone.grid_of_inputs(), backbone.hidden_dim)
        table = backbone.position_encoding(np.zeros((1, *grid), "float32"))
        table = ops.convert_to_numpy(ops.cast(table, "float32"))
        table = table.reshape(1, -1, backbone.hidden_dim)
        # The class token has no position here, or it is a part of the token.
        state["pos_embed"] = np.pad(table, ((0, 0), (1, 0), (0, 0)))
    _divide_attention(state, is_clip)
    for pattern, replacement in _NAMES:
        state = {re.sub(pattern, replacement, x): y for x, y in state.items()}
    state = {x: np.ascontiguousarray(y, "float32") for x, y in state.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors = importlib.import_module("safetensors.numpy")
    safetensors.save_file(state, folder / "model.safetensors", {"format": "pt"})
    settings = {"config": _config, "preprocessor_config": _preprocessor}
    for name, make in settings.items():
        text = json.dumps(make(backbone, is_clip), indent=2)
        (folder / f"{name}.json").write_text(text + "\n")
    return folder


def _check(backbone):
    """Raises an `ArgumentError` for encoders that transformers does not have."""
    dims, front_end = backbone.input_dims, backbone.front_end
    is_clip, (rows, *_) = len(dims) == 4, dims[-3:]
    plain = backbone.position_layout not in ("relative", "shared_relative")
    pixels = isinstance(front_end, PixelNormalization) and front_end.scale == 255
    wanted = {
        "an encoder of images or clips": len(dims) in (3, 4),
        "one of square inputs and patches": None not in dims
        and dims[-3:-1] == (rows, rows)
        and len({*backbone.patch_size[-2:]}) == 1,
        "one with PixelNormalization of 255": pixels,
        "one with absolute positions": plain,
        "one without layer scale, and with its last norm": backbone.layer_scale is None
        and backbone.use_final_norm,
        "one of images with a class token, or of clips without": is_clip
        != backbone.use_class_token,
        'one of clips with position_layout="sequence"': not is_clip
        or backbone.position_layout == "sequence",
    }
    for expected, is_right in wanted.items():
        if not is_right:
            raise ArgumentError("backbone", expected, backbone.name)


def _divide_attention(state, is_clip):
    """Divides the maps to queries, keys and values into three."""
    for name in [x for x in state if ".attn.qkv." in x]:
        parts = np.split(state.pop(name), 3)
        for part, array in zip(("query", "key", "value"), parts, strict=True):
            new = name.replace("qkv", part)
            if is_clip and name.endswith("bias"):
                # A key's bias adds the same to all logits of a query.
                if part == "key":
                    continue
                new = name.replace("qkv.bias", f"{part[0]}_bias")
            state[new] = array


def _config(backbone, is_clip):
    *frames, rows, _, channels = backbone.input_dims
    clip = {
        "model_type": "videomae",
        "architectures": ["VideoMAEModel"],
        "use_mean_pooling": False,
    }
    if is_clip:
        clip |= {"num_frames": frames[0], "tubelet_size": backbone.patch_size[0]}
    image = {"model_type": "vit_mae", "architectures": ["ViTMAEModel"]}
    return (clip if is_clip else image) | {
        "image_size": rows,
        "patch_size": backbone.patch_size[-1],
        "num_channels": channels,
        "hidden_size": backbone.hidden_dim,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "intermediate_size": backbone.mlp_dim,
        "layer_norm_eps": backbone.layer_norm_epsilon,
    }


def _preprocessor(backbone, is_clip):
    rows, columns, channels = backbone.input_dims[-3:]
    mean, std = (
        np.broadcast_to(x, channels).tolist()
        for x in (backbone.front_end.mean, backbone.front_end.std)
    )
    kind = "VideoMAEImageProcessor" if is_clip else "ViTImageProcessor"
    return {
        "image_processor_type": kind,
        "rescale_factor": 1 / 255,
        "image_mean": mean,
        "image_std": std,
        "size": {"height": rows, "width": columns},
    }
