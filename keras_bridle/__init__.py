"""Self-supervised pretraining with residual quantization (BRIDLE) in Keras 3."""

from keras_bridle.version import __version__

__all__ = ["__version__"]
