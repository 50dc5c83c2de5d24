"""Tells how long training waits for its input, and how fast that could be read."""

import itertools
import time

from keras_bridle.data.tensorflow_input import import_tensorflow


class InputClock:
    """Measures the time that whoever reads a `tf.data.Dataset` waits for batches.

    It works on every backend, also where TensorFlow reads the data set inside a
    compiled training step. Reading that goes on in the background while the model
    computes is no waiting.

    Attributes:
        seconds: float, the waiting so far.
        batches: int, batches that were read.
        examples: int, examples in them.

    Example:
    ```python
    import tensorflow as tf
    from keras_bridle.data.input_clock import InputClock

    clock = InputClock()
    for batch in clock.wrap(tf.data.Dataset.range(10).batch(4)):
        pass
    print(clock.batches, clock.examples)  # 3 10
    ```
    """

    def __init__(self):
        self.seconds = 0.0
        self.batches = 0
        self.examples = 0

    def wrap(self, dataset):
        """Puts the clock at the end of an input pipeline.

        Args:
            dataset: `tf.data.Dataset` of batches.

        Returns:
            A `tf.data.Dataset` of the same batches.
        """
        tf = import_tensorflow()

        # A zipped data set asks its parts for their next elements one after another.
        now = tf.data.Dataset.counter().map(lambda _: tf.timestamp())

        def note(start, batch, end):
            first = tf.nest.flatten(batch)[0]
            noted = tf.numpy_function(
                self._add, [end - start, tf.shape(first)[0]], [], stateful=True
            )
            with tf.control_dependencies([noted]):
                return tf.nest.map_structure(tf.identity, batch)

        options = tf.data.Options()
        # What is read ahead of the clock would hide all waiting.
        options.experimental_optimization.inject_prefetch = False
        timed = tf.data.Dataset.zip((now, dataset, now)).map(note)
        return timed.with_options(options)

    def _add(self, seconds, examples):
        self.seconds += float(seconds)
        self.batches += 1
        self.examples += int(examples)


def reading_speed(dataset, seconds=2.0, max_batches=64):
    """Measures how fast a data set is read when nothing else is done.

    Args:
        dataset: `tf.data.Dataset` of batches.
        seconds: float, stop after so long.
        max_batches: int, or after so many batches.

    Returns:
        float, examples each second after the first batch; `None` if there is but one.

    Example:
    ```python
    import tensorflow as tf
    from keras_bridle.data.input_clock import reading_speed

    print(reading_speed(tf.data.Dataset.range(100).batch(4)))
    ```
    """
    clock = InputClock()
    batches = iter(clock.wrap(dataset))
    # The first one comes after files were listed and buffers filled.
    next(batches, None)
    first, start = clock.examples, time.perf_counter()
    for _ in itertools.islice(batches, max_batches):
        if time.perf_counter() - start > seconds:
            break
    if clock.batches < 2:
        return None
    return (clock.examples - first) / max(time.perf_counter() - start, 1e-9)
