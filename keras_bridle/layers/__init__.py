"""Keras layers on `keras.ops`."""
