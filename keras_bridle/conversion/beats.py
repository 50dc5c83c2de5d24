"""Files of BEATs and OpenBEATs: a dictionary of `cfg`, the settings, and `model`."""

import re
from typing import Any

import numpy as np

from keras_bridle.config import ArgumentError
from keras_bridle.layers.log_mel import LogMelSpectrogram

_BIAS = "self_attn.relative_attention_bias.weight"
_LENGTH, _DIRECTION = "weight_g", "weight_v"
# What newer versions of PyTorch call them.
_NEWER = {
    "parametrizations.weight.original0": _LENGTH,
    "parametrizations.weight.original1": _DIRECTION,
}
# Of all published encoders, in files without settings.
_PUBLISHED = {"deep_norm": True, "max_distance": 800}


def is_beats(state):
    """Whether weights are those of BEATs, by their names."""
    return any("pos_conv." in name for name in state) and any(
        name.endswith("patch_embedding.weight") for name in state
    )


def beats_weights(path, state):
    """Renames weights as `load_published()` wants them, and joins some.

    Those of queries, keys and values; the direction and the length of a convolution's
    weights; what is summed up before a gate; and the biases that all blocks share.
    """
    first = min((x for x in state if x.endswith("patch_embedding.weight")), key=len)
    prefix = first.removesuffix("patch_embedding.weight")
    found: dict[str, Any] = {}
    layers: dict[int, dict[str, Any]] = {}
    for name, array in state.items():
        if not name.startswith(prefix):
            # ESPnet has heads beside the encoder.
            found[f"head.{name}"] = array
            continue
        name = name.removeprefix(prefix).replace("encoder.pos_conv.0.", "pos_conv.")
        for newer, older in _NEWER.items():
            name = name.replace(newer, older)
        inner = re.match(r"encoder\.layers\.(\d+)\.(.+)$", name)
        if inner is not None:
            layers.setdefault(int(inner[1]), {})[inner[2]] = array
        elif "_pad." not in name:  # ones, which count what is padding
            found[name] = array
    found.setdefault("patch_embedding.bias", np.zeros(len(state[first]), "float32"))
    if {f"pos_conv.{_LENGTH}", f"pos_conv.{_DIRECTION}"} <= found.keys():
        kernel = found.pop(f"pos_conv.{_DIRECTION}")
        norm = np.linalg.norm(kernel, axis=(0, 1), keepdims=True)
        # Where only shapes are read, all of it is zero.
        norm = np.maximum(norm, np.finfo("float32").tiny)
        found["pos_conv.weight"] = kernel / norm * found.pop(f"pos_conv.{_LENGTH}")
    for index, layer in sorted(layers.items()):
        bias = layer.pop(_BIAS, None)
        if bias is not None and (found.setdefault("bias", bias) != bias).any():
            raise ValueError(f"'{path}' has position biases that blocks do not share")
        _join(layer)
        found |= {f"blocks.{index}.{name}": array for name, array in layer.items()}
    return found


def _join(layer):
    """Joins weights of a block."""
    parts = [f"self_attn.{part}_proj" for part in "qkv"]
    if all(f"{part}.weight" in layer for part in parts):
        # A key's bias changes nothing, so it may be missing.
        none = np.zeros(len(layer[f"{parts[0]}.weight"]), "float32")
        for kind, default in (("weight", None), ("bias", none)):
            arrays = [layer.pop(f"{part}.{kind}", default) for part in parts]
            layer[f"self_attn.qkv.{kind}"] = np.concatenate(arrays)
    for kind in ("weight", "bias"):
        name = f"self_attn.grep_linear.{kind}"
        if name in layer:
            layer[name] = layer[name].reshape(2, 4, *layer[name].shape[1:]).sum(axis=1)
    if "self_attn.grep_a" in layer:
        layer["self_attn.grep_a"] = layer["self_attn.grep_a"].reshape(-1)


def beats_arguments(path, settings, state):
    """The arguments of a `BeatsBackbone`, from settings and `beats_weights()`."""
    needed = {
        "patch_embedding.weight",
        "encoder.layer_norm.weight",
        "pos_conv.weight",
        "bias",
        "blocks.0.fc1.bias",
    }
    if needed - state.keys():
        absent = sorted(needed - state.keys())
        raise ValueError(f"'{path}' holds no whole encoder of BEATs: it lacks {absent}")
    expected = {"layer_norm_first": False, "activation_fn": "gelu"}
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise ArgumentError(f"cfg[{name!r}]", f"{value!r}", settings[name])
    embedding_dim, _, *patch = state["patch_embedding.weight"].shape
    hidden_dim, group, kernel_size = state["pos_conv.weight"].shape
    num_buckets, num_heads = state["bias"].shape
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if not settings:
        print(f"{path.name} has no `cfg`: taken for granted is {_PUBLISHED}")
    chosen = {"deep_norm": False, "max_distance": 1280} if settings else _PUBLISHED
    chosen = {name: settings.get(name, value) for name, value in chosen.items()}
    return chosen | {
        "patch_size": tuple(patch),
        "hidden_dim": hidden_dim,
        "num_layers": len(blocks),
        "num_heads": num_heads,
        "mlp_dim": len(state["blocks.0.fc1.bias"]),
        "input_dims": (None,),
        "embedding_dim": embedding_dim,
        "kernel_size": kernel_size,
        "groups": hidden_dim // group,
        "num_buckets": num_buckets,
        "front_end": LogMelSpectrogram(
            mean=settings.get("fbank_mean", 15.41663),
            std=settings.get("fbank_std", 6.55582),
            window="povey",
            scale=2.0**15,
            multiple_of=patch[0],
            name="log_mel",
        ),
    }
