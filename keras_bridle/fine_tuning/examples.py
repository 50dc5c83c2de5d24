"""Labeled examples, in memory or in files, as fine-tuning wants them."""

import dataclasses
import functools
import itertools

import numpy as np

from keras_bridle.data.tensorflow_input import import_tensorflow
from keras_bridle.fine_tuning.labeled_batches import LabeledBatches
from keras_bridle.fine_tuning.sampling import epoch_order


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
    from keras_bridle.fine_tuning import ArrayExamples

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
    from keras_bridle.data import ImageManifest, extract_samples, image_dataset
    from keras_bridle.fine_tuning import FileExamples

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
