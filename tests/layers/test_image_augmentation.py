import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle.augmentation.image import ImageAugmentation, RandAugment


def augmented(layer, images, training=True):
    return ops.convert_to_numpy(layer(images, training=training))


def erasing(**settings):
    settings = {"factor": (1.0, 1.0), "fill_value": 0, "seed": 0, **settings}
    return ImageAugmentation(keras.layers.RandomErasing(dtype="float32", **settings))


def test_all_frames_of_a_clip_are_changed_alike():
    clips = np.ones((6, 3, 8, 10, 3), "float32")
    is_erased = augmented(erasing(), clips) == 0
    assert (is_erased == is_erased[:, :1]).all()
    assert is_erased.any(axis=(1, 2, 3, 4)).all()
    # Other clips have other boxes.
    assert (is_erased != is_erased[:1]).any()
    # And a clip has the box that a picture would have.
    pictures = augmented(erasing(), clips[:, 0]) == 0
    np.testing.assert_array_equal(is_erased[:, 0], pictures)


def test_gray_pictures_and_bytes():
    pictures = np.full((4, 8, 8, 1), 200, "uint8")
    found = augmented(erasing(), pictures)
    assert found.shape == (4, 8, 8, 1) and found.dtype == np.float32
    assert set(found.ravel()) == {0.0, 200.0}


def test_rand_augment_changes_pictures_in_range():
    pictures = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 1), "uint8")
    layer = ImageAugmentation(RandAugment(num_ops=2, factor=0.5, seed=3))
    found = augmented(layer, pictures)
    assert np.abs(found - pictures).max() > 5
    assert found.min() >= 0 and found.max() <= 255
    np.testing.assert_array_equal(augmented(layer, pictures, training=False), pictures)


def test_wrong_layer_and_images():
    with pytest.raises(ValueError, match="image augmentation of Keras"):
        ImageAugmentation(keras.layers.Dense(3))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        erasing()(np.ones((2, 8, 8, 4), "float32"), training=True)


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.RandomRotation((0.2, 0.3), seed=0, dtype="float32"),
        keras.layers.RandomBrightness((0.2, 0.3), seed=0, dtype="float32"),
    ],
)
def test_keras_layers_that_change_what_they_are_given(layer):
    picture = np.random.default_rng(0).integers(0, 200, (2, 1, 8, 8, 3))
    clips = ops.convert_to_tensor(np.repeat(picture, 3, axis=1), "float32")
    before = np.copy(ops.convert_to_numpy(clips))
    found = augmented(ImageAugmentation(layer), clips)
    np.testing.assert_array_equal(ops.convert_to_numpy(clips), before)
    np.testing.assert_array_equal(found[:, 1:], found[:, :-1])
    assert np.abs(found - before).max() > 10


@pytest.mark.parametrize(
    "layer", [keras.layers.RandomRotation(0.1, dtype="float32"), RandAugment()]
)
def test_models_are_compiled_on_jax(layer):
    model = keras.Sequential([ImageAugmentation(layer), keras.layers.Flatten()])
    model.compile("sgd", "mse", jit_compile="auto")
    if keras.backend.backend() == "jax":
        assert model.jit_compile
