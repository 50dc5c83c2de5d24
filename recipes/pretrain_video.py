r"""Pretrains a video encoder with BRIDLE on a folder of videos.

On clips of the two sample videos that come with the package (5 minutes on 2 CPU cores):

    KERAS_BACKEND=jax python recipes/pretrain_video.py

On your own videos, with an encoder of the published size:

    KERAS_BACKEND=jax python recipes/pretrain_video.py --data my_videos/ \
        --preset base --directory runs/mine --dtype-policy mixed_bfloat16

The same command with `--resume` resumes a run that was stopped. A run without `--data`
ends with probes: in which of 8 directions the camera pans. The pixels are real, from
held-out parts of the videos; **the pan is synthetic**, a window that moves over them.
The probes show whether the features encode motion, and nothing about actions.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import functools

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import keras_bridle as kb
from keras_bridle.config import VideoReading, option
from keras_bridle.data import samples
from keras_bridle.evaluation.features import FeatureExtractor
from keras_bridle.evaluation.probes import linear_probe
from keras_bridle.modalities import VIDEO
from keras_bridle.training.progress import tune_jax
from keras_bridle.workflows import Pretraining, PretrainingOptions

SAMPLE = {
    "preset": "tiny",
    "rounds": 1,
    "cold_start_epochs": 8,
    "cold_start_centered": True,
    "tokenizer_epochs": 2,
    "encoder_epochs": 4,
    # Small batches learn more in the same time here, as steps are few.
    "batch_size": 4,
    "encoder_learning_rate": 1e-3,
    # For so few clips, one level of codes was better than four.
    "num_levels": 1,
    "code_dim": 64,
    "tokenize": "masked",
    "mask_ratio": 0.75,
    "image_size": 64,
    "num_frames": 8,
    "sampling_rate": 1,
    "decoder_dim": 96,
    "decoder_layers": 1,
    "directory": "runs/video_sample",
}
OWN = {
    # Not published, but much better on the sample data.
    "cold_start_centered": True,
    "batch_size": 32,
    "tokenize": "masked",
    "mask_ratio": 0.9,
    "image_size": 224,
    "num_frames": 16,
    "sampling_rate": 4,
    "directory": "runs/video",
}


@dataclasses.dataclass(kw_only=True)
class Options(PretrainingOptions, VideoReading):
    """Options of this recipe."""

    hidden = ("sampling_rate", "segments")

    flip: bool = option(True, "flip clips at random; false if left and right differ")


def main(arguments=None):
    with Pretraining(VIDEO, Options, __doc__, SAMPLE, OWN, arguments) as recipe:
        options = recipe.options
        recipe.load(sample_clips)
        augmentation = [kb.RandomMultiScaleCrop(options.image_size, seed=options.seed)]
        if options.flip:
            augmentation.append(kb.RandomHorizontalFlip(seed=options.seed))
        recipe.train(
            recipe.backbone(),
            mask=kb.TubeMask(options.mask_ratio, seed=options.seed),
            augmentation=augmentation,
            probes=pan_probes,
            title="Direction of a synthetic camera pan over held-out video (8, chance "
            "12.5 %)",
        )


def sample_clips(reading):
    """Clips of the sample videos' training parts, as they are and with pans."""
    size = {name: reading[name] for name in ("num_frames", "image_size")}
    clips = samples.load_clips("train", sampling_rate=reading["sampling_rate"], **size)
    pans, _, _ = samples.synthetic_pans("train", num_clips=600, **size)
    return np.concatenate([clips, pans]), pans[:256]


def pan_probes(reading, backbone):
    """Probes for the direction of a camera pan: real pixels, synthetic motion."""
    splits = VIDEO.sample(reading, num_clips=(1000, 500), seed=1)[:2]
    extract = FeatureExtractor(backbone)

    def probes(probe, features):
        (train, labels), (test, test_labels) = splits
        found = features(train), labels, features(test), test_labels
        return [("synthetic pan", probe, *found)]

    encode = functools.partial(extract, batch_size=50)
    return functools.partial(probes, linear_probe, encode), {
        "pixels, linear": functools.partial(probes, linear_probe, small_pixels),
        "pixels, RBF SVM": functools.partial(
            probes, svm_probe, functools.partial(small_pixels, side=32)
        ),
    }


def small_pixels(clips, side=16):
    """Returns gray frames, averaged down to a number of pixels."""
    side = min(side, clips.shape[2])
    cell = clips.shape[2] // side
    gray = clips[:, :, : side * cell, : side * cell].mean(axis=-1)
    cells = gray.reshape(*gray.shape[:2], side, cell, side, cell)
    return cells.mean(axis=(3, 5)).reshape(len(clips), -1) / 255


def svm_probe(train, labels, test, test_labels):
    """A support vector machine with a Gaussian kernel."""
    machine = make_pipeline(StandardScaler(), SVC(C=10.0)).fit(train, labels)
    return machine.score(test, test_labels)


if __name__ == "__main__":
    tune_jax()
    main()
