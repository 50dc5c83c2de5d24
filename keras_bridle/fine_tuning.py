"""The address of `keras_bridle.training` in version 0.1."""

from keras_bridle.renamed import old_address

__getattr__ = old_address(__name__)
