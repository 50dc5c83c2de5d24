import numpy as np
import pytest
from harness import to_numpy

from keras_bridle.layers.masks import RandomMask


def drawn(mask, batch=4, length=20):
    return to_numpy(mask(np.zeros((batch, length, 1), "float32")))


@pytest.mark.parametrize(
    ("ratio", "length", "visible"), [(0.8, 10, 2), (0.75, 16, 4), (0.6, 33, 13)]
)
def test_counts_cover_and_do_not_overlap(ratio, length, visible):
    mask = drawn(RandomMask(ratio, seed=0), 5, length)
    assert mask.visible.shape == (5, visible)
    assert mask.masked.shape == (5, length - visible)
    assert mask.visible.dtype == mask.masked.dtype == np.int32
    both = np.sort(np.concatenate([mask.visible, mask.masked], axis=1), axis=1)
    np.testing.assert_array_equal(both, np.tile(np.arange(length), (5, 1)))


def test_smallest_noise_stays_visible_in_its_order():
    noise = np.random.default_rng(0).uniform(size=(3, 12)).astype("float32")
    mask = to_numpy(RandomMask(0.75)(np.zeros((3, 12, 2)), noise=noise))
    order = np.argsort(noise, axis=1)
    np.testing.assert_array_equal(mask.visible, order[:, :3])
    np.testing.assert_array_equal(np.sort(mask.masked), np.sort(order[:, 3:]))


def test_equal_noise_hides_no_patch_that_it_shows():
    noise = np.float32([[0.5, 0.5, 0.1, 0.5, 0.9, 0.5]])
    mask = to_numpy(RandomMask(0.5)(np.zeros((1, 6, 2)), noise=noise))
    both = np.sort(np.concatenate([mask.visible, mask.masked], axis=1))
    np.testing.assert_array_equal(both, [np.arange(6)])


def test_seed():
    first, second = RandomMask(0.5, seed=3), RandomMask(0.5, seed=3)
    one, two = drawn(first), drawn(second)
    np.testing.assert_array_equal(one.visible, two.visible)
    assert (drawn(first).visible != one.visible).any()
    assert (drawn(RandomMask(0.5, seed=4)).visible != one.visible).any()
    assert (one.visible[0] != one.visible[1]).any()


def test_every_patch_is_hidden_as_often():
    mask = drawn(RandomMask(0.75, seed=0), batch=4000, length=8)
    counts = np.bincount(mask.masked.ravel(), minlength=8)
    # 3,000 each, with a standard deviation of 27.
    assert np.abs(counts - 3000).max() < 140


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"`mask_ratio` must be .*mask_ratio=1.0"):
        RandomMask(1.0)
    with pytest.raises(ValueError, match="at least 2 patches"):
        RandomMask()(np.zeros((2, 1, 4)))
