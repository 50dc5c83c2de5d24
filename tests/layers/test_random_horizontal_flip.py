import numpy as np
import pytest
from keras import ops

from keras_bridle.augmentation.image import RandomHorizontalFlip


def flip(layer, images, training=True):
    return ops.convert_to_numpy(layer(images, training=training))


@pytest.mark.parametrize("shape", [(2000, 2, 3, 1), (2000, 4, 2, 3, 1)])
def test_half_of_the_examples_are_mirrored_each_as_a_whole(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    results = flip(RandomHorizontalFlip(seed=0), images)
    mirrored = (results == images[..., ::-1, :]).reshape(2000, -1).all(axis=1)
    same = (results == images).reshape(2000, -1).all(axis=1)
    assert (mirrored | same).all() and not (mirrored & same).any()
    assert 900 < mirrored.sum() < 1100


def test_rates_at_both_ends_and_inference():
    images = np.random.default_rng(0).normal(size=(50, 2, 4, 3)).astype("float32")
    never, always = RandomHorizontalFlip(rate=0.0), RandomHorizontalFlip(rate=1.0)
    np.testing.assert_array_equal(flip(never, images), images)
    np.testing.assert_array_equal(flip(always, images), images[:, :, ::-1])
    np.testing.assert_array_equal(flip(always, images, training=False), images)


def test_seed():
    images = np.arange(100 * 4).reshape(100, 1, 4, 1)
    first, second, other = (RandomHorizontalFlip(seed=seed) for seed in (1, 1, 2))
    result = flip(first, images)
    np.testing.assert_array_equal(result, flip(second, images))
    assert (result != flip(other, images)).any()
    assert (result != flip(first, images)).any()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`rate` must lie in"):
        RandomHorizontalFlip(rate=1.5)
    with pytest.raises(ValueError, match="RandomHorizontalFlip expects images"):
        RandomHorizontalFlip()(np.zeros((4, 4)))
