"""Raw input in whatever form it comes, as batches."""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from keras_bridle.data.files import ReadReport
from keras_bridle.data.pipeline import build_dataset
from keras_bridle.data.readers import import_tensorflow
from keras_bridle.data.video_reader import VideoReader
from keras_bridle.distribution import all_examples, array_shard, num_devices


def split_examples(labels, share, seed=0):
    """Splits examples in two, the same share of each class.

    Args:
        labels: int array of shape `(examples,)`; or 0/1 of shape `(examples, classes)`,
            which are split regardless of classes.
        share: float between 0 and 1, of the second part. Of a class with two examples
            or more, both parts get at least one.
        seed: int.

    Returns:
        A tuple of two sorted int arrays, the places of the examples of either part.

    Raises:
        ValueError: for a share out of range, or one that leaves a part empty.

    Example:
    ```python
    import numpy as np
    from keras_bridle.training.batches import split_examples

    train, test = split_examples(np.arange(20) % 2, share=0.2)
    print(len(train), len(test))  # 16 4
    ```
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` must lie between 0 and 1. Received: share={share}")
    second: list[int] = []
    for places in _groups(labels, seed):
        count = round(share * len(places))
        if len(places) > 1:
            count = min(max(count, 1), len(places) - 1)
        second.extend(places[:count])
    is_second = np.zeros(len(labels), bool)
    is_second[second] = True
    if is_second.all() or not is_second.any():
        raise ValueError(
            f"`share` leaves one of the two parts of {len(labels)} examples empty. "
            f"Received: share={share}"
        )
    return np.flatnonzero(~is_second), np.flatnonzero(is_second)


def draw_few(labels, per_class, seed=0):
    """Draws so many examples of each class, or all of a class that has fewer.

    Args:
        labels: int array of shape `(examples,)`.
        per_class: int, 1 or more.
        seed: int.

    Returns:
        A sorted int array, the places of the examples.

    Raises:
        ValueError: for less than one, or labels of another shape.

    Example:
    ```python
    import numpy as np
    from keras_bridle.training.batches import draw_few

    print(draw_few(np.array([0, 0, 0, 1, 1, 2]), per_class=2))
    ```
    """
    if per_class < 1:
        raise ValueError(f"`per_class` must be 1 or more. Received: {per_class}")
    if np.ndim(labels) != 1:
        raise ValueError(
            "`labels` must be one int for each example. "
            f"Received shape: {np.shape(labels)}"
        )
    drawn = [places[:per_class] for places in _groups(labels, seed)]
    return np.sort(np.concatenate(drawn))


def balanced_weights(labels, num_classes=None):
    """Weighs examples so that rare classes are drawn as often as common ones.

    As published for AudioSet: a class weighs 1000 / (its examples + 0.01), an example
    as much as its classes together.

    Args:
        labels: int array of shape `(examples,)`; or 0/1 of shape `(examples, classes)`.
        num_classes: int, for ints; by default what their largest tells.

    Returns:
        A float array of shape `(examples,)` that sums to 1.

    Raises:
        ValueError: if no example has a class.

    Example:
    ```python
    import numpy as np
    from keras_bridle.training.batches import balanced_weights

    print(balanced_weights(np.array([0, 0, 0, 1])))
    ```

    Reference:
        - [Gong et al., 2021](https://arxiv.org/abs/2102.01243)
    """
    labels = np.asarray(labels)
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=num_classes or 0)
        weights = 1000.0 / (counts[labels] + 0.01)
    else:
        of_class = 1000.0 / (np.count_nonzero(labels, axis=0) + 0.01)
        # Part by part, as products are made in float64.
        parts = np.array_split(labels, 1 + len(labels) // 10_000)
        weights = np.concatenate([(part > 0) @ of_class for part in parts])
    if not weights.sum() > 0:
        raise ValueError("No example has a class, so none can be drawn")
    return weights / weights.sum()


def epoch_order(num_examples, seed, epoch, weights=None, length=None):
    """Draws the order of the examples in an epoch: all, or a weighted sample.

    Args:
        num_examples: int.
        seed: int. With the epoch, it decides all.
        epoch: int, from 0.
        weights: optional float array of shape `(num_examples,)` that sums to 1: draw
            by these, with replacement.
        length: optional int, examples of an epoch; by default as many as there are. It
            needs `weights`, or not to exceed the number of examples.

    Returns:
        An int array of shape `(length,)`, places of examples.

    Raises:
        ValueError: for too long an epoch without `weights`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.training.batches import epoch_order

    print(epoch_order(4, seed=0, epoch=3))
    print(epoch_order(4, seed=0, epoch=3, weights=np.array([0.7, 0.1, 0.1, 0.1])))
    ```
    """
    random = np.random.default_rng([seed, epoch])
    length = num_examples if length is None else length
    if weights is not None:
        return random.choice(num_examples, length, p=weights)
    if length > num_examples:
        raise ValueError(
            f"An epoch of {length} of {num_examples} examples needs `weights`"
        )
    return random.permutation(num_examples)[:length]


def _groups(labels, seed):
    """Yields the shuffled places of each class, or of all of multi-label data."""
    labels = np.asarray(labels)
    random = np.random.default_rng(seed)
    if labels.ndim == 2:
        yield random.permutation(len(labels))
        return
    for label in np.unique(labels):
        yield random.permutation(np.flatnonzero(labels == label))


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


class LabeledBatches(keras.utils.PyDataset):
    """Serves arrays with labels in shuffled or sampled batches of one size.

    Args:
        inputs: array of shape `(num_examples, ...)`.
        labels: array of shape `(num_examples,)` or `(num_examples, classes)`.
        batch_size: int; more than an epoch has means all of them.
        seed: int.
        initial_epoch: int, the epoch to start with.
        weights: optional array of shape `(num_examples,)` that sums to 1, by which
            examples are drawn with replacement, see `balanced_weights()`.
        epoch_length: optional int, examples of an epoch.
        **kwargs: keyword arguments of `keras.utils.PyDataset`.

    Raises:
        ValueError: if there are no examples, or not a label for each.

    Example:
    ```python
    import numpy as np
    from keras_bridle.training.batches import LabeledBatches

    batches = LabeledBatches(np.eye(10), np.arange(10), batch_size=4)
    inputs, labels = batches[0]
    print(len(batches), inputs.shape, labels)
    ```
    """

    def __init__(
        self,
        inputs,
        labels,
        batch_size,
        seed=0,
        initial_epoch=0,
        weights=None,
        epoch_length=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if len(inputs) == 0 or len(inputs) != len(labels):
            raise ValueError(
                "There must be examples, and a label for each. "
                f"Received: {len(inputs)} inputs and {len(labels)} labels"
            )
        if batch_size < 1:
            raise ValueError(
                f"`batch_size` must be positive. Received: batch_size={batch_size}"
            )
        self.inputs = inputs
        self.labels = labels
        self.seed = seed
        self.weights = weights
        self.epoch_length = epoch_length
        self.start_epoch(initial_epoch)
        self.batch_size = min(batch_size, len(self._order))

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
        return len(self._order) // self.batch_size

    def __getitem__(self, index):
        start = index * self.batch_size
        places = np.sort(self._order[start : start + self.batch_size])
        return in_floatx(self.inputs[places]), self.labels[places]


class ArrayExamples:
    """Labeled examples that are arrays in memory.

    Args:
        inputs: array of raw input, of shape `(examples, ...)`.
        labels: int array of shape `(examples,)`; or, where an example may have several
            classes or none, 0/1 of shape `(examples, classes)`.

    Raises:
        ValueError: if there is not a label for each.

    Example:
    ```python
    import numpy as np
    from keras_bridle.training.batches import ArrayExamples

    examples = ArrayExamples(np.random.rand(6, 8, 8, 1), np.array([0, 1, 2, 0, 1, 2]))
    print(len(examples.subset([0, 3])), examples.some_inputs(2).shape)
    ```
    """

    read_report = None

    def __init__(self, inputs, labels):
        if len(inputs) != len(labels):
            raise ValueError(
                "There must be a label for each example. "
                f"Received: {len(inputs)} inputs and {len(labels)} labels"
            )
        self.inputs = inputs
        self.labels = np.asarray(labels)

    def __len__(self):
        return len(self.inputs)

    def subset(self, places):
        """Takes some of the examples, in the order of their places."""
        return ArrayExamples(self.inputs[places], self.labels[places])

    def some_inputs(self, count, seed=0):
        """Gives the inputs of some examples, drawn at random, an array."""
        return self.inputs[_drawn(len(self), count, seed)]

    def training_batches(self, batch_size, seed=0, weights=None, epoch_length=None):
        """Prepares the batches to train on.

        Args:
            batch_size: int.
            seed: int, of the order.
            weights: optional array, to draw by, see `balanced_weights()`.
            epoch_length: optional int, examples of an epoch.

        Returns:
            A tuple of a function from a first epoch to the batches from there on, and
            the number of batches in an epoch.
        """
        make = functools.partial(
            LabeledBatches,
            self.inputs,
            self.labels,
            batch_size,
            seed,
            weights=weights,
            epoch_length=epoch_length,
        )
        return make, len(make())

    def batches_in_order(self, batch_size):
        """Yields batches `(inputs, places)`, each example once."""
        for start in range(0, len(self), batch_size):
            places = np.arange(start, min(start + batch_size, len(self)))
            yield self.inputs[places], places


class FileExamples:
    """Labeled examples that are read from files when they are wanted.

    Args:
        manifest: `AudioManifest`, `ImageManifest` or `VideoManifest` with labels.
        make_dataset: function of a manifest and keyword arguments, such as
            `functools.partial(audio_dataset, seconds=5.0)`.
        strict: bool, whether files that cannot be read are an error.
        read_report: optional `ReadReport`, to list them in.

    Raises:
        ValueError: for a manifest without labels.

    Example:
    ```python
    import functools
    import tempfile
    from keras_bridle.data.layouts import ImageManifest
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.data.pipeline import image_dataset
    from keras_bridle.training.batches import FileExamples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        manifest = ImageManifest.from_folder(
            folder + "/fashion_mnist", class_folders=True
        )
        examples = FileExamples(
            manifest, functools.partial(image_dataset, image_size=28, channels=1)
        )
        print(len(examples), examples.some_inputs(4).shape)
    ```
    """

    def __init__(self, manifest, make_dataset, strict=False, read_report=None):
        if manifest.labels is None:
            raise ValueError("`manifest` must have labels. Received one without")
        self.manifest = manifest
        self.make_dataset = make_dataset
        self.strict = strict
        self.read_report = read_report

    @functools.cached_property
    def labels(self):
        """As those of `ArrayExamples`."""
        return self.manifest.all_labels()

    def __len__(self):
        return len(self.manifest)

    def subset(self, places):
        """Takes some of the examples, in the order of their places."""
        return FileExamples(
            self._listed(places), self.make_dataset, self.strict, self.read_report
        )

    def some_inputs(self, count, seed=0):
        """Gives the inputs of some examples, drawn at random, an array."""
        some = self.subset(_drawn(len(self), count, seed))
        return np.concatenate([inputs for inputs, _ in some.batches_in_order(32)])

    def check_readable(self):
        """Raises a ValueError if no file can be read; `strict`: if the first cannot."""
        self._dataset(self.manifest, batch_size=1, drop_remainder=False)

    def training_batches(self, batch_size, seed=0, weights=None, epoch_length=None):
        """Prepares the batches to train on, as those of `ArrayExamples`."""
        if batch_size < 1:
            raise ValueError(
                f"`batch_size` must be 1 or more. Received: batch_size={batch_size}"
            )
        length = len(self) if epoch_length is None else epoch_length
        steps = length // batch_size
        if steps == 0:
            raise ValueError(
                f"There are {length} files to train on, too few for a batch of "
                f"{batch_size}"
            )
        read = functools.partial(self._dataset, batch_size=batch_size, seed=seed)
        if weights is None and epoch_length is None:
            return (
                lambda epoch: read(
                    self.manifest, initial_epoch=epoch, shuffle=True, repeat=True
                )
            ), steps
        order = functools.partial(
            epoch_order, len(self), seed, weights=weights, length=epoch_length
        )
        order(0)  # Are there enough?

        def epochs(first):
            # Of each epoch other files, so each is a data set of its own.
            for epoch in itertools.count(first):
                sample = self._listed(order(epoch))
                yield from read(
                    sample, initial_epoch=epoch, crop="random", drop_remainder=True
                )

        example = read(self.manifest, drop_remainder=False)
        return _GeneratedBatches(epochs, example.element_spec, batch_size), steps

    def batches_in_order(self, batch_size):
        """Yields batches `(inputs, places)`, each file that can be read once."""
        names = [str(place) for place in range(len(self))]
        numbered = dataclasses.replace(
            self.manifest, labels=list(range(len(self))), class_names=names
        )
        dataset = self._dataset(
            numbered, batch_size=batch_size, crop="center", drop_remainder=False
        )
        for inputs, places in dataset:
            yield inputs.numpy(), places.numpy()

    def _dataset(self, manifest, **options):
        return self.make_dataset(
            manifest, strict=self.strict, report=self.read_report, **options
        )

    def _listed(self, places):
        manifest = self.manifest.take(places)
        # What is missing was reported once.
        if hasattr(manifest, "missing"):
            manifest = dataclasses.replace(manifest, missing=())
        return manifest


def _drawn(number, count, seed):
    """Places of some examples. Neighbors are often of one class, so not the first."""
    return np.sort(np.random.default_rng(seed).permutation(number)[:count])


class _GeneratedBatches:
    """Makes a `tf.data.Dataset` of the batches that a generator of epochs yields."""

    def __init__(self, epochs, element_spec, batch_size):
        tf = import_tensorflow()
        self.epochs = epochs
        self.element_spec = tuple(
            tf.TensorSpec((batch_size, *spec.shape[1:]), spec.dtype)
            for spec in element_spec
        )

    def __call__(self, epoch):
        tf = import_tensorflow()
        batches = tf.data.Dataset.from_generator(
            lambda: self.epochs(epoch), output_signature=self.element_spec
        )
        return batches.prefetch(tf.data.AUTOTUNE)


def array_views(clips, labels, num_frames, image_size, segments=5, crops=3):
    """Cuts several views out of longer or larger clips.

    Args:
        clips: array of shape `(examples, frames, height, width, channels)`.
        labels: array, as of `ArrayExamples`.
        num_frames: int, frames of a view.
        image_size: int, side of a view in pixels; the shorter side of the clips.
        segments: int, starts in time, spread evenly; one lies in the middle.
        crops: int, places along the longer side, likewise.

    Returns:
        A list of `ArrayExamples`, one for each view, for `predict_examples()`.

    Raises:
        ValueError: if the clips are too short or too small.

    Example:
    ```python
    import numpy as np
    from keras_bridle.training.batches import array_views

    clips = np.zeros((2, 12, 32, 48, 3), "uint8")
    views = array_views(clips, np.array([0, 1]), num_frames=8, image_size=32)
    print(len(views), views[0].inputs.shape)  # 15 (2, 8, 32, 32, 3)
    ```
    """
    room = np.array(clips.shape[1:4]) - (num_frames, image_size, image_size)
    if room.min() < 0:
        raise ValueError(
            f"Views of {num_frames} frames of {image_size} x {image_size} do not fit "
            f"into clips of shape {clips.shape[1:]}"
        )
    views = []
    for position in _positions(segments, crops):
        first, top, left = np.round(room * position).astype(int)
        view = clips[
            :,
            first : first + num_frames,
            top : top + image_size,
            left : left + image_size,
        ]
        views.append(ArrayExamples(view, labels))
    return views


def file_views(
    manifest,
    image_size,
    num_frames=16,
    sampling_rate=4,
    channels=3,
    segments=5,
    crops=3,
    strict=False,
    read_report=None,
):
    """Reads several views of each video file.

    Args:
        manifest: `VideoManifest` with labels.
        image_size: int, side of a view in pixels, to which the shorter side of the
            frames is scaled.
        num_frames: int, frames of a view.
        sampling_rate: int, from one frame of a view to the next, so many of the file.
        channels: 3 for color or 1 for gray.
        segments: int, starts in time, spread evenly from the first possible to the
            last; one lies in the middle.
        crops: int, places along the longer side, likewise.
        strict: bool, whether files that cannot be read are an error.
        read_report: optional `ReadReport`, to list them in.

    Returns:
        A list of `FileExamples`, one for each view, for `predict_examples()`.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.layouts import VideoManifest
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.training.batches import file_views

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        files = VideoManifest.from_folder(folder).files
        manifest = VideoManifest(files, labels=[0, 1], class_names=["a", "b"])
        views = file_views(manifest, image_size=64, num_frames=8)
        print(len(views))  # 15
    ```
    """
    reader = VideoReader(num_frames, sampling_rate, image_size, channels)
    read_report = ReadReport() if read_report is None else read_report
    return [
        FileExamples(
            manifest,
            functools.partial(_clips_at, reader, position),
            strict,
            read_report,
        )
        for position in _positions(segments, crops)
    ]


def _clips_at(reader, position, manifest, *, batch_size, strict, report, **_):
    """Makes a data set of the clips that lie at one place of their files."""

    def read(index, position):
        path = manifest.files[index]
        clip = reader.read(path, position)
        if clip.missing:
            report.add_incomplete(path, clip.missing)
        return clip.frames

    return build_dataset(
        manifest,
        read,
        shape=(reader.num_frames, *reader.image_size, reader.channels),
        dtype="uint8",
        position=position,
        batch_size=batch_size,
        shuffle=False,
        repeat=False,
        drop_remainder=False,
        labels=True,
        seed=0,
        initial_epoch=0,
        strict=strict,
        report=report,
        num_parallel=None,
    )


def _positions(segments, crops):
    """Shares of the room along time, height and width, for each view."""
    if min(segments, crops) < 1:
        raise ValueError(
            "`segments` and `crops` must be 1 or more. "
            f"Received: segments={segments}, crops={crops}"
        )
    return [
        (float(time), float(place), float(place))
        for time in _spread(segments)
        for place in _spread(crops)
    ]


def _spread(count):
    return np.linspace(0.0, 1.0, count) if count > 1 else np.array([0.5])
