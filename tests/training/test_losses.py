"""Losses and metrics against float64 NumPy."""

import keras
import numpy as np
import pytest
from harness import gradients, to_numpy
from keras import ops
from tiny_pretraining import reference_code_loss, reference_cosine

from keras_bridle.training.losses import (
    CodeAccuracy,
    FiniteLoss,
    FiniteMean,
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


def batch(codes_per_level=None):
    logits = RNG.normal(size=(3, 4, 2, 5)).astype("float32")
    shape = (3, 4, 2) if codes_per_level is None else (3, 4, 2, codes_per_level)
    weights = RNG.integers(0, 2, (3, 4)).astype("float32")
    return RNG.integers(0, 5, shape).astype("int32"), logits, weights


def counted(batches):
    right, seen = np.zeros(2), 0.0
    for codes, logits, weights in batches:
        codes = codes.reshape(3, 4, 2, -1)
        for b, p in np.ndindex(3, 4):
            seen += weights[b, p]
            for level in range(2):
                right[level] += weights[b, p] * (
                    logits[b, p, level].argmax() in codes[b, p, level]
                )
    return right / seen


@pytest.mark.parametrize("codes_per_level", [None, 2])
def test_accuracy_over_batches(codes_per_level):
    batches = [batch(codes_per_level), batch(codes_per_level)]
    metric = CodeAccuracy(2)
    for codes, logits, weights in batches:
        # Padding has the code -1, and only the ratio of weights counts.
        metric.update_state(
            np.where(weights.reshape(3, 4, *(codes.ndim - 2) * [1]), codes, -1),
            logits,
            weights / 100,
        )
    found = to_numpy(metric.result())
    assert list(found) == ["accuracy_1", "accuracy_2"]
    np.testing.assert_allclose(list(found.values()), counted(batches), 1e-5)
    metric.reset_state()
    assert to_numpy(metric.result()) == {"accuracy_1": 0, "accuracy_2": 0}


def test_config():
    metric = CodeAccuracy(3, name="right")
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(metric)
    )
    assert copy.get_config() == metric.get_config()
    assert list(copy.result()) == ["right_1", "right_2", "right_3"]


def test_means_of_finite_numbers():
    mean, loss = FiniteMean(name="cosine"), FiniteLoss()
    for metric in (mean, loss):
        for value, weight in ((1.0, 3), (np.nan, 4), (np.inf, 5), (4.0, 1)):
            metric.update_state(value, sample_weight=weight)
    assert float(mean.result()) == 1.75
    found = {name: float(value) for name, value in loss.result().items()}
    assert found == {"loss": 1.75, "skipped_steps": 2.0}
    loss.reset_state()
    assert float(loss.result()["skipped_steps"]) == 0.0
