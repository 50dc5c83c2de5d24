import math

import numpy as np
import pytest
from harness import run, to_numpy
from keras import ops

import keras_bridle as kb
from keras_bridle.layers.masks import gather_patches

GRID = (14, 14)


def drawn(layer, batch=8, grid=GRID):
    patches = np.zeros((batch, math.prod(grid), 1), "float32")
    return to_numpy(run(lambda: layer(patches, grid=grid), layer))


def cells(indices, grid=GRID):
    """Where the patches of such indices lie: bool `(batch, rows, columns)`."""
    found = np.zeros((len(indices), math.prod(grid)), bool)
    np.put_along_axis(found, indices, True, axis=1)
    return found.reshape(-1, *grid)


@pytest.mark.parametrize("rest", [(), (5,), (2, 3)])
def test_gather_picks_each_examples_own(rest):
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(3, 7, *rest)).astype("float32")
    # As many as there are examples: then TensorFlow's `ops.add` would take a column of
    # offsets for a bias.
    for count in (3, 4):
        indices = np.stack([rng.permutation(7)[:count] for _ in range(3)])
        indices = indices.astype("int32")
        picked = to_numpy(gather_patches(ops.convert_to_tensor(patches), indices))
        expected = patches[np.arange(3)[:, None], indices]
        np.testing.assert_array_equal(picked, expected)


@pytest.mark.parametrize(
    ("layer", "grid", "count"),
    [
        (kb.RandomMask(0.8), (10,), 2),
        (kb.RandomMask(0.99), (4,), 1),
        (kb.RandomMask(0.01), (4,), 3),
        (kb.TubeMask(0.9), (8, 14, 14), 8 * 19),
        (kb.TubeMask(0.5), (3, 7), 3 * 3),
        (kb.BlockMask(0.4), GRID, 117),
        (kb.BlockMask(0.8), (64, 8), 102),
        (kb.BlockMask(0.5), (1, 9), 4),
        (kb.InverseBlockMask(0.5, 4), (2, 9), 9),
        (kb.TimeFrequencyMask(0.7, 0.25), (10, 4), 3 * 3),
    ],
)
def test_counts_cover_and_do_not_overlap(layer, grid, count):
    mask = drawn(layer, grid=grid)
    length = math.prod(grid)
    assert mask.visible.shape == (8, count)
    assert mask.visible.dtype == mask.masked.dtype == np.int32
    both = np.sort(np.concatenate(mask, axis=1), axis=1)
    np.testing.assert_array_equal(both, np.tile(np.arange(length), (8, 1)))
    if not isinstance(layer, kb.RandomMask):
        assert all((np.diff(indices, axis=1) > 0).all() for indices in mask)


def test_smallest_noise_stays_visible():
    rng = np.random.default_rng(0)
    noise = rng.uniform(size=(3, 12)).astype("float32")
    order = np.argsort(noise, axis=1)
    mask = to_numpy(
        kb.TubeMask(0.75)(np.zeros((3, 48, 2)), grid=(4, 3, 4), noise=noise)
    )
    first = np.sort(order[:, :3], axis=1)
    frames = mask.visible.reshape(3, 4, 3) - 12 * np.arange(4)[:, None]
    np.testing.assert_array_equal(frames, np.tile(first[:, None], (1, 4, 1)))
    # Equal noise hides no patch that it shows.
    noise = np.float32([[0.5, 0.5, 0.1, 0.5, 0.9, 0.5]])
    mask = to_numpy(kb.RandomMask(0.5)(np.zeros((1, 6, 2)), noise=noise))
    both = np.sort(np.concatenate(mask, axis=1))
    np.testing.assert_array_equal(both, [np.arange(6)])


@pytest.mark.parametrize(
    ("layer", "grid"),
    [
        (kb.RandomMask(0.5, seed=0), (4, 4)),
        (kb.TubeMask(0.5, seed=0), (1, 8)),
        (kb.TimeFrequencyMask(0.5, 0.25, seed=0), (4, 4)),
    ],
)
def test_every_patch_is_seen_as_often(layer, grid):
    counts = cells(drawn(layer, 4000, grid).visible, grid).sum(axis=0)
    # Their standard deviation is 32.
    assert np.abs(counts - counts.mean()).max() < 140


def test_blocks_are_rectangles():
    hidden = cells(drawn(kb.BlockMask(0.4, seed=0), 200).masked)
    # Neighbors that are both hidden or both visible: half of them by chance.
    alike = (hidden[:, 1:] == hidden[:, :-1]).mean()
    assert alike + (hidden[:, :, 1:] == hidden[:, :, :-1]).mean() > 2 * 0.85
    # A single block that is larger than what is to be hidden: its middle is.
    layer = kb.BlockMask(0.09, block_share=(0.25, 0.25), aspect_ratio=(1, 1), seed=0)
    for example in cells(drawn(layer, 50).masked):
        rows, columns = np.nonzero(example)
        # 18 patches from the middle of a block of 7 x 7 are within 5 x 5.
        assert len(rows) == 18 and max(np.ptp(rows), np.ptp(columns)) <= 4
    # 20 patches, 2 rows of 9 and a little of a second block.
    wide = cells(drawn(kb.BlockMask(0.1, (0.1, 0.1), (0.25, 0.25), seed=0), 300).masked)
    num_rows, num_columns = (wide.any(axis=a).sum(axis=1).mean() for a in (2, 1))
    assert num_rows < num_columns / 2


def test_blocks_lie_nearly_evenly():
    share = cells(drawn(kb.BlockMask(0.4, seed=0), 3000).masked).mean(axis=0)
    assert share.mean() == pytest.approx(79 / 196)
    # Few blocks reach the corners: 4 % to 75 % with BEiT's own loop.
    assert 0.02 < share.min() < 0.06
    assert 0.7 < share.max() < 0.85
    for flipped in (share[::-1], share[:, ::-1]):
        np.testing.assert_allclose(share, flipped, atol=0.06)


def test_visible_blocks_are_squares():
    # 9 of 144 patches: a single block.
    layer = kb.InverseBlockMask(1 - 9 / 144, 3, seed=0)
    for example in cells(drawn(layer, 50, (12, 12)).visible, (12, 12)):
        rows, columns = np.nonzero(example)
        assert np.ptp(rows) == np.ptp(columns) == 2


@pytest.mark.parametrize(
    ("kind", "num_patches", "grids"),
    [
        (kb.RandomMask, 1, [(1,)]),
        (kb.TubeMask, 72, [(72,), (4, 3, 5), (72, 1, 1)]),
        (kb.BlockMask, 196, [(2, 7, 14), (14, 13)]),
        (kb.TimeFrequencyMask, 72, [(72, 1), (8, 8), (2, 6, 6)]),
    ],
)
def test_wrong_grids(kind, num_patches, grids):
    for grid in grids:
        with pytest.raises(ValueError):
            kind()(np.zeros((2, num_patches, 1)), grid=grid)
