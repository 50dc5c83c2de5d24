"""Probes from a command line."""

import functools
import re
from pathlib import Path

import numpy as np

from keras_bridle.cli import Setup, check_segments, labeled_data, load_encoder
from keras_bridle.config import ArgumentError, check
from keras_bridle.data import samples
from keras_bridle.data.layouts import LAYOUT_SECONDS
from keras_bridle.evaluation.plots import plot_confusion_matrix
from keras_bridle.evaluation.probes import (
    PROBES,
    ProbeData,
    mean_per_class,
    probe_encoder,
)
from keras_bridle.evaluation.report import probe_table, write_results
from keras_bridle.modalities import AUDIO, IMAGE, VIDEO, modality_of
from keras_bridle.training.examples import draw_few


class Probing(Setup):
    """The recipe for probes of frozen encoders, see `Setup`."""

    again = "overwrite"

    def defaults(self, given):
        return {"directory": "runs/probes"}

    def is_taken(self, folder):
        return (folder / "probes.json").exists()

    def check(self):
        options = self.options
        check(options.source, "source", "given", None)
        if "all" in options.probe:
            options.probe = PROBES
        super().check()

    def run(self):
        """Probes all networks, and reports."""
        options, data = self.options, self.load()
        trained = {
            "epochs": options.epochs,
            "learning_rate": options.learning_rate,
            "weight_decay": options.weight_decay,
            "batch_size": options.probe_batch_size,
        }
        trained = {name: value for name, value in trained.items() if value is not None}
        found = {}
        for name, backbone, plain in self.networks():
            if not options.quiet:
                self.say(f"Probing {name} ...")
            found[name] = probe_encoder(
                backbone,
                data,
                options.probe,
                segments=options.segment_means or 1,
                batch_size=options.batch_size,
                seed=options.seed,
                options={"dense": trained, "attentive": trained},
                most_gigabytes=options.most_gigabytes,
                plain=plain,
            )
            # The data are readable, so errors from here on are bugs.
            self.is_over = True
        self.show(found, data)
        self.list_skipped()

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
            few = functools.partial(
                draw_few, per_class=options.per_class, seed=options.seed
            )
            splits = [(x[few(data.labels[x])], test) for x, test in data.splits]
            data = data._replace(splits=splits)
        if data.labels.ndim == 2 and "linear" in options.probe:
            options.probe = [kind for kind in options.probe if kind != "linear"]
            self.say("Without the linear probe, which takes one class for each file")
            check(options.probe, "probe", "dense: a linear one, too", "linear")
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
            parts = map(samples.load_syllables, ("train", "test"), 2 * ["syllable"])
            groups = np.concatenate([syllables for _, syllables, _ in parts])
        if self.modality is IMAGE:
            options.per_class = options.per_class or 100
        inputs = np.concatenate([train, test])
        rows = np.arange(len(inputs))
        splits = [(rows[: len(train)], rows[len(train) :])]
        labels = np.concatenate([labels, test_labels])
        return ProbeData(lambda backbone: inputs, labels, names, splits, groups)

    def networks(self):
        """Yields names, encoders, and whether to probe plain features instead."""
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
        """Prints the table, and writes all results."""
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
