"""How fast training goes, and what it waits for."""

import time

import keras

from keras_bridle.pretraining.device import device_memory


class Throughput(keras.callbacks.Callback):
    """Measures the speed of a `fit()` without its first step, which compiles.

    Args:
        batch_size: optional int, to count examples.
        clock: optional `InputClock` of the data set that is trained on, to count its
            examples and the time spent on waiting for it.

    Attributes:
        steps_done: int, steps since the `fit()` began.
        epochs: int, the epochs to train.
        epoch: int, the one that is being trained, counted from 0.
        steps: int or `None`, the steps of an epoch.
        step: int, the steps of the epoch that are done.
    """

    def __init__(self, batch_size=None, clock=None):
        super().__init__()
        self.batch_size = batch_size
        self.clock = clock
        self._rest: tuple | None = None
        self._first_step = 0
        self.steps_done = self.epoch = self.step = 0

    def in_rest_of_epoch(self, first_step, steps, epochs):
        """Tells what the next `fit()`, of the rest of an epoch, is a part of.

        Args:
            first_step: int, the steps of the epoch that were done before.
            steps: int, the steps of a whole epoch.
            epochs: int, the epochs to train.
        """
        self._rest = (first_step, steps, epochs)

    def on_train_begin(self, logs=None):
        here = (0, self.params.get("steps"), self.params.get("epochs"))
        self._first_step, self.steps, self.epochs = self._rest or here
        self._rest = None
        self.steps_done = self.epoch = self.step = 0
        self._begin()

    def on_epoch_begin(self, epoch, logs=None):
        if self.steps_done:
            self._first_step = 0
        self.epoch, self.step = epoch, self._first_step

    def on_train_batch_end(self, batch, logs=None):
        if self.clock is not None and "loss" in (logs or {}):
            # What is still being computed would pass for waiting at the next batch.
            float(keras.ops.convert_to_numpy(logs["loss"]))
        self.steps_done += 1
        self.step = self._first_step + batch + 1
        if self.steps_done == 1:
            self._begin()
        else:
            self._end = time.perf_counter()

    def _begin(self):
        self._first = self.steps_done
        self._start = self._end = time.perf_counter()
        if self.clock is not None:
            self._waited = self.clock.seconds

    @property
    def step_seconds(self):
        """Seconds from one step to the next, or `None` before two are done."""
        steps = self.steps_done - self._first
        return (self._end - self._start) / steps if steps else None

    @property
    def examples_per_batch(self):
        """The mean size of batches, or `None` if it is not known."""
        if self.clock is not None and self.clock.batches:
            return self.clock.examples / self.clock.batches
        return self.batch_size

    @property
    def waiting(self):
        """The share of the time in which training waits for input, or `None`."""
        seconds = self._end - self._start
        if self.clock is None or seconds <= 0:
            return None
        return min(1.0, (self.clock.seconds - self._waited) / seconds)

    @property
    def seconds_left(self):
        """The time to the end of the `fit()` at this speed, or `None`."""
        if not self.steps or self.step_seconds is None:
            return None
        left = (self.epochs - self.epoch) * self.steps - self.step
        return left * self.step_seconds

    def numbers(self):
        """All that is known, as a dict of floats."""
        seconds = self.step_seconds
        found = {
            "step_seconds": seconds,
            "waiting_for_input": self.waiting,
            "seconds_left": self.seconds_left,
            "memory_gb": device_memory()[0] / 1e9,
        }
        if seconds and self.examples_per_batch is not None:
            found["examples_per_second"] = self.examples_per_batch / seconds
        return {name: value for name, value in found.items() if value is not None}
