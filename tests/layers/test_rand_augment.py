import numpy as np
import pytest
from keras import ops

from keras_bridle.augmentation.image import (
    ImageAugmentation,
    RandAugment,
    transform_copy,
)

WAYS = [
    *("shear", "translation", "rotation", "brightness", "color", "contrast"),
    *("sharpness", "posterization", "solarization", "autocontrast", "equalization"),
]


def smooth_pictures(count=8, side=16):
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3))
    pictures = ops.image.resize(coarse.astype("float32"), (side, side))
    return np.clip(ops.convert_to_numpy(pictures), 0, 255).round()


def changed(pictures, way, factor):
    layer = RandAugment(factor=factor, seed=2).ways[WAYS.index(way)]
    layer.build(pictures.shape)
    drawn = layer.get_random_transformation(pictures, training=True)
    changed = layer.transform_images(ops.array(pictures), drawn)
    return ops.convert_to_numpy(changed)


@pytest.mark.parametrize("way", WAYS[:9])
def test_changes_grow_with_strength_from_none(way):
    pictures = smooth_pictures()
    none, little, much = (
        np.abs(changed(pictures, way, factor) - pictures).mean()
        for factor in (0.0, 0.15, 0.9)
    )
    assert none < 0.02
    assert little < 0.8 * much
    assert much > 0.5


def test_each_picture_is_changed_in_its_own_way():
    layer = RandAugment(num_ops=1, factor=0.9, seed=0)
    pictures = np.repeat(smooth_pictures(1), 64, axis=0)
    layer.build(pictures.shape)
    drawn = layer.get_random_transformation(pictures, training=True)
    ways = ops.convert_to_numpy(drawn["chosen"]).reshape(-1)
    assert len(ways) == 64 and len(set(ways)) > len(WAYS) // 2
    given = ops.array(pictures)
    found = ops.convert_to_numpy(layer.transform_images(given, drawn))
    np.testing.assert_array_equal(ops.convert_to_numpy(given), pictures)
    # Each is what the layer of its way alone makes of it.
    for number, way in enumerate(layer.ways):
        alone = transform_copy(way, ops.array(pictures), drawn["drawn"][number])
        rows = ways == number
        np.testing.assert_allclose(
            found[rows], ops.convert_to_numpy(alone)[rows], atol=1e-3
        )


def equalized(channel):
    counts = np.bincount(channel.astype(int).ravel(), minlength=256)
    darker = counts.cumsum()
    lowest = darker[counts > 0][0]
    if lowest == channel.size:
        return channel
    table = np.round((darker - lowest) * 255 / (channel.size - lowest))
    return table[channel.astype(int)]


def test_equalization_against_numpy():
    pictures = smooth_pictures(4)
    pictures[1] = 40 + pictures[1] // 8
    pictures[2, ..., 1] = 17
    found = changed(pictures, "equalization", 0.5)
    for picture, result in zip(pictures, found, strict=True):
        for channel in range(3):
            np.testing.assert_allclose(
                result[..., channel], equalized(picture[..., channel]), atol=1
            )
    assert np.ptp(found[1]) == 255


def test_posterization_keeps_at_least_four_bits():
    values = np.arange(256, dtype="float32").reshape(1, 16, 16, 1)
    pictures = np.tile(values, (16, 1, 1, 3))
    found = changed(pictures, "posterization", 1.0)
    kept = {len(np.unique(picture)) for picture in found}
    assert kept <= {16, 32, 64, 128} and 16 in kept


def test_seeds_and_frames_of_a_clip():
    clips = np.repeat(smooth_pictures(4)[:, None], 3, axis=1)
    first, same, other = (
        ops.convert_to_numpy(
            ImageAugmentation(RandAugment(seed=seed))(clips, training=True)
        )
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 5
    np.testing.assert_allclose(first[:, 1:], first[:, :-1], atol=1e-3)


@pytest.mark.parametrize(("name", "value"), [("num_ops", 0), ("factor", 1.5)])
def test_wrong_arguments(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        RandAugment(**{name: value})
