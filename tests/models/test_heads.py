"""Tests of `CodeDecoder` and `FeatureEstimator`."""

import numpy as np
import pytest
from harness import perturb, run, to_numpy

from keras_bridle.layers.masks import PatchMask
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator

LEVELS, CODES, GRID = 2, 5, (4, 2)
MASK = PatchMask(
    np.int32([[3, 0, 6], [1, 7, 4]]), np.int32([[1, 2, 4, 5, 7], [0, 2, 3, 5, 6]])
)
WINDOWS = {"attention": "window", "window_size": (2, 2)}


def decoder(**settings):
    settings = {"hidden_dim": 16, "num_layers": 2, **settings}
    made = CodeDecoder(LEVELS, CODES, num_heads=2, mlp_dim=32, **settings)
    made.build((None, None, 12))
    perturb(made.weights)
    return made


def estimator(**settings):
    made = FeatureEstimator(10, 16, 2, 2, 32, **settings)
    made.build((None, None, 6))
    perturb(made.weights)
    return made


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def logits(decoder, x, mask=MASK, grid=GRID, padding_mask=None):
    return run(lambda: decoder(x, mask, grid=grid, padding_mask=padding_mask), decoder)


def features(estimator, x, grid=GRID, padding_mask=None):
    return run(lambda: estimator(x, grid=grid, padding_mask=padding_mask), estimator)


@pytest.mark.parametrize("settings", [{}, {**WINDOWS, "window_shift": (0, 0)}])
def test_padded_map_has_the_outputs_it_has_alone(settings):
    made, x = decoder(**settings), random(1, 4, 12)
    mask = PatchMask(np.int32([[0, 3, 6]]), np.int32([[1, 2, 4, 5, 7]]))
    real = np.arange(8)[None] < 4
    padded = logits(made, x, mask, GRID, real)[:, :2]
    short = PatchMask(np.int32([[0, 3]]), np.int32([[1, 2]]))
    alone = logits(made, x[:, :3], short, (2, 2))
    np.testing.assert_allclose(padded, alone, 1e-5, 1e-5)
    made, x = estimator(**settings), random(1, 8, 6)
    padded = features(made, x, GRID, real)[:, :4]
    alone = features(made, x[:, :4], (2, 2))
    np.testing.assert_allclose(padded, alone, 1e-5, 1e-5)


def test_copy_of_the_body_and_the_last_levels():
    made, other, x = decoder(), decoder(), random(2, 4, 12)
    perturb(other.weights, seed=5)
    before, expected = logits(made, x), logits(other, x)
    kept = to_numpy(made.head.kernel)
    made.copy_body(other)
    np.testing.assert_array_equal(to_numpy(made.head.kernel), kept)
    made.copy_last_levels(other, LEVELS - 1)
    found = logits(made, x)
    np.testing.assert_allclose(found[:, :, 1:], expected[:, :, 1:], 1e-6)
    assert (found[:, :, 0] != expected[:, :, 0]).any()
    assert (found != before).any()
    with pytest.raises(ValueError):
        made.copy_body(decoder(num_layers=1))
