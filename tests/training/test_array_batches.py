"""The order of examples, in and out of `fit()`."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle.training.batches import ArrayBatches


def epoch_of(batches):
    return [batches[index] for index in range(len(batches))]


def test_every_example_once_an_epoch():
    batches = ArrayBatches(np.arange(12), batch_size=4, seed=1)
    for _ in range(3):
        served = epoch_of(batches)
        assert [batch.shape for batch in served] == [(4,)] * 3
        assert sorted(np.concatenate(served)) == list(range(12))
        batches.on_epoch_end()


def test_what_is_left_out_changes():
    """10 examples in batches of 4: 2 sit out, other ones each time."""
    batches = ArrayBatches(np.arange(10), batch_size=4)
    served = []
    for epoch in range(8):
        batches.start_epoch(epoch)
        served.append(np.concatenate(epoch_of(batches)))
        assert len(set(served[-1])) == 8
    assert set(np.concatenate(served)) == set(range(10))
    assert len({tuple(sorted(one)) for one in served}) > 4


def test_processes_share_each_batch_without_overlap_or_loss():
    whole = ArrayBatches(np.arange(20), batch_size=6, seed=2, initial_epoch=1)
    parts = [
        ArrayBatches(np.arange(20), 6, seed=2, initial_epoch=1, shard=(part, 3))
        for part in range(3)
    ]
    assert {len(part) for part in parts} == {len(whole)} == {3}
    for index in range(len(whole)):
        pieces = [part[index] for part in parts]
        assert {len(piece) for piece in pieces} == {2}
        np.testing.assert_array_equal(np.concatenate(pieces), whole[index])


def test_batches_that_cannot_be_shared_are_an_error():
    with pytest.raises(ValueError, match="multiple of 4"):
        ArrayBatches(np.arange(20), batch_size=6, shard=(0, 4))


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return np.concatenate(epoch_of(ArrayBatches(np.arange(40), 4, seed, epoch)))

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for i, one in enumerate(orders):
        for other in orders[i + 1 :]:
            assert (one != other).any()
    batches = ArrayBatches(np.arange(40), 4, 1)
    batches.on_epoch_end()
    np.testing.assert_array_equal(np.concatenate(epoch_of(batches)), orders[3])
    # Not sorted through and through, only inside of a batch.
    assert (np.diff(orders[0]) < 0).any()


def test_few_examples_and_dtypes():
    batches = ArrayBatches(np.arange(3.0), batch_size=8)
    assert len(batches) == 1
    assert batches[0].dtype == np.float32
    assert ArrayBatches(np.arange(3, dtype="int16"), 2)[0].dtype == np.int16


def test_errors():
    with pytest.raises(ValueError, match="inputs"):
        ArrayBatches(np.zeros((0, 3)), 4)


class Seen(keras.Model):
    """Writes down what it is given, in batches of 4."""

    def __init__(self, places):
        super().__init__()
        state = {"initializer": "zeros", "trainable": False}
        self.places = self.add_weight(shape=(places,), dtype="float32", **state)
        self.step = self.add_weight(shape=(), dtype="int32", **state)
        self.scale = self.add_weight(shape=())
        self.built = True

    def call(self, inputs):
        step = ops.convert_to_tensor(self.step)
        places = ops.slice_update(
            ops.convert_to_tensor(self.places), (4 * step,), ops.reshape(inputs, (4,))
        )
        self.places.assign(places)
        self.step.assign(step + 1)
        return inputs * self.scale

    def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
        return ops.mean(y_pred)


def seen_in_fit(batches, epochs, initial_epoch=0):
    model = Seen(12 * (epochs - initial_epoch))
    model.compile("sgd")
    start = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: batches.start_epoch(epoch)
    )
    model.fit(
        batches,
        epochs=epochs,
        initial_epoch=initial_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[start],
    )
    return ops.convert_to_numpy(model.places)


def test_fit_sees_the_same_order_after_resuming():
    inputs = np.arange(12.0).reshape(12, 1)
    unbroken = seen_in_fit(ArrayBatches(inputs, 4, seed=3), epochs=3)
    expected = [epoch_of(ArrayBatches(inputs, 4, 3, epoch)) for epoch in range(3)]
    np.testing.assert_array_equal(unbroken, np.ravel(expected))
    resumed = seen_in_fit(ArrayBatches(inputs, 4, 3, 1), epochs=3, initial_epoch=1)
    np.testing.assert_array_equal(resumed, unbroken[12:])
