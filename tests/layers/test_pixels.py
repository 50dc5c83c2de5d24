import numpy as np
import pytest
from harness import to_numpy

from keras_bridle.layers.pixels import PixelNormalization

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("arguments", "shape", "mean", "std"),
    [
        ((), (2, 5, 4, 3), MEAN, STD),
        ((), (2, 3, 5, 4, 3), MEAN, STD),
        # Gray pixels get the average.
        ((), (2, 4, 4, 1), MEAN.mean(), STD.mean()),
        ((0.3, 0.2), (2, 4, 4, 5), 0.3, 0.2),
        ((0.0, [1.0] * 5), (2, 4, 4, 5), 0.0, 1.0),
    ],
)
def test_images_and_clips_of_any_dtype(arguments, shape, mean, std):
    pixels = np.random.default_rng(0).integers(0, 256, shape)
    for dtype in ("uint8", "int32", "float32"):
        found = to_numpy(PixelNormalization(*arguments)(pixels.astype(dtype)))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, (pixels / 255 - mean) / std, 1e-5, 1e-5)
    found = to_numpy(PixelNormalization(*arguments, scale=1.0)(pixels / 255))
    np.testing.assert_allclose(found, (pixels / 255 - mean) / std, 1e-5, 1e-5)


def test_for_data_gives_each_channel_mean_0_and_deviation_1():
    pixels = np.random.default_rng(0).integers(0, [90, 200, 256], (4, 9, 9, 3))
    layer = PixelNormalization.for_data(pixels, name="pixels")
    normalized = to_numpy(layer(pixels))
    assert layer.name == "pixels"
    np.testing.assert_allclose(normalized.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std((0, 1, 2)), 1, atol=1e-5)
    with pytest.raises(ValueError):
        PixelNormalization.for_data(np.full((2, 4, 4, 1), 7))
