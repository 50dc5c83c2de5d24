import numpy as np
import pytest
from harness import perturb, to_numpy

from keras_bridle.layers.positions import LearnedPositionEncoding


def made(grid, dim=8):
    layer = LearnedPositionEncoding(grid)
    layer.build((None, *grid, dim))
    perturb(layer.weights)
    return layer, to_numpy(layer.positions).reshape(*grid, dim)


@pytest.mark.parametrize("grid", [(3, 4), (2, 4), (3, 1)])
def test_smaller_grids_have_the_first_positions(grid):
    layer, positions = made((3, 4))
    patches = np.random.default_rng(0).normal(size=(2, *grid, 8)).astype("float32")
    expected = patches + positions[: grid[0], : grid[1]]
    np.testing.assert_allclose(to_numpy(layer(patches)), expected, 1e-6, 1e-6)


def test_some_patches():
    layer, positions = made((3, 4))
    visible = np.array([[5, 0, 2], [1, 3, 4]], "int32")
    patches = np.zeros((2, 3, 8), "float32")
    found = to_numpy(layer(patches, grid=(2, 3), visible=visible))
    expected = positions[:2, :3].reshape(6, 8)[visible]
    np.testing.assert_allclose(found, expected, 1e-6, 1e-6)


def test_clips():
    layer, positions = made((2, 3, 4))
    patches = np.zeros((1, 1, 3, 2, 8), "float32")
    expected = positions[None, :1, :, :2]
    np.testing.assert_allclose(to_numpy(layer(patches)), expected, 1e-6, 1e-6)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (3, 4, 1)])
def test_grids_without_positions(grid):
    layer, _ = made((3, 4))
    with pytest.raises(ValueError, match=r"positions for a grid of \(3, 4\)"):
        layer(np.zeros((1, *grid, 8), "float32"))
