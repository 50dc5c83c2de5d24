"""Fine-tuning from a command line."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bridle.cli import Setup, check_source, labeled_data
from keras_bridle.config import ArgumentError, FineTuningOptions, check
from keras_bridle.evaluation.plots import plot_history
from keras_bridle.evaluation.report import (
    probe_table,
    report_predictions,
    write_results,
)
from keras_bridle.modalities import AUDIO, encoder_of, modality_of
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.training.examples import (
    ArrayExamples,
    FileExamples,
    array_views,
    draw_few,
    file_views,
    split_examples,
)
from keras_bridle.training.fine_tune import FineTuner, fine_tune, predict_examples
from keras_bridle.training.run import RunDirectory, run_lock
from keras_bridle.training.trackers import tracked


class FineTuning(Setup):
    """The recipe for fine-tuning: once, or for each fold.

    Args:
        kind: class of options.
        description: string, the start of `--help`.
        settings: function of a modality's name and a layout (`None` for the sample
            data) that returns a dict of the recipe's defaults.
        profiles: dict, as in `RecipeParser`.
        arguments: optional list of strings, by default the command line's.
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
        check(size is None or name is not None, "modality", "given with --preset", name)
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
        """Lists tuples of training, validation and test examples."""
        options, modality = self.options, self.modality
        if options.data is None:
            train, test, self.class_names = modality.sample(self.reading)
            splits: Any = [(ArrayExamples(*train), ArrayExamples(*test))]
            validation: Any = None
        else:
            files, pairs, held_out = labeled_data(options, modality, self.read_report)
            self.list_data(files)
            self.class_names = list(files.class_names)
            make = functools.partial(
                modality.dataset, reading=modality.enlarged(self.reading)
            )
            all_files = FileExamples(files, make, options.strict, self.read_report)
            splits = [tuple(map(all_files.subset, pair)) for pair in pairs]
            validation = None if held_out is None else all_files.subset(held_out)
        return [(*self._held_out(train, validation), test) for train, test in splits]

    def _held_out(self, train, validation):
        """Returns training and validation examples, the latter if wanted."""
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
        """Trains and tests on one split, and returns the metrics."""
        options, (train, validation, test) = self.options, split
        keras.utils.set_random_seed(options.seed)
        for examples in (train, validation, test):
            if isinstance(examples, FileExamples):
                examples.check_readable()
        tuner = self._tuner(train)
        tuner.phase = title
        set_over = keras.callbacks.LambdaCallback(on_train_begin=self._set_over)
        with tracked(options) as tracker:
            tuned = fine_tune(
                tuner,
                train,
                validation,
                folder,
                options.resume,
                options.of(FineTuningOptions),
                title,
                on_start=lambda: self._start(train, validation, test),
                callbacks=[set_over, *tracker],
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
        """Builds a classifier, and its augmentation and mixing."""
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
        """Returns the test examples; for videos, several views."""
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
        """Makes the directory, or raises an error if it is another run's."""
        options = self.options
        if self._run is None:
            self._stack.enter_context(run_lock(options.directory))
            self._run = RunDirectory(
                options.directory, options.settings(), resume=options.resume
            )
            self.keep_digest()
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
        """Treats errors as bugs from now on."""
        self.is_over = True

    def _report_folds(self, found):
        """Reports means and standard deviations over folds."""
        summaries = [metrics.summary() for metrics in found]
        row = {
            name: [summary[name] for summary in summaries]
            for name, value in summaries[0].items()
            if not isinstance(value, str)
        }
        rows = [{"name": f"{len(found)} folds", **row}]
        write_results(Path(self.options.directory, "results", "folds"), rows)
        self.console.print(probe_table(rows, title="Held-out examples, all folds"))
