"""Data sets of any kind from some batch on."""

import keras
import numpy as np
import pytest

from keras_bridle.training.batches import (
    ArrayBatches,
    batches_by_epoch,
    first_batches,
    from_batch_on,
)


class Numbers(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index >= 4:
            raise IndexError
        return np.array([[index]])


def tf_numbers():
    return pytest.importorskip("tensorflow").data.Dataset.range(4).batch(1)


def python_numbers():
    return [np.array([[index]]) for index in range(4)]


def numbers(batches, count):
    return [int(np.ravel(batch)[0]) for batch in first_batches(batches, count)]


KINDS = pytest.mark.parametrize("make", [Numbers, tf_numbers, python_numbers])


@KINDS
def test_to_the_end(make):
    assert numbers(from_batch_on(make(), 1), 9) == [1, 2, 3]


@KINDS
@pytest.mark.parametrize(("start", "expected"), [(3, [3, 0, 1]), (9, [1, 2, 3])])
def test_over_the_end(make, start, expected):
    assert numbers(from_batch_on(make(), start, repeat=True), 3) == expected


@KINDS
def test_by_epoch_and_batch(make):
    batches = batches_by_epoch(make(), (1,), 1, None, 0)
    assert numbers(batches(5), 9) == [0, 1, 2, 3]
    assert numbers(batches(5, first_batch=2), 9) == [2, 3]
    batches = batches_by_epoch(make(), (1,), 1, 3, 0)
    # Epochs of 3 batches go on where the one before stopped: 0-2, 3-1, 2-0.
    assert numbers(batches(2, first_batch=1), 4) == [3, 0, 1, 2]


def test_arrays():
    inputs = np.arange(13)
    batches = batches_by_epoch(inputs, (), 3, None, seed=5)
    whole, rest = batches(2), batches(2, first_batch=3)
    assert isinstance(rest, ArrayBatches)
    assert (len(whole), len(rest)) == (4, 1)
    np.testing.assert_array_equal(rest[0], whole[3])
    codes = np.arange(13, dtype="uint8")
    pairs = batches(2, codes=codes)
    for index in range(4):
        np.testing.assert_array_equal(pairs[index]["inputs"], whole[index])
        np.testing.assert_array_equal(pairs[index]["codes"], whole[index])
    assert pairs[0]["codes"].dtype == "int32"


def test_functions():
    asked = []

    def by_epoch(epoch):
        return [np.array([[10 * epoch + index]]) for index in range(4)]

    def by_batch(epoch, first_batch=0):
        asked.append((epoch, first_batch))
        return by_epoch(epoch)[first_batch:]

    for function in (by_epoch, by_batch):
        batches = batches_by_epoch(function, (1,), 1, 4, 0)
        assert numbers(batches(3), 2) == [30, 31]
        assert numbers(batches(3, first_batch=2), 9) == [32, 33]
    assert asked == [(3, 0), (3, 2)]
