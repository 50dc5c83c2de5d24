"""What layers share: checks of their arguments and their configuration."""

import inspect

import keras
import numpy as np
from keras import ops

from keras_bridle.engine import is_symbolic
from keras_bridle.replicas import draw_rows


class ConfiguredLayer(keras.layers.Layer):
    """A layer that keeps its constructor's arguments, and the shape of its input."""

    def __init__(self, arguments):
        """Takes the `locals()` that a subclass' constructor starts with."""
        super().__init__(**arguments["kwargs"])
        for name, value in arguments.items():
            if name not in ("self", "kwargs", "__class__"):
                setattr(self, name, _as_tuple(value))

    def get_config(self):
        names = list(inspect.signature(type(self)).parameters)
        own = {name: getattr(self, name) for name in names if name != "kwargs"}
        return {**super().get_config(), **own}

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)


def _as_tuple(value):
    """Gives sequences of numbers, which JSON has as lists, as tuples."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    return tuple(value) if isinstance(value, (list, range)) else value


class RandomLayer(ConfiguredLayer):
    """A layer with a `seed` that draws for each example, on any number of devices."""

    def __init__(self, arguments):
        super().__init__(arguments)
        self.seed_generator = keras.random.SeedGenerator(self.seed)

    def uniform(self, shape, low=0.0, high=1.0):
        """Draws float32 numbers from [low, high); the first axis is the batch."""
        return draw_rows(
            keras.random.uniform, shape, low, high, "float32", self.seed_generator
        )


def check(is_right, argument, expected, received):
    """Raises a `ValueError` unless an argument is right."""
    # A plain ValueError, as Keras recreates errors raised in `call()` from their text.
    if not is_right:
        raise ValueError(
            f"`{argument}` must be {expected}. Received: {argument}={received!r}"
        )


def fitted(inputs, axis, size, most_missing):
    """Cuts or zero-pads one side to a size.

    `most_missing` bounds the zeros that are needed where a size is not known yet.
    """
    side = ops.shape(inputs)[axis]
    if isinstance(size, int):
        most_missing = max(0, size - side) if isinstance(side, int) else size
    if most_missing:
        padding = [(0, 0)] * len(inputs.shape)
        padding[axis] = (0, most_missing)
        inputs = ops.pad(inputs, padding)
    # `torch.export` would assume that a slice always shortens the input.
    kept = ops.arange(size, dtype="int64") if is_symbolic(size) else slice(0, size)
    return inputs[(*[slice(None)] * axis, kept)]
