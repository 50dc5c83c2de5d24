"""Files of BEATs and OpenBEATs: a dictionary of `cfg`, the settings, and `model`."""

import numpy as np

from keras_bridle.config import ArgumentError
from keras_bridle.conversion.published_video import join_qkv, renamed
from keras_bridle.layers.log_mel import LogMelSpectrogram

_NAMES = (
    (r"^encoder\.pos_conv\.0\.", "pos_conv."),
    (r"^encoder\.layers\.", "blocks."),
    # Newer versions of PyTorch name weight normalization's parts like this.
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
)
# The settings of all published encoders, for files that have none.
_PUBLISHED = {"deep_norm": True, "max_distance": 800}


def is_beats(state):
    """Returns whether weights have the names of BEATs."""
    return any("pos_conv." in name for name in state) and any(
        name.endswith("patch_embedding.weight") for name in state
    )


def beats_weights(path, state):
    """Renames weights for `load_published()`, and merges some.

    It merges queries, keys and values, direction and length of a convolution's kernel,
    inputs of a gate that are summed, and the biases that blocks share.
    """
    first = min((x for x in state if x.endswith("patch_embedding.weight")), key=len)
    prefix = first.removesuffix("patch_embedding.weight")
    # ESPnet's files also have heads.
    heads = {f"head.{x}": y for x, y in state.items() if not x.startswith(prefix)}
    found = {
        name.removeprefix(prefix): array
        for name, array in state.items()
        # These are constant ones, used to count padding.
        if name.startswith(prefix) and "_pad." not in name
    }
    found = renamed(found, _NAMES)
    found.setdefault("patch_embedding.bias", np.zeros(len(state[first]), "float32"))
    if {"pos_conv.weight_g", "pos_conv.weight_v"} <= found.keys():
        kernel = found.pop("pos_conv.weight_v")
        norm = np.linalg.norm(kernel, axis=(0, 1), keepdims=True)
        # All weights are zero where only shapes were read.
        norm = np.maximum(norm, np.finfo("float32").tiny)
        found["pos_conv.weight"] = kernel / norm * found.pop("pos_conv.weight_g")
    for block in blocks_of(found):
        stem = f"{block}.self_attn."
        join_qkv(found, stem, "_proj")
        for name in (f"{stem}grep_linear.weight", f"{stem}grep_linear.bias"):
            if name in found:
                array = found[name]
                found[name] = array.reshape(2, 4, *array.shape[1:]).sum(axis=1)
        bias = found.pop(f"{stem}relative_attention_bias.weight", None)
        if bias is not None and (found.setdefault("bias", bias) != bias).any():
            raise ValueError(f"'{path}' has position biases that blocks do not share")
    return found | heads


def blocks_of(state):
    """Returns the prefix of the names of each block, sorted."""
    blocks = {".".join(x.split(".")[:2]) for x in state if x.startswith("blocks.")}
    return sorted(blocks)


def beats_arguments(path, settings, state):
    """Returns the arguments of a `BeatsBackbone`, from settings and weights."""
    needed = {
        "patch_embedding.weight",
        "encoder.layer_norm.weight",
        "pos_conv.weight",
        "bias",
        "blocks.0.fc1.bias",
    }
    if needed - state.keys():
        absent = sorted(needed - state.keys())
        raise ValueError(f"'{path}' is not a complete BEATs encoder: it lacks {absent}")
    for name, value in {"layer_norm_first": False, "activation_fn": "gelu"}.items():
        if settings.get(name, value) != value:
            raise ArgumentError(f"cfg[{name!r}]", f"{value!r}", settings[name])
    embedding_dim, _, *patch = state["patch_embedding.weight"].shape
    hidden_dim, group, kernel_size = state["pos_conv.weight"].shape
    num_buckets, num_heads = state["bias"].shape
    if not settings:
        print(f"{path.name} has no `cfg`: assuming {_PUBLISHED}")
    chosen = {"deep_norm": False, "max_distance": 1280} if settings else _PUBLISHED
    return {
        **{name: settings.get(name, value) for name, value in chosen.items()},
        "patch_size": tuple(patch),
        "hidden_dim": hidden_dim,
        "num_layers": len(blocks_of(state)),
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
