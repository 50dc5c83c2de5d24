import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle.engine import argmax_of_rows, nearness, segment_sum


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1000,), "int32"), ((1000, 5), "float32")]
)
def test_segment_sum_matches_numpy(shape, dtype):
    rng = np.random.default_rng(0)
    values = rng.normal(size=shape).astype(dtype)
    ids = rng.integers(0, 7, 1000).astype("int32")
    ids[ids == 3] = 4
    expected = np.zeros((7, *shape[1:]))
    np.add.at(expected, ids, values)
    sums = segment_sum(values, ids, 7)
    assert keras.backend.standardize_dtype(sums.dtype) == dtype
    np.testing.assert_allclose(ops.convert_to_numpy(sums), expected, atol=1e-4)


def test_nearness_ranks_by_distance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 256))
    table = rng.normal(size=(20, 256))
    distances = np.square(rows[:, None] - table).sum(axis=-1)
    expected = (np.square(rows).sum(axis=-1, keepdims=True) - distances) / 2
    arrays = (rows, table, 0.5 * np.square(table).sum(axis=-1))
    scores = nearness(*(ops.convert_to_tensor(x.astype("float32")) for x in arrays))
    np.testing.assert_allclose(ops.convert_to_numpy(scores), expected, atol=1e-4)


def test_argmax_of_rows_takes_the_first_of_equals():
    scores = np.float32([[1, 3, 2, 3], [0, -1, 0, 0], [-5, -4, -3, -2]])
    codes = argmax_of_rows(ops.convert_to_tensor(scores))
    assert keras.backend.standardize_dtype(codes.dtype) == "int32"
    np.testing.assert_array_equal(ops.convert_to_numpy(codes), [1, 0, 3])
    bad = ops.convert_to_tensor(np.full((2, 4), np.nan, "float32"))
    assert (ops.convert_to_numpy(argmax_of_rows(bad)) < 4).all()
