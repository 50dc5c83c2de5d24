import numpy as np
import pytest
from harness import to_numpy

from keras_bridle.layers.patches import PatchEmbedding


@pytest.mark.parametrize(
    ("patch", "shape"),
    [
        ((2, 6), (2, 8, 12, 1)),
        ((4, 5), (2, 7, 12, 2)),  # padded at the end of both sides
        ((2, 4, 4), (2, 5, 8, 4, 3)),
    ],
)
def test_padding_and_visible_patches(patch, shape):
    """The golden tests compare what is not padded."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype("float32")
    layer = PatchEmbedding(6, patch)
    out = to_numpy(layer(x))
    sides = zip(shape[1:-1], layer.patch_size, strict=True)
    padding = [(0, -length % side) for length, side in sides]
    padded = np.pad(x, [(0, 0), *padding, (0, 0)])
    np.testing.assert_allclose(to_numpy(layer(padded)), out, 1e-5, 1e-5)
    assert layer.compute_output_shape(shape) == out.shape
    assert layer.grid((None, *shape[2:-1]))[0] is None
    # Some patches, each example its own.
    num_patches = out[0, ..., 0].size
    visible = rng.permuted(np.tile(np.arange(num_patches), (2, 1)), axis=1)[:, :3]
    some = to_numpy(layer(x, visible=visible.astype("int32")))
    flat = out.reshape(2, num_patches, 6)
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
