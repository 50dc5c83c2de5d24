"""Batches of an array, in an order that depends on seed and epoch alone."""

import keras
import numpy as np


class ArrayBatches(keras.utils.PyDataset):
    """Serves an array in shuffled batches of one size.

    Keras' own shuffling of arrays goes on from wherever its random numbers stand; here
    epoch `n` is in the same order however the run came to it. Examples that do not fill
    a last batch are left out, other ones in each epoch, so that shapes stay static.

    Args:
        inputs: array of shape `(num_examples, ...)`. Batches of floats come in Keras'
            `floatx()`.
        batch_size: int; more than there are examples means all of them.
        seed: int.
        initial_epoch: int, the epoch to start with.
        first_batch: int, the batch to start with, for the rest of an epoch.
        codes: optional integer array of shape `(num_examples, ...)`. When given,
            batches are dicts of `inputs` and, as int32, `codes`.
        shard: tuple of ints `(part, parts)`: give only that one of so many equal
            parts of each batch, as one of several processes does.
        **kwargs: keyword arguments of `keras.utils.PyDataset`.

    Raises:
        ValueError: if there are no examples, or batches cannot be divided.

    Example:
    ```python
    import numpy as np
    from keras_bridle.pretraining import ArrayBatches

    batches = ArrayBatches(np.arange(10), batch_size=4, seed=0)
    print(len(batches), batches[0].shape)  # 2 (4,)
    ```
    """

    def __init__(
        self,
        inputs,
        batch_size,
        seed=0,
        initial_epoch=0,
        first_batch=0,
        codes=None,
        shard=(0, 1),
        **kwargs,
    ):
        super().__init__(**kwargs)
        if len(inputs) == 0:
            raise ValueError("There are no examples. Received: an empty array")
        if batch_size < 1:
            raise ValueError(
                f"`batch_size` must be positive. Received: batch_size={batch_size}"
            )
        self.inputs = inputs
        self.codes = codes
        self.batch_size = min(batch_size, len(inputs))
        self.shard = tuple(shard)
        if self.batch_size % self.shard[1]:
            raise ValueError(
                "`batch_size` must be a multiple of the number of processes, "
                f"{self.shard[1]}. Received: batches of {self.batch_size}"
            )
        self.seed = seed
        self.first_batch = first_batch
        self.start_epoch(initial_epoch)

    def start_epoch(self, epoch):
        """Puts the examples in the order of an epoch, counted from 0."""
        self.epoch = epoch
        random = np.random.default_rng([self.seed, epoch])
        self._order = random.permutation(len(self.inputs))

    def on_epoch_end(self):
        """Goes on to the next epoch's order."""
        self.start_epoch(self.epoch + 1)

    def __len__(self):
        return len(self.inputs) // self.batch_size - self.first_batch

    def __getitem__(self, index):
        start = (self.first_batch + index) * self.batch_size
        # Sorted, a batch is also read from a file on disk in one direction.
        places = np.sort(self._order[start : start + self.batch_size])
        part, count = self.shard
        size = self.batch_size // count
        places = places[part * size : (part + 1) * size]
        batch = in_floatx(self.inputs[places])
        if self.codes is None:
            return batch
        return {"inputs": batch, "codes": self.codes[places].astype("int32")}


def in_order_of_epochs(batches):
    """Makes the callback that puts examples in each epoch's order.

    Args:
        batches: what `fit()` is given: `ArrayBatches`, or others with `start_epoch()`.

    Returns:
        A `keras.callbacks.Callback`.
    """
    # Keras may draw a batch to look at it, which ends an epoch of its own.
    return keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: batches.start_epoch(epoch)
    )


def in_floatx(batch):
    """Gives an array of floats in Keras' `floatx()`, and others as they are."""
    if batch.dtype.kind != "f":
        return batch
    return batch.astype(keras.config.floatx(), copy=False)
