"""Builds our networks from the configuration and weights of a golden file."""

import re

import numpy as np
import pytest
from golden_files import load
from harness import gradients, relative_error, to_numpy
from keras import ops

from keras_bridle.conversion.published_weights import load_published, published_weights
from keras_bridle.layers.masks import RandomMask, TimeFrequencyMask
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.heads import CodeDecoder

# The settings of the published shifted windows, which no config names.
WINDOWS = {"attention": "window", "window_size": (4, 4), "window_shift": (2, 0)}
GRADIENT, QUANTIZER, LOSS = 2e-5, 1e-5, 5e-6
ENCODER, TOKENIZER = "encoder_decoder.", "tokenizer."


class GoldenNetworks:
    """A golden file, with our networks made from it once and restored for each test.

    Subclasses make them in methods such as `make_decoder()`.
    """

    def __init__(self, path):
        self.config, self.arrays = load(path)
        self.state = weights_of(self.arrays)
        self.made = {}

    def __getattr__(self, name):
        """A network by its name, made at its first use."""
        make = getattr(type(self), f"make_{name}", None)
        if make is None:
            raise AttributeError(name)
        if name not in self.made:
            part = make(self)
            self.made[name] = part, part.get_weights()
        return self.made[name][0]

    def restore(self):
        """Brings the weights back to those of the file."""
        for part, weights in self.made.values():
            part.trainable = True
            part.set_weights(weights)
        return self


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


def backbone_of(config, state, prefix, input_dims, epsilon, layout=None):
    dim = config["embed_dim"]
    backbone = BridleBackbone(
        patch_size=config["patch_size"],
        hidden_dim=dim,
        num_layers=config["depth"],
        num_heads=config["num_heads"],
        mlp_dim=int(config["mlp_ratio"] * dim),
        input_dims=input_dims,
        position_layout=layout or layout_of(config),
        layer_norm_epsilon=epsilon,
    )
    if prefix is not None:
        load_published(backbone, state, prefix)
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
    load_published(decoder, state, prefix)
    return decoder


def ratio_that_keeps(published_ratio, length):
    """The ratio with which our masks keep as many as published.

    The published count is truncated in floating point: 1 of 10 at 0.8, where ours is 2.
    """
    kept = int(length * (1 - published_ratio))
    return 1.0 - kept / length


def mask_of(config, arrays, grid):
    """A mask layer with the counts of a file, and the noise to call it with."""
    if "in.noise_t" in arrays:
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
    """Compares gradients with published ones, dicts by published name."""
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


def gradients_of(arrays, stem=""):
    """The published gradients of a file, or of a block of it, by name."""
    stem = f"{stem}grad."
    return {
        name.removeprefix(stem): array
        for name, array in arrays.items()
        if name.startswith(stem)
    }


def check_loss_and_gradients(loss, right, weights, expected, state=()):
    """Compares a loss and its gradients with published ones, a dict by name."""
    assert expected
    variables = [weights[name].variable for name in expected]
    value, found = gradients(loss, variables, state)
    assert value == pytest.approx(float(right), rel=LOSS)
    check_gradients(weights, dict(zip(expected, found, strict=True)), expected)


def check_codebooks(arrays, stem, quantizer, absolute=QUANTIZER):
    """Compares codebooks and counts with those of a file, whose names have a stem."""
    if f"{stem}embedding.weight" in arrays:
        codes = [arrays[f"{stem}embedding.weight"]]
        counts = [arrays[f"{stem}cluster_size"]]
    else:
        levels = [f"{stem}codebooks.{i}." for i in range(quantizer.num_levels)]
        codes = [arrays[f"{level}weight"][:-1] for level in levels]
        counts = [arrays[f"{level}cluster_size_ema"] for level in levels]
    for ours, right in ((quantizer.code_vectors, codes), (quantizer.counts, counts)):
        np.testing.assert_allclose(to_numpy(ours), right, QUANTIZER, absolute)


def weights_by_name(trainer):
    """All weights of a trainer under their published names."""
    weights = {}
    for attribute, prefix in (
        ("backbone", ENCODER),
        ("decoder", ENCODER),
        ("tokenizer", TOKENIZER),
        ("estimator", TOKENIZER),
    ):
        part = getattr(trainer, attribute, None)
        if part is not None:
            for name, weight in published_weights(part).items():
                weights[prefix + name] = weight
    return weights


def step_of(trainer, x, weights, names):
    """One training step without an optimizer: loss, gradients by name and outputs."""
    x = ops.convert_to_tensor(x)
    state = [v for v in trainer.variables if not v.trainable]

    def loss():
        outputs = trainer(x, training=True)
        return trainer.compute_loss(x=x, y_pred=outputs), outputs

    variables = [weights[name].variable for name in names]
    (value, outputs), found = gradients(loss, variables, state)
    return value, dict(zip(names, found, strict=True)), outputs
