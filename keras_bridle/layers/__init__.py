"""Keras layers on `keras.ops`; no files, no training loops."""

from keras_bridle.layers.block_mask import BlockMask
from keras_bridle.layers.class_token import ClassToken
from keras_bridle.layers.image_augmentation import ImageAugmentation
from keras_bridle.layers.inverse_block_mask import InverseBlockMask
from keras_bridle.layers.learned_position_encoding import LearnedPositionEncoding
from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.layers.mixed_batch import MixedBatch
from keras_bridle.layers.patch_embedding import PatchEmbedding
from keras_bridle.layers.patch_mask import PatchMask
from keras_bridle.layers.pixel_normalization import PixelNormalization
from keras_bridle.layers.position_encoding import SineCosinePositionEncoding
from keras_bridle.layers.rand_augment import RandAugment
from keras_bridle.layers.random_gain import RandomWaveformGain
from keras_bridle.layers.random_horizontal_flip import RandomHorizontalFlip
from keras_bridle.layers.random_image_mix import RandomImageMix
from keras_bridle.layers.random_mask import RandomMask
from keras_bridle.layers.random_multi_scale_crop import RandomMultiScaleCrop
from keras_bridle.layers.random_resized_crop import RandomResizedCrop
from keras_bridle.layers.random_roll import RandomWaveformRoll
from keras_bridle.layers.random_waveform_mix import RandomWaveformMix
from keras_bridle.layers.residual_quantizer import (
    ResidualQuantizer,
    ResidualQuantizerOutput,
)
from keras_bridle.layers.spec_augment import SpecAugment
from keras_bridle.layers.time_frequency_mask import TimeFrequencyMask
from keras_bridle.layers.transformer_block import TransformerBlock
from keras_bridle.layers.tube_mask import TubeMask
from keras_bridle.layers.window_transformer_block import WindowTransformerBlock

__all__ = [
    "BlockMask",
    "ClassToken",
    "ImageAugmentation",
    "InverseBlockMask",
    "LearnedPositionEncoding",
    "LogMelSpectrogram",
    "MixedBatch",
    "PatchEmbedding",
    "PatchMask",
    "PixelNormalization",
    "RandAugment",
    "RandomHorizontalFlip",
    "RandomImageMix",
    "RandomMask",
    "RandomMultiScaleCrop",
    "RandomResizedCrop",
    "RandomWaveformGain",
    "RandomWaveformMix",
    "RandomWaveformRoll",
    "ResidualQuantizer",
    "ResidualQuantizerOutput",
    "SineCosinePositionEncoding",
    "SpecAugment",
    "TimeFrequencyMask",
    "TransformerBlock",
    "TubeMask",
    "WindowTransformerBlock",
]
