"""Raw input in whatever form it comes, as batches."""

import functools
import inspect
import itertools
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from keras_bridle.distribution.processes import (
    all_examples,
    array_shard,
    num_devices,
)
from keras_bridle.pretraining.array_batches import ArrayBatches
from keras_bridle.pretraining.later_batches import from_batch_on


def batches_by_epoch(inputs, input_dims, batch_size, steps_per_epoch, seed):
    """Makes the function from a position in the data to the batches from there on.

    Args:
        inputs: as of `InterleavedPretraining.fit()`.
        input_dims: tuple of ints or `None`, the shape of an example of an array.
        batch_size: int, for arrays.
        steps_per_epoch: optional int, for what is no array.
        seed: int, of the order of an array.

    Returns:
        A function of an epoch and, as `first_batch`, of a batch in it (0 by default)
        that returns batches.

    Raises:
        ValueError: if the inputs do not fit the other arguments.
    """
    if ops.is_tensor(inputs):
        inputs = ops.convert_to_numpy(inputs)
    if callable(inputs):
        return _from_function(inputs)
    if not hasattr(inputs, "shape"):
        if isinstance(inputs, Iterator):
            raise ValueError(
                "`inputs` are read more than once, which an iterator cannot be: "
                "pass a data set, or a function that makes one. "
                f"Received: inputs of type {type(inputs).__name__}"
            )
        return functools.partial(_from_data_set, inputs, steps_per_epoch)
    if not _fits(tuple(inputs.shape[1:]), input_dims):
        raise ValueError(
            "`inputs` must have the shape (num_examples, *input_dims) with the "
            f"backbone's input_dims={input_dims}. "
            f"Received shape: {tuple(inputs.shape)}"
        )
    if steps_per_epoch is not None:
        raise ValueError(
            "`steps_per_epoch` is for data sets; the epochs of an array are all of "
            f"it. Received: steps_per_epoch={steps_per_epoch} and an array"
        )
    size = min(batch_size, len(inputs))
    if size % num_devices():
        raise ValueError(
            "`batch_size` must be a multiple of the number of devices, "
            f"{num_devices()}. Received: batches of {size}"
        )
    return functools.partial(
        ArrayBatches, inputs, batch_size, seed, shard=array_shard()
    )


def count_batches(batches, steps_per_epoch=None):
    """Counts the batches of an epoch, which the learning rates depend on.

    Args:
        batches: whatever `fit()` takes.
        steps_per_epoch: optional int, the answer for what does not know it.

    Returns:
        int.

    Raises:
        ValueError: if there is no telling.
    """
    if steps_per_epoch is None:
        if isinstance(batches, keras.utils.PyDataset):
            steps_per_epoch = batches.num_batches
        elif hasattr(batches, "cardinality"):
            steps_per_epoch = int(batches.cardinality())
        elif hasattr(batches, "__len__"):
            steps_per_epoch = len(batches)
    if steps_per_epoch is None or steps_per_epoch < 1:
        raise ValueError(
            "`inputs` do not tell how many batches an epoch has: pass "
            f"`steps_per_epoch`. Received: steps_per_epoch={steps_per_epoch}, inputs "
            f"of type {type(batches).__name__}"
        )
    return steps_per_epoch


def first_batches(batches, count):
    """Yields the inputs of the first batches of whatever `fit()` takes.

    Where several processes read parts of each batch, they all get the whole of it.

    Args:
        batches: a data set of inputs, or of tuples that start with them.
        count: int.

    Yields:
        Arrays, or dicts of them.
    """
    is_whole = getattr(batches, "shard", None) == (0, 1)
    if isinstance(batches, keras.utils.PyDataset):
        number = batches.num_batches
        numbers = range(count if number is None else min(count, number))
        batches = map(batches.__getitem__, numbers)
    for batch in itertools.islice(batches, count):
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        batch = keras.tree.map_structure(_as_array, batch)
        yield batch if is_whole else keras.tree.map_structure(all_examples, batch)


def timing_of(batches):
    """Gives the module that times the reading of batches, or `None` if none can.

    Args:
        batches: whatever `fit()` takes.

    Returns:
        `keras_bridle.data.input_clock` for a `tf.data.Dataset`, else `None`.
    """
    if not hasattr(batches, "element_spec"):
        return None
    # Here, as the data room needs TensorFlow and decoders.
    from keras_bridle.data import input_clock

    return input_clock


def _as_array(values):
    # tf.data has TensorFlow's tensors on every backend.
    return ops.convert_to_numpy(values) if ops.is_tensor(values) else np.asarray(values)


def _from_function(function):
    """Lets a user's function of the epoch start in the middle of it."""
    if "first_batch" in inspect.signature(function).parameters:
        return function

    def batches(epoch, first_batch=0):
        return from_batch_on(function(epoch), first_batch)

    return batches


def _from_data_set(inputs, steps_per_epoch, epoch, first_batch=0):
    """A data set is read anew in each epoch, or over epochs of so many steps."""
    if steps_per_epoch is None:
        return from_batch_on(inputs, first_batch)
    return from_batch_on(inputs, epoch * steps_per_epoch + first_batch, repeat=True)


def _fits(shape, dims):
    return len(shape) == len(dims) and all(
        dim in (None, size) for size, dim in zip(shape, dims, strict=True)
    )
