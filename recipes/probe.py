r"""Probes frozen encoders: trains simple classifiers on their features.

On the sample data of the encoder's modality, such as after `recipes/pretrain_image.py`:

    KERAS_BACKEND=jax python recipes/probe.py --from runs/image_sample --probe all

On your own labeled files, in class folders, a CSV file, or a known data set's layout:

    python recipes/probe.py --from runs/audio --data ESC-50-master --layout esc50 \
        --probe linear knn attentive

`linear` is logistic regression whose penalty is chosen by cross-validation. `dense` is
the published probe: batch normalization without scale and offset, and a dense layer.
`knn` is a vote of the nearest neighbors. `attentive` pools the patches by attention
with a learned query. Encoders are compared with each other, with untrained ones, and
with plain log-mel statistics or small gray pixels. Without splits, the recipe makes 5
folds; the encoder may have seen the files, but not their labels.

The directory gets tables (`probes.md`, `probes.csv`, all metrics in `metrics.csv`) and,
for each encoder and probe, a table of the classes and a confusion matrix.
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
    epochs: Count | None = flag(None, "epochs of dense and attentive probes")
    learning_rate: Positive | None = flag(
        None, "learning rate of dense and attentive probes"
    )
    weight_decay: NotNegative | None = option(
        None, "weight decay of dense and attentive probes"
    )
    probe_batch_size: Count | None = flag(
        None, "batch size of dense and attentive probes"
    )
    batch_size: Count = option(32, "batch size of the encoder")
    per_class: Count | None = option(None, "examples of each class to train on")
    segment_means: Count | None = option(
        None, "concatenate the means of N equal segments"
    )
    most_gigabytes: Positive = option(8.0, "most gigabytes of memory for patches")
    baselines: bool = flag(True, "probe only the given encoders")
    overwrite: bool = flag(False, "replace the contents of --directory")
    seed: Natural = flag(0, "random seed")


def main(arguments=None):
    with Probing(Options, __doc__, arguments) as recipe:
        recipe.run()


if __name__ == "__main__":
    main()
