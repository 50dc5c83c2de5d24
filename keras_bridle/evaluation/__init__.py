"""Probes, metrics and plots of encoders."""

from keras_bridle.renamed import old_address

__getattr__ = old_address(__name__)
