import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from harness import to_numpy
from keras import ops

from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.converters import (
    BridleImageConverter,
    BridleImagePreprocessor,
    BridleVideoConverter,
)


def picture(*shape):
    """A smooth picture, which all bicubic filters resize alike."""
    rows, columns = np.meshgrid(*map(np.arange, shape[:2]), indexing="ij")
    gray = 127 + 60 * np.sin(rows / 7) + 60 * np.cos(columns / 5)
    if len(shape) == 2:
        return gray.round().astype("uint8")
    channels = [gray * (1 - 0.2 * index) for index in range(shape[2])]
    return np.stack(channels, axis=-1).round().astype("uint8")


def test_resizes_as_pillow_and_cuts_off_what_stands_over():
    image = picture(60, 40, 3)
    found = to_numpy(BridleImageConverter((20, 20))(image[None]))
    # As wide as it must be, and 10 of the 60 rows cut at either end.
    expected = PIL.Image.fromarray(image[10:50]).resize((20, 20), PIL.Image.BICUBIC)
    assert found.dtype == np.float32
    assert found.shape == (1, 20, 20, 3)
    np.testing.assert_allclose(found[0], np.asarray(expected), atol=2.0)


def test_list_of_pictures_of_all_sizes():
    images = [picture(28, 28), picture(60, 40, 3), picture(32, 32, 4)]
    converter = BridleImageConverter((32, 32), channels=3)
    found = to_numpy(converter(images))
    assert found.shape == (3, 32, 32, 3)
    for image, result in zip(images, found, strict=True):
        image = image if image.ndim == 3 else image[..., None]
        alone = to_numpy(converter(image[None]))[0]
        np.testing.assert_allclose(result, alone, 1e-5, 1e-3)
    np.testing.assert_array_equal(found[2], images[2][..., :3])


def test_gray_and_color():
    image = picture(8, 9, 3)
    gray = to_numpy(BridleImageConverter(channels=1)(image[None]))[0]
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(gray[..., 0], image @ weights, 1e-5)
    color = to_numpy(BridleImageConverter(channels=3)(gray[None]))[0]
    np.testing.assert_allclose(color, np.repeat(gray, 3, axis=-1))
    batch = np.stack([picture(8, 9)] * 2)
    assert BridleImageConverter(channels=1)(batch).shape == (2, 8, 9, 1)
    with pytest.raises(ValueError, match=r"1, 3 or 4 channels to get 3.*\(1, 8, 9, 2"):
        BridleImageConverter(channels=3)(image[None, ..., :2])
    with pytest.raises(ValueError, match="1, 3 or None"):
        BridleImageConverter(channels=2)


def test_pipelines_and_tensors_give_the_same():
    images = np.stack([picture(30, 20, 3), picture(30, 20, 3)[::-1]])
    converter = BridleImageConverter((16, 24), channels=1)
    expected = to_numpy(converter(images))
    found = to_numpy(converter(ops.convert_to_tensor(images)))
    np.testing.assert_allclose(found, expected, 1e-5, 1e-3)
    data = tf.data.Dataset.from_tensors(images).map(converter)
    assert data.element_spec.shape == (2, 16, 24, 1)
    found = next(iter(data)).numpy()
    # TensorFlow, which runs here, and the backend sum in another order.
    np.testing.assert_allclose(found, expected, 1e-3, 0.5)
    single = to_numpy(converter(images[0]))
    np.testing.assert_allclose(single, expected[0], 1e-5, 1e-3)


def test_pixels_keep_their_range():
    checks = 255 * (np.indices((40, 40)).sum(axis=0) // 3 % 2)
    image = checks[None, ..., None].astype("uint8")
    found = to_numpy(BridleImageConverter((63, 63))(image))
    assert found.min() == 0.0
    assert found.max() == 255.0


@pytest.mark.parametrize("converter", [BridleImageConverter, BridleVideoConverter])
def test_scaling_is_the_encoders(converter):
    with pytest.raises(ValueError, match=r"PixelNormalization.*scale=0.5"):
        converter(image_size=(8, 8), scale=0.5)


def test_right_pictures_stay_as_they_are():
    images = picture(8, 9, 3)[None]
    assert np.shares_memory(BridleImageConverter((8, 9), channels=3)(images), images)


def test_preprocessor_of_an_encoder():
    backbone = BridleBackbone(4, 8, 1, 1, 8, input_dims=(8, 12, 1))
    preprocessor = BridleImagePreprocessor.for_backbone(backbone)
    converter = preprocessor.image_converter
    assert (converter.image_size, converter.channels) == ((8, 12), 1)
    x, y = preprocessor(picture(20, 20, 3)[None], np.array([1]))
    assert x.shape == (1, 8, 12, 1)
    assert y == [1]
    other = BridleImagePreprocessor.for_backbone(backbone, image_size=(16, 16))
    assert other.image_converter.image_size == (16, 16)
    copy = BridleImagePreprocessor.from_config(preprocessor.get_config())
    assert copy.get_config() == preprocessor.get_config()
    anything = BridleBackbone(4, 8, 1, 1, 8, input_dims=(None, 12, 2))
    converter = BridleImagePreprocessor.for_backbone(anything).image_converter
    assert (converter.image_size, converter.channels) == (None, None)
    sounds = BridleBackbone(
        (2, 4, 4), 8, 1, 1, 8, input_dims=(4, 8, 8, 1), position_layout="sequence"
    )
    with pytest.raises(ValueError, match=r"take pictures.*\(4, 8, 8, 1\)"):
        BridleImagePreprocessor.for_backbone(sounds)
