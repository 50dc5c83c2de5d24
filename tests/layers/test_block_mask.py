import numpy as np
import pytest
from harness import run, to_numpy

from keras_bridle.layers.masks import BlockMask, RandomMask

GRID = (14, 14)


def drawn(layer, batch=8, grid=GRID):
    patches = np.zeros((batch, grid[0] * grid[1], 1), "float32")
    return to_numpy(layer(patches, grid=grid))


def hidden(mask, grid=GRID):
    """Bool of shape `(batch, rows, columns)`."""
    cells = np.zeros((len(mask.masked), grid[0] * grid[1]), bool)
    np.put_along_axis(cells, mask.masked, True, axis=1)
    return cells.reshape(-1, *grid)


def neighbors_alike(cells):
    """The share of neighbors that are both hidden or both visible."""
    down = (cells[:, 1:] == cells[:, :-1]).mean()
    across = (cells[:, :, 1:] == cells[:, :, :-1]).mean()
    return (down + across) / 2


@pytest.mark.parametrize(
    ("ratio", "grid", "visible"),
    [(0.4, GRID, 117), (0.8, (64, 8), 102), (0.6, (3, 5), 6), (0.5, (1, 9), 4)],
)
def test_counts_cover_and_do_not_overlap(ratio, grid, visible):
    mask = drawn(BlockMask(ratio, seed=0), 30, grid)
    length = grid[0] * grid[1]
    assert mask.visible.shape == (30, visible)
    assert mask.visible.dtype == mask.masked.dtype == np.int32
    both = np.sort(np.concatenate([mask.visible, mask.masked], axis=1), axis=1)
    np.testing.assert_array_equal(both, np.tile(np.arange(length), (30, 1)))
    assert all((np.diff(indices, axis=1) > 0).all() for indices in mask)


def test_hidden_patches_are_blocks():
    cells = hidden(drawn(BlockMask(0.4, seed=0), 200))
    scattered = RandomMask(0.4, seed=0)(np.zeros((200, 196, 1), "float32"))
    assert neighbors_alike(hidden(to_numpy(scattered))) < 0.55
    assert neighbors_alike(cells) > 0.85


def test_one_block_is_a_rectangle():
    # A single block that is larger than what is to be hidden: its middle is.
    layer = BlockMask(0.09, block_share=(0.25, 0.25), aspect_ratio=(1, 1), seed=0)
    cells = hidden(drawn(layer, 50))
    assert cells.sum(axis=(1, 2)).max() == 18
    for example in cells:
        rows, columns = np.nonzero(example)
        # 18 patches from the middle of a block of 7 x 7 are within 5 x 5.
        assert np.ptp(rows) <= 4
        assert np.ptp(columns) <= 4


def test_shapes_follow_the_aspect_ratio():
    wide = BlockMask(0.1, (0.1, 0.1), (0.25, 0.25), seed=0)
    cells = hidden(drawn(wide, 300))
    # 20 patches, 2 rows of 9 and a little of a second block.
    rows = cells.any(axis=2).sum(axis=1)
    assert rows.mean() < cells.any(axis=1).sum(axis=1).mean() / 2


def test_places_are_random_and_nearly_even():
    share = hidden(drawn(BlockMask(0.4, seed=0), 3000)).mean(axis=0)
    assert share.mean() == pytest.approx(79 / 196)
    # Few blocks reach the corners: 4 % to 75 % with BEiT's own loop.
    assert 0.02 < share.min() < 0.06
    assert 0.7 < share.max() < 0.85
    np.testing.assert_allclose(share, share[::-1], atol=0.06)
    np.testing.assert_allclose(share, share[:, ::-1], atol=0.06)


def test_seed():
    first, second = BlockMask(seed=3), BlockMask(seed=3)
    one, two = drawn(first), drawn(second)
    np.testing.assert_array_equal(one.visible, two.visible)
    assert (drawn(first).visible != one.visible).any()
    assert (drawn(BlockMask(seed=4)).visible != one.visible).any()
    assert (one.visible[0] != one.visible[1]).any()


def test_in_one_piece():
    layer = BlockMask(0.4, seed=0)
    mask = run(lambda: layer(np.zeros((2, 196, 1), "float32"), grid=GRID), layer)
    assert mask.masked.shape == (2, 79)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"`mask_ratio` must be .*mask_ratio=1.0"):
        BlockMask(1.0)
    with pytest.raises(ValueError, match=r"`block_share` .*\(0.5, 0.1\)"):
        BlockMask(block_share=(0.5, 0.1))
    with pytest.raises(ValueError, match=r"`aspect_ratio` .*\(0, 1\)"):
        BlockMask(aspect_ratio=(0, 1))
    with pytest.raises(ValueError, match=r"must have 2 sides .*grid=\(2, 7, 14\)"):
        BlockMask()(np.zeros((2, 196, 1)), grid=(2, 7, 14))
    with pytest.raises(ValueError, match=r"as many cells .*grid=\(14, 13\)"):
        BlockMask()(np.zeros((2, 196, 1)), grid=(14, 13))
