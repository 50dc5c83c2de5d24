"""The losses against float64 NumPy."""

import keras
import numpy as np
import pytest
from harness import gradients, to_numpy
from keras import ops
from tiny_pretraining import reference_code_loss, reference_cosine

from keras_bridle.training.losses import (
    code_prediction_loss,
    cosine_similarity,
    weighted_mean,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (2, 5, 3, 7)).astype("float32")
CODES = RNG.integers(0, 7, (2, 5, 3)).astype("int32")
WEIGHTS = np.float32([[1, 0, 1, 1, 0], [1, 1, 1, 0, 1]])


@pytest.mark.parametrize("weights", [None, WEIGHTS, 0.1 * WEIGHTS, 3 * WEIGHTS])
def test_code_prediction_loss_is_a_weighted_mean(weights):
    loss = to_numpy(code_prediction_loss(CODES, LOGITS, weights))
    expected = np.ones((2, 5)) if weights is None else WEIGHTS
    np.testing.assert_allclose(loss, reference_code_loss(CODES, LOGITS, expected), 1e-6)


def test_padding_has_no_say():
    """Padding's code is -1, and its logits may be anything."""
    codes, logits = CODES.copy(), LOGITS.copy()
    codes[WEIGHTS == 0] = -1
    logits[WEIGHTS == 0] = 1000
    loss = to_numpy(code_prediction_loss(codes, logits, WEIGHTS))
    np.testing.assert_allclose(loss, reference_code_loss(CODES, LOGITS, WEIGHTS), 1e-6)
    logits = ops.convert_to_tensor(logits)
    shift = keras.Variable(np.zeros_like(LOGITS))
    _, (gradient,) = gradients(
        lambda: code_prediction_loss(codes, logits + shift, WEIGHTS), [shift]
    )
    assert (gradient[WEIGHTS == 0] == 0).all()
    assert (gradient[WEIGHTS == 1] != 0).any(axis=-1).all()


def test_several_codes_a_level():
    codes = RNG.integers(0, 7, (2, 5, 3, 2)).astype("int32")
    loss = to_numpy(code_prediction_loss(codes, LOGITS, WEIGHTS))
    np.testing.assert_allclose(loss, reference_code_loss(codes, LOGITS, WEIGHTS), 1e-6)


def test_code_prediction_loss_in_float32():
    """Half-precision logits are widened first, so nothing more is lost."""
    logits = ops.cast(LOGITS, "float16")
    loss = code_prediction_loss(CODES, logits)
    rounded = LOGITS.astype("float16").astype("float64")
    expected = reference_code_loss(CODES, rounded, np.ones((2, 5)))
    np.testing.assert_allclose(to_numpy(loss), expected, 1e-6)
    assert to_numpy(loss).dtype == np.float32


def test_cosine_similarity():
    first = RNG.normal(0, 4, (2, 5, 6)).astype("float32")
    second = RNG.normal(0, 1e-2, (2, 5, 6)).astype("float32")
    for weights in (WEIGHTS, None):
        found = to_numpy(cosine_similarity(first, second, weights))
        weights = np.ones((2, 5)) if weights is None else weights
        expected = reference_cosine(first, second, weights)
        np.testing.assert_allclose(found, expected, 1e-5)
    np.testing.assert_allclose(to_numpy(cosine_similarity(first, -2 * first)), -1, 1e-6)
    assert (
        to_numpy(cosine_similarity(np.zeros((1, 2, 3), "float32"), first[:1, :2, :3]))
        == 0
    )


def test_mean_of_nothing_is_zero():
    values = ops.ones((2, 3))
    assert to_numpy(weighted_mean(values, ops.zeros((2, 3)))) == 0.0
    assert to_numpy(weighted_mean(values, ops.full((2, 3), 1e-3))) == 1.0
