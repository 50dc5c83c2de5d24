"""What differs between sounds, images and videos."""

import functools

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
from keras_bridle.data.pipeline import audio_dataset, image_dataset, video_dataset
from keras_bridle.data.samples import load_fashion, load_syllables, synthetic_pans
from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.layers.masks import TimeFrequencyMask
from keras_bridle.layers.pixels import PixelNormalization
from keras_bridle.models.classifier import (
    BridleAudioClassifier,
    BridleImageClassifier,
    BridleVideoClassifier,
)
from keras_bridle.training.examples import ArrayExamples, array_views, file_views

# Bopomofo, which few fonts have, in Pinyin.
_PINYIN = {
    **dict(zip("ㄅㄆㄇㄈㄉㄊㄋㄌㄍㄎㄏ", "bpmfdtnlgkh", strict=True)),
    **dict(zip("ㄐㄑㄒㄖㄗㄘㄙ", "jqxrzcs", strict=True)),
    **{"ㄓ": "zh", "ㄔ": "ch", "ㄕ": "sh"},
}


class Modality:
    """What differs from modality to modality in fine-tuning.

    Args:
        args: `argparse.Namespace` of the recipe's flags.
    """

    def __init__(self, args):
        self.args = args

    def fit_sizes(self, backbone_config):
        """Takes from an encoder the sizes that no flag gives.

        Args:
            backbone_config: dict, the configuration of the encoder.
        """

    def converter_options(self):
        """Sizes of what was trained on, for the converter of raw input."""
        raise NotImplementedError

    def views(self, examples):
        """The examples to test on; or a list of several views of them."""
        return examples


class Audio(Modality):
    """Sounds: rolled, made louder or softer, and mixed as waveforms."""

    classifier_class = BridleAudioClassifier
    sample_rate = 16000

    def fit_sizes(self, backbone_config):
        front_end = backbone_config["front_end"]
        if isinstance(front_end, dict):
            self.sample_rate = front_end["config"].get("sample_rate", 16000)
        (length,) = backbone_config["input_dims"]
        if length not in (None, round(self.args.seconds * self.sample_rate)):
            raise ValueError(
                f"--seconds {self.args.seconds:g} does not fit the encoder, which "
                f"takes {length / self.sample_rate:g}"
            )

    def sample(self):
        """Training and test part of the syllables, labeled by their initials."""
        if self.sample_rate != 16000:
            raise ValueError(
                f"The encoder takes sounds at {self.sample_rate} Hz, which need "
                "--data: sample sounds have 16000"
            )
        length = round(16000 * self.args.seconds)
        parts = []
        for split in ("train", "test"):
            waveforms, labels, names = load_syllables(split, "initial", length)
            parts.append(ArrayExamples(waveforms, labels))
        return (*parts, [_PINYIN.get(name, name) for name in names])

    def reader(self):
        """Function of a manifest that makes a data set."""
        return functools.partial(
            audio_dataset,
            seconds=self.args.seconds,
            sample_rate=self.sample_rate,
            reader=self.args.reader,
        )

    def converter_options(self):
        return {"num_samples": round(self.args.seconds * self.sample_rate)}

    def from_scratch(self, examples):
        """Arguments of a new encoder for these inputs."""
        return {"front_end": LogMelSpectrogram.for_data(examples, name="log_mel")}

    def augmentation(self):
        """Layer for raw input."""
        args = self.args
        layers = []
        if args.gain:
            layers.append(RandomWaveformGain(seed=args.seed))
        if args.roll:
            layers.insert(0, RandomWaveformRoll(seed=args.seed))
        return layers

    def mix(self):
        """Layer that mixes a batch, or `None`."""
        args = self.args
        if not (args.mixup and args.mix_rate):
            return None
        return RandomWaveformMix(args.mix_rate, args.mixup, seed=args.seed)

    def classifier_options(self):
        """What happens within the classifier in training."""
        args = self.args
        options = {}
        if args.hide_bins or args.hide_frames:
            options["feature_augmentation"] = SpecAugment(
                args.hide_bins, args.hide_frames, seed=args.seed, name="spec_augment"
            )
        times, bands = args.token_drop
        if times or bands:
            options["token_mask"] = TimeFrequencyMask(
                times, bands, seed=args.seed, name="token_drop"
            )
        return options


class Pictures(Modality):
    """What images and videos share."""

    channels = 3

    def from_scratch(self, examples):
        """Arguments of a new encoder for these inputs."""
        front_end = PixelNormalization.for_data(examples, name="pixel_normalization")
        return {"input_dims": tuple(examples.shape[1:]), "front_end": front_end}

    def fit_sizes(self, backbone_config):
        dims = backbone_config["input_dims"]
        self.channels = dims[-1]
        if self.args.image_size is None:
            if dims[-2] is None or dims[-2] != dims[-3]:
                raise ValueError(
                    "The encoder does not say how large its square pictures are, but "
                    f"input_dims={tuple(dims)}: pass --image-size"
                )
            self.args.image_size = dims[-2]
        if self.args.image_size < max(backbone_config["patch_size"][-2:]):
            raise ValueError(
                f"--image-size {self.args.image_size} is less than a patch of the "
                f"encoder, {backbone_config['patch_size']}"
            )

    def converter_options(self):
        return {"image_size": (self.args.image_size, self.args.image_size)}

    def crop(self):
        """The first layer of all, which gives inputs their size."""
        raise NotImplementedError

    @property
    def read_size(self):
        """A little larger, so that crops lose less detail."""
        return self.args.image_size * 8 // 7

    def augmentation(self):
        """Layers for raw input."""
        args = self.args
        layers = [self.crop()]
        if args.flip:
            layers.append(RandomHorizontalFlip(seed=args.seed))
        if args.rand_augment:
            rand_augment = RandAugment(
                args.rand_augment_ops, args.rand_augment, seed=args.seed
            )
            layers.append(ImageAugmentation(rand_augment))
        if args.random_erasing:
            rate = args.random_erasing
            # Of one number, Keras draws the rate from 0 to it.
            erasing = keras.layers.RandomErasing(
                (rate, rate), seed=args.seed, dtype="float32"
            )
            layers.append(ImageAugmentation(erasing))
        return layers

    def mix(self):
        """Layer that mixes a batch, or `None`."""
        args = self.args
        if not (args.mixup or args.cutmix) or not args.mix_rate:
            return None
        return RandomImageMix(args.mixup, args.cutmix, args.mix_rate, seed=args.seed)

    def classifier_options(self):
        """Nothing happens within the classifier."""
        return {}


class Image(Pictures):
    """Pictures: cropped, mirrored, blended."""

    classifier_class = BridleImageClassifier

    def sample(self):
        """Training and test part of the clothes."""
        if self.args.image_size != 28:
            raise ValueError(
                f"--image-size {self.args.image_size} needs --data: sample pictures "
                "have 28"
            )
        parts = []
        for split in ("train", "test"):
            pictures, labels, names = load_fashion(split)
            # They are gray; encoders for color take them as well.
            pictures = np.repeat(pictures, self.channels, axis=-1)
            parts.append(ArrayExamples(pictures, labels))
        return (*parts, list(names))

    def reader(self):
        """Function of a manifest that makes a data set."""
        return functools.partial(
            image_dataset, image_size=self.read_size, channels=self.channels
        )

    def crop(self):
        """The first layer of all, which gives pictures their size."""
        scale = (self.args.smallest_crop, 1.0)
        return RandomResizedCrop(self.args.image_size, scale=scale, seed=self.args.seed)


class Video(Pictures):
    """Clips: cropped and mirrored, all frames alike."""

    classifier_class = BridleVideoClassifier

    def sample(self):
        """Synthetic pans over the training and the test part of the videos."""
        size = {
            "num_frames": self.args.num_frames,
            "image_size": self.args.image_size,
            "channels": self.channels,
        }
        train = synthetic_pans("train", num_clips=800, **size)
        test = synthetic_pans("test", num_clips=400, **size)
        return ArrayExamples(*train[:2]), ArrayExamples(*test[:2]), list(train[2])

    def fit_sizes(self, backbone_config):
        super().fit_sizes(backbone_config)
        if self.args.num_frames is None:
            self.args.num_frames = backbone_config["input_dims"][0]

    def reader(self):
        """Function of a manifest that makes a data set."""
        return functools.partial(
            video_dataset,
            image_size=self.read_size,
            num_frames=self.args.num_frames,
            sampling_rate=self.args.sampling_rate,
            channels=self.channels,
        )

    def converter_options(self):
        return {
            **super().converter_options(),
            "num_frames": self.args.num_frames,
            "sampling_rate": self.args.sampling_rate,
        }

    def crop(self):
        """The first layer of all, which gives clips their size."""
        return RandomMultiScaleCrop(self.args.image_size, seed=self.args.seed)

    def views(self, examples):
        args = self.args
        if args.view_segments * args.view_crops == 1:
            return examples
        views = {"segments": args.view_segments, "crops": args.view_crops}
        if isinstance(examples, ArrayExamples):
            return array_views(
                examples.inputs,
                examples.labels,
                args.num_frames,
                args.image_size,
                **views,
            )
        return file_views(
            examples.manifest,
            args.image_size,
            args.num_frames,
            args.sampling_rate,
            self.channels,
            strict=examples.strict,
            read_report=examples.read_report,
            **views,
        )


MODALITIES = {"audio": Audio, "image": Image, "video": Video}
