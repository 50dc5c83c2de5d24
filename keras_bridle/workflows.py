"""Pretraining and fine-tuning from a command line."""

import contextlib
import dataclasses
import functools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
from threadpoolctl import threadpool_limits

from keras_bridle.cli import Setup, check_source, labeled_data
from keras_bridle.config import (
    ArgumentError,
    Count,
    DataOptions,
    FineTuningOptions,
    MethodOptions,
    Natural,
    RunOptions,
    TrainingOptions,
    ZeroToOne,
    flag,
    option,
)
from keras_bridle.data.layouts import list_files
from keras_bridle.distribution import (
    broadcast,
    is_chief,
    process_shard,
)
from keras_bridle.evaluation.monitor import watch, watch_files
from keras_bridle.evaluation.plots import plot_history
from keras_bridle.evaluation.report import (
    RunReport,
    probe_table,
    report_predictions,
    write_results,
)
from keras_bridle.modalities import AUDIO, encoder_of, modality_of
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.presets import decoder_size
from keras_bridle.training.batches import first_batches
from keras_bridle.training.checkpoint import (
    write_json,
)
from keras_bridle.training.examples import (
    ArrayExamples,
    FileExamples,
    array_views,
    draw_few,
    file_views,
    split_examples,
)
from keras_bridle.training.fine_tune import FineTuner, fine_tune, predict_examples
from keras_bridle.training.interleaved import InterleavedPretraining
from keras_bridle.training.run import RunDirectory, run_lock


@dataclasses.dataclass(kw_only=True)
class PretrainingOptions(TrainingOptions, MethodOptions, RunOptions, DataOptions):
    """Encoder: the options of the three recipes."""

    preset: str = flag("base", "tiny, small, base, large, or a folder")
    patch_size: tuple[Count, ...] | None = option(None, "sides, if not the preset's")
    mask_ratio: ZeroToOne = flag(0.8, "share of the patches to hide")
    decoder_dim: Count | None = option(None, "decoder's width, if not the preset's")
    decoder_layers: Count | None = option(None, "decoder's depth, likewise")
    augmentation: bool = option(True, "train on augmented inputs")
    monitor: bool = option(True, "watch the encoder's features", learned=False)
    distribute: Natural = flag(
        0,
        "train on all devices and processes; N on JAX: divide networks among N",
        const=1,
        learned=False,
    )


class Pretraining(Setup):
    """A pretraining recipe.

    Args:
        modality: `AUDIO`, `IMAGE` or `VIDEO`.
        kind: class of `PretrainingOptions`.
        description: string, what `--help` starts with.
        sample: dict, the recipe's defaults on the sample data.
        published: dict, its defaults on `--data`.
        arguments: optional list of strings; the command line's by default.

    Attributes:
        reading: dict, how raw inputs are read.
        inputs: what `InterleavedPretraining.fit()` takes, after `load()`.
        examples: array of some raw inputs.
    """

    def __init__(self, modality, kind, description, sample, published, arguments=None):
        self.modality = modality
        self.encoder: Any = None
        self.profiles = {"Without --data": sample, "With --data": published}
        super().__init__(kind, description, arguments, self.profiles)

    def defaults(self, given):
        sample, published = self.profiles.values()
        found = sample if given.get("data") is None else published
        if not ("preset" in given and Path(given["preset"]).exists()):
            return found
        if given.get("patch_size") is not None:
            raise ArgumentError("patch_size", "left to the encoder in --preset", "one")
        self.encoder = encoder_of(given["preset"])
        if self.encoder is None or modality_of(self.encoder) is not self.modality:
            expected = f"the folder of an encoder for {self.modality.name}"
            raise ArgumentError("preset", expected, given["preset"])
        sizes = self.modality.sizes(self.encoder).items()
        return found | {name: size for name, size in sizes if name in found and size}

    def load(self, sample):
        """Loads the data.

        Args:
            sample: function of `reading` that returns the sample data, and some of it.
        """
        options, modality = self.options, self.modality
        encoder = self.encoder
        if encoder is None:
            encoder = encoder_of(f"bridle_{modality.name}_{options.preset}")
            encoder.patch_size = options.patch_size or encoder.patch_size
        self.reading = modality.reading_of(options, encoder)
        self.steps_per_epoch = None
        if options.data is not None:
            self._load_files()
            return
        if self.encoder is None:
            self.reading |= modality.sample_channels
        self.inputs, self.examples = sample(self.reading)
        self.monitor = lambda: watch(*modality.sample(self.reading)[0])

    def _load_files(self):
        options, modality = self.options, self.modality
        data, layout, segments = options.data, options.layout, options.segments
        split = "train" if layout in ("speech_commands", "imagenet") else None
        files = list_files(modality.name, data, layout, segments=segments, split=split)
        self.read_report.add_missing(files)
        self.steps_per_epoch = len(files) // options.batch_size
        if self.steps_per_epoch == 0:
            expected = f"at most {len(files)}, the number of files"
            raise ArgumentError("batch_size", expected, options.batch_size)
        reading = self.reading
        if options.augmentation:
            reading = modality.enlarged(reading)

        def batches(epoch, first_batch=0, **more):
            return modality.dataset(
                files,
                reading,
                batch_size=options.batch_size,
                shuffle=True,
                labels=False,
                seed=options.seed,
                initial_epoch=epoch,
                first_batch=first_batch,
                strict=options.strict,
                report=self.read_report,
                **more,
            )

        with self.read_report.reraise():
            # Shuffled: the first files in order may be of one class.
            self.examples = np.concatenate(list(first_batches(batches(0), 4)))
        self.inputs = functools.partial(batches, repeat=True, shard=process_shard())
        self.monitor = functools.partial(
            watch_files, modality, files, self.reading, self.read_report
        )

    def backbone(self):
        """Builds the encoder that `preset` names, or loads it from a folder."""
        options = self.options
        if self.encoder is not None:
            return BridleBackbone.from_preset(options.preset)
        changes = {"patch_size": options.patch_size} if options.patch_size else {}
        return self.modality.new_encoder(
            options.preset, self.examples, self.reading, **changes
        )

    def train(self, backbone, mask, augmentation, probes, title):
        """Pretrains, and reports.

        `augmentation` lists layers for raw inputs. `probes` is a function of the
        reading and the backbone, for the sample data: it gives a function that lists
        the probes of the encoder as it is, and a dict of those that list the same of
        something else. A probe is a name, a function, and its arguments; several of one
        name are draws of labels. `title` stands above their table.
        """
        options = self.options
        shown: dict[str, Any] = {}
        if options.data is None:
            of_encoder, others = probes(self.reading, backbone)
            baselines = {
                name: functools.partial(_run_probes, function)
                for name, function in others.items()
            }
            shown = {"baselines": baselines, "title": title}
            shown["probe"] = functools.partial(_run_probes, of_encoder)
        size = decoder_size(backbone, options.decoder_dim, options.decoder_layers)
        size |= options.decoder_options
        if options.augmentation:
            layers = keras.Sequential(augmentation, name="augmentation")
        pretraining = InterleavedPretraining(
            backbone,
            mask,
            layers if options.augmentation else None,
            options.of(MethodOptions).replace(decoder_options=size),
        )
        report = RunReport(
            options.directory,
            self.examples,
            resume=options.resume,
            console=self.console,
            **shown,
        )
        # All workers have the same left to probe.
        report.rows = broadcast(report.rows)

        def on_start(pretraining):
            self.is_over = True
            if is_chief():
                self._save_options()
            report.on_start(pretraining)

        pretraining.fit(
            self.inputs,
            options.directory,
            options.resume,
            self.steps_per_epoch,
            options.of(TrainingOptions),
            callbacks=[self.monitor()] if options.monitor else [],
            on_start=on_start,
            on_phase_end=report.on_phase_end,
            verbose=0 if options.quiet else 1,
        )
        backbone.save_to_preset(str(Path(options.directory, "preset")))
        report.finish(pretraining)
        self.list_skipped()
        self.say(f"Everything is in {options.directory}, plots in {report.folder}")
        return pretraining

    def _save_options(self):
        """Adds the recipe's options to the run's settings."""
        path = Path(self.options.directory, "settings.json")
        content = json.loads(path.read_text()) | {"recipe": self.options.settings()}
        write_json(path, content)


def _run_probes(probes, *_):
    """Runs the probes that a function lists, two at a time, each on one thread."""
    found: dict[str, Any] = {}
    with threadpool_limits(1), ThreadPoolExecutor(2) as pool:
        waiting = [(name, pool.submit(*probe)) for name, *probe in probes()]
        for name, probe in waiting:
            accuracy = getattr(probe.result(), "accuracy", probe.result())
            found.setdefault(name, []).append(accuracy)
    return {name: x[0] if len(x) == 1 else x for name, x in found.items()}


class FineTuning(Setup):
    """The recipe for fine-tuning: once, or for each fold.

    Args:
        kind: class of options.
        description: string, what `--help` starts with.
        settings: function of a modality's name and a layout (`None` for the sample
            data) that returns a dict of the recipe's defaults.
        profiles: dict, as of `RecipeParser`.
        arguments: optional list of strings; the command line's by default.
    """

    def __init__(self, kind, description, settings, profiles, arguments=None):
        self.settings = settings
        self._run: Any = None
        super().__init__(kind, description, arguments, profiles)

    def defaults(self, given):
        source, size = given.get("source"), given.get("preset")
        if (source is None) == (size is None):
            raise ArgumentError("source", "given, or a size as --preset", source)
        name = given.get("modality")
        if size is not None and name is None:
            raise ArgumentError("modality", "given with --preset", name)
        if source is not None:
            check_source(source)
            if source.startswith("bridle_") and not given.get("scratch"):
                raise ArgumentError("source", "trained: sizes are for --preset", source)
        self.encoder = encoder_of(source or f"bridle_{name}_{size}")
        self.modality = modality_of(self.encoder)
        if name not in (None, self.modality.name):
            raise ArgumentError("modality", f"{self.modality.name} for it", name)
        layout = given.get("layout", "folder") if given.get("data") else None
        directory = f"runs/{self.modality.name}_fine_tuned"
        return {"directory": directory, **self.settings(self.modality.name, layout)}

    def check(self):
        super().check()
        options = self.options
        self.refuse_idle(self.modality)
        if options.scratch and options.source is None:
            raise ArgumentError("scratch", "left out: --preset has new weights", True)
        mixing = [
            name for name in ("mix_rate", "mixup", "cutmix") if self.given.get(name)
        ]
        if mixing and not (options.mix_rate and (options.mixup or options.cutmix)):
            expected = "beside a mix_rate and a mixup or cutmix above 0"
            raise ArgumentError(mixing[0], expected, self.given[mixing[0]])

    def run(self):
        """Fine-tunes and tests on each split, and reports.

        Returns:
            List of `ClassificationMetrics`, one for each split.
        """
        options = self.options
        self.reading = self.modality.reading_of(options, self.encoder)
        splits: Any = self._splits()
        folder = Path(options.directory)
        with contextlib.ExitStack() as stack:
            self._stack = stack
            if len(splits) == 1:
                found = [self._one_split(splits[0], folder, "fine-tuning")]
            else:
                found = [
                    self._one_split(split, folder / f"fold_{i}", f"fold_{i}")
                    for i, split in enumerate(splits, start=1)
                ]
                self._report_folds(found)
        self.list_skipped()
        self.say(f"Everything is in {folder}")
        return found

    def _splits(self) -> Any:
        """Lists tuples of examples to train on, to find the best epoch by, to test."""
        options, modality = self.options, self.modality
        if options.data is None:
            train, test, self.class_names = modality.sample(self.reading)
            splits: Any = [(ArrayExamples(*train), ArrayExamples(*test))]
            validation: Any = None
        else:
            files, pairs, held_out = labeled_data(options, modality, self.read_report)
            self.class_names = list(files.class_names)
            make = functools.partial(
                modality.dataset, reading=modality.enlarged(self.reading)
            )
            all_files = FileExamples(files, make, options.strict, self.read_report)
            splits = [tuple(map(all_files.subset, pair)) for pair in pairs]
            validation = None if held_out is None else all_files.subset(held_out)
        return [(*self._held_out(train, validation), test) for train, test in splits]

    def _held_out(self, train, validation):
        """The examples to train on, and those to find the best epoch by, if any."""
        options = self.options
        count = options.labels_per_class
        if count is not None:
            if train.labels.ndim == 2:
                raise ArgumentError("labels_per_class", "left out: no one class", count)
            train = train.subset(draw_few(train.labels, count, options.seed))
        if not options.validation_share:
            return train, None
        if validation is not None:
            return train, validation
        share, seed = options.validation_share, options.seed
        return map(train.subset, split_examples(train.labels, share, seed))

    def _one_split(self, split, folder, title):
        """Trains on one split and returns the metrics of the other."""
        options, (train, validation, test) = self.options, split
        keras.utils.set_random_seed(options.seed)
        for examples in (train, validation, test):
            if isinstance(examples, FileExamples):
                examples.check_readable()
        tuner = self._tuner(train)
        tuned = fine_tune(
            tuner,
            train,
            validation,
            folder,
            options.resume,
            options.of(FineTuningOptions),
            title,
            on_start=lambda: self._start(train, validation, test),
            callbacks=[keras.callbacks.LambdaCallback(on_train_begin=self._set_over)],
            verbose=0 if options.quiet else 1,
        )
        tuner.classifier.save_to_preset(str(folder / "preset"))
        plot_history(
            {title: folder / "history.csv"}, folder / "results" / "history.png"
        )
        if tuned.best_score is not None:
            self.say(
                f"Best epoch: {tuned.best_epoch + 1} of {options.epochs}, with "
                f"{tuned.best_score:.1%} on held-out training examples"
            )
        predictions = predict_examples(tuner, self._views(test), options.batch_size)
        if not self._run.is_done(title):
            self._run.mark_done(title)
        return report_predictions(
            predictions, self.class_names, folder / "results", title, self.console
        )

    def _tuner(self, train):
        """Builds a classifier, and what its inputs go through in training."""
        options, modality, reading = self.options, self.modality, self.reading
        dropped = {"drop_path_rate": options.drop_path}
        augmentation = modality.augmentation(options, reading)
        if options.source is not None:
            backbone = BridleBackbone.from_preset(
                options.source, load_weights=not options.scratch, **dropped
            )
        else:
            examples = train.some_inputs(256)
            if modality is not AUDIO:
                examples = keras.ops.convert_to_numpy(augmentation[0](examples))
            backbone = modality.new_encoder(
                options.preset, examples, reading, **dropped
            )
        kind = modality.classifier_class
        classifier = kind(
            backbone,
            class_names=self.class_names,
            preprocessor=kind.preprocessor_cls.for_backbone(
                backbone, **modality.converter_options(reading)
            ),
            multi_label=train.labels.ndim == 2,
            dropout=options.dropout,
            **modality.classifier_options(options),
        )
        if augmentation:
            augmentation = keras.Sequential(augmentation, name="augmentation")
        mix = modality.mix(options)
        return FineTuner(classifier, augmentation or None, mix, options.repeats)

    def _views(self, test):
        """The test examples; of videos, several views of them."""
        options, reading = self.options, dict(self.reading)
        views = {"segments": options.view_segments, "crops": options.view_crops}
        if options.view_segments * options.view_crops == 1:
            return test
        if isinstance(test, ArrayExamples):
            shape = self.modality.input_shape(reading)
            return array_views(test.inputs, test.labels, *shape[:2], **views)
        return file_views(
            test.manifest,
            **reading,
            **views,
            strict=options.strict,
            read_report=self.read_report,
        )

    def _start(self, train, validation, test):
        """Makes the directory, or finds that it is another run's."""
        options = self.options
        if self._run is None:
            self._stack.enter_context(run_lock(options.directory))
            self._run = RunDirectory(
                options.directory, options.settings(), resume=options.resume
            )
        source = options.source or f"{options.preset} {self.modality.name} encoder"
        scratch = "" if options.source and not options.scratch else ", from scratch"
        number = 0 if validation is None else len(validation)
        held_out = f", {number} to find the best epoch" if number else ""
        self.say(
            f"{source}{scratch}: {len(train)} examples to train on{held_out}, "
            f"{len(test)} to test"
        )
        for purpose, labels in (("train on", train.labels), ("test", test.labels)):
            numbers = labels if labels.ndim == 1 else np.nonzero(labels)[1]
            absent = np.delete(np.array(self.class_names), np.unique(numbers))
            if len(absent):
                names = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
                self.say(
                    f"{len(absent)} of {len(self.class_names)} classes have no example "
                    f"to {purpose}: {names}",
                    style="yellow",
                )

    def _set_over(self, logs=None):
        """From now on errors are faults."""
        self.is_over = True

    def _report_folds(self, found):
        """One line for all folds, means and standard deviations."""
        summaries = [metrics.summary() for metrics in found]
        row = {
            name: [summary[name] for summary in summaries]
            for name, value in summaries[0].items()
            if not isinstance(value, str)
        }
        rows = [{"name": f"{len(found)} folds", **row}]
        write_results(Path(self.options.directory, "results", "folds"), rows)
        self.console.print(probe_table(rows, title="Held-out examples, all folds"))
