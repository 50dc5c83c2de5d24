"""Names and arithmetic of the published video code, brought to those of the others."""

import re

import numpy as np

# How names start in the video code, and in that of audio and images.
_RENAMED = {
    "encoder_decoder.encoder.": "encoder_decoder.",
    "encoder_decoder.encoder_to_decoder.": "encoder_decoder.decoder_embed.",
    "encoder_decoder.decoder.blocks.": "encoder_decoder.decoder_blocks.",
    "encoder_decoder.decoder.norm.": "encoder_decoder.decoder_norm.",
    "encoder_decoder.decoder.head.": "encoder_decoder.decoder_pred.",
    "tokenizer.encoder.": "tokenizer.",
    "tokenizer.encoder_to_decoder.": "tokenizer.estimator_embed.",
    "tokenizer.decoder.blocks.": "tokenizer.estimator_blocks.",
    "tokenizer.decoder.norm.": "tokenizer.estimator_norm.",
    "tokenizer.decoder.head.": "tokenizer.estimator_pred.",
}
# The layer whose output a block's scales multiply.
_SCALED = {"gamma_1": "attn.proj", "gamma_2": "mlp.fc2"}


def from_published_video(state):
    """Brings a published video state dict to the names of the audio and image code.

    The result is what `load_published()` reads. Biases that the video networks lack are
    zero: that of the keys, on which attention does not depend, and that of the map from
    encoder to decoder. A block's scales of channels are multiplied into the layer
    before them.

    Args:
        state: dict of NumPy arrays by name, a published state dict of whole models
            (names start with `"encoder_decoder."` and `"tokenizer."`) or of a
            classifier.

    Returns:
        A new dict of NumPy arrays by name.

    Example:
    ```python
    import numpy as np
    from keras_bridle.conversion.published_video import from_published_video

    state = {
        "encoder_decoder.encoder.blocks.0.attn.q_bias": np.ones(4),
        "encoder_decoder.encoder.blocks.0.attn.v_bias": np.ones(4),
    }
    print(from_published_video(state))  # encoder_decoder.blocks.0.attn.qkv.bias
    ```
    """
    state = {_renamed(name): np.asarray(array) for name, array in state.items()}
    for name in [name for name in state if name.endswith(".attn.q_bias")]:
        query = state.pop(name)
        value = state.pop(name.replace("q_bias", "v_bias"))
        bias = np.concatenate([query, np.zeros_like(query), value])
        state[name.replace("q_bias", "qkv.bias")] = bias
    without_bias = ("_embed.weight", ".attn.qkv.weight")
    for name in [name for name in state if name.endswith(without_bias)]:
        bias = np.zeros(len(state[name]), state[name].dtype)
        state.setdefault(name.replace("weight", "bias"), bias)
    for name in [name for name in state if re.search(r"\.gamma_[12]$", name)]:
        scale = state.pop(name)
        block, _, which = name.rpartition(".")
        stem = f"{block}.{_SCALED[which]}"
        state[f"{stem}.weight"] = state[f"{stem}.weight"] * scale[:, None]
        state[f"{stem}.bias"] = state[f"{stem}.bias"] * scale
    return state


def _renamed(name):
    for start, ours in _RENAMED.items():
        if name.startswith(start):
            return ours + name.removeprefix(start)
    return name
