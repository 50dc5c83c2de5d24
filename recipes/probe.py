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
import re
from pathlib import Path
from typing import Literal

import numpy as np

from keras_bridle.cli import Setup, check_segments, labeled_data, load_encoder
from keras_bridle.config import (
    ArgumentError,
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
from keras_bridle.data import samples
from keras_bridle.data.layouts import LAYOUT_SECONDS
from keras_bridle.evaluation.plots import plot_confusion_matrix
from keras_bridle.evaluation.probes import (
    PROBES,
    ProbeData,
    mean_per_class,
    probe_encoder,
)
from keras_bridle.evaluation.report import (
    probe_table,
    write_results,
)
from keras_bridle.modalities import AUDIO, IMAGE, VIDEO, modality_of
from keras_bridle.training.examples import draw_few


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


class Probing(Setup):
    """The command line, the encoders, and the data that they are probed on."""

    again = "overwrite"

    def defaults(self, given):
        return {"directory": "runs/probes"}

    def is_taken(self, folder):
        return (folder / "probes.json").exists()

    def check(self):
        options = self.options
        if not options.source:
            raise ArgumentError("source", "given", None)
        if "all" in options.probe:
            options.probe = PROBES
        super().check()

    def load(self):
        """Loads the encoders, and the data."""
        options = self.options
        self.encoders = [load_encoder(source) for source in options.source]
        modalities = {modality_of(encoder.backbone) for encoder in self.encoders}
        if len(modalities) > 1:
            raise ArgumentError("source", "encoders of one modality", options.source)
        (self.modality,) = modalities
        self.refuse_idle(self.modality)
        for encoder in self.encoders:
            reading = self.reading(encoder.backbone)
            check_segments(options.segment_means, encoder, reading)
        data = self.sample() if options.data is None else self.files()
        if options.per_class is not None:
            splits = [
                (
                    train[
                        draw_few(data.labels[train], options.per_class, options.seed)
                    ],
                    x,
                )
                for train, x in data.splits
            ]
            data = data._replace(splits=splits)
        if data.labels.ndim == 2 and "linear" in options.probe:
            options.probe = [kind for kind in options.probe if kind != "linear"]
            self.say("Without the linear probe, which takes one class for each file")
            if not options.probe:
                raise ArgumentError("probe", "dense: a linear one, too", "linear")
        return data

    def reading(self, backbone):
        """How files are read for an encoder."""
        options = self.options
        given = {name: getattr(options, name) for name in self.modality.reading_names}
        if backbone.input_dims == (None,) and options.seconds is None:
            given["seconds"] = 0.36
            if options.data is not None:
                given["seconds"] = LAYOUT_SECONDS.get(options.layout, 10.24)
        return self.modality.reading(backbone, **given)

    def files(self):
        """Labeled files."""
        options = self.options
        files, splits, _ = labeled_data(options, self.modality, self.read_report)
        self.say_notes()

        def inputs(backbone):
            return self.modality.dataset(
                files.numbered(),
                self.reading(backbone),
                batch_size=options.batch_size,
                report=self.read_report,
                strict=options.strict,
            )

        return ProbeData(inputs, files.all_labels(), files.class_names, splits)

    def sample(self):
        """The sample data; speakers say other syllables in training and test."""
        options, more = self.options, {}
        reading = self.reading(self.encoders[0].backbone)
        if self.modality is VIDEO:
            more = {"num_clips": (1000, 500), "seed": 1}
        (train, labels), (test, test_labels), names = self.modality.sample(
            reading, **more
        )
        groups = None
        if self.modality is AUDIO:
            options.segment_means = options.segment_means or 8
            splits = map(samples.load_syllables, ("train", "test"), 2 * ["syllable"])
            groups = np.concatenate([syllables for _, syllables, _ in splits])
        if self.modality is IMAGE:
            options.per_class = options.per_class or 100
        inputs = np.concatenate([train, test])
        rows = np.arange(len(inputs))
        splits = [(rows[: len(train)], rows[len(train) :])]
        labels = np.concatenate([labels, test_labels])
        return ProbeData(lambda backbone: inputs, labels, names, splits, groups)

    def networks(self):
        """Yields what is probed: a name, an encoder, and whether plain features are."""
        if self.options.baselines:
            first = self.encoders[0].backbone
            yield self.modality.plain, first, True
            for name, backbone, _ in self.encoders:
                config = {**backbone.get_config(), "name": "untrained"}
                prefix = f"{name}, " if len(self.encoders) > 1 else ""
                untrained = type(backbone).from_config(config)
                yield f"{prefix}untrained", untrained, False
        for name, backbone, _ in self.encoders:
            yield name, backbone, False

    def show(self, found, data):
        """Prints the table, and writes all there is."""
        folder = Path(self.options.directory)
        main = "mAP" if data.labels.ndim == 2 else "accuracy"
        rows, metrics = [], []
        for name, by_kind in found.items():
            row = {"name": name}
            for kind, several in by_kind.items():
                summaries = [one.summary() for one in several]
                row[kind] = [summary[main] for summary in summaries]
                metrics += [
                    {"name": name, "probe": kind, "split": split, **summary}
                    for split, summary in enumerate(summaries, start=1)
                ]
                stem = re.sub(r"[^\w.-]+", "_", f"{name.strip('./')}_{kind}")
                write_results(folder / f"{stem}_classes.csv", mean_per_class(several))
                if several[0].confusion is not None:
                    plot_confusion_matrix(
                        sum(one.confusion for one in several),
                        folder / f"{stem}_confusion.png",
                        data.class_names,
                        f"{name}, {kind}",
                    )
            # Not every probe has baselines.
            rows += [row] if by_kind else []
        write_results(folder / "probes", rows)
        write_results(folder / "metrics.csv", metrics)
        splits = f", {len(data.splits)} folds" if len(data.splits) > 1 else ""
        self.console.print(probe_table(rows, title=f"{main} of probes{splits}"))
        self.say(f"Everything is in {folder}")


def main(arguments=None):
    with Probing(Options, __doc__, arguments) as recipe:
        options = recipe.options
        data = recipe.load()
        given = {
            "epochs": options.epochs,
            "learning_rate": options.learning_rate,
            "weight_decay": options.weight_decay,
            "batch_size": options.probe_batch_size,
        }
        given = {name: value for name, value in given.items() if value is not None}
        found = {}
        for name, backbone, plain in recipe.networks():
            if not options.quiet:
                recipe.say(f"Probing {name} ...")
            found[name] = probe_encoder(
                backbone,
                data,
                options.probe,
                segments=options.segment_means or 1,
                batch_size=options.batch_size,
                seed=options.seed,
                options={"dense": given, "attentive": given},
                most_gigabytes=options.most_gigabytes,
                plain=plain,
            )
            # The data can be read: what goes wrong now is a fault.
            recipe.is_over = True
        recipe.show(found, data)
        recipe.list_skipped()


if __name__ == "__main__":
    main()
