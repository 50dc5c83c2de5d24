"""Raw input in whatever form it comes, as batches."""

import functools
import inspect
import itertools
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from keras_bridle.distribution import all_examples, num_devices, process_shard


def epoch_order(num_examples, seed, epoch, weights=None, length=None):
    """Draws the order of the examples in an epoch, an int array of indices.

    By default it is a permutation of all. With `weights`, which sum to 1, examples are
    drawn by them with replacement; `length` is how many.
    """
    random = np.random.default_rng([seed, epoch])
    length = num_examples if length is None else length
    if weights is not None:
        return random.choice(num_examples, length, p=weights)
    return random.permutation(num_examples)[:length]


class LaterBatches(keras.utils.PyDataset):
    """The batches of a `PyDataset` from one on.

    Args:
        dataset: `keras.utils.PyDataset`.
        start: int, the first batch.
        repeat: bool, whether to begin again at its end, without an end.

    Example:
    ```python
    import numpy as np
    from keras_bridle.training.batches import ArrayBatches
    from keras_bridle.training.batches import LaterBatches

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
        labels: optional array of shape `(num_examples, ...)`. When given, batches are
            tuples of inputs and labels.
        weights: optional array of shape `(num_examples,)` that sums to 1, by which
            examples are drawn with replacement.
        epoch_length: optional int, examples of an epoch.
        shard: tuple of ints `(part, parts)`: give only that one of so many equal
            parts of each batch, as one of several processes does.
        **kwargs: keyword arguments of `keras.utils.PyDataset`.

    Raises:
        ValueError: if there are no examples, or batches cannot be divided.

    Example:
    ```python
    import numpy as np
    from keras_bridle.training.batches import ArrayBatches

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
        labels=None,
        weights=None,
        epoch_length=None,
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
        self.labels = labels
        self.seed = seed
        self.weights = weights
        self.epoch_length = epoch_length
        self.first_batch = first_batch
        self.start_epoch(initial_epoch)
        self.batch_size = min(batch_size, len(self._order))
        self.shard = tuple(shard)
        if self.batch_size % self.shard[1]:
            raise ValueError(
                "`batch_size` must be a multiple of the number of processes, "
                f"{self.shard[1]}. Received: batches of {self.batch_size}"
            )

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
        ArrayBatches, inputs, batch_size, seed, shard=process_shard()
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
        `keras_bridle.data.pipeline` for a `tf.data.Dataset`, else `None`.
    """
    if not hasattr(batches, "element_spec"):
        return None
    # Here, as the data room needs TensorFlow and decoders.
    from keras_bridle.data import pipeline as input_clock

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
