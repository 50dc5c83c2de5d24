"""Self-supervised pretraining with residual quantization (BRIDLE) in Keras 3."""

import keras_bridle.freed_memory  # noqa: F401  # isort: skip

from keras_bridle.augmentation.audio import (
    RandomWaveformGain,
    RandomWaveformMix,
    RandomWaveformRoll,
    SpecAugment,
)
from keras_bridle.augmentation.base import MixedBatch
from keras_bridle.augmentation.image import (
    ImageAugmentation,
    RandAugment,
    RandomHorizontalFlip,
    RandomImageMix,
    RandomMultiScaleCrop,
    RandomResizedCrop,
)
from keras_bridle.conversion.to_transformers import to_transformers
from keras_bridle.data.files import FileList, ReadReport
from keras_bridle.data.layouts import list_files
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.readers import AudioReader, ImageReader
from keras_bridle.data.video_reader import VideoReader
from keras_bridle.distribution import bridle_layout_map, distribute
from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.layers.masks import (
    BlockMask,
    InverseBlockMask,
    PatchMask,
    RandomMask,
    TimeFrequencyMask,
    TubeMask,
)
from keras_bridle.layers.patches import ClassToken, PatchEmbedding
from keras_bridle.layers.pixels import PixelNormalization
from keras_bridle.layers.positions import (
    LearnedPositionEncoding,
    RelativePositionBias,
    SineCosinePositionEncoding,
)
from keras_bridle.layers.transformer import TransformerBlock, WindowTransformerBlock
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.beats_backbone import BeatsBackbone
from keras_bridle.models.classifier import (
    BridleAudioClassifier,
    BridleImageClassifier,
    BridleVideoClassifier,
)
from keras_bridle.models.converters import (
    BridleAudioConverter,
    BridleAudioPreprocessor,
    BridleImageConverter,
    BridleImagePreprocessor,
    BridleVideoConverter,
    BridleVideoPreprocessor,
)
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.quantizer.residual_quantizer import (
    ResidualQuantizer,
    ResidualQuantizerOutput,
)
from keras_bridle.quantizer.usage import CodeUsageLogger
from keras_bridle.sharing import upload_preset
from keras_bridle.training.fine_tune import FineTuner, fine_tune
from keras_bridle.training.interleaved import InterleavedPretraining, load_run
from keras_bridle.training.trainers import (
    EncoderPretrainer,
    JointPretrainer,
    TokenizerPretrainer,
)
from keras_bridle.version import __version__

__all__ = [
    "AudioReader",
    "BeatsBackbone",
    "BlockMask",
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
    "ClassToken",
    "CodeDecoder",
    "CodeUsageLogger",
    "EncoderPretrainer",
    "FeatureEstimator",
    "FileList",
    "FineTuner",
    "ImageAugmentation",
    "ImageReader",
    "InterleavedPretraining",
    "InverseBlockMask",
    "JointPretrainer",
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
    "RandomProjectionTokenizer",
    "RandomResizedCrop",
    "RandomWaveformGain",
    "RandomWaveformMix",
    "RandomWaveformRoll",
    "ReadReport",
    "RelativePositionBias",
    "ResidualQuantizer",
    "ResidualQuantizerOutput",
    "SineCosinePositionEncoding",
    "SpecAugment",
    "TimeFrequencyMask",
    "TokenizerPretrainer",
    "TransformerBlock",
    "TubeMask",
    "VideoReader",
    "WindowTransformerBlock",
    "__version__",
    "bridle_layout_map",
    "distribute",
    "file_dataset",
    "fine_tune",
    "list_files",
    "load_run",
    "to_transformers",
    "upload_preset",
]
