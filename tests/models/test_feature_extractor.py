import keras
import numpy as np
import pytest
from tiny_pretraining import (
    CODE_DIM,
    LEVELS,
    NUM_PATCHES,
    PADDING,
    PaddedMap,
    backbone,
    padded_maps,
    quantizer,
    set_codebooks,
)

import keras_bridle as kb
from keras_bridle.models.feature_extractor import OUTPUTS, FeatureModel


def _numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_all_outputs_at_once_are_those_of_the_parts():
    encoder = backbone(front_end=PaddedMap())
    quantized = quantizer(normalize=None)
    tokenizer = kb.BridleTokenizer(backbone(front_end=PaddedMap()), quantized)
    set_codebooks(tokenizer)
    inputs = padded_maps(2 * PADDING)
    found = FeatureModel(encoder, tokenizer, OUTPUTS, segments=2)(inputs)
    found = {name: _numpy(value) for name, value in found.items()}
    assert tuple(found) == OUTPUTS
    assert found["vectors"].shape == (4, NUM_PATCHES, CODE_DIM)
    is_real = found["is_real"]
    assert is_real[1::2].all() and (is_real[::2].sum(axis=1) == NUM_PATCHES / 2).all()
    # Means of the real patches of each half, and their codes.
    np.testing.assert_allclose(
        found["features"], _numpy(encoder.pooled_features(inputs, 2)), 1e-5, 1e-5
    )
    halves = found["patches"][1].reshape(2, NUM_PATCHES // 2, -1).mean(axis=1)
    np.testing.assert_allclose(found["features"][1], halves.ravel(), 1e-4, 1e-5)
    maps, mask = encoder.features(inputs)
    codes = _numpy(tokenizer(maps, mask).codes)
    np.testing.assert_array_equal(found["codes"], codes)
    assert codes.shape[2] == LEVELS and (codes[~is_real] == -1).all()
    nearest = _numpy(quantized.decode(codes[:, :, :1]))
    distances = np.linalg.norm(found["vectors"] - nearest, axis=-1)
    np.testing.assert_allclose(found["distances"], distances, 1e-4, 1e-5)


def test_an_augmentation_brings_inputs_to_their_size():
    half = keras.layers.CenterCrop(32, 16, data_format="channels_last")
    inputs = np.random.default_rng(0).normal(size=(2, 64, 32, 1)).astype("float32")
    found = FeatureModel(encoder := backbone(), augmentation=half)(inputs)
    expected = FeatureModel(encoder)(inputs[:, 16:48, 8:24])
    np.testing.assert_allclose(
        _numpy(found["features"]), _numpy(expected["features"]), 1e-5, 1e-6
    )
    with pytest.raises(ValueError):
        FeatureModel(backbone(), wanted=("features", "codes"))  # without a tokenizer
