import numpy as np
import pytest
from harness import perturb, run, to_numpy

from keras_bridle.layers.transformer import WindowTransformerBlock


def made(window=(2, 3), shift=(1, 1), heads=2, dim=8):
    block = WindowTransformerBlock(heads, 12, window, shift, bias_dim=6)
    block.build((None, None, dim))
    perturb(block.weights, scale=0.4)
    return block


def reach(block, grid, dim=8):
    """Which patches change when one does: bool `(patches, patches)`."""
    length = grid[0] * grid[1]
    x = np.random.default_rng(0).normal(size=(1, length, dim)).astype("float32")
    batch = np.repeat(x, length, axis=0)
    batch[np.arange(length), np.arange(length)] += 1.0
    base = run(lambda: block(x, grid=grid), block)
    changed = run(lambda: block(batch, grid=grid), block)
    return np.abs(changed - base).max(-1) > 1e-5


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (1, 1), (0, 2)])
def test_patches_reach_their_own_shifted_window_only(shift):
    grid, window = (4, 6), (2, 3)
    # A window border lies before every place that the shift brings to a multiple.
    regions = [
        (np.arange(side) - by) // w
        for side, by, w in zip(grid, shift, window, strict=True)
    ]
    label = (regions[0][:, None] * 100 + regions[1][None]).ravel()
    expected = label[:, None] == label[None]
    np.testing.assert_array_equal(reach(made(window, shift), grid), expected)


def test_window_shrinks_to_a_short_side_and_is_not_shifted_there():
    block = made(window=(2, 8), shift=(1, 4))
    assert block.effective_window((4, 6)) == ((2, 6), (1, 0))
    expected = (np.arange(24) // 6 - 1) // 2
    found = reach(block, (4, 6))
    np.testing.assert_array_equal(found, expected[:, None] == expected[None])


def test_padding_changes_nothing():
    block = made(shift=(0, 0))
    x = np.random.default_rng(1).normal(size=(2, 24, 8)).astype("float32")
    real = np.ones((2, 24), bool)
    real[1, 12:] = False
    other = x.copy()
    other[1, 12:] = 3.0
    grid = (4, 6)
    first = to_numpy(block(x, grid=grid, padding_mask=real))
    second = to_numpy(block(other, grid=grid, padding_mask=real))
    np.testing.assert_allclose(first[real], second[real], 1e-6, 1e-6)
    # Here the padding begins in the middle of a window.
    real[1, 9:12] = False
    other[1, 9:12] = -3.0
    first = to_numpy(block(x, grid=grid, padding_mask=real))
    second = to_numpy(block(other, grid=grid, padding_mask=real))
    np.testing.assert_allclose(first[real], second[real], 1e-5, 1e-5)


def test_relative_bias_depends_on_the_offset_alone():
    bias = to_numpy(made().relative_bias((3, 3)))[0].reshape(2, 3, 3, 3, 3)
    np.testing.assert_allclose(bias[:, 0, 0, 1, 1], bias[:, 1, 1, 2, 2], 1e-6, 1e-6)
    np.testing.assert_allclose(bias[:, 0, 2, 0, 1], bias[:, 2, 1, 2, 0], 1e-6, 1e-6)
    assert np.abs(bias[:, 0, 0, 0, 1] - bias[:, 0, 1, 0, 0]).max() > 1e-3


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"`num_heads` must divide .*num_heads=3"):
        made(heads=3)
    with pytest.raises(ValueError, match=r"`window_size` must divide .*\(5, 6\)"):
        made()(np.zeros((1, 30, 8), "float32"), grid=(5, 6))
