"""Code accuracy against counting by hand."""

import keras
import numpy as np
import pytest
from harness import to_numpy

from keras_bridle.training.losses import CodeAccuracy

RNG = np.random.default_rng(0)


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
