"""Runs every public layer and model through the shared harness.

A public class without a case here fails `test_every_class_has_a_case`.
"""

import harness
import keras
import keras_hub
import numpy as np
import pytest
from harness import Case

from keras_bridle import layers, models
from keras_bridle.augmentation.audio import (
    RandomWaveformGain,
    RandomWaveformMix,
    RandomWaveformRoll,
    SpecAugment,
)
from keras_bridle.augmentation.image import (
    ImageAugmentation,
    RandAugment,
    RandomHorizontalFlip,
    RandomImageMix,
    RandomMultiScaleCrop,
    RandomResizedCrop,
)
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
    SineCosinePositionEncoding,
)
from keras_bridle.layers.transformer import TransformerBlock, WindowTransformerBlock
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import (
    BridleAudioClassifier,
    BridleImageClassifier,
    BridleVideoClassifier,
)
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def uniform(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")


def real(*lengths, of):
    """A padding mask: `True` for the first so many of each example."""
    return np.arange(of) < np.array(lengths)[:, None]


def maker(kind, *args, **settings):
    return lambda dtype=None: kind(*args, dtype=dtype, **settings)


def backbone(dtype=None, **settings):
    settings = {"input_dims": (16, 24, 1), "patch_size": (8, 6), **settings}
    return BridleBackbone(
        hidden_dim=16, num_layers=2, num_heads=2, mlp_dim=32, dtype=dtype, **settings
    )


def waveform_backbone(dtype=None):
    front_end = LogMelSpectrogram(num_mel_bins=16, dtype=dtype)
    return backbone(dtype, input_dims=(None,), patch_size=(4, 8), front_end=front_end)


def clip_backbone(dtype=None):
    return backbone(
        dtype,
        input_dims=(6, 8, 8, 3),
        patch_size=(2, 4, 4),
        front_end=PixelNormalization(dtype=dtype),
        use_class_token=False,
        position_layout="sequence",
        trained_grid="input",
    )


def classifier(kind, make_backbone, **settings):
    return lambda dtype=None: kind(
        make_backbone(dtype), num_classes=3, compile=False, **settings
    )


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


def waveforms():
    clips = uniform(2, 3200)
    clips[1, 2000:] = 0.0
    return clips


def image_augmentation(dtype=None):
    erasing = keras.layers.RandomErasing(seed=1, dtype="float32")
    return ImageAugmentation(erasing, dtype=dtype)


def quantizer(dtype=None):
    return ResidualQuantizer(2, 8, dim=4, seed=0, dtype=dtype)


def tokenizer(dtype=None):
    return BridleTokenizer(backbone(dtype), quantizer(dtype), dtype=dtype)


def random_projection(dtype=None):
    return RandomProjectionTokenizer(
        (8, 6),
        16,
        quantizer(dtype),
        position_layout="grid",
        center_patches=True,
        dtype=dtype,
    )


SMALL = {"num_layers": 2, "num_heads": 2, "mlp_dim": 32}
DECODER_INPUTS = {
    "tokens": normal(2, 5, 24),
    "visible": np.int32([[3, 0, 7, 5], [1, 6, 2, 4]]),
    "masked": np.int32([[1, 2, 4, 6], [0, 3, 5, 7]]),
    "padding_mask": real(8, 6, of=8),
}


def decode(decoder, inputs):
    patch_mask = PatchMask(inputs["visible"], inputs["masked"])
    return decoder(
        inputs["tokens"],
        patch_mask,
        grid=(4, 2),
        padding_mask=inputs["padding_mask"],
    )


def estimate(estimator, inputs):
    return estimator(inputs["x"], grid=(4, 2), padding_mask=inputs["padding_mask"])


def tokenize(tokenizer, inputs):
    return tokenizer(inputs["x"], inputs["rows"], visible=inputs["visible"])


VISIBLE = {
    "x": normal(2, 16, 24, 1),
    "rows": real(16, 8, of=16),
    "visible": np.int32([[3, 0, 7, 5], [1, 6, 2, 4]]),
}
WINDOW = {"attention": "window", "window_size": (2, 2), "window_shift": (1, 0)}
# Softmax does not see what all its logits share.
IDLE = ("bias_output/bias",)

CASES = {
    "BlockMask": Case(
        maker(BlockMask, 0.4, seed=1),
        normal(2, 42, 4),
        lambda layer, x: layer(x, grid=(6, 7)),
        random=True,
    ),
    "ClassToken": Case(maker(ClassToken), normal(2, 3, 8)),
    "ImageAugmentation": Case(
        image_augmentation,
        uniform(4, 3, 6, 8, 1),
        lambda layer, x: layer(x, training=True),
        random=True,
        output_dtype="mixed",
    ),
    "InverseBlockMask": Case(
        maker(InverseBlockMask, 0.7, seed=1),
        normal(2, 42, 4),
        lambda layer, x: layer(x, grid=(6, 7)),
        random=True,
    ),
    "LearnedPositionEncoding": Case(
        maker(LearnedPositionEncoding, (3, 5)), normal(2, 3, 5, 8)
    ),
    "LogMelSpectrogram": Case(maker(LogMelSpectrogram, num_frames=24), waveforms()),
    "PatchEmbedding": Case(maker(PatchEmbedding, 8, (4, 2)), normal(2, 8, 6, 1)),
    "PatchEmbedding-padded": Case(maker(PatchEmbedding, 8, 4), normal(2, 7, 6, 3)),
    "PatchEmbedding-clip": Case(
        maker(PatchEmbedding, 8, (2, 4, 4)), normal(2, 4, 8, 8, 1)
    ),
    "PixelNormalization": Case(maker(PixelNormalization), pixels(2, 4, 4, 3)),
    "PixelNormalization-clip": Case(
        maker(PixelNormalization, 0.5, (0.2, 0.3, 0.4)),
        pixels(2, 3, 4, 4, 3).astype("uint8"),
    ),
    "RandomMask": Case(maker(RandomMask, 0.6, seed=1), normal(2, 30, 4), random=True),
    "RandAugment": Case(
        maker(RandAugment, factor=0.5, seed=1),
        pixels(3, 8, 8, 3),
        lambda layer, x: layer(x, training=True),
        random=True,
    ),
    "RandomHorizontalFlip": Case(
        maker(RandomHorizontalFlip, seed=1),
        uniform(4, 6, 8, 3),
        lambda layer, x: layer(x, training=True),
        random=True,
        output_dtype="mixed",
    ),
    "RandomImageMix": Case(
        maker(RandomImageMix, seed=1),
        uniform(4, 2, 6, 8, 3),
        lambda layer, x: layer(x, training=True),
        random=True,
        output_dtype="mixed",
    ),
    "RandomMultiScaleCrop": Case(
        maker(RandomMultiScaleCrop, (6, 8), seed=1),
        uniform(4, 2, 12, 16, 1),
        lambda layer, x: layer(x, training=True),
        random=True,
        output_dtype="mixed",
    ),
    "RandomResizedCrop": Case(
        maker(RandomResizedCrop, (6, 8), seed=1),
        uniform(4, 12, 16, 3),
        lambda layer, x: layer(x, training=True),
        random=True,
        output_dtype="mixed",
    ),
    "RandomWaveformGain": Case(
        maker(RandomWaveformGain, seed=1),
        waveforms(),
        lambda layer, x: layer(x, training=True),
        random=True,
        output_dtype="mixed",
    ),
    "RandomWaveformMix": Case(
        maker(RandomWaveformMix, 1.0, seed=1),
        waveforms(),
        lambda layer, x: layer(x, training=True),
        random=True,
        output_dtype="mixed",
    ),
    "RandomWaveformRoll": Case(
        maker(RandomWaveformRoll, seed=1),
        waveforms(),
        lambda layer, x: layer(x, training=True),
        random=True,
        output_dtype="mixed",
    ),
    "ResidualQuantizer": Case(
        quantizer, normal(2, 6, 4), continuous=False, output_dtype="mixed"
    ),
    "ResidualQuantizer-gradient": Case(
        maker(ResidualQuantizer, 2, 8, codebook_update="gradient", seed=0),
        normal(3, 20, 4),
        continuous=False,
        output_dtype="mixed",
    ),
    "SineCosinePositionEncoding": Case(
        maker(SineCosinePositionEncoding), normal(2, 3, 5, 8)
    ),
    "SineCosinePositionEncoding-stretched": Case(
        maker(SineCosinePositionEncoding, trained_grid=(6, 5)), normal(2, 3, 5, 8)
    ),
    "SineCosinePositionEncoding-stretched-clip": Case(
        maker(SineCosinePositionEncoding, "sequence", trained_grid=(None, 6, 5)),
        normal(2, 2, 3, 4, 6),
    ),
    "SineCosinePositionEncoding-sequence": Case(
        maker(SineCosinePositionEncoding, "sequence"), normal(2, 2, 3, 4, 6)
    ),
    "SpecAugment": Case(
        maker(SpecAugment, 8, 12, seed=1),
        normal(2, 24, 16, 1),
        lambda layer, x: layer(x, training=True),
        random=True,
    ),
    "TimeFrequencyMask": Case(
        maker(TimeFrequencyMask, 0.6, 0.5, seed=1),
        normal(2, 40, 4),
        lambda layer, x: layer(x, grid=(10, 4)),
        random=True,
    ),
    "TransformerBlock": Case(
        maker(TransformerBlock, 2, 16),
        {"x": normal(2, 5, 8), "mask": real(5, 3, of=5)},
        lambda layer, x: layer(x["x"], padding_mask=x["mask"]),
        fits=True,
    ),
    "TubeMask": Case(
        maker(TubeMask, 0.6, seed=1),
        normal(2, 40, 4),
        lambda layer, x: layer(x, grid=(4, 2, 5)),
        random=True,
    ),
    "WindowTransformerBlock": Case(
        maker(WindowTransformerBlock, 2, 16, (2, 2), (1, 1), bias_dim=8),
        {"x": normal(2, 16, 8), "mask": real(16, 9, of=16)},
        lambda layer, x: layer(x["x"], grid=(4, 4), padding_mask=x["mask"]),
        idle=IDLE,
        fits=True,
    ),
    "BridleAudioClassifier": Case(
        classifier(BridleAudioClassifier, waveform_backbone),
        waveforms(),
        output_dtype="float32",
    ),
    "BridleImageClassifier": Case(
        classifier(BridleImageClassifier, backbone),
        normal(2, 16, 24, 1),
        output_dtype="float32",
        fits=True,
    ),
    "BridleVideoClassifier": Case(
        classifier(BridleVideoClassifier, clip_backbone, pooling="first"),
        pixels(2, 4, 8, 12, 3),
        output_dtype="float32",
    ),
    "BridleBackbone": Case(backbone, normal(2, 16, 24, 1), fits=True),
    "BridleBackbone-clip": Case(clip_backbone, pixels(2, 4, 8, 12, 3), fits=True),
    "BridleBackbone-waveform": Case(waveform_backbone, waveforms()),
    "BridleTokenizer": Case(
        tokenizer, normal(2, 16, 24, 1), continuous=False, output_dtype="mixed"
    ),
    "BridleTokenizer-visible": Case(
        tokenizer, VISIBLE, tokenize, continuous=False, output_dtype="mixed"
    ),
    "CodeDecoder": Case(
        maker(CodeDecoder, 2, 8, 16, **SMALL),
        DECODER_INPUTS,
        decode,
        output_dtype="float32",
        fits=True,
    ),
    "CodeDecoder-window": Case(
        maker(CodeDecoder, 2, 8, 16, **SMALL, **WINDOW),
        DECODER_INPUTS,
        decode,
        output_dtype="float32",
        idle=IDLE,
    ),
    "FeatureEstimator": Case(
        maker(FeatureEstimator, 12, 16, **SMALL),
        {"x": normal(2, 8, 4), "padding_mask": real(8, 6, of=8)},
        estimate,
        output_dtype="float32",
        fits=True,
    ),
    "FeatureEstimator-window": Case(
        maker(FeatureEstimator, 12, 16, **SMALL, **WINDOW),
        {"x": normal(2, 8, 4), "padding_mask": real(8, 6, of=8)},
        estimate,
        output_dtype="float32",
        idle=IDLE,
    ),
    "RandomProjectionTokenizer": Case(
        random_projection,
        normal(2, 16, 24, 1),
        continuous=False,
        output_dtype="mixed",
    ),
    "RandomProjectionTokenizer-visible": Case(
        random_projection, VISIBLE, tokenize, continuous=False, output_dtype="mixed"
    ),
}

# They run in front of models, on arrays of any kind: their own tests check that.
PREPROCESSING = (
    keras_hub.layers.AudioConverter,
    keras_hub.layers.ImageConverter,
    keras_hub.layers.VideoConverter,
    keras_hub.models.Preprocessor,
)

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def test_every_class_has_a_case():
    public = {
        name
        for room in (layers, models)
        for name in room.__all__
        if isinstance(getattr(room, name), type)
        and issubclass(getattr(room, name), keras.layers.Layer)
        and not issubclass(getattr(room, name), PREPROCESSING)
    }
    assert len(public) > 10
    assert public == {name.partition("-")[0] for name in CASES}


def test_cases_are_of_the_class_they_name():
    for name, case in CASES.items():
        assert type(case.make()).__name__ == name.partition("-")[0]


@each_case
def test_call(case):
    harness.check_call(case)


@each_case
def test_gradients_reach_every_weight(case):
    harness.check_gradients(case)


@each_case
def test_configuration(case):
    harness.check_config(case)


@each_case
def test_saving(case, tmp_path):
    harness.check_saving(case, tmp_path)


@each_case
@pytest.mark.parametrize("policy", harness.HALF_PRECISION)
def test_half_precision(case, policy):
    harness.check_half_precision(case, policy)


@each_case
def test_compiled(case):
    harness.check_compiled(case)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in CASES.items() if case.fits]
)
def test_training(case):
    harness.check_training(case)
