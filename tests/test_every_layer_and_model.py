"""Runs every public layer and model through the shared harness.

`python test_every_layer_and_model.py FOLDER` saves what a backend computes.
"""

import sys
from pathlib import Path

import harness
import keras
import keras_hub
import numpy as np
import programs
import pytest
from harness import Case
from programs import BACKEND

import keras_bridle as kb
from keras_bridle.data.readers import AudioReader, ImageReader
from keras_bridle.data.video_reader import VideoReader


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def uniform(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")


def real(*lengths, of):
    """A padding mask: `True` for the first so many of each example."""
    return np.arange(of) < np.array(lengths)[:, None]


def maker(kind, *args, **settings):
    return lambda dtype=None: kind(*args, dtype=dtype, **settings)


def mask(kind, grid, *args):
    """A case of a mask on the patches of a grid."""
    x = normal(2, int(np.prod(grid)), 4)
    make = maker(kind, *args, seed=1)
    return Case(make, x, lambda layer, x: layer(x, grid=grid), random=True)


def augmentation(kind, inputs, *args, **settings):
    """A case of an augmentation; those in float32 give it under any policy."""
    is_class = isinstance(kind, type)
    make = maker(kind, *args, seed=1, **settings) if is_class else kind
    return Case(
        make,
        inputs,
        lambda layer, x: layer(x, training=True),
        random=True,
        output_dtype="mixed",
    )


def backbone(dtype=None, **settings):
    settings = {"input_dims": (16, 24, 1), "patch_size": (8, 6), **settings}
    return kb.BridleBackbone(
        hidden_dim=16, num_layers=2, num_heads=2, mlp_dim=32, dtype=dtype, **settings
    )


def waveform_backbone(dtype=None):
    front_end = kb.LogMelSpectrogram(num_mel_bins=16, dtype=dtype)
    return backbone(dtype, input_dims=(None,), patch_size=(4, 8), front_end=front_end)


def beats_backbone(dtype=None):
    return kb.BeatsBackbone(
        (4, 8),
        *(16, 2, 2, 32, (None,)),
        kb.LogMelSpectrogram(num_mel_bins=16, multiple_of=4, dtype=dtype),
        embedding_dim=12,
        kernel_size=4,
        groups=2,
        num_buckets=8,
        max_distance=6,
        dtype=dtype,
    )


def clip_backbone(dtype=None):
    return backbone(
        dtype,
        input_dims=(6, 8, 8, 3),
        patch_size=(2, 4, 4),
        front_end=kb.PixelNormalization(dtype=dtype),
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
    return kb.ImageAugmentation(erasing, dtype=dtype)


def quantizer(dtype=None):
    return kb.ResidualQuantizer(2, 8, dim=4, seed=0, dtype=dtype)


def tokenizer(dtype=None):
    return kb.BridleTokenizer(backbone(dtype), quantizer(dtype), dtype=dtype)


def random_projection(dtype=None):
    return kb.RandomProjectionTokenizer(
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
    patch_mask = kb.PatchMask(inputs["visible"], inputs["masked"])
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
# Outputs that codes are a part of, and those of heads.
CODES = {"continuous": False, "output_dtype": "mixed"}
FLOAT32 = {"output_dtype": "float32"}
# Softmax does not see what all its logits share.
IDLE = ("bias_output/bias",)

CASES = {
    "BlockMask": mask(kb.BlockMask, (6, 7), 0.4),
    "InverseBlockMask": mask(kb.InverseBlockMask, (6, 7), 0.7),
    "RandomMask": mask(kb.RandomMask, (6, 7), 0.6),
    "TimeFrequencyMask": mask(kb.TimeFrequencyMask, (10, 4), 0.6, 0.5),
    "TubeMask": mask(kb.TubeMask, (4, 2, 5), 0.6),
    "ImageAugmentation": augmentation(image_augmentation, pixels(4, 3, 6, 8, 1)),
    "RandAugment": augmentation(kb.RandAugment, pixels(3, 8, 8, 3), factor=0.5),
    "RandomHorizontalFlip": augmentation(kb.RandomHorizontalFlip, uniform(4, 6, 8, 3)),
    "RandomImageMix": augmentation(kb.RandomImageMix, uniform(4, 2, 6, 8, 3)),
    "RandomMultiScaleCrop": augmentation(
        kb.RandomMultiScaleCrop, uniform(4, 2, 12, 16, 1), (6, 8)
    ),
    "RandomResizedCrop": augmentation(
        kb.RandomResizedCrop, uniform(4, 12, 16, 3), (6, 8)
    ),
    "RandomWaveformGain": augmentation(kb.RandomWaveformGain, waveforms()),
    "RandomWaveformMix": augmentation(kb.RandomWaveformMix, waveforms(), 1.0),
    "RandomWaveformRoll": augmentation(kb.RandomWaveformRoll, waveforms()),
    "SpecAugment": augmentation(kb.SpecAugment, normal(2, 24, 16, 1), 8, 12),
    "ClassToken": Case(maker(kb.ClassToken), normal(2, 3, 8)),
    "LearnedPositionEncoding": Case(
        maker(kb.LearnedPositionEncoding, (3, 5)), normal(2, 3, 5, 8)
    ),
    "LogMelSpectrogram": Case(maker(kb.LogMelSpectrogram, num_frames=24), waveforms()),
    "PatchEmbedding": Case(maker(kb.PatchEmbedding, 8, (4, 2)), normal(2, 8, 6, 1)),
    "PatchEmbedding-clip": Case(
        maker(kb.PatchEmbedding, 8, (2, 4, 4)), normal(2, 4, 8, 8, 1)
    ),
    "PixelNormalization": Case(maker(kb.PixelNormalization), pixels(2, 4, 4, 3)),
    "PixelNormalization-clip": Case(
        maker(kb.PixelNormalization, 0.5, (0.2, 0.3, 0.4)),
        pixels(2, 3, 4, 4, 3).astype("uint8"),
    ),
    "ResidualQuantizer": Case(quantizer, normal(2, 6, 4), **CODES),
    "ResidualQuantizer-gradient": Case(
        maker(kb.ResidualQuantizer, 2, 8, codebook_update="gradient", seed=0),
        normal(3, 20, 4),
        **CODES,
    ),
    "RelativePositionBias": Case(
        maker(kb.RelativePositionBias, 2, (3, 5)), normal(2, 3, 4, 8)
    ),
    "RelativePositionBias-visible": Case(
        maker(kb.RelativePositionBias, 2, (4, 2), use_class_token=False),
        {"x": normal(2, 4, 8), "visible": np.int32([[3, 0, 7, 5], [1, 6, 2, 4]])},
        lambda layer, x: layer(x["x"], grid=(4, 2), visible=x["visible"]),
    ),
    "SineCosinePositionEncoding": Case(
        maker(kb.SineCosinePositionEncoding), normal(2, 3, 5, 8)
    ),
    "SineCosinePositionEncoding-stretched": Case(
        maker(kb.SineCosinePositionEncoding, trained_grid=(6, 5)), normal(2, 3, 5, 8)
    ),
    "SineCosinePositionEncoding-sequence": Case(
        maker(kb.SineCosinePositionEncoding, "sequence"), normal(2, 2, 3, 4, 6)
    ),
    "TransformerBlock": Case(
        maker(kb.TransformerBlock, 2, 16),
        {"x": normal(2, 5, 8), "mask": real(5, 3, of=5)},
        lambda layer, x: layer(x["x"], padding_mask=x["mask"]),
        fits=True,
    ),
    "TransformerBlock-scaled": Case(
        maker(kb.TransformerBlock, 2, 16, layer_scale=0.5),
        {"x": normal(2, 5, 8), "mask": real(5, 3, of=5), "bias": normal(2, 2, 5, 5)},
        lambda layer, x: layer(x["x"], padding_mask=x["mask"], bias=x["bias"]),
    ),
    "WindowTransformerBlock": Case(
        maker(kb.WindowTransformerBlock, 2, 16, (2, 2), (1, 1), bias_dim=8),
        {"x": normal(2, 16, 8), "mask": real(16, 9, of=16)},
        lambda layer, x: layer(x["x"], grid=(4, 4), padding_mask=x["mask"]),
        idle=IDLE,
        fits=True,
    ),
    "BridleAudioClassifier": Case(
        classifier(kb.BridleAudioClassifier, waveform_backbone),
        waveforms(),
        **FLOAT32,
    ),
    "BridleImageClassifier": Case(
        classifier(kb.BridleImageClassifier, backbone),
        normal(2, 16, 24, 1),
        output_dtype="float32",
        fits=True,
    ),
    "BridleVideoClassifier": Case(
        classifier(kb.BridleVideoClassifier, clip_backbone, pooling="first"),
        pixels(2, 4, 8, 12, 3),
        **FLOAT32,
    ),
    "BeatsBackbone": Case(beats_backbone, waveforms(), fits=True),
    "BridleBackbone": Case(backbone, normal(2, 16, 24, 1), fits=True),
    "BridleBackbone-relative": Case(
        lambda dtype=None: backbone(
            dtype, position_layout="relative", layer_scale=0.5, use_final_norm=False
        ),
        normal(2, 16, 24, 1),
        fits=True,
    ),
    "BridleBackbone-shared": Case(
        lambda dtype=None: backbone(dtype, position_layout="shared_relative"),
        normal(2, 16, 24, 1),
    ),
    "BridleBackbone-clip": Case(clip_backbone, pixels(2, 4, 8, 12, 3), fits=True),
    "BridleTokenizer": Case(tokenizer, normal(2, 16, 24, 1), **CODES),
    "BridleTokenizer-visible": Case(tokenizer, VISIBLE, tokenize, **CODES),
    "CodeDecoder": Case(
        maker(kb.CodeDecoder, 2, 8, 16, **SMALL),
        DECODER_INPUTS,
        decode,
        fits=True,
        **FLOAT32,
    ),
    "CodeDecoder-window": Case(
        maker(kb.CodeDecoder, 2, 8, 16, **SMALL, **WINDOW),
        DECODER_INPUTS,
        decode,
        idle=IDLE,
        **FLOAT32,
    ),
    "FeatureEstimator": Case(
        maker(kb.FeatureEstimator, 12, 16, **SMALL),
        {"x": normal(2, 8, 4), "padding_mask": real(8, 6, of=8)},
        estimate,
        output_dtype="float32",
        fits=True,
    ),
    "RandomProjectionTokenizer": Case(random_projection, normal(2, 16, 24, 1), **CODES),
    "RandomProjectionTokenizer-visible": Case(
        random_projection, VISIBLE, tokenize, **CODES
    ),
}

# They run in front of models, on arrays of any kind: their own tests check that.
PREPROCESSING = (
    keras_hub.layers.AudioConverter,
    keras_hub.layers.ImageConverter,
    keras_hub.layers.VideoConverter,
    keras_hub.models.Preprocessor,
)
# Trainers have tests of their own.
TRAINERS = ("EncoderPretrainer", "TokenizerPretrainer", "JointPretrainer", "FineTuner")

FITTED = [name for name, case in CASES.items() if case.fits]
COMPUTED = [name for name, case in CASES.items() if not case.fits]
# Where nothing random happens, the outputs to compare with are compiled on JAX already.
COMPILED = [name for name in CASES if CASES[name].random or BACKEND != "jax"]
# One of them does on the other backends: what differs is a matter of the layers.
POLICIES = tuple(harness.HALF_PRECISION)
if BACKEND != "torch":
    POLICIES = ("mixed_bfloat16",)


def test_every_class_has_a_case():
    public = {
        name
        for name in set(kb.__all__).difference(TRAINERS)
        if isinstance(getattr(kb, name), type)
        and issubclass(getattr(kb, name), keras.layers.Layer)
        and not issubclass(getattr(kb, name), PREPROCESSING)
    }
    assert len(public) > 10
    assert public == {name.partition("-")[0] for name in CASES}
    for name, case in CASES.items():
        assert type(case.make()).__name__ == name.partition("-")[0]


@pytest.mark.parametrize("name", CASES)
def test_call(name):
    harness.check_call(CASES[name])


@pytest.mark.parametrize("name", COMPUTED)
def test_gradients_reach_every_weight(name):
    harness.check_gradients(CASES[name])


COMPARED = [name for name in CASES if not CASES[name].random]


@pytest.fixture(scope="module")
def on_torch(tmp_path_factory):
    """The folder of what PyTorch computes."""
    if BACKEND == "torch":
        pytest.skip("the other backends compare themselves with this one")
    folder = tmp_path_factory.mktemp("torch")
    programs.run("tests/test_every_layer_and_model.py", folder, backend="torch")
    return folder


@pytest.mark.parametrize("name", COMPARED)
def test_same_outputs_and_gradients_on_every_backend(name, on_torch):
    with np.load(on_torch / f"{name}.npz") as expected:
        harness.check_agreement(CASES[name], expected)


@pytest.mark.parametrize("name", CASES)
def test_saving(name, tmp_path):
    harness.check_saving(CASES[name], tmp_path)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CASES)
def test_half_precision(name, policy):
    harness.check_half_precision(CASES[name], policy)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name):
    harness.check_compiled(CASES[name])


@pytest.mark.parametrize("name", FITTED)
def test_training(name):
    harness.check_training(CASES[name])


SMALL_HEAD = {"num_layers": 1, "num_heads": 1, "mlp_dim": 8}
LEAST = {
    kb.BeatsBackbone: (16, 24, 1, 3, 32, (32, 128, 1)),
    kb.BridleAudioClassifier: (None,),
    kb.CodeDecoder: (2, 8, 16),
    kb.RandomMultiScaleCrop: (8,),
    kb.RandomResizedCrop: (8,),
    kb.TransformerBlock: (2, 8),
}
# What is out of range, by class; the argument that the error must name comes first.
WRONG = {
    kb.BlockMask: [{"block_share": (0.5, 0.1)}, {"aspect_ratio": (0, 1)}],
    kb.InverseBlockMask: [{"block_size": 0}],
    kb.RandomMask: [{"mask_ratio": 1.0}],
    kb.TimeFrequencyMask: [{"time_mask_ratio": 0.0}, {"frequency_mask_ratio": 1.5}],
    kb.ImageAugmentation: [{"layer": keras.layers.Dense(3)}],
    kb.RandAugment: [{"num_ops": 0}, {"factor": 1.5}],
    kb.RandomImageMix: [{"mixup_alpha": -1}, {"mixup_alpha": 0, "cutmix_alpha": 0}],
    kb.RandomMultiScaleCrop: [{"scales": (1.2,)}, {"max_distortion": -1}],
    kb.RandomResizedCrop: [{"scale": (0.0, 1.0)}, {"interpolation": "nearest"}],
    kb.RandomWaveformGain: [{"concentration": 2.5}],
    kb.RandomWaveformMix: [{"rate": 1.5}, {"alpha": 0}],
    kb.SpecAugment: [{"max_bins": -1}, {"num_masks": 0}],
    kb.LogMelSpectrogram: [
        {"mean": None},
        {"std": 0.0},
        {"max_frequency": 9000.0},
        {"min_frequency": 5000.0, "max_frequency": 4000.0},
        {"fft_length": 256},
        {"num_frames": 0},
        {"window": "hamming"},
        {"multiple_of": 0},
    ],
    kb.PixelNormalization: [{"std": (1, 2, 3), "mean": (1, 2)}, {"scale": 0}],
    kb.SineCosinePositionEncoding: [{"layout": "diagonal"}],
    kb.TransformerBlock: [{"drop_path_rate": 1.0}],
    kb.ResidualQuantizer: [
        {"num_levels": 0},
        {"normalize": "both"},
        {"codebook_update": "ema"},
        {"decay": 1.0},
        {"restart_threshold": -0.1},
        {"top_k": 300},
        {"top_k": 2, "sampling_temperature": 1.0},
        {"restart_threshold": 0.1, "codebook_update": "gradient"},
    ],
    kb.RandomProjectionTokenizer: [
        {"quantizer": kb.ResidualQuantizer(2, 8), "patch_size": 4, "hidden_dim": 16}
    ],
    kb.CodeDecoder: [{"attention": "local", **SMALL_HEAD}],
    kb.BeatsBackbone: [{"groups": 5}, {"num_buckets": 2}, {"max_distance": 80}],
    kb.BridleAudioClassifier: [
        {"num_classes": 0},
        {"class_names": ["a"], "num_classes": 3},
        {"pooling": "max", "num_classes": 3},
    ],
    kb.BridleAudioConverter: [{"num_samples": 0}],
    kb.BridleImageConverter: [{"channels": 2}, {"scale": 0.5}],
    kb.BridleVideoConverter: [{"num_frames": 0}],
    AudioReader: [
        {"seconds": 1, "num_samples": 5},
        {"num_samples": 0},
        {"decoder": "ffmpeg", "num_samples": 5},
    ],
    ImageReader: [
        {"image_size": (3,)},
        {"image_size": (3, -1)},
        {"channels": 2, "image_size": 4},
    ],
    VideoReader: [
        {"num_frames": 0, "image_size": 4},
        {"sampling_rate": 0, "image_size": 4},
    ],
}


@pytest.mark.one_backend
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_out_of_range_is_named(kind):
    for settings in WRONG[kind]:
        with pytest.raises(ValueError) as caught:
            kind(*LEAST.get(kind, ()), **settings)
        assert next(iter(settings)) in str(caught.value)


if __name__ == "__main__":
    for name in COMPARED:
        np.savez(Path(sys.argv[1], name), **CASES[name].values())
