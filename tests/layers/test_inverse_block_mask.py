import numpy as np
import pytest
from harness import run, to_numpy

from keras_bridle.layers.masks import InverseBlockMask

GRID = (14, 14)


def drawn(layer, batch=8, grid=GRID):
    patches = np.zeros((batch, grid[0] * grid[1], 1), "float32")
    return to_numpy(layer(patches, grid=grid))


def visible(mask, grid=GRID):
    """Bool of shape `(batch, rows, columns)`."""
    cells = np.zeros((len(mask.visible), grid[0] * grid[1]), bool)
    np.put_along_axis(cells, mask.visible, True, axis=1)
    return cells.reshape(-1, *grid)


@pytest.mark.parametrize(
    ("ratio", "grid", "size", "count"),
    [
        (0.8, GRID, 3, 39),
        (0.8, (64, 8), 5, 102),
        (0.5, (2, 9), 4, 9),
        (0.9, GRID, 1, 19),
    ],
)
def test_counts_cover_and_do_not_overlap(ratio, grid, size, count):
    mask = drawn(InverseBlockMask(ratio, size, seed=0), 30, grid)
    length = grid[0] * grid[1]
    assert mask.visible.shape == (30, count)
    assert mask.visible.dtype == mask.masked.dtype == np.int32
    both = np.sort(np.concatenate([mask.visible, mask.masked], axis=1), axis=1)
    np.testing.assert_array_equal(both, np.tile(np.arange(length), (30, 1)))
    assert all((np.diff(indices, axis=1) > 0).all() for indices in mask)


def test_visible_patches_have_visible_neighbors():
    cells = visible(drawn(InverseBlockMask(0.8, seed=0), 200))
    padded = np.pad(cells, [(0, 0), (1, 1), (1, 1)])
    near = sum(
        padded[:, 1 + i : 15 + i, 1 + j : 15 + j].astype(int)
        for i, j in [(0, 1), (0, -1), (1, 0), (-1, 0)]
    )
    # 2.7 of 4 in a block of 3 x 3; 0.8 would be chance.
    assert 2.0 < near[cells].mean() < 3.2


def test_one_block_is_a_square():
    # 9 of 144 patches: a single block of 3 x 3.
    cells = visible(
        drawn(InverseBlockMask(1 - 9 / 144, 3, seed=0), 50, (12, 12)), (12, 12)
    )
    for example in cells:
        rows, columns = np.nonzero(example)
        assert np.ptp(rows) == np.ptp(columns) == 2


def test_every_place_is_seen():
    share = visible(drawn(InverseBlockMask(0.8, seed=0), 3000)).mean(axis=0)
    assert share.mean() == pytest.approx(39 / 196)
    assert share.min() > 0.01
    np.testing.assert_allclose(share, share[::-1], atol=0.05)
    np.testing.assert_allclose(share, share.T, atol=0.05)


def test_seed():
    first, second = InverseBlockMask(seed=3), InverseBlockMask(seed=3)
    one, two = drawn(first), drawn(second)
    np.testing.assert_array_equal(one.visible, two.visible)
    assert (drawn(first).visible != one.visible).any()
    assert (drawn(InverseBlockMask(seed=4)).visible != one.visible).any()
    assert (one.visible[0] != one.visible[1]).any()


def test_in_one_piece():
    layer = InverseBlockMask(0.8, seed=0)
    mask = run(lambda: layer(np.zeros((2, 196, 1), "float32"), grid=GRID), layer)
    assert mask.masked.shape == (2, 157)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"`mask_ratio` must be .*mask_ratio=0.0"):
        InverseBlockMask(0.0)
    with pytest.raises(ValueError, match=r"`block_size` must be .*block_size=0"):
        InverseBlockMask(block_size=0)
    with pytest.raises(ValueError, match=r"as many cells .*grid=\(14, 13\)"):
        InverseBlockMask()(np.zeros((2, 196, 1)), grid=(14, 13))
