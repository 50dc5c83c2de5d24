"""What an encoder has learned, in numbers and plots."""

from keras_bridle.renamed import old_address

__getattr__ = old_address(__name__)
