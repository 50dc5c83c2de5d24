"""What layers share: checks of their arguments and their configuration."""

import inspect

import keras


class ConfiguredLayer(keras.layers.Layer):
    """A layer that keeps its constructor's arguments as attributes of their names.

    Its output has the shape of its input, unless a subclass says otherwise.
    """

    def get_config(self):
        names = list(inspect.signature(type(self)).parameters)
        own = {name: getattr(self, name) for name in names if name != "kwargs"}
        return {**super().get_config(), **own}

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)


def check(is_right, argument, expected, received):
    """Raises a `ValueError` unless an argument is right."""
    # Of no other class: Keras makes errors within `call()` anew, from a text alone.
    if not is_right:
        raise ValueError(
            f"`{argument}` must be {expected}. Received: {argument}={received!r}"
        )
