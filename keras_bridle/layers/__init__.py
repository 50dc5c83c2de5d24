"""Keras layers on `keras.ops`; no files, no training loops."""
