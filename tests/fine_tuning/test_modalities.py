"""What flags make of a modality: its augmentation, its mixing, its classifier."""

import keras
import numpy as np
import pytest

import keras_bridle as kb
from keras_bridle import cli as command_line
from keras_bridle.modalities import MODALITIES

NOTHING = {
    "seconds": 0.5,
    "image_size": 16,
    "num_frames": 4,
    "sampling_rate": 2,
    "smallest_crop": 1.0,
    "token_drop": (0, 0),
}


def modality(name, *flags):
    """A modality with flags, and nothing else switched on."""
    parser = command_line.fine_tuning_parser("")
    args = parser.parse_args([f"--modality={name}", "--preset=tiny", *flags])
    for flag, value in NOTHING.items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    return MODALITIES[name](args)


def layers(*found):
    """Layers by the name of their class, wrapped ones as themselves."""
    inner = [getattr(layer, "layer", layer) for layer in found]
    return {type(layer).__name__: layer for layer in inner}


@pytest.mark.parametrize("name", MODALITIES)
def test_what_is_not_asked_for_is_not_there(name):
    made = modality(name)
    crop = {
        "audio": [],
        "image": ["RandomResizedCrop"],
        "video": ["RandomMultiScaleCrop"],
    }
    assert [*layers(*made.augmentation())] == crop[name]
    assert made.mix() is None
    assert made.classifier_options() == {}


def test_sounds():
    made = modality(
        "audio",
        "--gain",
        "--roll",
        "--mix-rate=0.5",
        "--mixup=10",
        "--hide-bins=48",
        "--hide-frames=192",
        "--token-drop",
        "0.2",
        "0.3",
    )
    assert [*layers(*made.augmentation())] == [
        "RandomWaveformRoll",
        "RandomWaveformGain",
    ]
    mix = made.mix()
    assert isinstance(mix, kb.RandomWaveformMix)
    assert (mix.rate, mix.alpha) == (0.5, 10)
    options = made.classifier_options()
    hidden, dropped = options["feature_augmentation"], options["token_mask"]
    assert (hidden.max_bins, hidden.max_frames) == (48, 192)
    assert (dropped.time_mask_ratio, dropped.frequency_mask_ratio) == (0.2, 0.3)
    assert made.converter_options() == {"num_samples": 8000}


@pytest.mark.parametrize("name", ["image", "video"])
def test_pictures_and_clips(name):
    made = modality(
        name,
        "--flip",
        "--rand-augment=0.9",
        "--rand-augment-ops=3",
        "--random-erasing=0.25",
        "--mix-rate=1",
        "--mixup=0.8",
        "--cutmix=0.7",
    )
    found = layers(*made.augmentation())
    assert [*found][1:] == ["RandomHorizontalFlip", "RandAugment", "RandomErasing"]
    rand_augment = found["RandAugment"].get_config()
    assert (rand_augment["num_ops"], rand_augment["factor"]) == (3, 0.9)
    # Of the rate that is asked for, not of one drawn from 0 to it.
    assert tuple(found["RandomErasing"].factor) == (0.25, 0.25)
    mix = made.mix()
    assert (mix.rate, mix.mixup_alpha, mix.cutmix_alpha) == (1.0, 0.8, 0.7)
    assert made.converter_options()["image_size"] == (16, 16)


def test_a_quarter_of_the_pictures_is_erased():
    erasing = keras.Sequential(
        modality("image", "--random-erasing=0.25").augmentation()[1:]
    )
    pictures = np.full((2000, 16, 16, 1), 128, "float32")
    changed = keras.ops.convert_to_numpy(erasing(pictures, training=True)) != 128
    assert 0.2 < changed.any(axis=(1, 2, 3)).mean() < 0.3


def test_smallest_crop():
    (crop,) = modality("image", "--smallest-crop=0.4").augmentation()
    assert tuple(crop.scale) == (0.4, 1.0)


def test_clips_keep_their_rate():
    expected = {"image_size": (16, 16), "num_frames": 4, "sampling_rate": 2}
    assert modality("video").converter_options() == expected
