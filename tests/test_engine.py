import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle.engine import after, argmax_of_rows, attention, nearness, segment_sum


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


def test_nearness_ranks_by_distance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 256))
    table = rng.normal(size=(20, 256))
    distances = np.square(rows[:, None] - table).sum(axis=-1)
    expected = (np.square(rows).sum(axis=-1, keepdims=True) - distances) / 2
    scores = nearness(
        *(
            ops.convert_to_tensor(array.astype("float32"))
            for array in (rows, table, 0.5 * np.square(table).sum(axis=-1))
        )
    )
    np.testing.assert_allclose(ops.convert_to_numpy(scores), expected, atol=1e-4)


def test_argmax_of_rows_takes_the_first_of_equals():
    scores = np.float32([[1, 3, 2, 3], [0, -1, 0, 0], [-5, -4, -3, -2]])
    codes = argmax_of_rows(ops.convert_to_tensor(scores))
    assert keras.backend.standardize_dtype(codes.dtype) == "int32"
    np.testing.assert_array_equal(ops.convert_to_numpy(codes), [1, 0, 3])
    bad = ops.convert_to_tensor(np.full((2, 4), np.nan, "float32"))
    assert (ops.convert_to_numpy(argmax_of_rows(bad)) < 4).all()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_a_softmax_over_keys(masked):
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 2, 5, 3, 4)).astype("float32")
    mask = None
    logits = np.einsum("bqhd,bkhd->bhqk", query, key).astype("float64") / 2.0
    if masked:
        mask = np.broadcast_to(np.arange(5) < [[5], [2]], (1, 2, 5))
        mask = np.tile(mask.reshape(2, 1, 1, 5), (1, 1, 5, 1))
        logits = np.where(mask, logits, -np.inf)
        mask = ops.convert_to_tensor(mask)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, value)
    found = attention(*map(ops.convert_to_tensor, (query, key, value)), mask)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, 1e-5, 1e-5)


def test_after_is_the_same_tensor():
    value = ops.arange(3)
    found = after(value, ops.ones((2,)), ops.zeros(()))
    np.testing.assert_array_equal(ops.convert_to_numpy(found), [0, 1, 2])
