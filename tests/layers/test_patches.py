import itertools

import numpy as np
import pytest
from harness import to_numpy

from keras_bridle.layers.patches import PatchEmbedding


def reference(x, sides, kernel, bias):
    """Cuts `x` into patches by slicing and multiplies each, in float64."""
    padding = [(0, -n % p) for n, p in zip(x.shape[1:-1], sides, strict=True)]
    x = np.pad(x.astype("float64"), [(0, 0), *padding, (0, 0)])
    grid = [n // p for n, p in zip(x.shape[1:-1], sides, strict=True)]
    out = np.zeros((len(x), *grid, kernel.shape[-1]))
    for cell in itertools.product(*map(range, grid)):
        slices = [slice(i * p, (i + 1) * p) for i, p in zip(cell, sides, strict=True)]
        patch = x[(slice(None), *slices)].reshape(len(x), -1)
        out[(slice(None), *cell)] = patch @ kernel.astype("float64") + bias
    return out


@pytest.mark.parametrize(
    ("patch", "shape"),
    [
        (4, (2, 8, 12, 3)),
        ((2, 6), (2, 8, 12, 1)),
        ((4, 5), (2, 7, 12, 2)),  # padded at the end of both sides
        ((2, 4, 4), (2, 5, 8, 4, 3)),
    ],
)
def test_patches_are_what_slices_give(patch, shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype("float32")
    layer = PatchEmbedding(6, patch)
    layer(x)
    layer.projection.bias.assign(rng.normal(size=6).astype("float32"))
    out = to_numpy(layer(x))
    expected = reference(x, layer.patch_size, *map(to_numpy, layer.projection.weights))
    np.testing.assert_allclose(out, expected, 1e-5, 1e-5)
    assert layer.compute_output_shape(shape) == out.shape
    assert layer.grid((None, *shape[2:-1]))[0] is None
    # Some patches, each example its own.
    num_patches = expected[0, ..., 0].size
    visible = rng.permuted(np.tile(np.arange(num_patches), (2, 1)), axis=1)[:, :3]
    some = to_numpy(layer(x, visible=visible.astype("int32")))
    flat = expected.reshape(2, num_patches, 6)
    np.testing.assert_allclose(some, flat[np.arange(2)[:, None], visible], 1e-5, 1e-5)
    assert layer.compute_output_shape(shape, visible.shape) == some.shape


def test_padding_mask_counts_patches_whose_first_row_is_real():
    layer = PatchEmbedding(4, (3, 2))
    x = np.zeros((3, 8, 4, 1), "float32")
    rows = np.arange(8) < np.array([[8], [4], [3]])
    mask = to_numpy(layer.patch_padding_mask(x, rows))
    # Patches start at rows 0, 3 and 6; two columns each.
    expected = np.repeat([[1, 1, 1], [1, 1, 0], [1, 0, 0]], 2, axis=1).astype(bool)
    np.testing.assert_array_equal(mask, expected)
    assert layer.patch_padding_mask(x, None) is None


@pytest.mark.parametrize("patch", [(4,), (2, 2, 2, 2), (0, 4), 0, (2, 4, 4)])
def test_wrong_patch_size(patch):
    with pytest.raises(ValueError):
        PatchEmbedding(8, patch).build((None, 8, 8, 1))
