import keras
import numpy as np
import pytest
from harness import to_numpy
from keras import ops
from PIL import Image
from scipy import stats

from keras_bridle.augmentation.image import (
    ImageAugmentation,
    RandAugment,
    RandomHorizontalFlip,
    RandomImageMix,
    RandomMultiScaleCrop,
    RandomResizedCrop,
    crop_and_resize,
    transform_copy,
)

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def smooth(*shape):
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


def resize(images, boxes, size, interpolation):
    boxes = ops.convert_to_tensor(boxes, dtype="float32")
    return to_numpy(
        crop_and_resize(ops.convert_to_tensor(images), boxes, size, interpolation)
    )


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((3, 5, 20, 24), (10, 8)),  # smaller, antialiased
        ((3, 5, 6, 7), (16, 30)),  # larger
        ((0, 0, 31, 41), (16, 60)),  # one of each
        ((30, 40, 1, 1), (3, 4)),  # one pixel in the corner
        ((2, 3, 9, 12), (9, 12)),  # as it is
    ],
)
def test_equals_pillow(interpolation, box, size):
    image = smooth(31, 41)
    top, left, height, width = box
    cut = Image.fromarray(image[top : top + height, left : left + width])
    expected = np.asarray(cut.resize(size[::-1], FILTERS[interpolation]))
    expected = np.clip(expected, image.min(), image.max())
    actual = resize(image[None, :, :, None], [box], size, interpolation)
    np.testing.assert_allclose(actual[0, ..., 0], expected, atol=2e-3)


@pytest.mark.every_backend
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own")
def test_sizes_that_are_known_when_the_function_runs():
    import tensorflow as tf

    crop = RandomMultiScaleCrop(16)
    compiled = tf.function(
        lambda clips: crop(clips, training=False),
        input_signature=[tf.TensorSpec((None, 2, None, None, 3))],
    )
    for side in (16, 18, 23):
        clips = smooth(2, 2, side, side, 3)
        expected = to_numpy(crop(clips, training=False))
        np.testing.assert_allclose(compiled(clips), expected, atol=1e-3)
    with pytest.raises(ValueError):
        tf.function(
            lambda clips: crop(clips, training=True),
            input_signature=[tf.TensorSpec((None, 2, None, None, 3))],
        )(smooth(2, 2, 8, 8, 3))


@pytest.mark.parametrize("shape", [(2000, 2, 3, 1), (2000, 4, 2, 3, 1)])
def test_half_of_the_examples_are_flipped_each_as_a_whole(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    results = to_numpy(RandomHorizontalFlip(seed=0)(images, training=True))
    flipped = (results == images[..., ::-1, :]).reshape(2000, -1).all(axis=1)
    same = (results == images).reshape(2000, -1).all(axis=1)
    assert (flipped | same).all() and not (flipped & same).any()
    assert 900 < flipped.sum() < 1100


def coordinates(batch_size, height, width):
    """Images whose two channels are the row and column of each pixel's middle."""
    rows, columns = np.meshgrid(
        np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij"
    )
    image = np.stack([rows, columns], axis=-1).astype("float32")
    return np.repeat(image[None], batch_size, axis=0)


def boxes_of(layer, images, training=True):
    """Tells from the pixels' coordinates which boxes a layer cuts out.

    Enlarged by bilinear filters, linear ramps are exact away from the edges.
    """
    results = to_numpy(layer(images, training=training))
    size = results.shape[1]
    middle = results[:, size // 2 - 1 : size // 2 + 1, size // 2 - 1 : size // 2 + 1]
    height = (middle[:, 1, 0, 0] - middle[:, 0, 0, 0]) * size
    width = (middle[:, 0, 1, 1] - middle[:, 0, 0, 1]) * size
    top = middle[:, :, :, 0].mean(axis=(1, 2)) - height / 2
    left = middle[:, :, :, 1].mean(axis=(1, 2)) - width / 2
    return np.stack([top, left, height, width], axis=1)


def test_boxes_are_distributed_as_they_should_be():
    layer = RandomResizedCrop(64, interpolation="bilinear", seed=0)
    boxes = boxes_of(layer, coordinates(3000, 60, 60))
    np.testing.assert_allclose(boxes, np.round(boxes), atol=2e-3)
    top, left, height, width = np.round(boxes).T
    assert (top >= 0).all() and (top + height <= 60).all()
    assert (left >= 0).all() and (left + width <= 60).all()
    # The same by plain rejection in NumPy.
    generator = np.random.default_rng(1)
    area = generator.uniform(0.2, 1, 40000) * 3600
    ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3), 40000))
    w, h = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (w <= 60) & (h <= 60)
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        for ours, theirs in (
            (height * width, (h * w)[fits]),
            (width / height, (w / h)[fits]),
        ):
            expected = np.quantile(theirs, quantile)
            assert np.quantile(ours, quantile) == pytest.approx(expected, rel=0.06)
    # Places are uniform in the room that there is.
    room = 60 - height
    share = (top[room > 5] + 0.5) / (room[room > 5] + 1)
    counts = np.histogram(share, bins=5, range=(0, 1))[0]
    assert counts.min() > 0.15 * len(share)


def test_what_never_fits_becomes_the_largest_centered_part():
    # All of the area would need a width of three heights.
    layer = RandomResizedCrop(
        32, scale=(1.0, 1.0), ratio=(0.5, 1.0), interpolation="bilinear", seed=0
    )
    boxes = boxes_of(layer, coordinates(4, 20, 60))
    np.testing.assert_allclose(boxes, [(0, 20, 20, 20)] * 4, atol=1e-3)


def test_without_training_the_center():
    layer = RandomResizedCrop((32, 32), interpolation="bilinear")
    boxes = boxes_of(layer, coordinates(2, 24, 40), training=False)
    np.testing.assert_allclose(boxes, [(0, 8, 24, 24)] * 2, atol=1e-3)


@pytest.mark.parametrize(("distortion", "pairs"), [(0, 4), (1, 10)])
def test_parts_are_those_of_the_published_recipe(distortion, pairs):
    layer = RandomMultiScaleCrop(64, max_distortion=distortion, seed=0)
    boxes = boxes_of(layer, coordinates(4000, 40, 60)).round().astype(int)
    boxes = [tuple(box) for box in boxes.tolist()]
    sides = [40, 35, 30, 26]
    expected = set()
    for i, height in enumerate(sides):
        for width in sides[max(i - distortion, 0) : i + distortion + 1]:
            down, right = (40 - height) // 4, (60 - width) // 4
            places = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4)]
            places += [(2, 0), (1, 1), (3, 1), (1, 3), (3, 3)]
            expected |= {(down * a, right * b, height, width) for a, b in places}
    assert set(boxes) == expected
    # All pairs of sides are equally likely.
    counts = np.unique([box[2:] for box in boxes], axis=0, return_counts=True)[1]
    assert len(counts) == pairs
    assert counts.min() * pairs > 3200 and counts.max() * pairs < 4800


WAYS = [
    *("shear", "translation", "rotation", "brightness", "color", "contrast"),
    *("sharpness", "posterization", "solarization", "autocontrast", "equalization"),
]


def smooth_images(count=8, side=16):
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3))
    images = ops.image.resize(coarse.astype("float32"), (side, side))
    return np.clip(to_numpy(images), 0, 255).round()


def changed(images, way, factor):
    layer = RandAugment(factor=factor, seed=2).ways[WAYS.index(way)]
    layer.build(images.shape)
    drawn = layer.get_random_transformation(images, training=True)
    changed = layer.transform_images(ops.array(images), drawn)
    return to_numpy(changed)


@pytest.mark.parametrize("way", WAYS[:9])
def test_changes_grow_with_strength_from_none(way):
    images = smooth_images()
    none, little, much = (
        np.abs(changed(images, way, factor) - images).mean()
        for factor in (0.0, 0.15, 0.9)
    )
    assert none < 0.02
    assert little < 0.8 * much
    assert much > 0.5


def test_each_image_is_changed_in_its_own_way():
    layer = RandAugment(num_ops=1, factor=0.9, seed=0)
    images = np.repeat(smooth_images(1), 64, axis=0)
    layer.build(images.shape)
    drawn = layer.get_random_transformation(images, training=True)
    ways = to_numpy(drawn["chosen"]).reshape(-1)
    assert len(ways) == 64 and len(set(ways)) > len(WAYS) // 2
    given = ops.array(images)
    found = to_numpy(layer.transform_images(given, drawn))
    np.testing.assert_array_equal(to_numpy(given), images)
    # Each is what the layer of its way alone makes of it.
    for number, way in enumerate(layer.ways):
        alone = transform_copy(way, ops.array(images), drawn["drawn"][number])
        rows = ways == number
        np.testing.assert_allclose(found[rows], to_numpy(alone)[rows], atol=1e-3)


def equalized(channel):
    counts = np.bincount(channel.astype(int).ravel(), minlength=256)
    darker = counts.cumsum()
    lowest = darker[counts > 0][0]
    if lowest == channel.size:
        return channel
    table = np.round((darker - lowest) * 255 / (channel.size - lowest))
    return table[channel.astype(int)]


def test_equalization_against_numpy():
    images = smooth_images(4)
    images[1] = 40 + images[1] // 8
    images[2, ..., 1] = 17
    found = changed(images, "equalization", 0.5)
    for image, result in zip(images, found, strict=True):
        for channel in range(3):
            np.testing.assert_allclose(
                result[..., channel], equalized(image[..., channel]), atol=1
            )
    assert np.ptp(found[1]) == 255


def mixed(layer, images):
    return [to_numpy(x) for x in layer(images, training=True)]


def plain(count=16, frames=None):
    """Images of one value each, so that it is seen what comes from where."""
    values = (10.0 * np.arange(count)).astype("float32")
    side = (8, 12, 1) if frames is None else (frames, 8, 12, 1)
    return np.broadcast_to(values.reshape(-1, *[1] * len(side)), (count, *side)).copy()


def test_blended_images_are_what_partners_and_shares_say():
    images = plain()
    layer = RandomImageMix(0.8, cutmix_alpha=0.0, seed=1)
    found, partners, shares = mixed(layer, images)
    assert sorted(partners) == list(range(16))
    for i in range(16):
        value = 10 * (shares[i] * i + (1 - shares[i]) * partners[i])
        np.testing.assert_allclose(found[i], value, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("frames", [None, 3])
def test_pasted_boxes_are_boxes_and_shares_exact(frames):
    images = plain(frames=frames)
    layer = RandomImageMix(mixup_alpha=0.0, cutmix_alpha=1.0, seed=1)
    found, partners, shares = mixed(layer, images)
    seen = 0
    for i in range(16):
        is_own = found[i] == 10 * i
        if partners[i] == i:
            continue
        assert (is_own | (found[i] == 10 * partners[i])).all()
        np.testing.assert_allclose(is_own.mean(), shares[i], atol=1e-6)
        pasted = ~is_own[..., 0]
        if frames is not None:
            # All frames of a clip have the same box.
            assert (pasted == pasted[:1]).all()
            pasted = pasted[0]
        rows, columns = pasted.any(axis=1), pasted.any(axis=0)
        np.testing.assert_array_equal(pasted, rows[:, None] & columns[None])
        seen += 0 < pasted.mean() < 1
    assert seen > 5


def test_both_kinds_take_turns_and_blends_follow_beta():
    images = plain(3000)[:, :2, :2]
    found, partners, shares = mixed(RandomImageMix(0.8, 1.0, seed=0), images)
    # A pasted pixel is one or the other, a blended one is between.
    own = images[:, 0, 0, 0]
    first = found[:, 0, 0, 0]
    other = own[partners]
    is_blend = ~np.isclose(first, own) & ~np.isclose(first, other)
    assert abs(is_blend.mean() - 0.5) < 0.05
    test = stats.kstest(shares[is_blend], stats.beta(0.8, 0.8).cdf)
    assert test.statistic < 0.05


def test_boxes_of_clips_are_those_of_images():
    clips = np.full((6, 3, 8, 10, 1), 200, "uint8")
    is_erased = []
    for inputs in (clips, clips[:, 0]):
        settings = {"fill_value": 0, "seed": 0, "dtype": "float32"}
        layer = keras.layers.RandomErasing((1.0, 1.0), **settings)
        found = to_numpy(ImageAugmentation(layer)(inputs, training=True))
        assert set(found.ravel()) == {0.0, 200.0}
        is_erased.append(found == 0)
    assert (is_erased[0] == is_erased[1][:, None]).all()
    # Every clip has a box of its own.
    assert is_erased[1].any(axis=(1, 2, 3)).all()
    assert (is_erased[1] != is_erased[1][:1]).any()


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.RandomRotation((0.2, 0.3), seed=0, dtype="float32"),
        keras.layers.RandomBrightness((0.2, 0.3), seed=0, dtype="float32"),
    ],
)
def test_keras_layers_that_change_what_they_are_given(layer):
    image = np.random.default_rng(0).integers(0, 200, (2, 1, 8, 8, 3))
    clips = ops.convert_to_tensor(np.repeat(image, 3, axis=1), "float32")
    before = np.copy(to_numpy(clips))
    found = to_numpy(ImageAugmentation(layer)(clips, training=True))
    np.testing.assert_array_equal(to_numpy(clips), before)
    np.testing.assert_array_equal(found[:, 1:], found[:, :-1])
    assert np.abs(found - before).max() > 10


@pytest.mark.every_backend
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX compiles on CPUs")
@pytest.mark.parametrize(
    "layer", [keras.layers.RandomRotation(0.1, dtype="float32"), RandAugment()]
)
def test_models_are_compiled(layer):
    model = keras.Sequential([ImageAugmentation(layer), keras.layers.Flatten()])
    model.compile("sgd", "mse", jit_compile="auto")
    assert model.jit_compile
