"""The networks users keep."""

from keras_bridle.models.bridle_backbone import BridleBackbone
from keras_bridle.models.bridle_tokenizer import BridleTokenizer
from keras_bridle.models.code_decoder import CodeDecoder
from keras_bridle.models.feature_estimator import FeatureEstimator
from keras_bridle.models.random_projection_tokenizer import RandomProjectionTokenizer

__all__ = [
    "BridleBackbone",
    "BridleTokenizer",
    "CodeDecoder",
    "FeatureEstimator",
    "RandomProjectionTokenizer",
]
