import numpy as np
import pytest
from harness import run, to_numpy

from keras_bridle.layers.masks import TubeMask

GRID = (4, 3, 6)


def drawn(layer, batch=5, grid=GRID):
    patches = np.zeros((batch, int(np.prod(grid)), 1), "float32")
    return to_numpy(layer(patches, grid=grid))


@pytest.mark.parametrize(
    ("ratio", "grid", "places"),
    [(0.9, (8, 14, 14), 19), (0.75, (2, 4, 4), 4), (0.5, (3, 7), 3), (0.9, GRID, 1)],
)
def test_counts_cover_and_do_not_overlap(ratio, grid, places):
    mask = drawn(TubeMask(ratio, seed=0), 3, grid)
    length = int(np.prod(grid))
    assert mask.visible.shape == (3, grid[0] * places)
    assert mask.visible.dtype == mask.masked.dtype == np.int32
    both = np.sort(np.concatenate([mask.visible, mask.masked], axis=1), axis=1)
    np.testing.assert_array_equal(both, np.tile(np.arange(length), (3, 1)))


def test_every_frame_has_the_same_places():
    mask = drawn(TubeMask(0.6, seed=0))
    for indices in mask:
        frames = indices.reshape(5, 4, -1)
        places = frames - 18 * np.arange(4)[:, None]
        np.testing.assert_array_equal(places, np.tile(places[:, :1], (1, 4, 1)))
        assert (np.diff(indices, axis=1) > 0).all()


def test_smallest_noise_stays_visible():
    noise = np.random.default_rng(0).uniform(size=(2, 18)).astype("float32")
    layer = TubeMask(0.7)
    mask = to_numpy(layer(np.zeros((2, 72, 1)), grid=GRID, noise=noise))
    first = np.sort(np.argsort(noise, axis=1)[:, :5], axis=1)
    np.testing.assert_array_equal(mask.visible[:, :5], first)
    np.testing.assert_array_equal(mask.visible[:, 15:], first + 54)


def test_seed():
    first, second = TubeMask(seed=3), TubeMask(seed=3)
    one, two = drawn(first, 20), drawn(second, 20)
    np.testing.assert_array_equal(one.visible, two.visible)
    assert (drawn(first, 20).visible != one.visible).any()
    assert (drawn(TubeMask(seed=4), 20).visible != one.visible).any()
    assert (one.visible != one.visible[:1]).any()


def test_every_place_is_seen_as_often():
    mask = drawn(TubeMask(0.75, seed=0), 4000, (1, 2, 4))
    counts = np.bincount(mask.visible.ravel(), minlength=8)
    # 1,000 each, with a standard deviation of 27.
    assert np.abs(counts - 1000).max() < 140


def test_in_one_piece():
    layer = TubeMask(0.6, seed=0)
    mask = run(lambda: layer(np.zeros((2, 72, 1), "float32"), grid=GRID), layer)
    assert mask.visible.shape == (2, 28)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"`mask_ratio` must be .*mask_ratio=0"):
        TubeMask(0)
    with pytest.raises(ValueError, match=r"2 sides or more .*grid=\(72,\)"):
        TubeMask()(np.zeros((2, 72, 1)), grid=(72,))
    with pytest.raises(ValueError, match=r"as many cells .*grid=\(4, 3, 5\)"):
        TubeMask()(np.zeros((2, 72, 1)), grid=(4, 3, 5))
    with pytest.raises(ValueError, match=r"at least 2 places .*grid=\(72, 1, 1\)"):
        TubeMask()(np.zeros((2, 72, 1)), grid=(72, 1, 1))
