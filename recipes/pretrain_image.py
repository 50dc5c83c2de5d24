r"""Pretrains an image encoder with BRIDLE on a folder of images.

On the 8,000 sample images of clothes that come with the package (5 minutes on 2 CPU
cores):

    KERAS_BACKEND=jax python recipes/pretrain_image.py

On your own images, with an encoder of the published size:

    KERAS_BACKEND=jax python recipes/pretrain_image.py --data my_images/ \
        --preset base --directory runs/mine --dtype-policy mixed_bfloat16

The same command with `--resume` resumes a run that was stopped. A run without `--data`
ends with probes: how well a linear layer or nearest neighbors on the frozen encoder's
features classify 2,000 held-out images, with 20, 100 and all 800 labels of each class.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
from typing import Literal

import keras_bridle as kb
from keras_bridle.config import AboveZeroToOne, ImageReading, flag, option
from keras_bridle.evaluation.features import FeatureExtractor
from keras_bridle.evaluation.probes import knn_probe, linear_probe
from keras_bridle.modalities import IMAGE
from keras_bridle.training.examples import draw_few
from keras_bridle.training.progress import tune_jax
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
    # For so few and small images, one level of codes was better than four.
    "num_levels": 1,
    "code_dim": 64,
    "mask_ratio": 0.5,
    "image_size": 28,
    "smallest_crop": 0.9,
    "decoder_dim": 96,
    "decoder_layers": 1,
    "directory": "runs/image_sample",
}
OWN = {
    # Not published, but much better on the sample data.
    "cold_start_centered": True,
    "image_size": 224,
    "directory": "runs/image",
}
# Labels a class, and random draws of them: with few labels, the draw matters.
DRAWS = {20: 3, 100: 3, 800: 1}
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
        "random", "mask: random, block or inverse-block"
    )
    smallest_crop: AboveZeroToOne = option(
        0.2, "smallest share of an image that a crop keeps"
    )


def main(arguments=None):
    with Pretraining(IMAGE, Options, __doc__, SAMPLE, OWN, arguments) as recipe:
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
            probes=clothes_probes,
            title="Clothes never seen in training, by labels per class; linear and "
            "nearest neighbors on the mean of the patches, in place: linear on all",
        )


def sample_images(reading):
    """The training images of clothes."""
    images = IMAGE.sample(reading)[0][0]
    return images, images[:1024]


def clothes_probes(reading, backbone):
    """Probes of the mean of the patches, and "in place" of all, like pixels."""
    (images, labels), (test_images, test_labels), _ = IMAGE.sample(reading)
    extract = FeatureExtractor(backbone, per="patch")

    def of_encoder():
        patches = [extract(x, batch_size=250).patches for x in (images, test_images)]
        in_place = [x.reshape(len(x), -1) for x in patches]
        return probes([x.mean(axis=1) for x in patches], in_place)

    def of_pixels():
        pixels = [x.reshape(len(x), -1) / 255 for x in (images, test_images)]
        return probes(pixels, pixels)

    def probes(mean, in_place):
        for count, draws in DRAWS.items():
            kinds = {"linear": (linear, *mean), "k-NN": (knn_probe, *mean)}
            if count == 20:  # more would take long
                kinds["in place"] = linear, *in_place
            for seed in range(draws):
                rows = draw_few(labels, count, seed)
                for name, (probe, train, test) in kinds.items():
                    some = train[rows], labels[rows]
                    yield f"{name} {count}", probe, *some, test, test_labels

    return of_encoder, {"pixels": of_pixels}


def linear(train, labels, *test):
    """A linear probe; with many labels, it tries fewer penalties."""
    penalties = (1e-3, 1e-2, 1e-1, 1.0)
    if len(labels) < 1000:
        return linear_probe(train, labels, *test, regularizations=penalties)
    return linear_probe(train, labels, *test, regularizations=penalties[:3], folds=2)


if __name__ == "__main__":
    tune_jax()
    main()
