"""Shifted-window blocks against the published ones."""

import keras
import numpy as np
import pytest
from golden_files import golden_files, load
from harness import gradients, relative_error, run
from keras import ops
from published_models import check_gradients

from keras_bridle.conversion.published_weights import published_block_weights
from keras_bridle.layers.transformer import (
    WindowTransformerBlock,
    _log_offsets,
    _region_mask,
)

FILES = golden_files("swin_block*.npz")
VALUE, GRADIENT = 2e-5, 2e-5


def block_of(config, arrays):
    block = WindowTransformerBlock(
        num_heads=config["heads"],
        mlp_dim=arrays["w.mlp.model.0.weight"].shape[0],
        window_size=config["window"],
        shift=config["shift"],
        layer_norm_epsilon=config["layer_norm_eps"],
        bias_dim=arrays["w.attn.meta_mlp.model.0.weight"].shape[0],
    )
    block.build((None, None, config["dim"]))
    weights = published_block_weights(block)
    assert {f"w.{name}" for name in weights} == {n for n in arrays if n[:2] == "w."}
    for name, weight in weights.items():
        weight.variable.assign(weight.from_published(arrays[f"w.{name}"]))
    return block, weights


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_block(path):
    config, arrays = load(path)
    block, weights = block_of(config, arrays)
    grid = tuple(config["input_size"])
    window, shift = block.effective_window(grid)
    assert list(window) == config["effective_window"]
    assert list(shift) == config["effective_shift"]

    y = run(lambda: block(arrays["in.x"], grid=grid), block)
    np.testing.assert_allclose(y, arrays["out.y"], VALUE, VALUE)
    bias = run(lambda: block.relative_bias(window), block)
    np.testing.assert_allclose(bias, arrays["out.relative_bias"], VALUE, VALUE)
    coordinates = arrays["out.relative_coordinates_log"]
    np.testing.assert_allclose(_log_offsets(window), coordinates, VALUE, VALUE)
    if "out.attn_mask" in arrays:
        mask = _region_mask(grid, window, shift)
        np.testing.assert_array_equal(mask, arrays["out.attn_mask"])
    else:
        assert not any(shift)

    x = keras.Variable(arrays["in.x"])
    names = [name.removeprefix("grad.") for name in arrays if name.startswith("grad.")]
    _, found = gradients(
        lambda: ops.sum(
            ops.multiply(block(x.value, grid=grid), arrays["out.cotangent"])
        ),
        [x, *(weights[name].variable for name in names)],
    )
    assert relative_error(found[0], arrays["out.dx"]) <= GRADIENT
    check_gradients(
        weights,
        dict(zip(names, found[1:], strict=True)),
        {name: arrays[f"grad.{name}"] for name in names},
    )
