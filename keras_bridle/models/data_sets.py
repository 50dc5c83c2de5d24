"""Data sets of any library, in a form that `fit()` can read repeatedly."""

import contextlib
import functools
import importlib
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import keras

from keras_bridle.config import ArgumentError, check
from keras_bridle.models.inputs import PIPELINE_ERRORS, PixelCheck


def is_data_set(data):
    """Returns whether something yields batches, rather than being examples."""
    is_plain = data is None or isinstance(data, list | tuple | dict)
    # Hugging Face data sets have a `shape`.
    return not (is_plain or hasattr(data, "dtype"))


def is_tf_data(data):
    """Returns whether something is a `tf.data.Dataset`, without TensorFlow."""
    return hasattr(data, "element_spec")


def length_of(batches):
    """Returns the batches of a data set, `None` if unknown or endless."""
    if isinstance(batches, keras.utils.PyDataset):
        return batches.num_batches
    try:
        count = getattr(batches, "cardinality", batches.__len__)()
    except (AttributeError, TypeError):
        return None
    # Grain gives endless data sets the largest possible length.
    return int(count) if 0 <= int(count) < sys.maxsize else None


class Opened:
    """An iterable that calls a function for each iteration."""

    def __init__(self, function, *arguments):
        self.call = functools.partial(function, *arguments)

    def __iter__(self):
        return iter(self.call())


class LaterBatches(keras.utils.PyDataset):
    """The batches of any data set from `start` on; endless with `repeat`.

    Data sets without an index are read in order, and from the start again after their
    end or for an earlier batch. `convert` is an optional function of a batch.
    """

    def __init__(self, dataset, start=0, repeat=False, convert=None):
        names = "workers", "use_multiprocessing", "max_queue_size"
        is_indexed = isinstance(dataset, keras.utils.PyDataset)
        super().__init__(**{x: getattr(dataset, x) for x in names if is_indexed})
        self.dataset = dataset
        self.start = start
        self.repeat = repeat
        self.convert = convert
        self.is_indexed = is_indexed or isinstance(dataset, list | tuple)
        if not self.is_indexed:
            self._lock = threading.Lock()
            self._reading = self._read_from(start)

    @property
    def num_batches(self):
        length = length_of(self.dataset)
        return None if self.repeat or length is None else length - self.start

    def __getitem__(self, index):
        index += self.start
        if self.is_indexed:
            length = length_of(self.dataset)
            batch = self.dataset[index if length is None else index % length]
        else:
            batch = self._read(index)
        return batch if self.convert is None else self.convert(batch)

    def _read(self, index):
        with self._lock:
            number, batch = next(self._reading)
            if number > index:
                self._reading = self._read_from(index)
            while number != index:
                number, batch = next(self._reading)
            return batch

    def _read_from(self, index):
        """Yields numbers and batches from `index` on, reading again and again."""
        length = length_of(self.dataset)
        number = index - index % length if length else 0
        while True:
            first = number
            for batch in self.dataset:
                yield number, batch
                number += 1
            expected = "a data set that has batches whenever it is read"
            check(number != first, "inputs", expected, self.dataset)

    def __iter__(self):
        if self.is_indexed or self.repeat:
            return super().__iter__()
        one_reading = itertools.islice(self.dataset, self.start, None)
        return map(self.convert or (lambda batch: batch), one_reading)

    def on_epoch_begin(self):
        if hasattr(self.dataset, "on_epoch_begin"):
            self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        if hasattr(self.dataset, "on_epoch_end"):
            self.dataset.on_epoch_end()


def readable(data, convert, steps=None, epochs=1):
    """Returns a data set that Keras reads, with `convert` applied to batches.

    With `steps` per epoch, it starts again after its end.
    """
    check(length_of(data) != 0, "x", "a data set with batches", data)
    if is_tf_data(data):  # where -1 means AUTOTUNE
        tf = importlib.import_module("tensorflow")
        convert = tf.autograph.experimental.do_not_convert(lambda *x, f=convert: f(x))
        data = data.map(convert, num_parallel_calls=-1).prefetch(-1)
        return data if steps is None else data.repeat()
    if isinstance(data, keras.utils.PyDataset):
        return LaterBatches(data, 0, steps not in (None, data.num_batches), convert)
    has_length = length_of(data) is not None
    if not isinstance(data, Iterator) and (has_length or steps is not None):
        return LaterBatches(data, 0, steps is not None, convert)
    if hasattr(data, "map"):  # Grain
        return data.map(convert)
    expected = "an int, as the data set has no length or can be read only once"
    check(steps is not None or epochs <= 1, "steps_per_epoch", expected, steps)
    return _read_once(data, convert, steps and steps * epochs)


def _read_once(data, convert, needed):
    count = 0
    for batch in data:
        yield convert(batch)
        count += 1
    if needed is not None and count < needed:
        received = f"{count}, after which it cannot be read again"
        raise ArgumentError("x", f"a data set of {needed} batches", received)


@contextlib.contextmanager
def readers_finish(model=None):
    """Waits for TensorFlow's reading threads if an error ends a call of a model.

    TensorFlow would wait for threads that need Python's lock, which it holds. An error
    of ours that it wraps is raised instead. On JAX, a `model` gets back its weights.
    """
    PIPELINE_ERRORS.clear()
    try:
        yield
    except BaseException:
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()
        left = 3 if keras.backend.backend() == "tensorflow" else 0
        while left:
            time.sleep(0.02)
            frames = sys._current_frames().values()
            left = 3 if any(map(_is_reader, frames)) else left - 1
        if PIPELINE_ERRORS:
            raise PIPELINE_ERRORS[0] from None
        raise


def _is_reader(frame):
    """Returns whether an operation of TensorFlow called a thread's frame."""
    while frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename.endswith("script_ops.py")


class EpochsWithBatches(keras.callbacks.Callback):
    """Raises an `ArgumentError` after an epoch without a batch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.is_empty = True

    def on_train_batch_end(self, batch, logs=None):
        self.is_empty = False

    def on_epoch_end(self, epoch, logs=None):
        received = f"none in epoch {epoch + 1}"
        check(not self.is_empty, "x", "a data set with batches in each epoch", received)


class TakesAnyData:
    """`fit()`, `evaluate()` and `predict()` with data of any library.

    `prepared()` converts inputs, labels and weights for the model.
    """

    prepared: Any
    needs_labels = False

    def compile_from_config(self: Any, config):
        # Keras does not save this for models that override `compile()`.
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    @readers_finish()
    def fit(self, x=None, y=None, batch_size=None, *, validation_data=None, **kwargs):
        """Trains on raw inputs, see `keras.Model.fit()`.

        Args:
            x: array, tensor or list of raw inputs; or a data set of batches of raw `(x,
                y)`: `tf.data`, Grain, torch `DataLoader`, `PyDataset`, generator, or
                any iterable. With `steps_per_epoch`, it is read again after its end.
            y: class numbers, names of classes, or a row of numbers for each input.
            batch_size: optional int, batch size of arrays and lists.
            validation_data: optional tuple of raw inputs and labels, or data set.
            **kwargs: keyword arguments of `keras.Model.fit()`.
        """
        given, epochs = x, kwargs.get("epochs", 1)
        steps, weight = kwargs.get("steps_per_epoch"), kwargs.pop("sample_weight", None)
        x, y, weight = self._data(x, y, weight, steps, epochs)
        if is_data_set(given):
            # Data sets have their own order, and Keras would warn.
            is_indexed = isinstance(given, keras.utils.PyDataset) and x.num_batches
            kwargs.setdefault("shuffle", bool(is_indexed))
        if validation_data is not None:
            is_tuple = isinstance(validation_data, tuple)
            held_out = validation_data if is_tuple else (validation_data,)
            options = {"steps": kwargs.get("validation_steps"), "epochs": epochs}
            validation_data = self._data(*held_out, **options)
        callbacks = kwargs.pop("callbacks", None) or []
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = [*keras.tree.flatten(callbacks), EpochsWithBatches()]
        kwargs |= {"sample_weight": weight, "validation_data": validation_data}
        model: Any = self
        is_new = model.compiled and not getattr(model.optimizer, "built", True)
        if keras.backend.backend() == "tensorflow" and model.built and is_new:
            # TensorFlow traces a step twice if it makes variables.
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        return keras.Model.fit(self, x, y, batch_size, callbacks=callbacks, **kwargs)

    def evaluate(self, x=None, y=None, batch_size=None, **kwargs):
        """Evaluates on raw inputs, see `keras.Model.evaluate()` and `fit()`."""
        sample_weight = kwargs.pop("sample_weight", None)
        if not kwargs.get("_use_cached_eval_dataset"):
            x, y, sample_weight = self._data(x, y, sample_weight, kwargs.get("steps"))
        kwargs |= {"batch_size": batch_size, "sample_weight": sample_weight}
        with readers_finish(self):
            return keras.Model.evaluate(self, x, y, **kwargs)

    def predict(self, x, batch_size=None, **kwargs):
        """Predicts for raw inputs, see `keras.Model.predict()` and `fit()`."""
        x, *_ = self._data(x, steps=kwargs.get("steps"), needs_labels=False)
        with readers_finish(self):
            return keras.Model.predict(self, x, batch_size=batch_size, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        data = self._data(x, y, sample_weight)
        return keras.Model.train_on_batch(self, *data, **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        data = self._data(x, y, sample_weight)
        return keras.Model.test_on_batch(self, *data, **kwargs)

    def predict_on_batch(self, x):
        return keras.Model.predict_on_batch(self, self._data(x, needs_labels=False)[0])

    def _data(self, x, y=None, weight=None, steps=None, epochs=1, needs_labels=True):
        """Prepares arrays, or all batches of a data set."""
        unpack = keras.utils.unpack_x_y_sample_weight
        checked = PixelCheck(self)

        def convert(batch):
            x, y, weight = unpack(batch)
            if y is None and needs_labels and self.needs_labels:
                raise ArgumentError("y", "labels, one for each input", None)
            return self.prepared(checked(x), y, weight)

        if is_data_set(x):
            return readable(x, convert, steps, epochs), y, weight
        return unpack(convert((x, y, weight)))
