"""Writes encoders for the library transformers."""

import importlib
import json
from pathlib import Path

import numpy as np
from keras import ops

from keras_bridle.config import check
from keras_bridle.conversion.published_video import renamed
from keras_bridle.conversion.published_weights import published_weights
from keras_bridle.layers.pixels import PixelNormalization

# In order: patterns of timm's names, and the names in transformers.
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

    Image encoders become MAE's, with a table of positions, and video encoders
    VideoMAE's. `BridleBackbone.from_preset(folder)` reads them again. No decoder is
    written: transformers makes a new one for pretraining.

    Args:
        backbone: `BridleBackbone` of images with a class token, or of clips without one
            and with `position_layout="sequence"`. Patches, images and frames must be
            square, the last norm in use, and `PixelNormalization` the front end.
        folder: string or path, created if it is missing.

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
    is_clip = len(backbone.patch_size) == 3
    _check(backbone, is_clip)
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
        # Our class token has no position, or the token includes it.
        state["pos_embed"] = np.pad(table, ((0, 0), (1, 0), (0, 0)))
    _divide_attention(state, is_clip)
    state = {
        name: np.ascontiguousarray(array, "float32")
        for name, array in renamed(state, _NAMES).items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors = importlib.import_module("safetensors.numpy")
    safetensors.save_file(state, folder / "model.safetensors", {"format": "pt"})
    settings = _settings(backbone, is_clip)
    for name, values in zip(("config", "preprocessor_config"), settings, strict=True):
        (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
    return folder


def _check(backbone, is_clip):
    """Raises an `ArgumentError` for encoders that transformers does not have."""
    dims, front_end = backbone.input_dims, backbone.front_end
    layout = backbone.position_layout
    is_square = None not in dims and len({*dims[-3:-1]}) == 1
    is_square = is_square and len({*backbone.patch_size[-2:]}) == 1
    pixels = isinstance(front_end, PixelNormalization) and front_end.scale == 255
    is_plain = backbone.layer_scale is None and backbone.use_final_norm
    layouts = "with absolute positions", "relative" not in layout
    if is_clip:
        layouts = 'with position_layout="sequence"', layout == "sequence"
    wanted = {
        "of images or clips": len(dims) in (3, 4),
        "of square inputs and patches": is_square,
        "with PixelNormalization of 255": pixels,
        "without layer scale, and with its last norm": is_plain,
        "with a class token for images, and without for clips": is_clip
        != backbone.use_class_token,
        layouts[0]: layouts[1],
    }
    for expected, is_right in wanted.items():
        check(is_right, "backbone", f"an encoder {expected}", backbone.name)


def _divide_attention(state, is_clip):
    """Splits the weights of queries, keys and values."""
    for name in [x for x in state if ".attn.qkv." in x]:
        query, key, value = np.split(state.pop(name), 3)
        if is_clip and name.endswith("bias"):
            # A key bias changes nothing: it adds the same to all logits of a query.
            stem = name.removesuffix("qkv.bias")
            state |= {f"{stem}q_bias": query, f"{stem}v_bias": value}
        else:
            state[name.replace("qkv", "query")] = query
            state[name.replace("qkv", "key")] = key
            state[name.replace("qkv", "value")] = value


def _settings(backbone, is_clip):
    """Returns the configs of the model and of its image processor."""
    *frames, rows, columns, channels = backbone.input_dims
    config = {
        "model_type": "vit_mae",
        "architectures": ["ViTMAEModel"],
        "image_size": rows,
        "patch_size": backbone.patch_size[-1],
        "num_channels": channels,
        "hidden_size": backbone.hidden_dim,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "intermediate_size": backbone.mlp_dim,
        "layer_norm_eps": backbone.layer_norm_epsilon,
    }
    if is_clip:
        config |= {
            "model_type": "videomae",
            "architectures": ["VideoMAEModel"],
            "use_mean_pooling": False,
            "num_frames": frames[0],
            "tubelet_size": backbone.patch_size[0],
        }
    front_end = backbone.front_end
    processor = "VideoMAEImageProcessor" if is_clip else "ViTImageProcessor"
    return config, {
        "image_processor_type": processor,
        "rescale_factor": 1 / 255,
        "image_mean": np.broadcast_to(front_end.mean, channels).tolist(),
        "image_std": np.broadcast_to(front_end.std, channels).tolist(),
        "size": {"height": rows, "width": columns},
    }
