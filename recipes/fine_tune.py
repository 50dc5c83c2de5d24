"""Fine-tunes a pretrained encoder to classify sounds, pictures or videos.

On the sample data, after one of the pretraining recipes (2 CPU cores, some minutes):

    KERAS_BACKEND=jax python recipes/fine_tune.py --from runs/audio_sample
    KERAS_BACKEND=jax python recipes/fine_tune.py --from runs/audio_sample --scratch

The second line trains the same network from new weights: the difference is what
pretraining is worth. On your own data, a folder with a folder for each class (or with
`train` and `test` that have such), or a CSV file:

    KERAS_BACKEND=jax python recipes/fine_tune.py --from runs/mine --data my_recordings/

`--layout` names a well-known data set and brings its published settings with it; see
recipes/README.md. A run that was stopped goes on with the same command and `--resume`.
Everything lies in the run's directory: settings, history, the best weights, tables and
pictures in `results/`, and in `preset/` the classifier, ready for
`BridleAudioClassifier.from_preset("runs/.../preset")`. The run ends with the accuracy,
or mean average precision, on examples that training never saw.

Labels of the sample data: the initials of syllables that are no base syllable of the
training part; the classes of clothes; and the direction of a camera pan, which is
**synthetic**. `--labels-per-class` says how many of them are used.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_bridle.cli import (
    Setup,
    as_flags,
    fine_tuning_parser,
    parse_fine_tuning_arguments,
    run_fine_tuning,
)
from keras_bridle.data.layouts import LAYOUT_SECONDS
from keras_bridle.training.progress import keep_freed_memory

SAMPLE_SETTINGS = {
    "audio": {
        "labels_per_class": 10,
        "epochs": 60,
        "warmup_epochs": 6,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "seconds": 0.36,
        "gain": True,
        "hide_bins": 24,
        "hide_frames": 6,
        "token_drop": (0, 0),
        "directory": "runs/audio_fine_tuned",
    },
    "image": {
        "labels_per_class": 20,
        "epochs": 60,
        "warmup_epochs": 6,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "smallest_crop": 0.8,
        "flip": True,
        "image_size": 28,
        "directory": "runs/image_fine_tuned",
    },
    "video": {
        "labels_per_class": 40,
        "epochs": 40,
        "warmup_epochs": 4,
        "batch_size": 32,
        "learning_rate": 1e-3,
        # Mirrored, a pan to the left is one to the right.
        "flip": False,
        "image_size": 64,
        "num_frames": 8,
        "sampling_rate": 1,
        "directory": "runs/video_fine_tuned",
    },
}
# Where a data set has none of its own.
OWN_DATA_SETTINGS = {
    "audio": {
        "epochs": 100,
        "warmup_epochs": 10,
        "batch_size": 64,
        "learning_rate": 1e-3,
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
        "directory": "runs/audio_fine_tuned",
    },
    "image": {
        "epochs": 100,
        "warmup_epochs": 5,
        "batch_size": 64,
        "learning_rate": 5e-4,
        "weight_decay": 0.05,
        "validation_share": 0.1,
        "drop_path": 0.1,
        "label_smoothing": 0.1,
        "smallest_crop": 0.2,
        "flip": True,
        "rand_augment": 0.9,
        "rand_augment_ops": 2,
        "random_erasing": 0.25,
        "mix_rate": 1.0,
        "mixup": 0.8,
        "cutmix": 1.0,
        "directory": "runs/image_fine_tuned",
    },
    "video": {
        "epochs": 75,
        "warmup_epochs": 5,
        "batch_size": 16,
        "learning_rate": 5e-4,
        "weight_decay": 0.05,
        "validation_share": 0.1,
        "drop_path": 0.1,
        "label_smoothing": 0.1,
        "flip": True,
        "rand_augment": 0.9,
        "rand_augment_ops": 2,
        "random_erasing": 0.25,
        "repeats": 2,
        "mix_rate": 1.0,
        "mixup": 0.8,
        "cutmix": 1.0,
        "sampling_rate": 4,
        "view_segments": 5,
        "view_crops": 3,
        "directory": "runs/video_fine_tuned",
    },
}
# The published settings; learning rates are those of the published global batch.
LAYOUT_SETTINGS = {
    "audioset": {
        "epochs": 150,
        "warmup_epochs": 10,
        "batch_size": 256,
        "learning_rate": 4e-4,
        "validation_share": 0.0,
    },
    "esc50": {
        "epochs": 300,
        "warmup_epochs": 20,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "validation_share": 0.0,
        "seconds": LAYOUT_SECONDS["esc50"],
        "hide_frames": 96,
    },
    "speech_commands": {
        "epochs": 60,
        "warmup_epochs": 4,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "seconds": LAYOUT_SECONDS["speech_commands"],
        "hide_frames": 48,
        # A word has a beginning and an end.
        "roll": False,
    },
    "imagenet": {
        "epochs": 200,
        "warmup_epochs": 5,
        "batch_size": 1024,
        "learning_rate": 5e-4,
        "validation_share": 0.0,
        "cutmix": 0.0,
    },
    "kinetics": {
        "epochs": 75,
        "warmup_epochs": 5,
        "batch_size": 384,
        "learning_rate": 7.5e-4,
        "validation_share": 0.0,
    },
}
# For flags that neither names.
OTHERWISE = {
    "warmup_epochs": 0.0,
    "layer_decay": 0.75,
    "weight_decay": 0.05,
    "label_smoothing": 0.0,
    "balanced": False,
    "repeats": 1,
    "mix_rate": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "gain": False,
    "roll": False,
    "hide_bins": 0,
    "hide_frames": 0,
    "token_drop": (0, 0),
    "smallest_crop": 1.0,
    "flip": False,
    "rand_augment": 0.0,
    "rand_augment_ops": 2,
    "random_erasing": 0.0,
    "view_segments": 1,
    "view_crops": 1,
}


def settings(modality, layout):
    """Values of the flags that are not given, by modality and layout of the data."""
    if layout is None:
        return {**OTHERWISE, **SAMPLE_SETTINGS[modality]}
    return {
        **OTHERWISE,
        **OWN_DATA_SETTINGS[modality],
        **LAYOUT_SETTINGS.get(layout, {}),
    }


def explain_settings():
    """All settings, as the flags that would give them."""
    groups = {
        **{f"{name}, sample data": SAMPLE_SETTINGS[name] for name in SAMPLE_SETTINGS},
        **{f"{name}, --data": OWN_DATA_SETTINGS[name] for name in OWN_DATA_SETTINGS},
        **{f"--layout {name}": LAYOUT_SETTINGS[name] for name in LAYOUT_SETTINGS},
        "otherwise": OTHERWISE,
    }
    return "\n\n".join(f"{name}: {as_flags(group)}" for name, group in groups.items())


def main(arguments=None):
    parser = fine_tuning_parser(__doc__, explain_settings())
    args = parse_fine_tuning_arguments(parser, settings, arguments)
    with Setup(args) as setup:
        run_fine_tuning(setup)


if __name__ == "__main__":
    keep_freed_memory()
    main()
