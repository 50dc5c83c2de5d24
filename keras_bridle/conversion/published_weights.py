"""Copies the weights of the published PyTorch code into ours."""

import math
from functools import reduce
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bridle.conversion.published_quantizer import load_published_quantizer
from keras_bridle.layers.base import check
from keras_bridle.layers.beats import GatedTransformerBlock
from keras_bridle.layers.patches import PatchEmbedding
from keras_bridle.layers.positions import LAYOUTS, RelativePositionBias
from keras_bridle.layers.transformer import TransformerBlock, WindowTransformerBlock
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.beats_backbone import BeatsBackbone
from keras_bridle.models.classifier import BridleClassifier
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer

# Smaller differences between positions are rounding.
_SAME_POSITION = 1e-4

_BLOCK = {
    "norm1": "attention_norm",
    "attn.qkv": "qkv",
    "attn.proj": "attention_output",
    "norm2": "mlp_norm",
}


def _head(name):
    """Returns the names of a head's parts, with its prefix."""
    parts = {"embed": "embedding", "blocks": "blocks", "norm": "norm", "pred": "head"}
    return {f"{name}_{theirs}": ours for theirs, ours in parts.items()}


# How the published code names the parts of each network: its name, our attribute.
_NAMES: dict[type, dict[str, str]] = {
    BridleBackbone: {
        "patch_embed.proj": "patch_embedding",
        "blocks": "blocks",
        "norm": "norm",
        "cls_token": "class_token.class_token",
        "pos_embed": "position_encoding.positions",
        "rel_pos_bias": "position_biases",
    },
    BeatsBackbone: {
        "patch_embedding": "patch_embedding",
        "layer_norm": "patch_norm",
        "post_extract_proj": "patch_projection",
        "pos_conv": "position_encoding.convolution",
        "encoder.layer_norm": "position_norm",
        "bias": "position_bias.positions",
        "blocks": "blocks",
    },
    BridleClassifier: {"": "backbone", "fc_norm": "fc_norm", "head": "head"},
    CodeDecoder: {"mask_token": "mask_token"} | _head("decoder"),
    FeatureEstimator: _head("estimator"),
    BridleTokenizer: {
        "": "backbone",
        "quantize_layer.0": "hidden",
        "quantize_layer.2": "projection",
    },
    RandomProjectionTokenizer: {
        "patch_embed.proj": "patch_embedding",
        "cold_start_encoder": "projection",
    },
    # Subclasses come before their base.
    GatedTransformerBlock: {
        "self_attn.qkv": "qkv",
        "self_attn.out_proj": "attention_output",
        "self_attn.grep_linear": "gate",
        "self_attn.grep_a": "gate_scale",
        "self_attn_layer_norm": "attention_norm",
        "fc1": "mlp_hidden",
        "fc2": "mlp_output",
        "final_layer_norm": "mlp_norm",
    },
    TransformerBlock: _BLOCK
    | {
        "mlp.fc1": "mlp_hidden",
        "mlp.fc2": "mlp_output",
        "gamma_1": "attention_scale",
        "gamma_2": "mlp_scale",
    },
    WindowTransformerBlock: _BLOCK
    | {
        "attn.tau": "temperature",
        "attn.meta_mlp.model.0": "bias_hidden",
        "attn.meta_mlp.model.3": "bias_output",
        "mlp.model.0": "mlp_hidden",
        "mlp.model.2": "mlp_output",
    },
    RelativePositionBias: {"relative_position_bias_table": "positions"},
    keras.layers.Dense: {"weight": "kernel", "bias": "bias"},
    keras.layers.Conv1D: {"weight": "kernel", "bias": "bias"},
    keras.layers.LayerNormalization: {"weight": "gamma", "bias": "beta"},
}


class PublishedWeight(NamedTuple):
    """One of our weights, and its layout in the published code.

    Attributes:
        variable: `keras.Variable`.
        axes: tuple of ints, the axes of the published array in the order of ours. An
            array of one axis may be published with further ones of length 1.
        shape: optional tuple of ints, the shape of the published array in that order,
            if ours joins some of its axes.
    """

    variable: Any
    axes: tuple[int, ...]
    shape: tuple[int, ...] | None = None

    def from_published(self, array):
        """Converts a published array to our shape; a wrong one keeps its shape."""
        if len(self.axes) == 1:
            return array.reshape(-1)
        if array.ndim != len(self.axes):
            return array
        array = array.transpose(self.axes)
        is_joined = array.shape == self.shape
        return array.reshape(self.variable.shape) if is_joined else array

    def to_published(self, array):
        """Converts an array, such as a gradient, to the published layout."""
        array = array.reshape(self.shape or array.shape)
        return array.transpose(np.argsort(self.axes))


def published_weights(part):
    """Lists the weights of a built network or block under their published names.

    Codebooks are not among them: `load_published_quantizer` reads those.
    """
    kinds: Any = tuple(_NAMES)
    check(isinstance(part, kinds) and part.built, "part", "a built network", part)
    return _weights_of(part, "")


published_block_weights = published_weights


def _weights_of(part, name):
    """Returns the weights of a network, layer or list of layers, by published name."""
    if part is None:
        return {}
    if isinstance(part, list):
        tables = [_weights_of(x, f"{name}.{index}") for index, x in enumerate(part)]
        return reduce(dict.__or__, tables, {})
    if isinstance(part, keras.Variable):
        axes = (*range(len(part.shape)),)
        is_kernel = part.name == "kernel"
        return {name: PublishedWeight(part, axes[::-1] if is_kernel else axes)}
    if isinstance(part, PatchEmbedding):
        # The published layer is a convolution: move channels to the end of a patch.
        bias = _weights_of(part.projection.bias, f"{name}.bias")
        kernel, patch = part.projection.kernel, part.patch_size
        axes = (*range(2, 2 + len(patch)), 1, 0)
        shape = (*patch, kernel.shape[0] // math.prod(patch), kernel.shape[1])
        return bias | {f"{name}.weight": PublishedWeight(kernel, axes, shape)}
    table = next(v for kind, v in _NAMES.items() if isinstance(part, kind))
    weights: dict[str, Any] = {}
    for theirs, ours in table.items():
        inner = reduce(lambda x, key: getattr(x, key, None), ours.split("."), part)
        weights |= _weights_of(inner, f"{name}.{theirs}".strip("."))
    if getattr(part, "fc_norm", None) is not None:
        # Published classifiers lack the encoder's norm, which they do not use.
        weights = {k: v for k, v in weights.items() if not k.startswith("norm.")}
    return weights


def load_published(part, state, prefix=""):
    """Copies the weights of a published network into one of ours.

    Windows of a decoder that were not shifted (`no_shift`) need `window_shift=(0, 0)`.
    Fixed positions are not read: the published audio encoders were trained with
    `position_layout="transposed_grid"`. Other positions need `"learned"`. Convert state
    dicts of the video code with `from_published_video()`; some of its classifiers have
    `pooling="first"`. A `RandomProjectionTokenizer` needs a `position_layout`.

    Args:
        part: built network of the same sizes, any of ours.
        state: dict of NumPy arrays by name, a published state dict.
        prefix: string in front of the names, such as `"encoder_decoder."` or, for the
            tokenizer, `"tokenizer."`.

    Returns:
        Set of the names that were read.

    Raises:
        ValueError: if a name is missing, a shape does not fit, or a classifier has
            other positions than the published one. The network is unchanged then.

    Example:
    ```python
    import numpy as np
    from keras_bridle.conversion.published_weights import (
        load_published, published_weights,
    )
    from keras_bridle.models.backbone import BridleBackbone

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    state = {
        name: np.array(weight.to_published(np.ones(weight.variable.shape)))
        for name, weight in published_weights(backbone).items()
    }
    print(len(load_published(backbone, state)))  # 17
    ```
    """
    weights = {f"{prefix}{name}": x for name, x in published_weights(part).items()}
    missing = sorted(weights.keys() - state.keys())
    if missing:
        raise ValueError(
            f"`state` lacks {len(missing)} weights of {part.name!r}: {missing[:8]}. "
            f"Received: prefix={prefix!r} and a state with {sorted(state)[:8]}..."
        )
    _check_depth(part, state, weights)
    if isinstance(part, BridleClassifier):
        _check_positions(part.backbone, state, prefix)
    token, positions = f"{prefix}cls_token", f"{prefix}pos_embed"
    if positions in weights and token in state:
        # The first row is the class token's position: add it to the token.
        rows = np.asarray(state[positions])
        added = np.asarray(state[token]) + rows[:, :1]
        state = {**state, token: added, positions: rows[:, 1:]}
    arrays = {}
    for name, weight in weights.items():
        arrays[name] = weight.from_published(np.asarray(state[name]))
        if arrays[name].shape != tuple(weight.variable.shape):
            raise ValueError(
                f"{name!r} in `state` does not fit {weight.variable.path!r} of shape "
                f"{tuple(weight.variable.shape)}. "
                f"Received: shape {np.shape(state[name])}"
            )
    for name, weight in weights.items():
        weight.variable.assign(arrays[name])
    names = set(weights)
    if isinstance(part, BridleTokenizer | RandomProjectionTokenizer):
        prefix = f"{prefix}quantizer."
        load_published_quantizer(part.quantizer, state, prefix)
        names |= {name for name in state if name.startswith(prefix)}
    return names


load_published_backbone = load_published
load_published_classifier = load_published
load_published_decoder = load_published
load_published_estimator = load_published
load_published_random_projection = load_published
load_published_tokenizer = load_published


def _check_positions(backbone, state, prefix):
    """Raises an error for other positions than the network was trained with."""
    grid = backbone.grid_of_inputs()
    is_fixed = backbone.position_layout in LAYOUTS
    if f"{prefix}pos_embed" not in state or not is_fixed or None in grid[1:]:
        return
    table = np.asarray(state[f"{prefix}pos_embed"])
    table = table.reshape(-1, table.shape[-1])[int(backbone.use_class_token) :]
    # Audio encoders take any number of rows.
    rows = grid[0] or len(table) // math.prod(grid[1:])
    ours = backbone.position_encoding.table((rows, *grid[1:]), table.shape[1])
    ours = keras.ops.convert_to_numpy(ours)
    if ours.shape != table.shape or np.abs(ours - table).max() > _SAME_POSITION:
        raise ValueError(
            f"The positions in `state` are not those of {backbone.name!r}: they have "
            "another layout or grid, or were learned, and then need "
            '`position_layout="learned"`. '
            f"Received: position_layout={backbone.position_layout!r}, "
            f"{len(table)} positions"
        )


def _check_depth(part, state, weights):
    """Raises an error if the published network has more blocks."""
    starts = {name.partition("blocks.")[0] for name in weights if "blocks." in name}
    # These buffers of windows follow from their size and shift.
    tables = ("relative_coordinates_log", "attention_mask", "attn_mask")
    further = [
        name
        for name in state.keys() - weights
        if name.startswith(tuple(f"{start}blocks." for start in starts))
        and not name.endswith(tables)
    ]
    if further:
        raise ValueError(
            f"`state` has weights of blocks that {part.name!r} lacks: {further[:4]}"
        )
