r"""Probes frozen encoders: what simple classifiers read out of their features.

On the sample data of the encoder's kind, such as after `recipes/pretrain_image.py`:

    KERAS_BACKEND=jax python recipes/probe.py --from runs/image_sample --probe all

On your own labeled files, in class folders, a CSV file, or a known data set's layout:

    python recipes/probe.py --from runs/audio --data ESC-50-master --layout esc50 \
        --probe linear knn attentive

`linear` is logistic regression whose penalty is chosen by cross-validation; `dense` the
published one, batch normalization without scale and offset and a dense layer; `knn` a
vote of the nearest; `attentive` attends to the patches by a learned query. Several
encoders are compared with each other, without their training, and with plain log-mel
statistics or small gray pixels. Where there are no splits, 5 folds are drawn, for an
encoder that has seen the files without their labels.

The directory gets tables (`probes.md`, `probes.csv`, all metrics in `metrics.csv`) and,
of each encoder and probe, a table of the classes and a confusion matrix.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
from typing import Literal

from keras_bridle.config import (
    AudioReading,
    Count,
    LabeledDataOptions,
    Natural,
    NotNegative,
    Positive,
    RunOptions,
    VideoReading,
    flag,
    option,
)
from keras_bridle.workflows import Probing


@dataclasses.dataclass(kw_only=True)
class Options(RunOptions, VideoReading, AudioReading, LabeledDataOptions):
    """Options of this recipe."""

    hidden = (
        *("dtype_policy", "image_size", "num_frames", "sampling_rate"),
        *("resume", "strict", "fold"),
    )

    source: tuple[str, ...] = flag((), "runs, presets or sizes", name="--from")
    probe: tuple[Literal["linear", "dense", "knn", "attentive", "all"], ...] = flag(
        ("linear", "knn"), "kinds of probes, or all"
    )
    epochs: Count | None = flag(None, "epochs of dense and attentive")
    learning_rate: Positive | None = flag(None, "their learning rate")
    weight_decay: NotNegative | None = option(None, "their weight decay")
    probe_batch_size: Count | None = flag(None, "their batch size")
    batch_size: Count = option(32, "examples to a step of the encoder")
    per_class: Count | None = option(None, "examples of each class to train on")
    segment_means: Count | None = option(None, "join the means of so many equal parts")
    most_gigabytes: Positive = option(8.0, "most memory for patches")
    baselines: bool = flag(True, "only the encoders named")
    overwrite: bool = flag(False, "replace what --directory holds")
    seed: Natural = flag(0, "seed of everything that is drawn")


def main(arguments=None):
    with Probing(Options, __doc__, arguments) as recipe:
        recipe.run()


if __name__ == "__main__":
    main()
