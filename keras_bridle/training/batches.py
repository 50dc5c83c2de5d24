"""Raw input in whatever form it comes, as batches."""

import functools
import inspect
import itertools
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from keras_bridle.config import ArgumentError
from keras_bridle.distribution import gather, num_devices, process_shard


def epoch_order(num_examples, seed, epoch, weights=None, length=None):
    """Draws the order of the examples in an epoch, an int array of indices.

    By default it is a permutation. By `weights` examples are drawn with replacement.
    """
    random = np.random.default_rng([seed, epoch])
    length = num_examples if length is None else length
    if weights is not None:
        return random.choice(num_examples, length, p=weights)
    return random.permutation(num_examples)[:length]


class LaterBatches(keras.utils.PyDataset):
    """The batches of a `PyDataset` from `start` on, with `repeat` without an end."""

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
    """Skips the first batches of whatever `fit()` takes; with `repeat` it has no end.

    Where the data set knows no better way they are read all the same.
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


class ArrayBatches(keras.utils.PyDataset):
    """Serves an array in shuffled batches of one size, in Keras' `floatx()`.

    The order follows from seed and epoch alone, as Keras' own shuffling does not.
    Examples that fill no batch are dropped, other ones in each epoch. With `codes`,
    batches are dicts; with `labels`, tuples. `shard` is which of how many parts of each
    to give.
    """

    def __init__(
        self,
        inputs,
        batch_size,
        seed=0,
        initial_epoch=0,
        first_batch=0,
        codes=None,
        labels=None,
        weights=None,
        epoch_length=None,
        shard=(0, 1),
        **kwargs,
    ):
        super().__init__(**kwargs)
        if len(inputs) == 0:
            raise ArgumentError("inputs", "an array with examples", inputs)
        self.inputs = inputs
        self.codes = codes
        self.labels = labels
        self.seed = seed
        self.weights = weights
        self.epoch_length = epoch_length
        self.first_batch = first_batch
        self.start_epoch(initial_epoch)
        self.batch_size = min(batch_size, len(self._order))
        self.shard = tuple(shard)
        if self.batch_size % self.shard[1]:
            expected = f"a multiple of {self.shard[1]} processes"
            raise ArgumentError("batch_size", expected, self.batch_size)

    def start_epoch(self, epoch):
        """Puts the examples in the order of an epoch, counted from 0."""
        self.epoch = epoch
        self._order = epoch_order(
            len(self.inputs), self.seed, epoch, self.weights, self.epoch_length
        )

    def on_epoch_end(self):
        """Goes on to the next epoch's order."""
        self.start_epoch(self.epoch + 1)

    def __len__(self):
        return len(self._order) // self.batch_size - self.first_batch

    def __getitem__(self, index):
        start = (self.first_batch + index) * self.batch_size
        # Sorted, a batch is also read from a file on disk in one direction.
        places = np.sort(self._order[start : start + self.batch_size])
        part, count = self.shard
        size = self.batch_size // count
        places = places[part * size : (part + 1) * size]
        batch = in_floatx(self.inputs[places])
        if self.codes is not None:
            return {"inputs": batch, "codes": self.codes[places].astype("int32")}
        return batch if self.labels is None else (batch, self.labels[places])


def fit_in_order(model, batches, callbacks, verbose=0, **options):
    """Is `model.fit()` on batches in their own order."""
    if isinstance(batches, ArrayBatches):
        # Keras may draw a batch to look at it, which ends an epoch of its own.
        in_order = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: batches.start_epoch(epoch)
        )
        callbacks = [in_order, *callbacks]
    return model.fit(
        batches,
        callbacks=callbacks,
        shuffle=False,
        verbose=2 if verbose == 2 else 0,
        **options,
    ).history


def in_floatx(batch):
    """Gives an array of floats in Keras' `floatx()`, and others as they are."""
    if batch.dtype.kind != "f":
        return batch
    return batch.astype(keras.config.floatx(), copy=False)


def batches_by_epoch(inputs, input_dims, batch_size, steps_per_epoch, seed):
    """Makes the function from an epoch and `first_batch` to batches from there on."""
    if ops.is_tensor(inputs):
        inputs = ops.convert_to_numpy(inputs)
    if callable(inputs):
        return _from_function(inputs)
    if not hasattr(inputs, "shape"):
        if isinstance(inputs, Iterator):
            expected = "a data set, or a function that makes one, to be read repeatedly"
            raise ArgumentError("inputs", expected, inputs)
        return functools.partial(_from_data_set, inputs, steps_per_epoch)
    shape = tuple(inputs.shape[1:])
    if len(shape) != len(input_dims) or any(
        dim not in (None, size) for size, dim in zip(shape, input_dims, strict=True)
    ):
        expected = f"of the shape (num_examples, *input_dims), input_dims={input_dims}"
        raise ArgumentError("inputs", expected, f"shape {tuple(inputs.shape)}")
    if steps_per_epoch is not None:
        raise ArgumentError("steps_per_epoch", "None for an array", steps_per_epoch)
    size = min(batch_size, len(inputs))
    if size % num_devices():
        expected = f"a multiple of {num_devices()} devices"
        raise ArgumentError("batch_size", expected, size)
    return functools.partial(
        ArrayBatches, inputs, batch_size, seed, shard=process_shard()
    )


def count_batches(batches, steps_per_epoch=None):
    """Counts the batches of an epoch, which the learning rates depend on."""
    if steps_per_epoch is None:
        if isinstance(batches, keras.utils.PyDataset):
            steps_per_epoch = batches.num_batches
        elif hasattr(batches, "cardinality"):
            steps_per_epoch = int(batches.cardinality())
        elif hasattr(batches, "__len__"):
            steps_per_epoch = len(batches)
    if steps_per_epoch is None or steps_per_epoch < 1:
        expected = "an int, at least 1, for inputs of unknown length"
        raise ArgumentError("steps_per_epoch", expected, steps_per_epoch)
    return steps_per_epoch


def first_batches(batches, count):
    """Yields the inputs of the first batches, whole ones where processes share them."""
    is_whole = getattr(batches, "shard", None) == (0, 1)
    if isinstance(batches, keras.utils.PyDataset):
        number = batches.num_batches
        numbers = range(count if number is None else min(count, number))
        batches = map(batches.__getitem__, numbers)
    for batch in itertools.islice(batches, count):
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        batch = keras.tree.map_structure(_as_array, batch)
        yield batch if is_whole else keras.tree.map_structure(_joined, batch)


def _joined(part):
    """Joins the equal parts of a batch that the processes have read, in order."""
    return gather(part).reshape(-1, *part.shape[1:])


def _as_array(values):
    # tf.data has TensorFlow's tensors on every backend.
    return ops.convert_to_numpy(values) if ops.is_tensor(values) else np.asarray(values)


def _from_function(function):
    """Lets a user's function of the epoch start in the middle of it."""
    if "first_batch" in inspect.signature(function).parameters:
        return function
    return lambda epoch, first_batch=0: from_batch_on(function(epoch), first_batch)


def _from_data_set(inputs, steps_per_epoch, epoch, first_batch=0):
    """A data set is read anew in each epoch, or over epochs of so many steps."""
    if steps_per_epoch is None:
        return from_batch_on(inputs, first_batch)
    return from_batch_on(inputs, epoch * steps_per_epoch + first_batch, repeat=True)
