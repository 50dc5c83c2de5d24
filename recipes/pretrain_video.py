"""Pretrains a video encoder with BRIDLE on a folder of videos.

On clips of the two sample videos that come with the package (5 minutes on 2 CPU cores):

    KERAS_BACKEND=jax python recipes/pretrain_video.py

On your own, with the published size and schedule:

    KERAS_BACKEND=jax python recipes/pretrain_video.py --data my_videos/ \
        --preset base --rounds 2 --directory runs/mine --dtype-policy mixed_bfloat16

A run that was stopped goes on with the same command and `--resume`. Everything it makes
lies in its directory: settings, weights and history of each phase, TensorBoard logs,
pictures, results, and in `preset/` the encoder, ready for
`BridleBackbone.from_preset("runs/mine/preset")`.

Without `--data`, the run ends with a table of probes: in which of 8 directions the
camera pans. The pixels are real, of parts of the videos that training never saw; **the
pan is synthetic**, a window that moves over them. It shows whether the features hold
motion, and nothing about actions.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
from pathlib import Path

import keras
import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import keras_bridle as kb
from keras_bridle import cli as command_line
from keras_bridle.cli import whole_number
from keras_bridle.data.layouts import VideoManifest
from keras_bridle.data.pipeline import video_dataset
from keras_bridle.data.samples import load_clips, synthetic_pans
from keras_bridle.evaluation.features import FeatureExtractor
from keras_bridle.evaluation.probes import linear_probe
from keras_bridle.training.progress import keep_freed_memory

SAMPLE_SETTINGS = {
    "preset": "tiny",
    "rounds": 1,
    "cold_start_epochs": 8,
    "cold_start_centered": True,
    "keep_cold_start_codes": True,
    "tokenizer_epochs": 2,
    "encoder_epochs": 4,
    # Steps are few, so small batches teach more than long ones in the same time.
    "batch_size": 4,
    "encoder_learning_rate": 1e-3,
    "tokenizer_learning_rate": 2e-4,
    "warmup": 0.05,
    "weight_decay": 1e-4,
    # So few clips want coarse codes: one level did better than four.
    "num_levels": 1,
    "codebook_size": 256,
    "code_dim": 64,
    "restart_threshold": 0.1,
    "mask_ratio": 0.75,
    "image_size": 64,
    "num_frames": 8,
    "sampling_rate": 1,
    "decoder_dim": 96,
    "decoder_layers": 1,
    "directory": "runs/video_sample",
}
PUBLISHED_SETTINGS = {
    "preset": "base",
    "rounds": 1,
    "cold_start_epochs": 801,
    # Not published, and better by far on the sample data.
    "cold_start_centered": True,
    "keep_cold_start_codes": True,
    "tokenizer_epochs": 50,
    "encoder_epochs": 801,
    "batch_size": 32,
    "encoder_learning_rate": 1.2e-3,
    "tokenizer_learning_rate": 2e-4,
    "warmup": 0.05,
    "weight_decay": 1e-4,
    "num_levels": 4,
    "codebook_size": 256,
    "code_dim": 256,
    "restart_threshold": 0.1,
    "mask_ratio": 0.9,
    "image_size": 224,
    "num_frames": 16,
    "sampling_rate": 4,
    "directory": "runs/video",
}


def parse_arguments(arguments=None):
    parser = command_line.pretraining_parser(
        __doc__, SAMPLE_SETTINGS, PUBLISHED_SETTINGS
    )
    parser.add_argument(
        "--image-size", type=whole_number(1), help="side of the frames in pixels"
    )
    parser.add_argument("--num-frames", type=whole_number(1), help="frames of a clip")
    parser.add_argument(
        "--sampling-rate",
        type=whole_number(1),
        help="take every so many frames of a video",
    )
    parser.add_argument(
        "--layout",
        default="folder",
        choices=("folder", "kinetics"),
        help="how --data is laid out; folder: any folder, or a CSV file with a header; "
        "kinetics: a list of lines with path and label",
    )
    parser.add_argument(
        "--no-flip", action="store_true", help="left and right are not the same"
    )
    return command_line.parse_pretraining_arguments(parser, "video", arguments)


def main(arguments=None):
    args = parse_arguments(arguments)
    with command_line.Setup(args) as setup:
        data = sample_clips(args) if args.data is None else own_videos(args)
        command_line.pretrain(
            setup,
            make_backbone(args, data.examples),
            data,
            probe=pan_probes(args) if args.data is None else None,
            mask=kb.TubeMask(args.mask_ratio, seed=args.seed),
            augmentation=make_augmentation(args),
            tokenize="masked",
        )


def sample_clips(args):
    """Loads clips of the sample videos' training parts, as they are and with pans."""
    if args.channels != 3:
        raise ValueError(
            f"--preset {args.preset} needs --data: sample videos are in color, and it "
            f"is for {args.channels} channel"
        )
    size = {"num_frames": args.num_frames, "image_size": args.image_size}
    clips = load_clips("train", sampling_rate=args.sampling_rate, **size)
    pans, _, _ = synthetic_pans("train", num_clips=600, **size)
    return command_line.RecipeData(np.concatenate([clips, pans]), pans[:256])


def own_videos(args):
    """Makes the input pipeline of a folder or list, and reads some examples."""
    if args.layout == "kinetics":
        manifest = VideoManifest.from_kinetics(args.data)
    elif Path(args.data).suffix == ".csv":
        manifest = VideoManifest.from_csv(args.data)
    else:
        manifest = VideoManifest.from_folder(args.data)
    make_dataset = functools.partial(
        video_dataset,
        image_size=command_line.read_size(args),
        num_frames=args.num_frames,
        sampling_rate=args.sampling_rate,
        channels=args.channels,
    )
    return command_line.data_from_files(args, manifest, make_dataset)


def make_backbone(args, examples):
    """Builds the encoder, its pixels normalized by the statistics of examples."""
    return command_line.make_backbone(
        args,
        "video",
        examples,
        functools.partial(kb.PixelNormalization.for_data, name="pixel_normalization"),
        input_dims=(args.num_frames, args.image_size, args.image_size, args.channels),
    )


def make_augmentation(args):
    """Crops and flips, the same for all frames of a clip."""
    layers = [kb.RandomMultiScaleCrop(args.image_size, seed=args.seed)]
    if not args.no_flip:
        layers.append(kb.RandomHorizontalFlip(seed=args.seed))
    return keras.Sequential(layers, name="augmentation")


def pan_probes(args):
    """Probes of the encoder, and of the pixels alone."""
    probe = PanProbe(args)
    return command_line.RecipeProbe(
        "Direction of a synthetic camera pan over held-out video (8, chance 12.5 %)",
        probe,
        {
            "pixels, linear": probe.of_pixels,
            "pixels, RBF SVM": probe.of_pixels_by_svm,
        },
    )


class PanProbe:
    """In which direction the camera pans: real pixels, synthetic motion."""

    name = "synthetic pan"

    def __init__(self, args):
        # Compiled once for all phases.
        self.extractor_of = functools.cache(FeatureExtractor)
        self.clips, self.labels = {}, {}
        for split, num_clips in (("train", 1000), ("test", 500)):
            self.clips[split], self.labels[split], _ = synthetic_pans(
                split,
                num_clips=num_clips,
                num_frames=args.num_frames,
                image_size=args.image_size,
                seed=1,
            )

    def __call__(self, backbone):
        """Probes an encoder, returns accuracies by name."""
        extract = self.extractor_of(backbone)
        return self._linear(
            {
                split: extract(clips, batch_size=50)
                for split, clips in self.clips.items()
            }
        )

    def of_pixels(self):
        """Probes gray pixels by logistic regression."""
        return self._linear(self._pixels(side=16))

    def of_pixels_by_svm(self):
        """Probes gray pixels by a support vector machine with a Gaussian kernel."""
        pixels = self._pixels(side=32)
        machine = make_pipeline(StandardScaler(), SVC(C=10.0))
        machine.fit(pixels["train"], self.labels["train"])
        return {self.name: machine.score(pixels["test"], self.labels["test"])}

    def _linear(self, features):
        found = linear_probe(
            features["train"],
            self.labels["train"],
            features["test"],
            self.labels["test"],
        )
        return {self.name: found.accuracy}

    def _pixels(self, side):
        """Frames in gray, averaged down to so many pixels."""
        pixels = {}
        for split, clips in self.clips.items():
            side = min(side, clips.shape[2])
            cell = clips.shape[2] // side
            gray = clips[:, :, : side * cell, : side * cell].mean(axis=-1)
            cells = gray.reshape(*gray.shape[:2], side, cell, side, cell)
            pixels[split] = cells.mean(axis=(3, 5)).reshape(len(clips), -1) / 255
        return pixels


if __name__ == "__main__":
    keep_freed_memory()
    main()
