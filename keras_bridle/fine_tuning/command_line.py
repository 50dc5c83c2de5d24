"""The command line of `recipes/fine_tune.py`."""

import argparse
import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from rich.console import Console

from keras_bridle.data.read_report import ReadReport
from keras_bridle.data.tensorflow_input import import_tensorflow
from keras_bridle.evaluation.command_line import (
    DATA_FLAGS,
    add_data_flags,
    check_source,
    data_of,
    refuse_flags,
)
from keras_bridle.evaluation.plots import plot_history
from keras_bridle.evaluation.report import probe_table, write_in_all_forms
from keras_bridle.fine_tuning.examples import FileExamples
from keras_bridle.fine_tuning.fine_tune import LOSSES, fine_tune
from keras_bridle.fine_tuning.fine_tuner import FineTuner
from keras_bridle.fine_tuning.modalities import MODALITIES
from keras_bridle.fine_tuning.predictions import predict_examples
from keras_bridle.fine_tuning.report import report_predictions
from keras_bridle.fine_tuning.sampling import draw_few, split_examples
from keras_bridle.fine_tuning.validation_scores import METRICS
from keras_bridle.models.bridle_backbone import BridleBackbone
from keras_bridle.models.presets import backbone_preset, preset_modality, preset_names
from keras_bridle.pretraining.command_line import (
    RecipeParser,
    add_common_flags,
    add_optimizer_flags,
    fill_in,
    list_skipped,
)
from keras_bridle.pretraining.flag_types import (
    above_0,
    above_0_to_1,
    from_0,
    from_0_below_1,
    from_0_to_1,
    whole_number,
)
from keras_bridle.pretraining.run_directory import RunDirectory
from keras_bridle.pretraining.run_lock import RunLock

# Flags that are not for every modality.
_PICTURES = (
    "image_size",
    "cutmix",
    "flip",
    "rand_augment",
    "rand_augment_ops",
    "random_erasing",
)
_FLAGS_OF = {
    "audio": (
        "reader",
        "seconds",
        "gain",
        "roll",
        "hide_bins",
        "hide_frames",
        "token_drop",
    ),
    "image": (*_PICTURES, "smallest_crop"),
    "video": (
        *_PICTURES,
        "num_frames",
        "sampling_rate",
        "view_segments",
        "view_crops",
    ),
}
# Of classes without examples.
_MOST_NAMES = 10
# Flags that change nothing of what is learned.
_NO_SETTINGS = ("directory", "resume", "quiet", "fail")


def fine_tuning_parser(description, epilog=None):
    """Makes the parser of the recipe.

    Args:
        description: string, what `--help` starts with.
        epilog: optional string, what it ends with.

    Returns:
        An `argparse.ArgumentParser`. Flags that are not given are `None`; see
        `parse_fine_tuning_arguments()`.
    """
    parser = RecipeParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model_flags(parser.add_argument_group("model"))
    add_data_flags(parser)
    _add_data_flags(parser.add_argument_group("reading"))
    _add_training_flags(parser.add_argument_group("training"))
    _add_augmentation_flags(parser.add_argument_group("augmentation"))
    add = parser.add_argument_group("run").add_argument
    add("--directory", help="folder of the run")
    add("--resume", action="store_true", help="go on with the run in --directory")
    add_common_flags(add)
    return parser


def _add_model_flags(group):
    add = group.add_argument
    add("--from", dest="source", metavar="RUN_OR_PRESET", help="pretrained encoder")
    add(
        "--scratch",
        action="store_true",
        help="only the sizes of --from, with new weights: what pretraining is worth",
    )
    add("--preset", help="without --from, a new encoder: tiny, small, base, large")
    add("--modality", choices=MODALITIES, help="if --from does not tell")
    add("--drop-path", type=from_0_below_1, help="stochastic depth, at the last layer")
    add("--dropout", type=from_0_below_1, help="of the pooled features")


def _add_data_flags(group):
    add = group.add_argument
    add(
        "--validation-share",
        type=from_0_below_1,
        help="of training, to find the best epoch, where the data has no part for it; "
        "0: test the last epoch",
    )
    add(
        "--labels-per-class",
        type=whole_number(1),
        help="train on so many examples of each class",
    )
    add("--strict", action="store_true", help="stop at files that cannot be read")
    add("--reader", default="soundfile", help="of sounds; or tensorflow-io")
    add("--seconds", type=above_0, help="length of sounds")
    add(
        "--image-size",
        type=whole_number(1),
        help="side of pictures and frames in pixels",
    )
    add("--num-frames", type=whole_number(1), help="frames of a clip")
    add(
        "--sampling-rate",
        type=whole_number(1),
        help="take every so many frames of a video",
    )
    add(
        "--view-segments", type=whole_number(1), help="test each video at so many times"
    )
    add("--view-crops", type=whole_number(1), help="and so many places")


def _add_training_flags(group):
    add = group.add_argument
    add("--epochs", type=whole_number(1))
    add("--warmup-epochs", type=from_0, help="in which the learning rate rises")
    add("--batch-size", type=whole_number(1))
    add("--learning-rate", type=above_0, help="of the head")
    add(
        "--layer-decay",
        type=above_0_to_1,
        help="rate of a layer to that of the one above",
    )
    add_optimizer_flags(add)
    add("--beta-2", type=from_0_below_1, default=0.999, help="of Adam")
    add("--loss", choices=LOSSES, default="auto", help="kind of cross-entropy")
    add("--label-smoothing", type=from_0_below_1)
    add(
        "--ema-momentum",
        type=from_0_below_1,
        help="test moving averages of the weights",
    )
    add("--metric", choices=METRICS, help="that finds the best epoch")
    add("--balanced", action=_ON_OFF, help="draw rare classes as often as common ones")
    add("--epoch-length", type=whole_number(1), help="examples of an epoch")
    add("--checkpoint-every", type=whole_number(1), help="epochs between saved states")


def _add_augmentation_flags(group):
    add = group.add_argument
    add("--repeats", type=whole_number(1), help="times each example comes in a batch")
    add(
        "--mix-rate",
        type=from_0_to_1,
        help="how likely an example is mixed with another",
    )
    add(
        "--mixup",
        type=from_0,
        help="alpha of mixup, of waveforms or pixels; 0 for none",
    )
    add("--cutmix", type=from_0, help="alpha of CutMix; 0 for none")
    add("--gain", action=_ON_OFF, help="make sounds louder or softer")
    add("--roll", action=_ON_OFF, help="roll sounds in time")
    add(
        "--hide-bins",
        type=whole_number(0),
        help="SpecAugment: widest stripe of mel bins",
    )
    add(
        "--hide-frames",
        type=whole_number(0),
        help="SpecAugment: longest stripe of frames",
    )
    add(
        "--token-drop",
        type=from_0_below_1,
        nargs=2,
        metavar=("TIMES", "BANDS"),
        help="shares of the spectrogram's patches that are left out; 0 0 for none",
    )
    add(
        "--smallest-crop",
        type=above_0_to_1,
        help="least share of a picture that crops keep",
    )
    add("--flip", action=_ON_OFF, help="mirror pictures and clips")
    add("--rand-augment", type=from_0_to_1, help="strength of RandAugment, 0 to 1")
    add("--rand-augment-ops", type=whole_number(1), help="changes to each picture")
    add("--random-erasing", type=from_0_to_1, help="how likely a box is erased")


_ON_OFF = argparse.BooleanOptionalAction


def parse_fine_tuning_arguments(parser, settings, arguments=None):
    """Parses the recipe's flags and fills in the settings for the data at hand.

    Args:
        parser: what `fine_tuning_parser()` made.
        settings: function of a modality and a layout (`None` for the sample data) that
            returns a dict with the values of the flags that are not given.
        arguments: optional list of strings; the command line's by default.

    Returns:
        An `argparse.Namespace`, with the function `fail` that ends the program with a
        message.
    """
    args = parser.parse_args(arguments)
    args.fail = parser.error
    if args.source is None and args.preset is None:
        parser.error("pass --from, a pretraining run or a preset; or --preset, a size")
    if args.source is None and args.scratch:
        parser.error("--scratch needs --from; --preset starts from scratch anyway")
    if args.source is not None and args.preset is not None:
        parser.error("--preset is the size of a new encoder: --from has one of its own")
    _find_modality(args)
    _refuse_idle_flags(parser, args)
    layout = None if args.data is None else args.layout
    given = [name for name in _MIXING if getattr(args, name)]
    fill_in(args, settings(args.modality, layout))
    if given and not (args.mix_rate and (args.mixup or args.cutmix)):
        flag = given[0].replace("_", "-")
        parser.error(
            f"--{flag} does nothing without both a --mix-rate and a --mixup"
            f"{'' if args.modality == 'audio' else ' or --cutmix'} above 0"
        )
    _check_lengths(args)
    return args


def _check_lengths(args):
    if args.warmup_epochs >= args.epochs:
        args.fail(
            f"--warmup-epochs {args.warmup_epochs:g} must be less than --epochs "
            f"{args.epochs}"
        )
    if args.epoch_length is not None and args.epoch_length < args.batch_size:
        args.fail(
            f"--epoch-length {args.epoch_length} is less than a batch, --batch-size "
            f"{args.batch_size}"
        )


_MIXING = ("mix_rate", "mixup", "cutmix")


def _refuse_idle_flags(parser, args):
    """Ends the program if a flag would change nothing."""
    others = {name for names in _FLAGS_OF.values() for name in names}
    others -= set(_FLAGS_OF[args.modality])
    refuse_flags(parser, args, sorted(others), f"is not for {args.modality}")
    if args.data is None:
        names = (*DATA_FLAGS, "strict", "reader", "sampling_rate")
        refuse_flags(parser, args, names, "needs --data")


def _find_modality(args):
    if args.source is None:
        if args.modality is None:
            args.fail("--preset needs --modality")
        return
    try:
        check_source(args.source)
        found = preset_modality(args.source)
    except (ValueError, OSError) as error:
        args.fail(error)
    if found is None and args.modality is None:
        args.fail(f"--from {args.source} needs --modality, which it does not tell")
    if backbone_preset(args.source) is not None and not args.scratch:
        size = args.source.split("_")[2]
        args.fail(
            f"--from {args.source} is a size without training: pass --modality {found} "
            f"--preset {size}"
        )
    if found is not None and args.modality not in (None, found):
        args.fail(
            f"--modality {args.modality} does not fit --from {args.source}, which is "
            f"for {found}"
        )
    args.modality = args.modality or found


def run_fine_tuning(setup):
    """Fine-tunes as flags describe, once or for each fold, and reports.

    Args:
        setup: `Setup`, which is over when training starts.

    Returns:
        List of `keras_bridle.evaluation.ClassificationMetrics`, one for each fold.
    """
    args = setup.args
    modality = MODALITIES[args.modality](args)
    modality.fit_sizes(_backbone_config(args))
    data = _read_data(args, modality)
    with contextlib.ExitStack() as stack:
        run = _Run(setup, modality, data, stack)
        found = run.all_splits()
    if len(found) > 1:
        _report_folds(found, Path(args.directory), run.console)
    if run.data.read_report is not None:
        list_skipped(run.data.read_report, args.directory, run.console)
    run.console.print(f"Everything is in {args.directory}", markup=False)
    return found


def _backbone_config(args):
    """The configuration of the encoder that is started from."""
    if args.source is None:
        name, names = f"bridle_{args.modality}_{args.preset}", preset_names()
        if name not in names:
            sizes = [x.split("_")[2] for x in names if x.split("_")[1] == args.modality]
            raise ValueError(
                f"--preset {args.preset} is no size. Those for {args.modality}: "
                f"{', '.join(sizes)}"
            )
        return backbone_preset(name)
    return BridleBackbone.from_preset(args.source, load_weights=False).get_config()


class _Data(NamedTuple):
    """Labeled examples, parted.

    Attributes:
        splits: list of tuples `(train, test)` of examples.
        class_names: list of strings.
        validation: optional examples that find the best epoch.
        read_report: optional `ReadReport`.
    """

    splits: list
    class_names: list
    validation: Any = None
    read_report: ReadReport | None = None


def _read_data(args, modality):
    if args.data is None:
        train, test, class_names = modality.sample()
        return _Data([(train, test)], class_names)
    report = ReadReport()
    files = data_of(args, args.modality, report)
    everything = FileExamples(files.manifest, modality.reader(), args.strict, report)
    splits = [tuple(map(everything.subset, split)) for split in files.splits]
    validation = None
    if files.validation is not None:
        validation = everything.subset(files.validation)
    return _Data(splits, list(files.manifest.class_names), validation, report)


class _Run:
    """Fine-tunes and tests on each split of the data."""

    def __init__(self, setup, modality, data, stack):
        self.setup = setup
        self.args = setup.args
        self.modality = modality
        self.data = data
        self.stack = stack
        self.console = Console()
        self.run_directory: Any = None

    def all_splits(self):
        """Returns the metrics of each split."""
        splits, folder = self.data.splits, Path(self.args.directory)
        if len(splits) == 1:
            ((train, test),) = splits
            return [self.one_split(train, test, folder, "fine-tuning")]
        found = []
        for number, (train, test) in enumerate(splits, start=1):
            name = f"fold_{number}"
            found.append(self.one_split(train, test, folder / name, name))
        return found

    def one_split(self, train, test, folder, title):
        """Trains on one part and returns the metrics of the other."""
        args = self.args
        keras.utils.set_random_seed(args.seed)
        train, validation = _few_and_held_out(args, train, self.data.validation)
        self.check(train, validation, test)
        tuner = self.make_tuner(train)
        tuned = fine_tune(
            tuner,
            train,
            validation,
            directory=folder,
            title=title,
            on_start=lambda: self.start(train, validation, test),
            callbacks=[keras.callbacks.LambdaCallback(on_train_begin=self.set_over)],
            verbose=0 if args.quiet else 1,
            **{name: getattr(args, name) for name in _FIT_FLAGS},
        )
        tuner.classifier.save_to_preset(str(folder / "preset"))
        plot_history(
            {title: folder / "history.csv"}, folder / "results" / "history.png"
        )
        if tuned.best_score is not None:
            self.console.print(
                f"Best epoch: {tuned.best_epoch + 1} of {args.epochs}, with "
                f"{tuned.best_score:.1%} on held-out training examples"
            )
        views = self.modality.views(test)
        predictions = predict_examples(tuner, views, args.batch_size)
        if not self.run_directory.is_done(title):
            self.run_directory.mark_done(title)
        return report_predictions(
            predictions, self.data.class_names, folder / "results", title, self.console
        )

    def check(self, train, validation, test):
        """Raises if a part cannot be read, before a directory is made for it."""
        parts = {"train on": train, "find the best epoch": validation, "test": test}
        for purpose, examples in parts.items():
            if isinstance(examples, FileExamples):
                _check_readable(self.args.data, examples, purpose)

    def make_tuner(self, train):
        """Builds a classifier, and what its inputs go through in training."""
        args, modality = self.args, self.modality
        backbone = _make_backbone(args, modality, train)
        kind = modality.classifier_class
        classifier = kind(
            backbone,
            class_names=self.data.class_names,
            preprocessor=kind.preprocessor_cls.for_backbone(
                backbone, **modality.converter_options()
            ),
            multi_label=np.ndim(train.labels) == 2,
            dropout=args.dropout or 0.0,
            **modality.classifier_options(),
        )
        layers = modality.augmentation()
        augmentation = keras.Sequential(layers, name="augmentation") if layers else None
        return FineTuner(classifier, augmentation, modality.mix(), args.repeats)

    def start(self, train, validation, test):
        """Makes the directory, or finds that it is another run's."""
        args = self.args
        if self.run_directory is None:
            self.stack.enter_context(RunLock(args.directory))
            self.run_directory = RunDirectory(
                args.directory, _settings(args), resume=args.resume
            )
        held_out = ""
        if validation is not None:
            held_out = f", {len(validation)} to find the best epoch"
        self.console.print(
            f"{_start(args)}: {len(train)} examples to train on{held_out}, "
            f"{len(test)} to test",
            highlight=False,
            markup=False,
        )
        for purpose, examples in (("train on", train), ("test", test)):
            self.name_absent(examples.labels, purpose)

    def name_absent(self, labels, purpose):
        """Says which classes have no example."""
        names = self.data.class_names
        counts = (
            np.bincount(labels, minlength=len(names))
            if labels.ndim == 1
            else np.count_nonzero(labels, axis=0)
        )
        absent = [name for name, count in zip(names, counts, strict=True) if not count]
        if absent:
            more = ", ..." if len(absent) > _MOST_NAMES else ""
            self.console.print(
                f"{len(absent)} of {len(names)} classes have no example to {purpose}: "
                f"{', '.join(absent[:_MOST_NAMES])}{more}",
                style="yellow",
                highlight=False,
                markup=False,
            )

    def set_over(self, logs=None):
        """From now on errors are faults."""
        self.setup.is_over = True


def _check_readable(data, examples, purpose):
    try:
        examples.check_readable()
    except ValueError as error:
        raise ValueError(f"--data {data}, examples to {purpose}: {error}") from error


def _few_and_held_out(args, train, validation=None):
    """The examples to train on, and those to find the best epoch by, if any."""
    if args.labels_per_class is not None:
        if train.labels.ndim == 2:
            raise ValueError("--labels-per-class needs files with one class each")
        train = train.subset(draw_few(train.labels, args.labels_per_class, args.seed))
    if not args.validation_share:
        return train, None
    if validation is not None:
        return train, validation
    kept, held_out = split_examples(train.labels, args.validation_share, args.seed)
    return train.subset(kept), train.subset(held_out)


_FIT_FLAGS = (
    "epochs",
    "batch_size",
    "learning_rate",
    "warmup_epochs",
    "weight_decay",
    "layer_decay",
    "beta_2",
    "loss",
    "label_smoothing",
    "clip_norm",
    "gradient_accumulation_steps",
    "ema_momentum",
    "balanced",
    "epoch_length",
    "metric",
    "resume",
    "checkpoint_every",
    "seed",
)


def _make_backbone(args, modality, train):
    options = {"drop_path_rate": args.drop_path or 0.0}
    if args.source is not None:
        return BridleBackbone.from_preset(
            args.source, load_weights=not args.scratch, **options
        )
    # A new encoder is fitted to the data, as it is when it is pretrained.
    errors = import_tensorflow().errors
    try:
        examples = train.some_inputs(256)
    except errors.OpError as error:
        raise ValueError(error.message) from error
    if np.ptp(examples) == 0:
        raise ValueError(
            f"--data {args.data}: {len(examples)} examples have one value all over, "
            "so that there is nothing to learn"
        )
    if args.modality != "audio":
        examples = keras.ops.convert_to_numpy(modality.crop()(examples))
    return BridleBackbone.from_preset(
        f"bridle_{args.modality}_{args.preset}",
        load_weights=False,
        **modality.from_scratch(examples),
        **options,
    )


def _settings(args):
    return {
        name: value
        for name, value in sorted(vars(args).items())
        if name not in _NO_SETTINGS
    }


def _start(args):
    """What is started from, in words."""
    if args.source is None:
        return f"{args.preset} {args.modality} encoder from scratch"
    return f"{args.source}{', from scratch' if args.scratch else ''}"


def _report_folds(found, directory, console):
    """One line for all folds, means and standard deviations."""
    names = found[0].summary()
    row = {
        name: [metrics.summary()[name] for metrics in found]
        for name in names
        if not isinstance(names[name], str)
    }
    rows = [{"name": f"{len(found)} folds", **row}]
    write_in_all_forms(directory / "results" / "folds", rows)
    console.print(probe_table(rows, title="Held-out examples, all folds"))
