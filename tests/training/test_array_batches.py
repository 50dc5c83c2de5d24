"""The order of examples, in and out of `fit()`."""

import numpy as np

from keras_bridle.training.batches import ArrayBatches


def epoch_of(batches):
    return [batches[index] for index in range(len(batches))]


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
