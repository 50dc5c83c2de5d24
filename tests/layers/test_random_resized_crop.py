import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle.augmentation.image import RandomResizedCrop


def coordinates(batch_size, height, width):
    """Pictures whose two channels are the row and column of each pixel's middle."""
    rows, columns = np.meshgrid(
        np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij"
    )
    image = np.stack([rows, columns], axis=-1).astype("float32")
    return np.repeat(image[None], batch_size, axis=0)


def crop(layer, images, training=True):
    return ops.convert_to_numpy(layer(images, training=training))


def boxes_of(results, size):
    """Tells from the pixels' coordinates which box each result shows.

    Enlarged by bilinear filters, linear ramps are exact away from the edges.
    """
    middle = results[:, size // 2 - 1 : size // 2 + 1, size // 2 - 1 : size // 2 + 1]
    height = (middle[:, 1, 0, 0] - middle[:, 0, 0, 0]) * size
    width = (middle[:, 0, 1, 1] - middle[:, 0, 0, 1]) * size
    top = middle[:, :, :, 0].mean(axis=(1, 2)) - height / 2
    left = middle[:, :, :, 1].mean(axis=(1, 2)) - width / 2
    return np.stack([top, left, height, width], axis=1)


def test_boxes_are_distributed_as_they_should_be():
    layer = RandomResizedCrop(64, interpolation="bilinear", seed=0)
    boxes = boxes_of(crop(layer, coordinates(3000, 60, 60)), 64)
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
    boxes = boxes_of(crop(layer, coordinates(4, 20, 60)), 32)
    np.testing.assert_allclose(boxes, [(0, 20, 20, 20)] * 4, atol=1e-3)


def test_whole_picture_of_its_own_size_stays_as_it_is():
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), "uint8")
    layer = RandomResizedCrop(12, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    np.testing.assert_allclose(crop(layer, images), images, atol=1e-3)
    np.testing.assert_allclose(crop(layer, images, False), images, atol=1e-3)


def test_without_training_the_center():
    layer = RandomResizedCrop((32, 32), interpolation="bilinear")
    results = crop(layer, coordinates(2, 24, 40), training=False)
    np.testing.assert_allclose(boxes_of(results, 32), [(0, 8, 24, 24)] * 2, atol=1e-3)


def test_frames_of_a_clip_have_the_same_part_and_clips_different_ones():
    clips = np.repeat(coordinates(6, 30, 30)[:, None], 4, axis=1)
    results = crop(RandomResizedCrop(10, seed=0), clips)
    assert results.shape == (6, 4, 10, 10, 2)
    np.testing.assert_array_equal(results, results[:, :1].repeat(4, axis=1))
    assert len({result.tobytes() for result in results}) == 6


def test_seed():
    images = coordinates(4, 20, 20)
    first, second, other = (RandomResizedCrop(8, seed=seed) for seed in (1, 1, 2))
    result = crop(first, images)
    np.testing.assert_array_equal(result, crop(second, images))
    assert (result != crop(other, images)).any()
    assert (result != crop(first, images)).any()  # the next step differs


def test_inside_a_compiled_training_step():
    if keras.backend.backend() == "torch":
        pytest.skip("torch.compile takes minutes on a CPU")
    inputs = keras.Input((20, 24, 2), dtype="uint8")
    outputs = keras.layers.GlobalAveragePooling2D()(RandomResizedCrop(8)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(outputs))
    assert model.layers[1].output.shape == (None, 8, 8, 2)
    model.compile("sgd", loss="mse", jit_compile=True)
    images = coordinates(4, 20, 24).astype("uint8")
    losses = model.fit(images, np.zeros(4), epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "`size` must be a positive int"),
        ({"size": (2, 3, 4)}, "`size` must be a positive int"),
        ({"scale": (0.0, 1.0)}, "`scale` must be"),
        ({"scale": (0.5, 0.2)}, "`scale` must be"),
        ({"ratio": (2.0, 1.0)}, "`ratio` must be"),
        ({"interpolation": "nearest"}, "`interpolation` must be one of"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomResizedCrop(**{"size": 8, **arguments})


def test_rank_is_checked():
    with pytest.raises(ValueError, match="RandomResizedCrop expects images of shape"):
        RandomResizedCrop(8)(np.zeros((8, 8, 3), "float32"))
