"""Configurations from the arguments of constructors."""

import inspect

import keras

_OTHER = ("args", "kwargs", "dtype", "name")


def constructor_arguments(layer):
    """The arguments that a layer of ours was made with, layers among them serialized.

    They are attributes of the same names; those without one are left out.
    """
    kinds = [kind for kind in type(layer).__mro__ if _is_ours(kind)]
    names = [name for kind in kinds for name in inspect.signature(kind).parameters]
    values = {name: getattr(layer, name) for name in names if _is_kept(layer, name)}
    return {
        name: keras.saving.serialize_keras_object(value)
        if isinstance(value, keras.layers.Layer)
        else value
        for name, value in values.items()
    }


def with_layers(config):
    """Deserializes the layers in a configuration."""
    return {
        name: keras.saving.deserialize_keras_object(value)
        if isinstance(value, dict) and "class_name" in value
        else value
        for name, value in config.items()
    }


def _is_ours(kind):
    return kind.__module__.startswith("keras_bridle")


def _is_kept(layer, name):
    return name not in _OTHER and hasattr(layer, name)
