import numpy as np
import pytest
from harness import to_numpy

from keras_bridle.layers.pixels import PixelNormalization

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (2, 3, 5, 4, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_images_and_clips_of_any_dtype(shape, dtype):
    x = pixels(*shape)
    expected = (x.astype("float64") / 255 - MEAN) / STD
    found = to_numpy(PixelNormalization()(x.astype(dtype)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, 1e-5, 1e-5)


def test_grey_pixels_get_the_average():
    x = pixels(2, 4, 4, 1)
    expected = (x.astype("float64") / 255 - MEAN.mean()) / STD.mean()
    np.testing.assert_allclose(to_numpy(PixelNormalization()(x)), expected, 1e-5, 1e-5)


def test_one_number_for_all_channels():
    x = pixels(2, 4, 4, 5).astype("float32") / 255
    found = to_numpy(PixelNormalization(0.3, 0.2, scale=1.0)(x))
    np.testing.assert_allclose(found, (x - 0.3) / 0.2, 1e-5, 1e-5)
    found = to_numpy(PixelNormalization(0.0, [1.0] * 5, scale=1.0)(x))
    np.testing.assert_allclose(found, x, 1e-6)


def test_for_data_gives_each_channel_mean_0_and_deviation_1():
    pixels = np.random.default_rng(0).integers(0, [90, 200, 256], (4, 9, 9, 3))
    layer = PixelNormalization.for_data(pixels, name="pixels")
    normalized = to_numpy(layer(pixels))
    assert layer.name == "pixels"
    np.testing.assert_allclose(normalized.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std((0, 1, 2)), 1, atol=1e-5)
    with pytest.raises(ValueError):
        PixelNormalization.for_data(np.full((2, 4, 4, 1), 7))
