"""Configurations from the arguments of constructors."""

import inspect

import keras

_OTHER = ("args", "kwargs", "dtype", "name")


class Configured:
    """Keeps the arguments of a model's constructors in its configuration.

    They are attributes of the same names; those without one are left out.
    """

    def get_config(self):
        config = super().get_config()  # type: ignore[misc]
        for kind in type(self).__mro__:
            if not kind.__module__.startswith("keras_bridle"):
                continue
            for name in inspect.signature(kind).parameters:
                if name not in _OTHER and hasattr(self, name):
                    config[name] = _serialized(getattr(self, name))
        return config

    @classmethod
    def from_config(cls, config):
        config = {name: _deserialized(value) for name, value in config.items()}
        return super().from_config(config)  # type: ignore[misc]


def _serialized(value):
    is_layer = isinstance(value, keras.layers.Layer)
    return keras.saving.serialize_keras_object(value) if is_layer else value


def _deserialized(value):
    is_object = isinstance(value, dict) and "class_name" in value
    return keras.saving.deserialize_keras_object(value) if is_object else value


def nameless_config(value):
    """Serializes layers, without the names that Keras numbers anew in each process."""
    return _without_names(keras.saving.serialize_keras_object(value))


def _without_names(config):
    if isinstance(config, dict) and "DTypePolicy" in str(config.get("class_name")):
        return config
    if isinstance(config, dict):
        return {k: _without_names(v) for k, v in config.items() if k != "name"}
    if isinstance(config, (list, tuple)):
        return [_without_names(value) for value in config]
    return config
