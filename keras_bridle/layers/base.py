"""Bases of layers, and checks of their arguments."""

import inspect

import keras
import numpy as np
from keras import ops

from keras_bridle.engine import is_symbolic
from keras_bridle.replicas import draw_rows


class ConfiguredLayer(keras.layers.Layer):
    """A layer with its constructor's arguments as attributes and config."""

    def __init__(self, arguments):
        """Takes the `locals()` of a subclass' constructor."""
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
    """Converts lists, ranges and vectors to tuples."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    return tuple(value) if isinstance(value, (list, range)) else value


class RandomLayer(ConfiguredLayer):
    """A layer with a `seed`, which draws the same on any number of devices."""

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
    """Crops or zero-pads one side to a size.

    `most_missing` bounds the number of zeros where the size is unknown.
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
