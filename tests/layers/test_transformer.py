import numpy as np
import pytest
from harness import perturb, run, to_numpy
from keras import ops

from keras_bridle.layers.transformer import TransformerBlock, WindowTransformerBlock


def made(**settings):
    block = TransformerBlock(num_heads=2, mlp_dim=24, **settings)
    block.build((None, None, 12))
    perturb(block.weights, scale=0.4)
    return block


def test_dropped_paths():
    block, calm = made(drop_path_rate=0.25), made()
    x = np.random.default_rng(0).normal(size=(400, 3, 12)).astype("float32")
    x[:] = x[:1]  # one example many times, each dropped in its own way
    expected = to_numpy(calm(x[:1]))[0]
    np.testing.assert_allclose(to_numpy(block(x[:1]))[0], expected, 1e-5, 1e-5)

    # With a kept attention scaled by 4/3 or a dropped one, and the MLP likewise.
    attended = to_numpy(calm._attend(calm.attention_norm(x[:1]), None))[0]
    kinds = []
    for first in (0.0, 4 / 3):
        middle = x[0] + first * attended
        hidden = calm.mlp_hidden(calm.mlp_norm(middle[None].astype("float32")))
        mlp = to_numpy(calm.mlp_output(ops.gelu(hidden, approximate=False)))[0]
        kinds += [middle + second * mlp for second in (0.0, 4 / 3)]
    found = to_numpy(block(x, training=True))
    errors = np.abs(found[:, None] - np.stack(kinds)).max(axis=(2, 3))
    assert errors.min(axis=1).max() < 1e-4
    shares = np.bincount(errors.argmin(axis=1), minlength=4) / 400
    np.testing.assert_allclose(shares, [1 / 16, 3 / 16, 3 / 16, 9 / 16], atol=0.08)
    assert np.abs(to_numpy(block(x, training=True)) - found).max() > 0.1


def windowed(window=(2, 3), shift=(1, 1), heads=2, dim=8):
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
    np.testing.assert_array_equal(reach(windowed(window, shift), grid), expected)


def test_window_shrinks_to_a_short_side_and_is_not_shifted_there():
    block = windowed(window=(2, 8), shift=(1, 4))
    assert block.effective_window((4, 6)) == ((2, 6), (1, 0))
    expected = (np.arange(24) // 6 - 1) // 2
    found = reach(block, (4, 6))
    np.testing.assert_array_equal(found, expected[:, None] == expected[None])


def test_padding_changes_nothing_in_windows():
    block = windowed(shift=(0, 0))
    x = np.random.default_rng(1).normal(size=(2, 24, 8)).astype("float32")
    # At the border of a window, and in the middle of one.
    for start, tolerance in ((12, 1e-6), (9, 1e-5)):
        real = np.ones((2, 24), bool)
        real[1, start:] = False
        other = np.where(real[..., None], x, np.float32(3))
        first, second = (
            to_numpy(block(inputs, grid=(4, 6), padding_mask=real))
            for inputs in (x, other)
        )
        np.testing.assert_allclose(first[real], second[real], tolerance, tolerance)


def test_sizes_that_do_not_divide():
    for wrong in (
        lambda: TransformerBlock(5, 8).build((None, None, 12)),
        lambda: windowed(heads=3),
        lambda: windowed()(np.zeros((1, 30, 8), "float32"), grid=(5, 6)),
    ):
        with pytest.raises(ValueError):
            wrong()
