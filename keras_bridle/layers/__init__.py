"""Keras layers on `keras.ops`; no files, no training loops."""

from keras_bridle.layers.class_token import ClassToken
from keras_bridle.layers.patch_embedding import PatchEmbedding
from keras_bridle.layers.patch_mask import PatchMask
from keras_bridle.layers.position_encoding import SineCosinePositionEncoding
from keras_bridle.layers.random_mask import RandomMask
from keras_bridle.layers.time_frequency_mask import TimeFrequencyMask
from keras_bridle.layers.transformer_block import TransformerBlock
from keras_bridle.layers.window_transformer_block import WindowTransformerBlock

__all__ = [
    "ClassToken",
    "PatchEmbedding",
    "PatchMask",
    "RandomMask",
    "SineCosinePositionEncoding",
    "TimeFrequencyMask",
    "TransformerBlock",
    "WindowTransformerBlock",
]
