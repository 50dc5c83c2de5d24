"""Pretrains an image encoder with BRIDLE on a folder of pictures.

On the 8,000 sample pictures of clothes that come with the package (5 minutes on 2 CPU
cores):

    KERAS_BACKEND=jax python recipes/pretrain_image.py

On your own, with the published size and schedule:

    KERAS_BACKEND=jax python recipes/pretrain_image.py --data my_pictures/ \
        --preset base --rounds 2 --directory runs/mine --dtype-policy mixed_bfloat16

A run that was stopped goes on with the same command and `--resume`. Everything it makes
lies in its directory: settings, weights and history of each phase, TensorBoard logs,
pictures, results, and in `preset/` the encoder, ready for
`BridleBackbone.from_preset("runs/mine/preset")`.

Without `--data`, the run ends with a table of probes: how well one linear layer on the
frozen encoder's features, or a vote of the nearest neighbors, tells the classes of
2,000 held-out pictures, with 20, 100 and all 800 labels of each class.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
from threadpoolctl import threadpool_limits

import keras_bridle as kb
from keras_bridle import cli as command_line
from keras_bridle.cli import above_0_to_1, whole_number
from keras_bridle.data.layouts import ImageManifest
from keras_bridle.data.pipeline import image_dataset
from keras_bridle.data.samples import load_fashion
from keras_bridle.evaluation.features import FeatureExtractor
from keras_bridle.evaluation.probes import knn_probe, linear_probe
from keras_bridle.training.examples import draw_few
from keras_bridle.training.progress import keep_freed_memory

SAMPLE_SETTINGS = {
    "preset": "tiny",
    "rounds": 1,
    "patch_size": (7, 7),
    "cold_start_epochs": 18,
    "cold_start_centered": True,
    "keep_cold_start_codes": True,
    "tokenizer_epochs": 2,
    "encoder_epochs": 5,
    "batch_size": 32,
    "encoder_learning_rate": 1e-3,
    "tokenizer_learning_rate": 2e-4,
    "warmup": 0.05,
    "weight_decay": 1e-4,
    # So few and small pictures want coarse codes: one level did better than four.
    "num_levels": 1,
    "codebook_size": 256,
    "code_dim": 64,
    "restart_threshold": 0.1,
    "mask": "random",
    "mask_ratio": 0.5,
    "image_size": 28,
    "smallest_crop": 0.9,
    "decoder_dim": 96,
    "decoder_layers": 1,
    "directory": "runs/image_sample",
}
PUBLISHED_SETTINGS = {
    "preset": "base",
    "rounds": 2,
    "cold_start_epochs": 200,
    # Not published, and better by far on the sample data.
    "cold_start_centered": True,
    "keep_cold_start_codes": True,
    "tokenizer_epochs": 50,
    "encoder_epochs": 200,
    "batch_size": 64,
    "encoder_learning_rate": 5e-4,
    "tokenizer_learning_rate": 2e-4,
    "warmup": 0.05,
    "weight_decay": 1e-4,
    "num_levels": 4,
    "codebook_size": 256,
    "code_dim": 256,
    "restart_threshold": 0.1,
    "mask": "random",
    "mask_ratio": 0.8,
    "image_size": 224,
    "smallest_crop": 0.2,
    "directory": "runs/image",
}
MASKS = {
    "random": kb.RandomMask,
    "block": kb.BlockMask,
    "inverse-block": kb.InverseBlockMask,
}


def parse_arguments(arguments=None):
    parser = command_line.pretraining_parser(
        __doc__, SAMPLE_SETTINGS, PUBLISHED_SETTINGS
    )
    parser.add_argument(
        "--image-size", type=whole_number(1), help="side of the pictures in pixels"
    )
    parser.add_argument("--mask", choices=MASKS, help="how patches are hidden")
    parser.add_argument(
        "--smallest-crop",
        type=above_0_to_1,
        help="least share of a picture that crops keep",
    )
    return command_line.parse_pretraining_arguments(parser, "image", arguments)


def main(arguments=None):
    args = parse_arguments(arguments)
    with command_line.Setup(args) as setup:
        data = sample_pictures(args) if args.data is None else own_pictures(args)
        command_line.pretrain(
            setup,
            make_backbone(args, data.examples),
            data,
            probe=clothes_probes() if args.data is None else None,
            mask=MASKS[args.mask](args.mask_ratio, seed=args.seed),
            augmentation=make_augmentation(args),
        )


def sample_pictures(args):
    """Loads the training pictures of clothes."""
    if args.image_size != 28:
        raise ValueError(
            f"--image-size {args.image_size} needs --data: sample pictures have 28"
        )
    if args.channels != 1:
        raise ValueError(
            f"--preset {args.preset} needs --data: sample pictures are gray, and it is "
            f"for {args.channels} channels"
        )
    images, _, _ = load_fashion("train")
    return command_line.RecipeData(images, images[:1024])


def own_pictures(args):
    """Makes the input pipeline of a folder or CSV file, and reads some examples."""
    if Path(args.data).suffix == ".csv":
        manifest = ImageManifest.from_csv(args.data)
    else:
        manifest = ImageManifest.from_folder(args.data)
    make_dataset = functools.partial(
        image_dataset,
        image_size=command_line.read_size(args),
        channels=args.channels,
    )
    return command_line.data_from_files(args, manifest, make_dataset)


def make_backbone(args, examples):
    """Builds the encoder, its pixels normalized by the statistics of examples."""
    return command_line.make_backbone(
        args,
        "image",
        examples,
        functools.partial(kb.PixelNormalization.for_data, name="pixel_normalization"),
        input_dims=(args.image_size, args.image_size, args.channels),
    )


def make_augmentation(args):
    """Crops and flips."""
    layers = [
        kb.RandomResizedCrop(
            args.image_size, scale=(args.smallest_crop, 1.0), seed=args.seed
        ),
        kb.RandomHorizontalFlip(seed=args.seed),
    ]
    return keras.Sequential(layers, name="augmentation")


def clothes_probes():
    """Probes of the encoder, and of the pixels alone."""
    probe = ClothesProbe()
    return command_line.RecipeProbe(
        "Clothes never seen in training, by labels per class; linear and nearest "
        "neighbors on the mean of the patches, in place: linear on all of them",
        probe,
        {"pixels": probe.of_pixels},
    )


class ClothesProbe:
    """Linear and nearest-neighbor probes, with few labels and with all.

    They see the mean of the patches; "in place" is a linear probe of all patches, as
    pixels are all of them in their places.
    """

    # With few labels it matters which: the mean over several draws.
    draws = {20: 3, 100: 3, 800: 1}
    # So many numbers take too long with many labels.
    all_patches = (20,)
    penalties = {"regularizations": (1e-3, 1e-2, 1e-1, 1.0)}
    # With many, which penalty hardly does, and trying them takes long.
    few_penalties = {"regularizations": (1e-3, 1e-2, 1e-1), "folds": 2}

    def __init__(self):
        # Compiled once for all phases.
        self.extractor_of = functools.cache(extractor_of_patches)
        self.images, self.labels = {}, {}
        for split in ("train", "test"):
            self.images[split], self.labels[split], _ = load_fashion(split)

    def __call__(self, backbone):
        """Probes an encoder, returns accuracies by name."""
        extract = self.extractor_of(backbone)
        patches = {
            split: extract(images, batch_size=250)
            for split, images in self.images.items()
        }
        mean = {
            split: features.reshape(len(features), -1, backbone.hidden_dim).mean(axis=1)
            for split, features in patches.items()
        }
        return self._accuracies(mean, patches)

    def of_pixels(self):
        """Probes the pixels themselves: logistic regression, nearest neighbors."""
        pixels = {
            split: images.reshape(len(images), -1) / 255
            for split, images in self.images.items()
        }
        return self._accuracies(pixels, pixels)

    def _accuracies(self, mean, patches):
        probes = {}
        for per_class in self.draws:
            probes[f"linear {per_class}"] = self._linear, mean, per_class
            probes[f"k-NN {per_class}"] = knn_probe, mean, per_class
            if per_class in self.all_patches:
                probes[f"in place {per_class}"] = self._linear, patches, per_class
        # The longest first. Two at a time, each on one thread.
        with threadpool_limits(1), ThreadPoolExecutor(2) as pool:
            waiting = {
                name: [
                    pool.submit(self._accuracy, *probes[name], seed)
                    for seed in range(self.draws[probes[name][-1]])
                ]
                for name in reversed(probes)
            }
            return {name: [one.result() for one in waiting[name]] for name in probes}

    def _accuracy(self, probe, features, per_class, seed):
        """Probes with one draw of so many labels."""
        rows = draw_few(self.labels["train"], per_class, seed)
        train = features["train"][rows], self.labels["train"][rows]
        return probe(*train, features["test"], self.labels["test"])

    def _linear(self, train_features, train_labels, *test):
        few = len(train_labels) < 1000
        penalties = self.penalties if few else self.few_penalties
        return linear_probe(train_features, train_labels, *test, **penalties).accuracy


def extractor_of_patches(backbone):
    """Makes an extractor of all patches' features, one after the other."""
    extract = FeatureExtractor(backbone, per="patch")

    def joined_patches(images, batch_size):
        patches = extract(images, batch_size).patches
        return patches.reshape(len(patches), -1)

    return joined_patches


if __name__ == "__main__":
    keep_freed_memory()
    main()
