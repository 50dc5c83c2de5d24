"""What differs between audio, image and video."""

import dataclasses
import types

import keras
import numpy as np
import pytest

import keras_bridle as kb
from keras_bridle.config import ArgumentError, AugmentationOptions, FineTuningOptions
from keras_bridle.modalities import AUDIO, IMAGE, MODALITIES, VIDEO, modality_of

DIMS = {"audio": (None,), "image": (16, 16, 3), "video": (4, 16, 16, 3)}
READING = {"audio": {"seconds": 0.5}, "image": {}, "video": {"sampling_rate": 2}}


@dataclasses.dataclass(kw_only=True)
class Options(AugmentationOptions, FineTuningOptions):
    """Options of fine-tuning."""


def encoder(name, **settings):
    front_end = kb.LogMelSpectrogram() if name == "audio" else None
    found = {"input_dims": DIMS[name], "front_end": front_end, "patch_size": 8}
    return types.SimpleNamespace(**{**found, **settings})


def reading_of(name):
    return MODALITIES[name].reading(encoder(name), **READING[name])


def layers(found):
    """Layers by the name of their class, wrapped ones as themselves."""
    inner = [getattr(layer, "layer", layer) for layer in found]
    return {type(layer).__name__: layer for layer in inner}


@pytest.mark.parametrize(
    ("name", "crop"),
    [
        ("audio", []),
        ("image", ["RandomResizedCrop"]),
        ("video", ["RandomMultiScaleCrop"]),
    ],
)
def test_what_is_not_asked_for_is_not_there(name, crop):
    modality = MODALITIES[name]
    assert modality_of(encoder(name)) is modality
    assert [*layers(modality.augmentation(Options(), reading_of(name)))] == crop
    assert modality.mix(Options()) is None
    assert modality.classifier_options(Options()) == {}


def test_audio():
    options = Options(
        gain=True,
        roll=True,
        mix_rate=0.5,
        mixup=10,
        hide_bins=48,
        hide_frames=192,
        token_drop=(0.2, 0.3),
    )
    found = layers(AUDIO.augmentation(options, reading_of("audio")))
    assert [*found] == ["RandomWaveformRoll", "RandomWaveformGain"]
    mix = AUDIO.mix(options)
    assert isinstance(mix, kb.RandomWaveformMix)
    assert (mix.rate, mix.alpha) == (0.5, 10)
    options = AUDIO.classifier_options(options)
    hidden, dropped = options["feature_augmentation"], options["token_mask"]
    assert (hidden.max_bins, hidden.max_frames) == (48, 192)
    assert (dropped.time_mask_ratio, dropped.frequency_mask_ratio) == (0.2, 0.3)
    assert AUDIO.converter_options(reading_of("audio")) == {"num_samples": 8000}


@pytest.mark.parametrize("name", ["image", "video"])
def test_images_and_clips(name):
    options = Options(
        flip=True,
        rand_augment=0.9,
        rand_augment_ops=3,
        random_erasing=0.25,
        mix_rate=1,
        mixup=0.8,
        cutmix=0.7,
    )
    found = layers(MODALITIES[name].augmentation(options, reading_of(name)))
    assert [*found][1:] == ["RandomHorizontalFlip", "RandAugment", "RandomErasing"]
    rand_augment = found["RandAugment"].get_config()
    assert (rand_augment["num_ops"], rand_augment["factor"]) == (3, 0.9)
    # Of the rate that is asked for, not of one drawn from 0 to it.
    assert tuple(found["RandomErasing"].factor) == (0.25, 0.25)
    mix = MODALITIES[name].mix(options)
    assert (mix.rate, mix.mixup_alpha, mix.cutmix_alpha) == (1.0, 0.8, 0.7)


def test_a_quarter_of_the_images_is_erased():
    options = Options(random_erasing=0.25)
    _, erasing = IMAGE.augmentation(options, reading_of("image"))
    images = np.full((2000, 16, 16, 1), 128, "float32")
    changed = keras.ops.convert_to_numpy(erasing(images, training=True)) != 128
    assert 0.2 < changed.any(axis=(1, 2, 3)).mean() < 0.3


def test_smallest_crop():
    options = Options(smallest_crop=0.4)
    (crop,) = IMAGE.augmentation(options, reading_of("image"))
    assert tuple(crop.scale) == (0.4, 1.0) and tuple(crop.size) == (16, 16)


def test_clips_keep_their_rate():
    reading = reading_of("video")
    expected = {"image_size": (16, 16), "num_frames": 4, "sampling_rate": 2}
    assert VIDEO.converter_options(reading) == expected
    assert VIDEO.input_shape(reading) == (4, 16, 16, 3)
    assert VIDEO.input_shape(VIDEO.enlarged(reading)) == (4, 18, 18, 3)


def test_recordings_are_read_at_the_rate_of_the_encoder():
    for front_end in (
        kb.LogMelSpectrogram(sample_rate=8000),
        {"config": {"sample_rate": 8000}},
    ):
        reading = AUDIO.reading(encoder("audio", front_end=front_end), seconds=1)
        assert reading == {"seconds": 1, "sample_rate": 8000}
        assert AUDIO.input_shape(reading) == (8000,)
        with pytest.raises(ArgumentError):
            AUDIO.sample(reading)


@pytest.mark.parametrize(
    ("name", "dims", "options", "argument"),
    [
        ("audio", (None,), {}, "seconds"),
        ("audio", (8000,), {"seconds": 1}, "seconds"),
        ("image", (None, None, 3), {}, "image_size"),
        ("image", (16, 16, 3), {"image_size": 4}, "image_size"),
        ("video", (None, 16, 16, 3), {}, "num_frames"),
    ],
)
def test_sizes_that_do_not_fit(name, dims, options, argument):
    with pytest.raises(ArgumentError) as caught:
        MODALITIES[name].reading(encoder(name, input_dims=dims), **options)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        ("audio", np.zeros((4, 1600), "float32")),
        ("audio", np.linspace(0, 1, 4)[:, None] * np.ones((4, 1600))),
        (
            "image",
            np.random.default_rng(0).integers(0, 9, (4, 8, 8, 3)) * [1, 1, 0] + 5,
        ),
    ],
    ids=["silence", "offsets", "an empty channel"],
)
def test_constant_examples(name, examples):
    with pytest.raises(ValueError):
        MODALITIES[name].new_encoder("tiny", examples, reading_of(name))


def test_other_inputs_have_no_modality():
    with pytest.raises(ValueError):
        modality_of(types.SimpleNamespace(input_dims=(8, 8)))
