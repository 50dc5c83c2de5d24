import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle.layers.engine import exact_matmul, segment_sum


@pytest.mark.parametrize("shape", [(1000,), (1000, 5)])
def test_segment_sum_matches_numpy(shape):
    rng = np.random.default_rng(0)
    values = rng.normal(size=shape).astype("float32")
    ids = rng.integers(0, 7, 1000).astype("int32")
    ids[ids == 3] = 4
    expected = np.zeros((7, *shape[1:]))
    np.add.at(expected, ids, values)
    sums = segment_sum(values, ids, 7)
    assert keras.backend.standardize_dtype(sums.dtype) == "float32"
    np.testing.assert_allclose(ops.convert_to_numpy(sums), expected, atol=1e-4)
    np.testing.assert_array_equal(ops.convert_to_numpy(sums)[3], 0.0)


def test_segment_sum_counts_integers():
    sums = segment_sum(np.ones(4, "int32"), np.int32([2, 0, 2, 2]), 3)
    np.testing.assert_array_equal(ops.convert_to_numpy(sums), [1, 0, 3])


def test_exact_matmul_matches_float64():
    rng = np.random.default_rng(0)
    left = rng.normal(size=(30, 256)).astype("float32")
    right = rng.normal(size=(256, 20)).astype("float32")
    product = ops.convert_to_numpy(
        exact_matmul(ops.convert_to_tensor(left), ops.convert_to_tensor(right))
    )
    np.testing.assert_allclose(product, left.astype("float64") @ right, atol=5e-5)
