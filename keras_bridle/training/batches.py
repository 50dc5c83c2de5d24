"""Batches of raw inputs in any form."""

import contextlib
import functools
import inspect
import itertools
import sys
from collections.abc import Iterator

import keras
import numpy as np

from keras_bridle.config import ArgumentError, check
from keras_bridle.distribution import gather, num_devices, process_shard
from keras_bridle.models.data_sets import (
    EpochsWithBatches,
    LaterBatches,
    Opened,
    is_data_set,
    is_tf_data,
    length_of,
    readers_finish,
)
from keras_bridle.models.inputs import (
    are_batches,
    as_array,
    as_batch,
    as_examples,
    check_shape,
    open_sides,
)


def epoch_order(num_examples, seed, epoch, weights=None, length=None):
    """Draws the indices of an epoch's examples; with weights, with replacement."""
    random = np.random.default_rng([seed, epoch])
    if weights is None:
        return random.permutation(num_examples)[:length]
    return random.choice(num_examples, length or num_examples, p=weights)


def from_batch_on(batches, start, repeat=False, convert=None):
    """Skips the first batches of a data set, which is endless with `repeat`."""
    if isinstance(batches, keras.utils.PyDataset):
        repeat = repeat and batches.num_batches is not None
        if start == 0 and not repeat:
            return batches
    if not is_tf_data(batches):
        return LaterBatches(batches, start, repeat, convert)
    if repeat:
        # Whole passes over the data need no skipping.
        start %= length_of(batches) or sys.maxsize
        batches = batches.repeat()
    return batches.skip(start) if start else batches


class ArrayBatches(keras.utils.PyDataset):
    """Serves an array in shuffled batches of one size, in Keras' `floatx()`.

    The order follows from seed and epoch alone. With `codes`, batches are dicts; with
    `labels`, tuples. `shard` is which part, of how many, of each batch to give.
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

    def start_epoch(self, epoch):
        """Puts the examples in the order of an epoch, counted from 0."""
        self.epoch = epoch
        self._order = epoch_order(
            len(self.inputs), self.seed, epoch, self.weights, self.epoch_length
        )

    def on_epoch_end(self):
        self.start_epoch(self.epoch + 1)

    def __len__(self):
        return len(self._order) // self.batch_size - self.first_batch

    def __getitem__(self, index):
        start = (self.first_batch + index) * self.batch_size
        # Sorted, so that files on disk are read in one direction.
        places = np.sort(self._order[start : start + self.batch_size])
        part, count = self.shard
        size = self.batch_size // count
        places = places[part * size : (part + 1) * size]
        batch = in_floatx(self.inputs[places])
        if self.codes is not None:
            return {"inputs": batch, "codes": self.codes[places].astype("int32")}
        return batch if self.labels is None else (batch, self.labels[places])


@readers_finish()
def fit_in_order(model, batches, callbacks, verbose=0, closing=(), **options):
    """Calls `model.fit()` on batches in their own order, and closes callbacks."""
    callbacks = [*callbacks, EpochsWithBatches()]
    if isinstance(batches, ArrayBatches):
        # Keras may read a batch to inspect it, which must not end an epoch.
        in_order = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: batches.start_epoch(epoch)
        )
        callbacks.insert(0, in_order)
    with contextlib.ExitStack() as stack:
        for callback in closing:
            stack.callback(callback.close)
        # The batches are prepared already.
        return keras.Model.fit(
            model,
            batches,
            callbacks=callbacks,
            shuffle=False,
            verbose=2 if verbose == 2 else 0,
            **options,
        ).history


def in_floatx(batch):
    """Casts an array of floats to Keras' `floatx()`."""
    dtype = keras.config.floatx() if batch.dtype.kind == "f" else batch.dtype
    return batch.astype(dtype, copy=False)


def batches_by_epoch(inputs, input_dims, batch_size, steps_per_epoch, seed):
    """Makes a function from an epoch and `first_batch` to batches from there on."""
    convert = functools.partial(raw_batch, input_dims=open_sides(input_dims))
    if callable(inputs):
        return functools.partial(_from_function, inputs, convert)
    expected = "a data set, or a function that makes one, to be read repeatedly"
    check(not isinstance(inputs, Iterator), "inputs", expected, inputs)
    if is_data_set(inputs) or are_batches(inputs, input_dims):
        return functools.partial(_from_data_set, inputs, steps_per_epoch, convert)
    inputs = as_batch(inputs, input_dims)
    if steps_per_epoch is not None:
        raise ArgumentError("steps_per_epoch", "None for an array", steps_per_epoch)
    size = min(batch_size, len(inputs))
    expected = f"a multiple of {num_devices()} devices"
    check(size % num_devices() == 0, "batch_size", expected, size)
    return functools.partial(
        ArrayBatches, inputs, batch_size, seed, shard=process_shard()
    )


def raw_batch(batch, input_dims):
    """Returns the raw inputs of a batch, which may be a tuple or a dict."""
    if isinstance(batch, dict):
        fitting = [x for x in batch.values() if np.ndim(x) == len(input_dims) + 1]
        expected = "batches with one array of raw inputs"
        check(len(fitting) == 1, "inputs", expected, f"a dict of {list(batch)}")
        batch = fitting[0]
    if isinstance(batch, tuple | list) and np.ndim(batch[0]) > len(input_dims):
        batch = batch[0]
    batch = as_examples(batch)
    check_shape(batch.shape, input_dims)
    return in_floatx(batch)


def _from_data_set(inputs, steps, convert, epoch, first_batch=0):
    """Reads a data set once per epoch, or over epochs of a number of steps."""
    start = first_batch + epoch * (steps or 0)
    return from_batch_on(inputs, start, steps is not None, convert)


def _from_function(function, convert, epoch, first_batch=0):
    """Allows a user's function of the epoch to start in the middle."""
    make = functools.partial(function, epoch)
    if "first_batch" in inspect.signature(function).parameters:
        make, first_batch = functools.partial(make, first_batch=first_batch), 0
    batches = make()
    if isinstance(batches, Iterator):
        batches = Opened(make)
    return from_batch_on(batches, first_batch, convert=convert)


def count_batches(batches, steps_per_epoch=None):
    """Counts the batches of an epoch, for the schedules of learning rates."""
    if steps_per_epoch is None:
        steps_per_epoch = length_of(batches)
    if steps_per_epoch is None or steps_per_epoch < 1:
        expected = "an int, at least 1, for inputs of unknown length"
        raise ArgumentError("steps_per_epoch", expected, steps_per_epoch)
    return steps_per_epoch


def first_batches(batches, count):
    """Yields the inputs of the first batches, joined over processes."""
    is_whole = getattr(batches, "shard", None) == (0, 1)
    for batch in itertools.islice(batches, count):
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        batch = keras.tree.map_structure(as_array, batch)
        yield batch if is_whole else keras.tree.map_structure(_joined, batch)


def _joined(part):
    """Joins the shards of a batch that processes have read, in order."""
    return gather(part).reshape(-1, *part.shape[1:])
