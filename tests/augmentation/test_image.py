import keras
import numpy as np
import pytest
from harness import to_numpy
from keras import ops
from PIL import Image
from scipy import stats

import keras_bridle as kb
from keras_bridle.augmentation.image import crop_and_resize, transform_copy


def smooth(*shape):
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


@pytest.mark.parametrize("interpolation", ["BILINEAR", "BICUBIC"])
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
    expected = cut.resize(size[::-1], Image.Resampling[interpolation])
    expected = np.clip(expected, image.min(), image.max())
    boxes = ops.convert_to_tensor([box], dtype="float32")
    images = ops.convert_to_tensor(image[None, :, :, None])
    actual = to_numpy(crop_and_resize(images, boxes, size, interpolation.lower()))
    np.testing.assert_allclose(actual[0, ..., 0], expected, atol=2e-3)


@pytest.mark.every_backend
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own")
def test_sizes_that_are_known_when_the_function_runs():
    import tensorflow as tf

    crop = kb.RandomMultiScaleCrop(16)
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


def boxes_of(layer, shape, training=True):
    """Tells which boxes a layer cuts out of images, `shape` with a batch axis.

    Their channels are the row and column of each pixel's middle: enlarged by bilinear
    filters, linear ramps are exact away from the edges.
    """
    images = np.moveaxis(np.indices(shape[1:], "float32"), 0, -1) + 0.5
    images = np.repeat(images[None], shape[0], axis=0)
    results = to_numpy(layer(images, training=training))
    size = results.shape[1]
    middle = results[:, size // 2 - 1 : size // 2 + 1, size // 2 - 1 : size // 2 + 1]
    height = (middle[:, 1, 0, 0] - middle[:, 0, 0, 0]) * size
    width = (middle[:, 0, 1, 1] - middle[:, 0, 0, 1]) * size
    top = middle[:, :, :, 0].mean(axis=(1, 2)) - height / 2
    left = middle[:, :, :, 1].mean(axis=(1, 2)) - width / 2
    return np.stack([top, left, height, width], axis=1)


def test_boxes_are_distributed_as_they_should_be():
    layer = kb.RandomResizedCrop(64, interpolation="bilinear", seed=0)
    boxes = boxes_of(layer, (3000, 60, 60))
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
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    for ours, theirs in ((height * width, h * w), (width / height, w / h)):
        expected = np.quantile(theirs[fits], quantiles)
        np.testing.assert_allclose(np.quantile(ours, quantiles), expected, 0.06)
    # Places are uniform in the room that there is.
    room = 60 - height
    share = (top[room > 5] + 0.5) / (room[room > 5] + 1)
    counts = np.histogram(share, bins=5, range=(0, 1))[0]
    assert counts.min() > 0.15 * len(share)


def test_fixed_boxes():
    # All of the area would need a width of three heights: the largest part that fits.
    settings = {"interpolation": "bilinear", "scale": (1.0, 1.0), "ratio": (0.5, 1.0)}
    boxes = boxes_of(kb.RandomResizedCrop(32, **settings), (4, 20, 60))
    np.testing.assert_allclose(boxes, [(0, 20, 20, 20)] * 4, atol=1e-3)
    # Without training the center.
    layer = kb.RandomResizedCrop((32, 32), interpolation="bilinear")
    boxes = boxes_of(layer, (2, 24, 40), training=False)
    np.testing.assert_allclose(boxes, [(0, 8, 24, 24)] * 2, atol=1e-3)


@pytest.mark.parametrize(("distortion", "pairs"), [(0, 4), (1, 10)])
def test_parts_are_those_of_the_published_recipe(distortion, pairs):
    layer = kb.RandomMultiScaleCrop(64, max_distortion=distortion, seed=0)
    boxes = boxes_of(layer, (4000, 40, 60)).round().astype(int)
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


def smooth_images(count=8, side=16):
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3))
    images = ops.image.resize(coarse.astype("float32"), (side, side))
    return np.clip(to_numpy(images), 0, 255).round()


WAYS = [
    *("shear", "translation", "rotation", "brightness", "color", "contrast"),
    *("sharpness", "posterization", "solarization", "autocontrast", "equalization"),
]


def changed(images, way, factor):
    layer = kb.RandAugment(factor=factor, seed=2).ways[WAYS.index(way)]
    layer.build(images.shape)
    drawn = layer.get_random_transformation(images, training=True)
    return to_numpy(layer.transform_images(ops.array(images), drawn))


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
    layer = kb.RandAugment(num_ops=1, factor=0.9, seed=0)
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


def test_equalization():
    images = smooth_images(4)
    images[1] = 40 + images[1] // 8
    images[2, ..., 1] = 17
    found = changed(images, "equalization", 0.5)
    for image, result in zip(images, found, strict=True):
        for channel in range(3):
            values = image[..., channel].astype(int)
            counts = np.bincount(values.ravel(), minlength=256)
            lowest = counts[counts > 0][0]
            table = (counts.cumsum() - lowest) * 255 / max(values.size - lowest, 1)
            # Where all pixels are alike there is nothing to spread.
            expected = table[values] if lowest < values.size else values
            np.testing.assert_allclose(result[..., channel], expected, atol=1)
    assert np.ptp(found[1]) == 255


@pytest.mark.parametrize("shape", [(2000, 2, 3, 1), (2000, 4, 2, 3, 1)])
def test_half_of_the_examples_are_flipped_each_as_a_whole(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    results = to_numpy(kb.RandomHorizontalFlip(seed=0)(images, training=True))
    flipped = (results == images[..., ::-1, :]).reshape(2000, -1).all(axis=1)
    same = (results == images).reshape(2000, -1).all(axis=1)
    assert (flipped ^ same).all() and 900 < flipped.sum() < 1100


def mixed(layer, *shape):
    """Each image's value, which is its number, then mixtures, partners and shares."""
    values = np.arange(shape[0], dtype="float32")
    images = np.broadcast_to(values.reshape(-1, *[1] * (len(shape) - 1)), shape)
    return values, *(to_numpy(x) for x in layer(images, training=True))


def test_blended_images_are_what_partners_and_shares_say():
    layer = kb.RandomImageMix(0.8, cutmix_alpha=0.0, seed=1)
    values, found, partners, shares = mixed(layer, 16, 2, 2, 1)
    assert sorted(partners) == list(range(16))
    expected = shares * values + (1 - shares) * partners
    np.testing.assert_allclose(found[:, 0, 1, 0], expected, 1e-5, 1e-5)
    assert (found == found[:, :1, :1]).all()


def test_pasted_boxes_are_boxes_and_shares_exact():
    layer = kb.RandomImageMix(mixup_alpha=0.0, cutmix_alpha=1.0, seed=1)
    _, found, partners, shares = mixed(layer, 16, 3, 8, 12, 1)
    # All frames of a clip have the same box.
    assert (found == found[:, :1]).all()
    seen = 0
    for number, clip in enumerate(found[:, 0, ..., 0]):
        is_own = clip == number
        if partners[number] != number:
            assert (is_own | (clip == partners[number])).all()
            np.testing.assert_allclose(is_own.mean(), shares[number], atol=1e-6)
            rows, columns = (~is_own).any(axis=1), (~is_own).any(axis=0)
            np.testing.assert_array_equal(~is_own, rows[:, None] & columns)
            seen += 0 < is_own.mean() < 1
    assert seen > 5


def test_both_kinds_take_turns_and_blends_follow_beta():
    layer = kb.RandomImageMix(0.8, 1.0, seed=0)
    values, found, partners, shares = mixed(layer, 3000, 2, 2, 1)
    # A pasted pixel is one or the other, a blended one is between.
    first = found[:, 0, 0, 0]
    is_blend = ~np.isclose(first, values) & ~np.isclose(first, partners)
    assert abs(is_blend.mean() - 0.5) < 0.05
    test = stats.kstest(shares[is_blend], stats.beta(0.8, 0.8).cdf)
    assert test.statistic < 0.05


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.RandomRotation((0.2, 0.3), seed=0, dtype="float32"),
        keras.layers.RandomBrightness((0.2, 0.3), seed=0, dtype="float32"),
        kb.RandAugment(factor=0.9, seed=0),
    ],
)
def test_keras_layers_that_change_what_they_are_given(layer):
    image = np.random.default_rng(0).integers(0, 200, (2, 1, 8, 8, 3))
    clips = ops.convert_to_tensor(np.repeat(image, 3, axis=1), "float32")
    before = np.copy(to_numpy(clips))
    found = to_numpy(kb.ImageAugmentation(layer)(clips, training=True))
    np.testing.assert_array_equal(to_numpy(clips), before)
    np.testing.assert_array_equal(found[:, 1:], found[:, :-1])
    assert np.abs(found - before).max() > 10


@pytest.mark.every_backend
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX compiles on CPUs")
@pytest.mark.parametrize(
    "layer", [keras.layers.RandomRotation(0.1, dtype="float32"), kb.RandAugment()]
)
def test_models_are_compiled(layer):
    model = keras.Sequential([kb.ImageAugmentation(layer), keras.layers.Flatten()])
    model.compile("sgd", "mse", jit_compile="auto")
    assert model.jit_compile
