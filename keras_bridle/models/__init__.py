"""The networks users keep."""

from keras_bridle.models.bridle_audio_classifier import BridleAudioClassifier
from keras_bridle.models.bridle_audio_converter import BridleAudioConverter
from keras_bridle.models.bridle_audio_preprocessor import BridleAudioPreprocessor
from keras_bridle.models.bridle_backbone import BridleBackbone
from keras_bridle.models.bridle_classifier import ClassScore
from keras_bridle.models.bridle_image_classifier import BridleImageClassifier
from keras_bridle.models.bridle_image_converter import BridleImageConverter
from keras_bridle.models.bridle_image_preprocessor import BridleImagePreprocessor
from keras_bridle.models.bridle_tokenizer import BridleTokenizer
from keras_bridle.models.bridle_video_classifier import BridleVideoClassifier
from keras_bridle.models.bridle_video_converter import BridleVideoConverter
from keras_bridle.models.bridle_video_preprocessor import BridleVideoPreprocessor
from keras_bridle.models.code_decoder import CodeDecoder
from keras_bridle.models.feature_estimator import FeatureEstimator
from keras_bridle.models.random_projection_tokenizer import RandomProjectionTokenizer

__all__ = [
    "BridleAudioClassifier",
    "BridleAudioConverter",
    "BridleAudioPreprocessor",
    "BridleBackbone",
    "BridleImageClassifier",
    "BridleImageConverter",
    "BridleImagePreprocessor",
    "BridleTokenizer",
    "BridleVideoClassifier",
    "BridleVideoConverter",
    "BridleVideoPreprocessor",
    "ClassScore",
    "CodeDecoder",
    "FeatureEstimator",
    "RandomProjectionTokenizer",
]
