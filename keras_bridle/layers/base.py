"""What layers share: checks of their arguments and their configuration."""

import inspect

import keras

from keras_bridle.config import ArgumentError


class ConfiguredLayer(keras.layers.Layer):
    """A layer that keeps its constructor's arguments as attributes of their names."""

    def get_config(self):
        names = list(inspect.signature(type(self)).parameters)
        own = {name: getattr(self, name) for name in names if name != "kwargs"}
        return {**super().get_config(), **own}


def check(is_right, argument, expected, received):
    """Raises an `ArgumentError` unless an argument is right."""
    if not is_right:
        raise ArgumentError(argument, expected, received)
