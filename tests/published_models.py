"""Builds our networks from the configuration and weights of a golden file."""

import re

import numpy as np
from harness import relative_error

from keras_bridle.conversion import (
    load_published_backbone,
    load_published_decoder,
)
from keras_bridle.layers import RandomMask, TimeFrequencyMask
from keras_bridle.models import BridleBackbone, CodeDecoder

# The settings of the published shifted windows, which no config names.
WINDOWS = {"attention": "window", "window_size": (4, 4), "window_shift": (2, 0)}
GRADIENT = 2e-5


def weights_of(arrays):
    """The published state dict in a file."""
    return {name[2:]: array for name, array in arrays.items() if name[:2] == "w."}


def channels_last(x):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def layout_of(config):
    return "transposed_grid" if config["audio_exp"] else "grid"


def depth_of(state, stem):
    """How many blocks a published network has."""
    pattern = re.compile(re.escape(stem) + r"\.(\d+)\.")
    return 1 + max(int(match.group(1)) for match in map(pattern.match, state) if match)


def backbone_of(config, state, prefix, input_dims, epsilon):
    dim = config["embed_dim"]
    backbone = BridleBackbone(
        patch_size=config["patch_size"],
        hidden_dim=dim,
        num_layers=config["depth"],
        num_heads=config["num_heads"],
        mlp_dim=int(config["mlp_ratio"] * dim),
        input_dims=input_dims,
        position_layout=layout_of(config),
        layer_norm_epsilon=epsilon,
    )
    load_published_backbone(backbone, state, prefix)
    return backbone


def block_settings(config, state, stem, dim, heads, depth, epsilon):
    """The arguments that decoder and estimator share."""
    settings = {
        "hidden_dim": dim,
        "position_layout": layout_of(config),
        "layer_norm_epsilon": epsilon,
    }
    if f"{stem}.0.attn.tau" in state:
        return settings | {
            **WINDOWS,
            "num_layers": depth_of(state, stem),
            "num_heads": state[f"{stem}.0.attn.tau"].size,
            "mlp_dim": state[f"{stem}.0.mlp.model.0.weight"].shape[0],
        }
    return settings | {
        "num_layers": depth,
        "num_heads": heads,
        "mlp_dim": int(config["mlp_ratio"] * dim),
    }


def decoder_of(config, state, prefix, num_levels, codebook_size, epsilon, **kwargs):
    decoder = CodeDecoder(
        num_levels,
        codebook_size,
        **block_settings(
            config,
            state,
            f"{prefix}decoder_blocks",
            config["decoder_embed_dim"],
            config.get("decoder_num_heads"),
            config.get("decoder_depth"),
            epsilon,
        ),
        **kwargs,
    )
    decoder.build((None, None, config["embed_dim"]))
    load_published_decoder(decoder, state, prefix)
    return decoder


def ratio_that_keeps(published_ratio, length):
    """The ratio with which our masks keep as many as published.

    The published count is truncated in floating point: 1 of 10 at 0.8, where ours is 2.
    """
    kept = int(length * (1 - published_ratio))
    return 1.0 - kept / length


def mask_of(config, arrays, grid):
    """A mask layer with the counts of a file, and the noise to call it with."""
    if config.get("mask_2d"):
        mask = TimeFrequencyMask(
            ratio_that_keeps(config["mask_t_prob"], grid[0]),
            ratio_that_keeps(config["mask_f_prob"], grid[1]),
        )
        return mask, (arrays["in.noise_t"], arrays["in.noise_f"])
    length = grid[0] * grid[1]
    mask = RandomMask(ratio_that_keeps(config["mask_ratio"], length))
    return mask, arrays["in.noise"]


def hidden_of(patch_mask, length):
    """A mask as published: 1 at hidden patches."""
    hidden = np.zeros((len(patch_mask.masked), length), "float32")
    np.put_along_axis(hidden, patch_mask.masked, 1.0, axis=1)
    return hidden


def check_gradients(weights, found, expected):
    """Compares gradients with published ones.

    Args:
        weights: dict of `PublishedWeight` by published name.
        found: dict of our gradients by published name.
        expected: dict of the published gradients by name.
    """
    largest = max(np.linalg.norm(array) for array in expected.values())
    for name, right in expected.items():
        gradient = weights[name].to_published(found[name]).reshape(right.shape)
        if name.endswith("meta_mlp.model.3.bias"):
            # Zero in theory, as softmax does not see what all logits share.
            assert np.linalg.norm(gradient - right) <= GRADIENT * largest, name
            continue
        if name.endswith("attn.qkv.bias") and name.replace("qkv.bias", "tau") not in (
            weights
        ):
            # The key's part is zero in theory, for the same reason.
            key = slice(len(right) // 3, 2 * len(right) // 3)
            assert np.linalg.norm((gradient - right)[key]) <= GRADIENT * largest, name
            gradient, right = np.delete(gradient, key), np.delete(right, key)
        error = relative_error(gradient, right)
        assert error <= GRADIENT, (name, error)
