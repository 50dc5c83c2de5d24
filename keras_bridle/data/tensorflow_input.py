"""TensorFlow as a host-side input pipeline."""

import warnings
from typing import Any

import keras


def import_tensorflow() -> Any:
    """Imports TensorFlow and keeps it off the GPUs if another backend needs them.

    Left alone, TensorFlow takes nearly all memory of every GPU as soon as a pipeline
    is built, also when JAX or PyTorch train there.

    Returns:
        The `tensorflow` module.

    Raises:
        ImportError: if TensorFlow is not installed.
    """
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "Reading files needs TensorFlow for `tf.data`, whatever the backend: "
            "`pip install tensorflow`."
        ) from error
    if keras.backend.backend() != "tensorflow" and tf.config.get_visible_devices("GPU"):
        try:
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:
            warnings.warn(
                "TensorFlow was already started and holds the GPUs that the "
                f"'{keras.backend.backend()}' backend needs. Build input pipelines "
                "before other TensorFlow code runs.",
                stacklevel=2,
            )
    return tf
