"""The table of modalities: all that differs between audio, image and video."""

import types
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

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
from keras_bridle.config import ArgumentError, check
from keras_bridle.data import samples
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.readers import AudioReader, ImageReader
from keras_bridle.data.video_reader import VideoReader
from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.layers.masks import TimeFrequencyMask
from keras_bridle.layers.pixels import PixelNormalization
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import (
    BridleAudioClassifier,
    BridleImageClassifier,
    BridleVideoClassifier,
)
from keras_bridle.models.presets import backbone_preset, saved_encoder_config

# Bopomofo to Pinyin, as few fonts have Bopomofo.
_PINYIN = {
    **dict(zip("ㄅㄆㄇㄈㄉㄊㄋㄌㄍㄎㄏ", "bpmfdtnlgkh", strict=True)),
    **dict(zip("ㄐㄑㄒㄖㄗㄘㄙ", "jqxrzcs", strict=True)),
    **{"ㄓ": "zh", "ㄔ": "ch", "ㄕ": "sh"},
}


class Modality:
    """Base of the modalities.

    Attributes:
        name: string.
        rank: int, the sides of one raw input.
        classifier_class: the task on top of an encoder.
        reading_names: names of the options for reading files.
        plain: string, the name of features without a network.
        otherwise: dict, defaults for reading files.
        sample_channels: dict, the channels of the sample data.
    """

    name: str
    rank: int
    classifier_class: Any
    reading_names: tuple[str, ...]
    plain = "pixels"
    sizes: Any
    reader: Any
    front_end: Any
    input_shape: Any
    _mix: Any
    otherwise: Mapping[str, Any] = types.MappingProxyType({})
    sample_channels: Mapping[str, int] = types.MappingProxyType({})

    def reading(self, encoder, **options):
        """Returns how to read files for an encoder, for `dataset()`.

        Args:
            encoder: object with the encoder's `input_dims`, `front_end`, `patch_size`.
            **options: values that replace the encoder's; `None` is ignored.

        Raises:
            ArgumentError: for a missing size, or one that the encoder does not take.
        """
        given = {name: x for name, x in options.items() if x is not None}
        found = {**self.otherwise, **self.sizes(encoder), **given}
        for name, size in found.items():
            check(size is not None, name, "given, as the encoder takes any", None)
        self._check(encoder, found)
        return found

    def reading_of(self, options, encoder):
        """Calls `reading()` with the values of an object of options."""
        given = {name: getattr(options, name) for name in self.reading_names}
        return self.reading(encoder, **given)

    def dataset(self, files, reading, **options):
        """Makes a `tf.data.Dataset` of files."""
        return file_dataset(files, self.reader(reading), **options)

    def new_encoder(self, size, examples, reading, **changes):
        """Builds an encoder of a named size, fitted to raw examples."""
        if _is_constant(examples):
            raise ValueError(
                f"There is nothing to learn from: all {len(examples)} sampled examples "
                "are silent, or have a constant channel"
            )
        return BridleBackbone.from_preset(
            f"bridle_{self.name}_{size}",
            load_weights=False,
            front_end=self.front_end(examples),
            input_dims=self.input_dims(reading),
            **changes,
        )

    def input_dims(self, reading):
        """Returns the `input_dims` of a new encoder."""
        return self.input_shape(reading)

    def mix(self, options):
        """Returns a layer that mixes the examples of a batch, or `None`."""
        if options.mix_rate and (options.mixup or options.cutmix):
            return self._mix(options)
        return None

    def _check(self, encoder, reading):
        """Raises an error if an encoder does not take inputs of this size."""

    def enlarged(self, reading):
        """Enlarges the sides to read, so that crops lose less detail."""
        return reading

    def classifier_options(self, options):
        """Returns arguments of a classifier for augmentation within it."""
        return {}


class _Audio(Modality):
    name = "audio"
    rank = 1
    classifier_class = BridleAudioClassifier
    reading_names = ("seconds", "reader")
    plain = "log-mel"

    def sizes(self, encoder):
        """Returns the sizes that an encoder takes, `None` where any size fits."""
        (length,), front_end = encoder.input_dims, encoder.front_end
        if isinstance(front_end, dict):
            front_end = types.SimpleNamespace(**front_end["config"])
        rate = getattr(front_end, "sample_rate", 16000)
        seconds = None if length is None else length / rate
        return {"seconds": seconds, "sample_rate": rate}

    def _check(self, encoder, reading):
        expected = self.sizes(encoder)["seconds"]
        if expected not in (None, reading["seconds"]):
            words = f"{expected:g}, which the encoder takes"
            raise ArgumentError("seconds", words, reading["seconds"])

    def input_dims(self, reading):
        return (None,)

    def input_shape(self, reading):
        """Returns the shape of one input."""
        return (round(reading["seconds"] * reading["sample_rate"]),)

    def reader(self, reading):
        """Returns the reader of files."""
        reading = {**reading, "decoder": reading.get("reader", "soundfile")}
        reading.pop("reader", None)
        return AudioReader(**reading)

    def converter_options(self, reading):
        """Returns the arguments of the converter of raw inputs."""
        return {"num_samples": self.input_shape(reading)[0]}

    def front_end(self, examples):
        """Returns a front end fitted to raw examples."""
        return LogMelSpectrogram.for_data(examples, name="log_mel")

    def sample(self, reading, **options):
        """Returns the training and test splits of the sample data, and class names.

        Syllables, labeled by their initials; the test split has other base syllables.
        """
        if reading["sample_rate"] != 16000:
            raise ArgumentError(
                "data", f"given for recordings of {reading['sample_rate']} Hz", None
            )
        (length,) = self.input_shape(reading)
        train, test = (
            samples.load_syllables(x, "initial", length) for x in ("train", "test")
        )
        return train[:2], test[:2], [_PINYIN.get(name, name) for name in train[2]]

    def augmentation(self, options, reading):
        """Lists layers for raw inputs."""
        layers = []
        if options.roll:
            layers.append(RandomWaveformRoll(seed=options.seed))
        if options.gain:
            layers.append(RandomWaveformGain(seed=options.seed))
        return layers

    def _mix(self, options):
        return RandomWaveformMix(options.mix_rate, options.mixup, seed=options.seed)

    def classifier_options(self, options):
        found = {}
        bins, frames = options.hide_bins, options.hide_frames
        if bins or frames:
            found["feature_augmentation"] = SpecAugment(
                bins, frames, seed=options.seed, name="spec_augment"
            )
        if any(options.token_drop):
            times, bands = options.token_drop
            found["token_mask"] = TimeFrequencyMask(
                times, bands, seed=options.seed, name="token_drop"
            )
        return found


class _Pictures(Modality):
    """Base of images and videos."""

    reader_class: Any
    crop: Any

    def sizes(self, encoder):
        """Returns the sizes that an encoder takes, `None` where any size fits."""
        *frames, rows, columns, channels = encoder.input_dims
        sides = rows if rows == columns else (rows, columns)
        found = {"image_size": sides, "channels": channels}
        return {**found, "num_frames": frames[0]} if frames else found

    def _check(self, encoder, reading):
        smallest = np.max(np.atleast_1d(encoder.patch_size)[-2:])
        if min(_sides(reading)) < smallest:
            words = f"{smallest} or more, a patch of the encoder"
            raise ArgumentError("image_size", words, reading["image_size"])

    def input_shape(self, reading):
        """Returns the shape of one input."""
        frames = [reading["num_frames"]] if "num_frames" in reading else []
        return (*frames, *_sides(reading), reading["channels"])

    def converter_options(self, reading):
        """Returns the arguments of the converter of raw inputs."""
        found = {name: x for name, x in reading.items() if name != "channels"}
        return {**found, "image_size": _sides(reading)}

    def enlarged(self, reading):
        sides = tuple(side * 8 // 7 for side in _sides(reading))
        return {**reading, "image_size": sides}

    def reader(self, reading):
        """Returns the reader of files."""
        return self.reader_class(**reading)

    def front_end(self, examples):
        """Returns a front end fitted to raw examples."""
        return PixelNormalization.for_data(examples, name="pixel_normalization")

    def augmentation(self, options, reading):
        """Lists layers for raw inputs, the first of which gives them their size."""
        layers = [self.crop(options, reading)]
        if options.flip:
            layers.append(RandomHorizontalFlip(seed=options.seed))
        if options.rand_augment:
            rand_augment = RandAugment(
                options.rand_augment_ops, options.rand_augment, seed=options.seed
            )
            layers.append(ImageAugmentation(rand_augment))
        if options.random_erasing:
            # Given one number, Keras would draw the rate from 0 to it.
            rates = 2 * (options.random_erasing,)
            erasing = keras.layers.RandomErasing(
                rates,
                seed=options.seed,
                data_format="channels_last",
                dtype="float32",
            )
            layers.append(ImageAugmentation(erasing))
        return layers

    def _mix(self, options):
        return RandomImageMix(
            options.mixup, options.cutmix, options.mix_rate, seed=options.seed
        )


class _Image(_Pictures):
    name = "image"
    rank = 3
    classifier_class = BridleImageClassifier
    reader_class = ImageReader
    reading_names = ("image_size",)
    sample_channels = types.MappingProxyType({"channels": 1})

    def sample(self, reading, **options):
        """Returns images of clothes, see `_Audio.sample()`."""
        if _sides(reading) != (28, 28):
            raise ArgumentError("image_size", "28 without data", reading["image_size"])
        splits = [samples.load_fashion(split) for split in ("train", "test")]
        # The images are gray: repeat them for encoders that take color.
        train, test = (
            (np.repeat(images, reading["channels"], axis=-1), labels)
            for images, labels, _ in splits
        )
        return train, test, list(splits[0][2])

    def crop(self, options, reading):
        """Returns the layer that crops inputs to their size."""
        scale = (options.smallest_crop, 1.0)
        return RandomResizedCrop(_sides(reading), scale=scale, seed=options.seed)


class _Video(_Pictures):
    name = "video"
    rank = 4
    classifier_class = BridleVideoClassifier
    reader_class = VideoReader
    reading_names = ("image_size", "num_frames", "sampling_rate")
    otherwise = types.MappingProxyType({"sampling_rate": 4})
    sample_channels = types.MappingProxyType({"channels": 3})

    def sample(self, reading, num_clips=(800, 400), seed=0):
        """Returns synthetic pans over parts of the videos, see `_Audio.sample()`."""
        train, test = (
            samples.synthetic_pans(
                split,
                num_clips=count,
                num_frames=reading["num_frames"],
                image_size=_sides(reading)[0],
                channels=reading["channels"],
                seed=seed,
            )
            for split, count in zip(("train", "test"), num_clips, strict=True)
        )
        return train[:2], test[:2], list(train[2])

    def crop(self, options, reading):
        """Returns the layer that crops inputs to their size."""
        return RandomMultiScaleCrop(_sides(reading), seed=options.seed)


AUDIO, IMAGE, VIDEO = _Audio(), _Image(), _Video()
MODALITIES = {modality.name: modality for modality in (AUDIO, IMAGE, VIDEO)}


def modality_of(encoder):
    """Returns the modality of an encoder, by its `input_dims`.

    Raises:
        ValueError: if its inputs are of none.
    """
    for modality in MODALITIES.values():
        if modality.rank == len(encoder.input_dims):
            return modality
    raise ValueError(
        "Files can be read for encoders of waveforms, images and clips. Received: "
        f"input_dims={encoder.input_dims}"
    )


def encoder_of(preset):
    """Reads the arguments of an encoder in a folder, or of a named size.

    Args:
        preset: string or path, the directory of a run, a preset's folder, or a name
            such as `"bridle_audio_base"`.

    Returns:
        An object whose attributes are the arguments of the encoder, `None` if it is not
        local.
    """
    config = backbone_preset(preset) or saved_encoder_config(preset)
    return None if config is None else types.SimpleNamespace(**config)


def patch_grid(backbone, shape):
    """Returns the grid of patches of an input; `shape` has no batch axis."""
    shape = (None, *shape)
    if backbone.front_end is not None:
        shape = backbone.front_end.compute_output_shape(shape)
    return backbone.patch_embedding.grid(shape[1:-1])


def _sides(reading):
    return tuple(np.broadcast_to(reading["image_size"], 2).tolist())


def _is_constant(examples):
    """Returns whether all waveforms, or a channel of images, are constant."""
    if examples.ndim == 2:
        return bool((examples == examples[:, :1]).all())
    pixels = examples.reshape(-1, examples.shape[-1])
    return bool((pixels == pixels[0]).all(axis=0).any())
