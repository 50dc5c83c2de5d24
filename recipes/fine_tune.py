"""Fine-tunes a pretrained encoder to classify recordings, images or videos.

On the sample data, after one of the pretraining recipes (2 CPU cores, some minutes):

    KERAS_BACKEND=jax python recipes/fine_tune.py --from runs/audio_sample
    KERAS_BACKEND=jax python recipes/fine_tune.py --from runs/audio_sample --scratch

The second line trains the same network from random weights: the difference is the gain
from pretraining. On your own data, a folder with a folder for each class (or with
`train` and `test` folders that contain these), or a CSV file:

    KERAS_BACKEND=jax python recipes/fine_tune.py --from runs/mine --data my_recordings/

`--layout` names a well-known data set and applies its published settings; see
recipes/README.md. The same command with `--resume` resumes a run that was stopped.

Labels of the sample data: the initials of syllables whose base syllables are not in the
training split; the classes of clothes; and the direction of a camera pan, which is
**synthetic**. `--labels-per-class` limits how many of them are used.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
from typing import Literal

from keras_bridle.config import (
    AudioReading,
    AugmentationOptions,
    BelowOne,
    Count,
    FineTuningOptions,
    LabeledDataOptions,
    RunOptions,
    VideoReading,
    flag,
    option,
)
from keras_bridle.training.progress import tune_jax
from keras_bridle.training.trackers import TRACKERS
from keras_bridle.workflows import FineTuning

SAMPLE = {
    "audio": {
        "labels_per_class": 10,
        "epochs": 60,
        "warmup_epochs": 6,
        "seconds": 0.36,
        "gain": True,
        "hide_bins": 24,
        "hide_frames": 6,
    },
    "image": {
        "labels_per_class": 20,
        "epochs": 60,
        "warmup_epochs": 6,
        "image_size": 28,
        "smallest_crop": 0.8,
        "flip": True,
    },
    # No flips, as they would turn pans to the left into pans to the right.
    "video": {
        "labels_per_class": 40,
        "epochs": 40,
        "warmup_epochs": 4,
        "image_size": 64,
        "num_frames": 8,
        "sampling_rate": 1,
    },
}
PICTURES = {
    "warmup_epochs": 5,
    "learning_rate": 5e-4,
    "validation_share": 0.1,
    "drop_path": 0.1,
    "label_smoothing": 0.1,
    "flip": True,
    "rand_augment": 0.9,
    "random_erasing": 0.25,
    "mix_rate": 1.0,
    "mixup": 0.8,
    "cutmix": 1.0,
}
# For data sets without settings of their own.
OWN = {
    "audio": {
        "epochs": 100,
        "warmup_epochs": 10,
        "batch_size": 64,
        "weight_decay": 5e-4,
        "validation_share": 0.1,
        "drop_path": 0.1,
        "seconds": 10.24,
        "gain": True,
        "roll": True,
        "mix_rate": 0.5,
        "mixup": 10.0,
        "hide_bins": 48,
        "hide_frames": 192,
        "token_drop": (0.2, 0.2),
    },
    "image": {**PICTURES, "epochs": 100, "batch_size": 64, "smallest_crop": 0.2},
    "video": {
        **PICTURES,
        "epochs": 75,
        "batch_size": 16,
        "repeats": 2,
        "view_segments": 5,
        "view_crops": 3,
    },
}
# The published settings; learning rates are those of the published global batch.
PUBLISHED = {
    "audioset": {
        "epochs": 150,
        "batch_size": 256,
        "learning_rate": 4e-4,
        "validation_share": 0.0,
    },
    "esc50": {
        "epochs": 300,
        "warmup_epochs": 20,
        "learning_rate": 2e-3,
        "validation_share": 0.0,
        "seconds": 5.0,
        "hide_frames": 96,
    },
    # Words have a beginning and an end.
    "speech_commands": {
        "epochs": 60,
        "warmup_epochs": 4,
        "batch_size": 256,
        "seconds": 1.0,
        "hide_frames": 48,
        "roll": False,
    },
    "imagenet": {
        "epochs": 200,
        "batch_size": 1024,
        "validation_share": 0.0,
        "cutmix": 0.0,
    },
    "kinetics": {
        "batch_size": 384,
        "learning_rate": 7.5e-4,
        "validation_share": 0.0,
    },
}


@dataclasses.dataclass(kw_only=True)
class Options(
    RunOptions,
    AugmentationOptions,
    FineTuningOptions,
    VideoReading,
    AudioReading,
    LabeledDataOptions,
):
    """Options of this recipe."""

    source: str | None = flag(
        None, "pretrained encoder: a run, a preset's folder or address", name="--from"
    )
    scratch: bool = flag(False, "keep only the encoder's sizes; train from new weights")
    preset: str | None = flag(
        None, "size to train without --from: tiny, small, base or large"
    )
    modality: Literal["audio", "image", "video"] | None = flag(
        None, "modality of --preset: audio, image or video"
    )
    drop_path: BelowOne = option(0.0, "stochastic depth rate of the last layer")
    dropout: BelowOne = option(0.0, "dropout of the pooled features")
    validation_share: BelowOne = flag(
        0.0, "share of training data that selects the best epoch; 0: test the last"
    )
    labels_per_class: Count | None = flag(None, "train on N examples of each class")
    tracker: Literal[TRACKERS] | None = option(
        None, f"log to {', '.join(TRACKERS)}", learned=False
    )
    view_segments: Count = option(1, "clips of a video to test", only="video")
    view_crops: Count = option(1, "crops of each clip to test", only="video")


def settings(modality, layout):
    """Returns the recipe's defaults, by modality and layout."""
    if layout is None:
        return SAMPLE[modality]
    return {**OWN[modality], **PUBLISHED.get(layout, {})}


def main(arguments=None):
    profiles = {
        **{f"{name}, sample data": SAMPLE[name] for name in SAMPLE},
        **{f"{name}, --data": OWN[name] for name in OWN},
        **{f"--layout {name}": PUBLISHED[name] for name in PUBLISHED},
    }
    with FineTuning(Options, __doc__, settings, profiles, arguments) as recipe:
        recipe.run()


if __name__ == "__main__":
    tune_jax()
    main()
