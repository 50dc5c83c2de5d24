"""A Keras model that is made of other layers and models, and saved with them."""

from typing import Any

import keras


class ModelOfParts(keras.Model):
    """Base of trainers: `parts` names the arguments that are layers or models.

    Raw input must reach their front ends as it came, not in half precision, so that
    these models cast nothing themselves.
    """

    parts: tuple[str, ...] = ()

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def get_config(self):
        parts: dict[str, Any] = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in self.parts
        }
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config):
        parts = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in cls.parts
        }
        return cls(**{**config, **parts})
