"""Converts weights of the published video code to the layout of the others."""

import re
from typing import Any

import numpy as np

# Prefixes of names in the video code, and in the code for audio and images.
_NAMES = (
    (r"^(encoder_decoder|tokenizer)\.encoder\.", r"\1."),
    (r"^encoder_decoder\.encoder_to_decoder\.", "encoder_decoder.decoder_embed."),
    (r"^encoder_decoder\.decoder\.(blocks|norm)\.", r"encoder_decoder.decoder_\1."),
    (r"^encoder_decoder\.decoder\.head\.", "encoder_decoder.decoder_pred."),
    (r"^tokenizer\.encoder_to_decoder\.", "tokenizer.estimator_embed."),
    (r"^tokenizer\.decoder\.(blocks|norm)\.", r"tokenizer.estimator_\1."),
    (r"^tokenizer\.decoder\.head\.", "tokenizer.estimator_pred."),
    (r"\.attn\.([qv])_bias$", r".attn.\1.bias"),
)
# The layer whose output each layer scale multiplies.
_SCALED = {"gamma_1": "attn.proj", "gamma_2": "mlp.fc2"}


def from_published_video(state):
    """Converts a published video state dict to the names of the audio and image code.

    `load_published()` reads the result. Missing biases (of keys, and between encoder
    and decoder) are zeros. Layer scales are folded into the weights of the layers
    before them.

    Args:
        state: dict of NumPy arrays by name, a published state dict of whole models
            (names start with `"encoder_decoder."` and `"tokenizer."`) or of a
            classifier.

    Returns:
        A new dict of arrays by name.

    Example:
    ```python
    import numpy as np
    from keras_bridle.conversion.published_video import from_published_video

    state = {
        "encoder_decoder.encoder.blocks.0.attn.qkv.weight": np.ones((12, 4)),
        "encoder_decoder.encoder.blocks.0.attn.q_bias": np.ones(4),
        "encoder_decoder.encoder.blocks.0.attn.v_bias": np.ones(4),
    }
    print(list(from_published_video(state)))  # of encoder_decoder.blocks.0.attn.qkv
    ```
    """
    state = renamed(state, _NAMES)
    for name in [name for name in state if name.endswith(".attn.qkv.weight")]:
        join_qkv(state, name.removesuffix("qkv.weight"))
    for name in [name for name in state if name.endswith("_embed.weight")]:
        none = np.zeros(len(state[name]), "float32")
        state.setdefault(name.replace("weight", "bias"), none)
    for name in [name for name in state if re.search(r"\.gamma_[12]$", name)]:
        scale = state.pop(name)
        block, _, which = name.rpartition(".")
        stem = f"{block}.{_SCALED[which]}"
        state[f"{stem}.weight"] = state[f"{stem}.weight"] * scale[:, None]
        state[f"{stem}.bias"] = state[f"{stem}.bias"] * scale
    return state


def renamed(state, patterns):
    """Applies pairs of patterns and replacements to the names of a state dict.

    If two names become equal, the first in the alphabet stays.
    """
    found: dict[str, Any] = {}
    for name, array in sorted(state.items()):
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        found.setdefault(name, array)
    return found


def join_qkv(state, stem, end=""):
    """Merges the weights of queries, keys and values under `qkv`.

    Missing biases are zeros: a key's bias has no effect.
    """
    parts, joined = [f"{stem}{part}{end}" for part in "qkv"], f"{stem}qkv"
    if state.keys() >= {f"{part}.weight" for part in parts}:
        arrays = [state.pop(f"{part}.weight") for part in parts]
        state[f"{joined}.weight"] = np.concatenate(arrays)
    if f"{joined}.weight" in state:
        none = np.zeros(len(state[f"{joined}.weight"]) // 3, "float32")
        biases = [state.pop(f"{part}.bias", none) for part in parts]
        state.setdefault(f"{joined}.bias", np.concatenate(biases))
