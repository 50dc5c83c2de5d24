"""Batches of a data set from some position on."""

import itertools

import keras


class LaterBatches(keras.utils.PyDataset):
    """The batches of a `PyDataset` from one on.

    Args:
        dataset: `keras.utils.PyDataset`.
        start: int, the first batch.
        repeat: bool, whether to begin again at its end, without an end.

    Example:
    ```python
    import numpy as np
    from keras_bridle.pretraining import ArrayBatches
    from keras_bridle.pretraining.later_batches import LaterBatches

    later = LaterBatches(ArrayBatches(np.arange(10), batch_size=2), start=3)
    print(later.num_batches)  # 2
    ```
    """

    def __init__(self, dataset, start, repeat=False):
        super().__init__(
            dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size
        )
        self.dataset = dataset
        self.start = start
        self.repeat = repeat

    @property
    def num_batches(self):
        if self.repeat or self.dataset.num_batches is None:
            return None
        return self.dataset.num_batches - self.start

    def __getitem__(self, index):
        index += self.start
        if self.repeat and self.dataset.num_batches is not None:
            index %= self.dataset.num_batches
        return self.dataset[index]

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


def from_batch_on(batches, start, repeat=False):
    """Leaves out the first batches of whatever `fit()` takes.

    What is left out is still read where the data set knows no better way. A data set
    that shuffles in another order at each reading gives other batches.

    Args:
        batches: a data set.
        start: int, the first batch to give; 0 gives all, as they are.
        repeat: bool, whether to begin again at the end, where training goes on over
            more than one reading.

    Returns:
        What `fit()` takes.
    """
    if start == 0:
        return batches
    if isinstance(batches, keras.utils.PyDataset):
        return LaterBatches(batches, start, repeat)
    if hasattr(batches, "skip") and hasattr(batches, "repeat"):
        # A whole number of readings is nothing to skip.
        length = int(batches.cardinality())
        start = start % length if repeat and length > 0 else start
        return (batches.repeat() if repeat else batches).skip(start)
    return _iterate(batches, start, repeat)


def _iterate(batches, start, repeat):
    readings = itertools.repeat(batches) if repeat else [batches]
    yield from itertools.islice(itertools.chain.from_iterable(readings), start, None)
