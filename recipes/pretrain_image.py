r"""Pretrains an image encoder with BRIDLE on a folder of images.

On the 8,000 sample images of clothes that come with the package (5 minutes on 2 CPU
cores):

    KERAS_BACKEND=jax python recipes/pretrain_image.py

On your own, with the published size and schedule:

    KERAS_BACKEND=jax python recipes/pretrain_image.py --data my_images/ \
        --preset base --rounds 2 --directory runs/mine --dtype-policy mixed_bfloat16

The same command with `--resume` resumes a run that was stopped. A run without `--data`
ends with probes: how well one linear layer on the frozen encoder's features, or a vote
of the nearest neighbors, tells the classes of 2,000 held-out images, with 20, 100 and
all 800 labels of each class.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import functools
from typing import Literal

import keras_bridle as kb
from keras_bridle.config import AboveZeroToOne, ImageReading, flag, option
from keras_bridle.evaluation.features import FeatureExtractor
from keras_bridle.evaluation.probes import knn_probe, linear_probe
from keras_bridle.modalities import IMAGE
from keras_bridle.training.examples import draw_few
from keras_bridle.training.progress import keep_freed_memory
from keras_bridle.workflows import Pretraining, PretrainingOptions

SAMPLE = {
    "preset": "tiny",
    "rounds": 1,
    "patch_size": (7, 7),
    "cold_start_epochs": 18,
    "cold_start_centered": True,
    "tokenizer_epochs": 2,
    "encoder_epochs": 5,
    "batch_size": 32,
    "encoder_learning_rate": 1e-3,
    # So few and small images want coarse codes: one level did better than four.
    "num_levels": 1,
    "code_dim": 64,
    "mask_ratio": 0.5,
    "image_size": 28,
    "smallest_crop": 0.9,
    "decoder_dim": 96,
    "decoder_layers": 1,
    "directory": "runs/image_sample",
}
PUBLISHED = {
    "cold_start_epochs": 200,
    # Not published, and better by far on the sample data.
    "cold_start_centered": True,
    "tokenizer_epochs": 50,
    "encoder_epochs": 200,
    "image_size": 224,
    "directory": "runs/image",
}
MASKS = {
    "random": kb.RandomMask,
    "block": kb.BlockMask,
    "inverse-block": kb.InverseBlockMask,
}


@dataclasses.dataclass(kw_only=True)
class Options(PretrainingOptions, ImageReading):
    """Options of this recipe."""

    hidden = ("segments",)

    mask: Literal["random", "block", "inverse-block"] = flag(
        "random", "how patches are hidden"
    )
    smallest_crop: AboveZeroToOne = option(0.2, "least share that crops keep")


def main(arguments=None):
    with Pretraining(IMAGE, Options, __doc__, SAMPLE, PUBLISHED, arguments) as recipe:
        options = recipe.options
        recipe.load(sample_images)
        scale = (options.smallest_crop, 1.0)
        recipe.train(
            recipe.backbone(),
            mask=MASKS[options.mask](options.mask_ratio, seed=options.seed),
            augmentation=[
                kb.RandomResizedCrop(options.image_size, scale, seed=options.seed),
                kb.RandomHorizontalFlip(seed=options.seed),
            ],
            probes=ClothesProbes,
            title="Clothes never seen in training, by labels per class; linear and "
            "nearest neighbors on the mean of the patches, in place: linear on all",
        )


def sample_images(reading):
    """The training images of clothes."""
    images = IMAGE.sample(reading)[0][0]
    return images, images[:1024]


class ClothesProbes:
    """Linear and nearest-neighbor probes, with few labels and with all.

    They see the mean of the patches; "in place" is a linear probe of all patches, as
    pixels are all of them in their places.
    """

    # With few labels it matters which: the mean over several draws.
    draws = {20: 3, 100: 3, 800: 1}

    def __init__(self, reading, backbone):
        self.baselines = {"pixels": self.of_pixels}
        # Compiled once for all phases.
        self.extractor = functools.cache(
            functools.partial(FeatureExtractor, per="patch")
        )
        self.data = IMAGE.sample(reading)[:2]

    def __call__(self, backbone):
        """Lists the probes of an encoder, functions by name."""
        extract = self.extractor(backbone)
        patches = [extract(images, batch_size=250).patches for images, _ in self.data]
        mean = [features.mean(axis=1) for features in patches]
        return self.probes(mean, [x.reshape(len(x), -1) for x in patches])

    def of_pixels(self):
        """Lists the probes of the pixels themselves."""
        pixels = [images.reshape(len(images), -1) / 255 for images, _ in self.data]
        return self.probes(pixels, pixels)

    def probes(self, mean, patches):
        """Lists the probes; all patches take too long with many labels."""
        probes = {}
        for count in self.draws:
            probes[f"linear {count}"] = linear, mean, count
            probes[f"k-NN {count}"] = knn_probe, mean, count
            if count == 20:
                probes[f"in place {count}"] = linear, patches, count
        return {
            name: [
                functools.partial(self.accuracy, *probe, seed)
                for seed in range(self.draws[probe[-1]])
            ]
            for name, probe in probes.items()
        }

    def accuracy(self, probe, features, count, seed):
        """Probes with one draw of so many labels."""
        (_, labels), (_, test_labels) = self.data
        rows = draw_few(labels, count, seed)
        return probe(features[0][rows], labels[rows], features[1], test_labels)


def linear(train_features, train_labels, *test):
    """A linear probe; with many labels few penalties, as they take long."""
    settings = {"regularizations": (1e-3, 1e-2, 1e-1, 1.0)}
    if len(train_labels) >= 1000:
        settings = {"regularizations": (1e-3, 1e-2, 1e-1), "folds": 2}
    return linear_probe(train_features, train_labels, *test, **settings).accuracy


if __name__ == "__main__":
    keep_freed_memory()
    main()
