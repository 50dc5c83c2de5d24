"""Self-supervised pretraining with residual quantization (BRIDLE) in Keras 3."""

from keras_bridle.layers import (
    ClassToken,
    LogMelSpectrogram,
    PatchEmbedding,
    PatchMask,
    RandomMask,
    RandomWaveformGain,
    RandomWaveformRoll,
    ResidualQuantizer,
    ResidualQuantizerOutput,
    SineCosinePositionEncoding,
    TimeFrequencyMask,
    TransformerBlock,
    WindowTransformerBlock,
)
from keras_bridle.models import (
    BridleBackbone,
    BridleTokenizer,
    CodeDecoder,
    FeatureEstimator,
    RandomProjectionTokenizer,
)
from keras_bridle.pretraining import (
    CodeUsageLogger,
    EncoderPretrainer,
    InterleavedPretraining,
    JointPretrainer,
    TokenizerPretrainer,
)
from keras_bridle.version import __version__

__all__ = [
    "BridleBackbone",
    "BridleTokenizer",
    "ClassToken",
    "CodeDecoder",
    "CodeUsageLogger",
    "EncoderPretrainer",
    "FeatureEstimator",
    "InterleavedPretraining",
    "JointPretrainer",
    "LogMelSpectrogram",
    "PatchEmbedding",
    "PatchMask",
    "RandomMask",
    "RandomProjectionTokenizer",
    "RandomWaveformGain",
    "RandomWaveformRoll",
    "ResidualQuantizer",
    "ResidualQuantizerOutput",
    "SineCosinePositionEncoding",
    "TimeFrequencyMask",
    "TokenizerPretrainer",
    "TransformerBlock",
    "WindowTransformerBlock",
    "__version__",
]
