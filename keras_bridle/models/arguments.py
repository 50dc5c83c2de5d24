"""Constructor arguments as attributes and config."""

import inspect
from typing import Any

import keras
from keras import backend, ops

from keras_bridle.config import ArgumentError
from keras_bridle.models.inputs import check_shape

_OTHER = ("self", "args", "kwargs", "dtype", "name", "__class__")


class Configured:
    """Keeps the constructor arguments of a model as attributes and in its config.

    Arguments without an attribute are left out of the config.
    """

    def keep_arguments(self, values):
        """Sets the attributes from the `locals()` of a constructor."""
        for name, value in values.items():
            if name not in _OTHER:
                setattr(self, name, value)

    def get_config(self):
        config = super().get_config()  # type: ignore[misc]
        for kind in type(self).__mro__:
            if not kind.__module__.startswith("keras_bridle"):
                continue
            for name in inspect.signature(kind).parameters:
                if name not in _OTHER and hasattr(self, name):
                    value = getattr(self, name)
                    if isinstance(value, keras.layers.Layer):
                        value = keras.saving.serialize_keras_object(value)
                    config[name] = value
        return config

    @classmethod
    def from_config(cls, config):
        config = {name: _deserialized(value) for name, value in config.items()}
        return super().from_config(config)  # type: ignore[misc]


class Functional(Configured):
    """A functional model of raw inputs, which also takes a single input."""

    def keep_arguments(self, values):
        for name, value in values["kwargs"].items():
            # Functional models ignore all others.
            if name not in ("name", "dtype", "trainable", "compile"):
                expected = f"an argument of {type(self).__name__}"
                raise ArgumentError(name, expected, value)
        super().keep_arguments(values)

    def __call__(self: Any, inputs, *args, **kwargs):
        if hasattr(inputs, "shape"):
            dims = self.input.shape[1:]
            inputs = inputs[None] if len(inputs.shape) == len(dims) else inputs
            check_shape(inputs.shape, dims)
            if len(dims) == 1 and backend.standardize_dtype(inputs.dtype) == "int16":
                inputs = ops.cast(inputs, "float32") / 32768.0
        return super().__call__(inputs, *args, **kwargs)  # type: ignore[misc]


def _deserialized(value):
    is_object = isinstance(value, dict) and "class_name" in value
    return keras.saving.deserialize_keras_object(value) if is_object else value


def nameless_config(value):
    """Serializes layers without names, which Keras numbers in each process."""
    return _without_names(keras.saving.serialize_keras_object(value))


def _without_names(config):
    if isinstance(config, dict) and "DTypePolicy" not in str(config.get("class_name")):
        return {k: _without_names(v) for k, v in config.items() if k != "name"}
    if isinstance(config, (list, tuple)):
        return [_without_names(value) for value in config]
    return config
