"""The command line of the recipes."""

import argparse
import contextlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from rich.console import Console

from keras_bridle.data.files import ReadReport, read_table
from keras_bridle.data.layouts import LAYOUTS, labeled_files
from keras_bridle.data.pipeline import unreadable_file
from keras_bridle.data.readers import import_tensorflow
from keras_bridle.distribution import (
    WorkerLostError,
    broadcast,
    distribute,
    is_chief,
    num_devices,
    own_directory,
    process_shard,
)
from keras_bridle.evaluation.features import modality_of, reading_options
from keras_bridle.evaluation.plots import plot_history
from keras_bridle.evaluation.report import (
    RunReport,
    probe_table,
    report_predictions,
    write_in_all_forms,
)
from keras_bridle.modalities import MODALITIES
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.presets import (
    MODALITIES_BY_RANK,
    backbone_preset,
    decoder_size,
    preset_modality,
    preset_names,
    saved_encoder_config,
)
from keras_bridle.training.checkpoint import NonFiniteLoss, SaveError, full_disk_error
from keras_bridle.training.examples import FileExamples, draw_few, split_examples
from keras_bridle.training.fine_tune import (
    FineTuner,
    fine_tune,
    predict_examples,
)
from keras_bridle.training.interleaved import InterleavedPretraining, load_run
from keras_bridle.training.run import RunDirectory, run_lock


def whole_number(least):
    """Makes the type of a flag that takes whole numbers.

    Args:
        least: int, the smallest that it takes.

    Returns:
        A function of a string that returns an int.
    """
    expected = f"a whole number, {least} or more"
    return lambda text: _number(text, int, lambda number: number >= least, expected)


def above_0(text):
    """The type of a flag that takes numbers above 0."""
    return _number(text, float, lambda number: number > 0, "a number above 0")


def from_0(text):
    """The type of a flag that takes 0 and numbers above it."""
    return _number(text, float, lambda number: number >= 0, "a number, 0 or more")


def from_0_to_1(text):
    """The type of a flag that takes numbers from 0 to 1, both included."""
    return _number(text, float, lambda number: 0 <= number <= 1, "a number from 0 to 1")


def from_0_below_1(text):
    """The type of a flag that takes 0, and numbers below 1."""
    return _number(
        text, float, lambda number: 0 <= number < 1, "a number from 0 to below 1"
    )


def above_0_to_1(text):
    """The type of a flag that takes numbers above 0, up to 1."""
    return _number(
        text, float, lambda number: 0 < number <= 1, "a number above 0, up to 1"
    )


def _number(text, kind, is_right, expected):
    try:
        number = kind(text)
        if math.isfinite(number) and is_right(number):
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected {expected}, received {text}")


class RecipeData(NamedTuple):
    """What a recipe trains on.

    Attributes:
        inputs: as of `InterleavedPretraining.fit()`.
        examples: array of some raw inputs, to count and to draw the codes of.
        steps_per_epoch: optional int, likewise.
        read_report: optional `ReadReport` of the files that are read.
    """

    inputs: Any
    examples: np.ndarray
    steps_per_epoch: int | None = None
    read_report: ReadReport | None = None


class RecipeProbe(NamedTuple):
    """What the table at the end of a recipe shows.

    Attributes:
        title: string, above the table.
        probe: function of a backbone that returns a dict from a probe's name to its
            accuracy.
        baselines: dict from a name to a function that returns such a dict.
    """

    title: str
    probe: Callable
    baselines: dict


# Flags of data sets that name a file or folder.
DATA_PATHS = (
    "test_data",
    "root",
    "segments",
    "test_segments",
    "ground_truth",
    "meta",
)


def pretraining_parser(description, sample_settings, own_data_settings):
    """Makes the parser of a pretraining recipe.

    Args:
        description: string, what the recipe's `--help` starts with.
        sample_settings: dict, values of the flags for a run on the sample data.
        own_data_settings: dict, values of the flags for a run on `--data`.

    Returns:
        An `argparse.ArgumentParser`. Flags that are not given are `None`; see
        `parse_pretraining_arguments()`.
    """
    parser = RecipeParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Without --data: " + as_flags(sample_settings) + ".\n\n"
        "With --data: " + as_flags(own_data_settings) + ".",
    )
    parser.set_defaults(settings=(sample_settings, own_data_settings))
    add = parser.add_argument
    add("--data", metavar="PATH", help="your data; without it, the sample data")
    add("--strict", action="store_true", help="stop at files that cannot be read")
    add("--preset", help="size of the encoder: tiny, small, base, large, or a folder")
    add(
        "--patch-size",
        type=whole_number(1),
        nargs="+",
        help="if not by the preset: 2 or 3 sides",
    )
    add(
        "--rounds",
        type=whole_number(0),
        help="tokenizer and encoder phases after the cold start",
    )
    add("--cold-start-epochs", type=whole_number(1))
    add("--tokenizer-epochs", type=whole_number(1))
    add("--encoder-epochs", type=whole_number(1))
    add(
        "--cold-start-centered",
        action=argparse.BooleanOptionalAction,
        help="let the cold start's codes tell shape and motion without brightness",
    )
    add(
        "--keep-cold-start-codes",
        action=argparse.BooleanOptionalAction,
        help="predict them in the phases after the cold start as well",
    )
    add("--joint", action="store_true", help="train tokenizer and encoder in one phase")
    add(
        "--tokenizer-every",
        type=whole_number(1),
        default=4,
        help="of --joint: in steps",
    )
    add("--tokenizer-loss-ratio", type=from_0, default=0.2, help="of --joint")
    add("--batch-size", type=whole_number(1))
    add("--encoder-learning-rate", type=above_0)
    add("--tokenizer-learning-rate", type=above_0)
    add("--cold-start-learning-rate", type=above_0, help="if not the encoder's")
    add(
        "--warmup",
        type=from_0_below_1,
        help="share of a phase's steps in which the rate rises",
    )
    add_optimizer_flags(add)
    add(
        "--ema-momentum",
        type=from_0_below_1,
        help="end phases with moving averages of weights",
    )
    add("--num-levels", type=whole_number(1), help="levels of the residual quantizer")
    add("--codebook-size", type=whole_number(1), help="codes of each level")
    add("--code-dim", type=whole_number(1), help="size of the code vectors")
    add(
        "--normalize",
        choices=("level", "input", "none"),
        default="level",
        help="bring to unit length each level's residual, the input alone, or nothing",
    )
    add("--restart-threshold", type=from_0, help="re-seat codes used less than this")
    add("--mask-ratio", type=from_0_below_1, help="share of the patches that is hidden")
    add(
        "--decoder-dim",
        type=whole_number(1),
        help="width of the decoder, if not by the preset",
    )
    add("--decoder-layers", type=whole_number(1), help="depth of the decoder, likewise")
    add("--directory", help="folder of the run")
    add("--resume", action="store_true", help="go on with the run in --directory")
    add(
        "--checkpoint-minutes",
        type=above_0,
        default=10.0,
        help="save the state after so long, and at the end of each epoch",
    )
    add(
        "--checkpoint-every-steps",
        type=whole_number(1),
        help="likewise after so many steps",
    )
    add(
        "--max-nonfinite-steps",
        type=whole_number(0),
        default=0,
        help="skip so many steps of an epoch whose loss is not finite, then stop",
    )
    add("--no-augmentation", action="store_true", help="train on inputs as they are")
    add(
        "--cache-codes",
        action="store_true",
        help="compute codes once for each phase: for the sample data with "
        "--no-augmentation, not for --data, whose files are read at another place in "
        "each epoch, nor for video, where codes depend on the mask",
    )
    add("--profile", action="store_true", help="record some steps of each phase")
    add(
        "--distribute",
        type=whole_number(0),
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="train on all devices and processes; with N on JAX, divide each copy of "
        "the networks among N devices (the README tells how to start processes)",
    )
    add_common_flags(add)
    return parser


def add_optimizer_flags(add):
    """Adds what every recipe that trains a network has.

    Args:
        add: the `add_argument` of a parser or of a group in it.
    """
    add("--weight-decay", type=from_0)
    add("--clip-norm", type=above_0, help="largest norm of the gradients")
    add(
        "--gradient-accumulation-steps",
        type=_accumulation_steps,
        help="batches to each step",
    )


def _accumulation_steps(text):
    # Keras takes two or more.
    steps = whole_number(1)(text)
    return None if steps == 1 else steps


def add_common_flags(add):
    """Adds what every recipe has.

    Args:
        add: the `add_argument` of a parser or of a group in it.
    """
    add("--seed", type=whole_number(0), default=0)
    add("--dtype-policy", default="float32", help="such as mixed_bfloat16")
    add("--quiet", action="store_true", help="no progress bars")


class RecipeParser(argparse.ArgumentParser):
    """Says in one line what is wrong, where argparse would list all flags first."""

    def error(self, message):
        message = " ".join(str(message).split())
        self.exit(2, f"{self.prog}: error: {message} (--help explains the flags)\n")


def parse_pretraining_arguments(parser, modality, arguments=None):
    """Parses a recipe's flags and fills in the settings for the data at hand.

    Sizes of the input that no flag gives come from the encoder in `--preset`, if that
    is a folder.

    Args:
        parser: what `pretraining_parser()` made.
        modality: string, `"audio"`, `"image"` or `"video"`.
        arguments: optional list of strings; the command line's by default.

    Returns:
        An `argparse.Namespace`, with the function `fail` that ends the program with a
        message, and what the encoder expects of `channels` or `sample_rate`.
    """
    args = parser.parse_args(arguments)
    args.fail = parser.error
    sample_settings, own_data_settings = args.settings
    del args.settings
    if args.patch_size and args.preset and Path(args.preset).exists():
        args.fail(f"--patch-size is that of the encoder in --preset {args.preset}")
    args.channels, args.sample_rate = 3, 16000
    if args.preset and Path(args.preset).exists():
        try:
            _fit_sizes(args, modality)
        except (OSError, ValueError) as error:
            args.fail(error)
    elif args.data is None and modality == "image":
        args.channels = 1
    fill_in(args, sample_settings if args.data is None else own_data_settings)
    return args


def _fit_sizes(args, modality):
    config = saved_encoder_config(args.preset)
    if config is None:
        raise ValueError(f"--preset {args.preset} is no folder of a preset or a run")
    dims = config["input_dims"]
    found = MODALITIES_BY_RANK.get(len(dims))
    if found != modality:
        raise ValueError(
            f"--preset {args.preset} is an encoder for {found or 'other inputs'}, and "
            f"this recipe for {modality}"
        )
    sizes = {}
    if modality == "audio":
        front_end = (config.get("front_end") or {}).get("config", {})
        args.sample_rate = front_end.get("sample_rate", args.sample_rate)
        if dims[0] is not None:
            sizes["seconds"] = dims[0] / args.sample_rate
    else:
        args.channels = dims[-1]
        sizes["image_size"] = dims[-2]
    if modality == "video":
        sizes["num_frames"] = dims[0]
    for name, size in sizes.items():
        if getattr(args, name) is None:
            setattr(args, name, size)


def fill_in(args, settings):
    """Fills in flags that are not given, then checks the paths.

    Args:
        args: `argparse.Namespace` with the function `fail`.
        settings: dict, values of the flags that are not given.
    """
    for name, value in settings.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    refuse_taken(args, Path(args.directory, "settings.json").exists())
    check_paths(args)


def refuse_taken(args, is_taken):
    """Ends the program if there is a run in `--directory`, but with `--resume`.

    Args:
        args: `argparse.Namespace` with the function `fail`.
        is_taken: bool, whether there is.
    """
    if is_taken and not args.resume:
        args.fail(
            f"--directory {args.directory} holds a run already: pass --resume to go on "
            "with it, or name another directory"
        )


def check_paths(args):
    """Ends the program if what is to be read is missing, or `--directory` is a file.

    Args:
        args: `argparse.Namespace` with the function `fail`.
    """
    for name in ("data", *DATA_PATHS):
        path = getattr(args, name, None)
        if path is not None and not Path(path).exists():
            args.fail(f"--{name.replace('_', '-')} {path} does not exist")
    folder = Path(args.directory)
    for path in (folder, *folder.parents):
        if path.is_file():
            args.fail(f"--directory {folder} can be no folder: {path} is a file")


class Setup:
    """Ends a program with one line for what its user can mend, before training starts.

    In a `with` block, errors in values and files become a line and exit code 2, until
    `is_over` is set: what goes wrong after it is a fault and keeps its traceback, but
    for other processes that are lost, full disks and losses that are not finite: these
    become a line and exit code 1. With `--distribute`, everything in the block is
    spread over the devices.

    Args:
        args: what `parse_pretraining_arguments()` returned.
    """

    def __init__(self, args):
        self.args = args
        self.is_over = False
        self._scope = contextlib.ExitStack()

    def __enter__(self):
        # Not all recipes have the flag.
        if getattr(self.args, "distribute", 0):
            self._distribute()
        keras.utils.set_random_seed(self.args.seed)
        try:
            keras.config.set_dtype_policy(self.args.dtype_policy)
        except ValueError as error:
            self.args.fail(error)
        return self

    def _distribute(self):
        args = self.args
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(distribute(args.distribute))
            except ValueError as error:
                args.fail(error)
            if args.batch_size % num_devices():
                args.fail(
                    f"--batch-size {args.batch_size} must be a multiple of the number "
                    f"of devices, {num_devices()}"
                )
            self._scope = stack.pop_all()
        # Only one process reports and leaves files.
        args.directory = own_directory(args.directory)
        args.quiet = args.quiet or not is_chief()

    def __exit__(self, kind, error, traceback):
        try:
            self._scope.__exit__(kind, error, traceback)
        except WorkerLostError as lost:
            raise SystemExit(str(lost)) from error
        if isinstance(error, (SaveError, NonFiniteLoss)):
            raise SystemExit(_with_flags(error, self.args)) from error
        unreadable = None if error is None else unreadable_file(error)
        if unreadable is not None:
            self.args.fail(f"{unreadable} (--strict stops at such files)")
        full = full_disk_error(error) if isinstance(error, Exception) else None
        if full is not None:
            raise SystemExit(
                f"The disk is full: {' '.join(str(full).split())}. What was saved "
                "before is unharmed: make room, and go on with --resume"
            ) from error
        if not self.is_over and isinstance(error, (ValueError, OSError, ImportError)):
            self.args.fail(_with_flags(error, self.args))


def _with_flags(error, args):
    """The message of an error, with flags in the place of arguments of that name."""

    def flag(found):
        name = found[1]
        return f"--{name.replace('_', '-')}" if name in vars(args) else found[0]

    return re.sub(r"`(\w+)(?:=True)?`", flag, str(error))


def make_backbone(args, modality, examples, make_front_end, **kwargs):
    """Builds the encoder that `--preset` names, or loads it from a folder.

    Args:
        args: what `parse_pretraining_arguments()` returned.
        modality: string, the middle of a preset's name, such as `"audio"`.
        examples: array of some raw inputs.
        make_front_end: function of them that makes the front end of a new encoder, such
            as `LogMelSpectrogram.for_data`.
        **kwargs: arguments of `BridleBackbone` that replace those of a named preset.

    Returns:
        A `BridleBackbone`.

    Raises:
        ValueError: if the examples are too much alike to normalize others by them.
    """
    if Path(args.preset).exists():
        return BridleBackbone.from_preset(args.preset)
    if args.patch_size is not None:
        kwargs["patch_size"] = tuple(args.patch_size)
    if _is_constant(examples):
        raise ValueError(
            f"--data {args.data} has nothing to learn from: the {len(examples)} files "
            "that were drawn to look at are silent, or a channel has one value"
        )
    return BridleBackbone.from_preset(
        f"bridle_{modality}_{args.preset}",
        load_weights=False,
        front_end=make_front_end(examples),
        **kwargs,
    )


def _is_constant(examples):
    """Whether no waveform changes, or a channel of pictures has one value."""
    if examples.ndim == 2:
        return bool((examples == examples[:, :1]).all())
    pixels = examples.reshape(-1, examples.shape[-1])
    return bool((pixels == pixels[0]).all(axis=0).any())


def read_size(args):
    """Tells how large pictures are read: a little larger if crops follow.

    Args:
        args: what `parse_pretraining_arguments()` returned.

    Returns:
        int, their side in pixels. Crops lose less detail so.
    """
    return args.image_size if args.no_augmentation else args.image_size * 8 // 7


def data_from_files(args, manifest, make_dataset):
    """Makes a recipe's data of files that are read while it trains.

    Args:
        args: what `parse_pretraining_arguments()` returned.
        manifest: the list of files.
        make_dataset: function of the manifest and keyword arguments that makes a
            `tf.data.Dataset`, such as `keras_bridle.data.audio_dataset`.

    Returns:
        A `RecipeData`.

    Raises:
        ValueError: if there are fewer files than a batch has.
    """
    steps = len(manifest) // args.batch_size
    if steps == 0:
        raise ValueError(
            f"--data {args.data} has {len(manifest)} files, too few for a batch of "
            f"--batch-size {args.batch_size}"
        )
    report = ReadReport()

    def batches(epoch, **options):
        return make_dataset(
            manifest,
            batch_size=args.batch_size,
            labels=False,
            seed=args.seed,
            initial_epoch=epoch,
            strict=args.strict,
            report=report,
            **options,
        )

    errors = import_tensorflow().errors
    try:
        # Shuffled: the first files in order may be of one class.
        first = batches(0, shuffle=True).take(4)
        examples = np.concatenate([batch.numpy() for batch in first])
    except errors.OpError as error:
        raise ValueError(error.message) from error

    def inputs(epoch, first_batch=0):
        return batches(
            epoch,
            first_batch=first_batch,
            shuffle=True,
            repeat=True,
            shard=process_shard(),
        )

    return RecipeData(inputs, examples, steps, report)


def pretrain(setup, backbone, data, probe=None, **kwargs):
    """Pretrains as flags describe, and reports.

    Args:
        setup: `Setup`, which is over when training starts.
        backbone: `BridleBackbone`.
        data: `RecipeData`.
        probe: optional `RecipeProbe`.
        **kwargs: more arguments of `InterleavedPretraining`.

    Returns:
        The `InterleavedPretraining`.
    """
    args, console = setup.args, Console(quiet=not is_chief())
    if args.no_augmentation:
        kwargs["augmentation"] = None
    pretraining = InterleavedPretraining(
        backbone,
        num_levels=args.num_levels,
        codebook_size=args.codebook_size,
        code_dim=args.code_dim,
        quantizer_options={
            "normalize": None if args.normalize == "none" else args.normalize,
            "restart_threshold": args.restart_threshold,
        },
        cold_start_centered=bool(args.cold_start_centered),
        keep_cold_start_codes=bool(args.keep_cold_start_codes),
        decoder_options=decoder_size(backbone, args.decoder_dim, args.decoder_layers),
        seed=args.seed,
        **kwargs,
    )
    shown = {} if probe is None else probe._asdict()
    report = RunReport(
        args.directory, data.examples, resume=args.resume, console=console, **shown
    )

    # All processes have the same left to probe.
    report.rows = broadcast(report.rows)

    def on_start(pretraining):
        setup.is_over = True
        report.on_start(pretraining)

    pretraining.fit(
        data.inputs,
        steps_per_epoch=data.steps_per_epoch,
        on_start=on_start,
        on_phase_end=report.on_phase_end,
        verbose=0 if args.quiet else 1,
        **{name: getattr(args, name) for name in _FIT_FLAGS},
    )
    backbone.save_to_preset(str(Path(args.directory, "preset")))
    report.finish(pretraining)
    if data.read_report is not None:
        list_skipped(data.read_report, args.directory, console)
    console.print(
        f"Everything is in {args.directory}, pictures in {report.folder}", markup=False
    )
    return pretraining


_FIT_FLAGS = (
    "rounds",
    "cold_start_epochs",
    "cold_start_learning_rate",
    "tokenizer_epochs",
    "encoder_epochs",
    "joint",
    "tokenizer_every",
    "tokenizer_loss_ratio",
    "batch_size",
    "encoder_learning_rate",
    "tokenizer_learning_rate",
    "warmup",
    "weight_decay",
    "clip_norm",
    "gradient_accumulation_steps",
    "ema_momentum",
    "directory",
    "resume",
    "checkpoint_minutes",
    "checkpoint_every_steps",
    "max_nonfinite_steps",
    "cache_codes",
    "profile",
)


def list_skipped(read_report, directory, console):
    """Writes the lists of files that could not be read, and says how many there are."""
    if read_report.skipped or read_report.incomplete:
        path = read_report.write(directory)
        skipped, in_part = len(read_report.skipped), len(read_report.incomplete)
        console.print(
            f"{skipped} {'file' if skipped == 1 else 'files'} could not be read"
            f"{f', {in_part} only in part' if in_part else ''}: {path}",
            # Brackets in a folder's name are no style.
            markup=False,
        )


def as_flags(settings):
    """Writes settings as a command line has them."""
    return ", ".join(_as_flag(name, value) for name, value in settings.items())


def _as_flag(name, value):
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    values = value if isinstance(value, tuple) else (value,)
    return " ".join([f"--{flag}", *map(str, values)])


# Which flags tell how files of a modality are read.
_READING = {
    "audio": ("seconds", "reader"),
    "image": ("image_size",),
    "video": ("image_size", "num_frames", "sampling_rate"),
}
# Of labeled data; all need --data.
DATA_FLAGS = (
    "layout",
    *DATA_PATHS,
    "file_column",
    "label_column",
    "label_separator",
    "split_column",
    "test_split",
    "folds",
    "fold",
)


class Encoder(NamedTuple):
    """An encoder and where it comes from.

    Args:
        name: string, what the user called it.
        backbone: `BridleBackbone`.
        tokenizer: `BridleTokenizer` or `RandomProjectionTokenizer`, or `None`.
    """

    name: str
    backbone: Any
    tokenizer: Any


def encoder_parser(description):
    """Makes a parser with the flags of all recipes for trained encoders.

    Args:
        description: string, what the recipe's `--help` starts with.

    Returns:
        An `argparse.ArgumentParser`, whose `parse_args()` gives what `Setup` needs.
    """
    parser = RecipeParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    count = whole_number(1)
    add("--batch-size", type=count, default=32, help="of the encoder")
    add("--seconds", type=above_0, help="audio: how much of each recording is read")
    add("--reader", help="audio: soundfile or tensorflow-io")
    add("--image-size", type=count, help="side in pixels, if not the encoder's")
    add("--num-frames", type=count, help="video: frames of a clip, likewise")
    add("--sampling-rate", type=count, help="video: take every so many frames")
    add("--directory", help="folder for all that is made")
    add_common_flags(add)
    return parser


def add_data_flags(parser):
    """Adds the flags of labeled data, as of `labeled_files`.

    Args:
        parser: `argparse.ArgumentParser`.
    """
    add = parser.add_argument_group("labeled data").add_argument
    add("--data", metavar="PATH", help="folder, or CSV file; by default sample data")
    add("--test-data", metavar="PATH", help="the test part, where it lies elsewhere")
    add(
        "--layout",
        default="folder",
        choices=sorted({name for names in LAYOUTS.values() for name in names}),
        help="how --data is laid out; folder: class folders, or a CSV file",
    )
    add("--root", metavar="PATH", help="folder that names in a table start from")
    add("--segments", metavar="CSV", help="AudioSet's training segments")
    add("--test-segments", metavar="CSV", help="AudioSet's test segments")
    add("--ground-truth", metavar="PATH", help="classes of ImageNet's flat val folder")
    add("--meta", metavar="PATH", help="ImageNet's meta.mat, if these are its numbers")
    add("--file-column", default="file", help="of a CSV file")
    add("--label-column", default="label", help="likewise")
    add("--label-separator", help="text between several classes in it")
    add("--split-column", default="split", help="of a CSV file, parts the files")
    add("--test-split", help="its entry, or a folder's name: what to test on")
    add("--folds", type=int, default=5, help="to draw, where nothing parts the files")
    add("--fold", type=int, help="from 1: test on this fold alone")


def check_segments(args, grids):
    """Raises a ValueError if `--segment-means` asks for more parts than there are.

    Args:
        args: `argparse.Namespace`.
        grids: list of tuples of ints, the patches that encoders have along each side,
            `None` where that is unknown. It is enough that one of them has so many.
    """
    if args.segment_means is None or any(rows is None for rows, *_ in grids):
        return
    most = max(rows for rows, *_ in grids)
    if args.segment_means > most:
        raise ValueError(
            f"--segment-means {args.segment_means}: expected {most} or less, as many "
            "patches as there are along an input's time or height"
        )


def load_encoder(source):
    """Loads what `--from` names.

    Args:
        source: string: the directory of a run, a preset's folder or address, or the
            name of a size such as `"bridle_audio_tiny"`, which has no training.

    Returns:
        An `Encoder`; of a run, with the tokenizer of its last phase.

    Raises:
        ValueError: if there is none of these.
    """
    check_source(source)
    try:
        return _load(source)
    except (ValueError, OSError) as error:
        raise ValueError(f"--from {source}: {error}") from error


def check_source(source):
    """Raises a ValueError if what `--from` names is nothing that there may be.

    Args:
        source: string, as of `load_encoder()`.
    """
    is_size = source.startswith("bridle_")
    # KerasHub's message on names that it does not know tells of its own models.
    if not (is_size or "://" in source or Path(source).is_dir()):
        raise ValueError(
            f"--from {source} is no folder here. Expected the directory of a run, a "
            "preset's folder or address, such as hf://user/name, or a size without "
            "training, such as bridle_audio_tiny"
        )


def _load(source):
    path = Path(source)
    if not path.exists():
        # Sizes have no weights; what an address names has some.
        has_weights = "://" in source
        backbone = BridleBackbone.from_preset(source, load_weights=has_weights)
        return Encoder(source, backbone, None)
    if _is_pretraining(path / "settings.json"):
        run = load_run(path)
        return Encoder(source, run.backbone, run.tokenizer)
    return Encoder(source, BridleBackbone.from_preset(source), None)


def untrained(backbone):
    """Makes an encoder of the same settings with new weights."""
    return type(backbone).from_config({**backbone.get_config(), "name": "untrained"})


def refuse_flags(parser, args, names, reason):
    """Ends the program if one of some flags is given.

    Args:
        parser: the parser that `args` came from.
        args: `argparse.Namespace`.
        names: iterable of strings, the flags as attributes of `args`.
        reason: string, what follows the flag's name in the message.
    """
    for name in names:
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} {reason}")


def check_columns(args, names):
    """Raises a ValueError if a CSV file lacks a column that a flag names.

    Args:
        args: `argparse.Namespace`.
        names: iterable of strings, the flags as attributes of `args`.
    """
    for path in (args.data, getattr(args, "test_data", None)):
        if path is None or not Path(path).is_file():
            continue
        columns = [name for name in read_table(Path(path), [])[0] if name is not None]
        for name in names:
            column = getattr(args, name)
            if column not in columns:
                raise ValueError(
                    f"--{name.replace('_', '-')} {column}: {path} has no such column, "
                    f"but {', '.join(columns)}"
                )


def check_reading_flags(args, modality):
    """Raises a ValueError if a flag tells how files of another modality are read."""
    for names in _READING.values():
        for name in names:
            if name not in _READING[modality] and getattr(args, name) is not None:
                flag = name.replace("_", "-")
                raise ValueError(
                    f"--{flag} is not for {modality}, which the encoder takes"
                )


def reading_of(args, backbone, seconds=None):
    """Collects the flags that tell how files are read.

    Args:
        args: what the parser of `encoder_parser()` gave.
        backbone: `BridleBackbone`.
        seconds: optional float, the default of `--seconds` for encoders that take
            recordings of any length.

    Returns:
        A dict, as of `reading_options`.

    Raises:
        ValueError: for a flag of another modality.
    """
    modality = modality_of(backbone)
    check_reading_flags(args, modality)
    options = {name: getattr(args, name) for name in _READING[modality]}
    if modality == "audio" and options["seconds"] is None:
        options["seconds"] = seconds if backbone.input_dims[0] is None else None
    return reading_options(backbone, **options)


def data_of(args, modality, report):
    """Reads the labeled files that the flags of `add_data_flags()` name.

    Args:
        args: what the parser gave.
        modality: string.
        report: `ReadReport`, to list the files in that are missing.

    Returns:
        `LabeledFiles`.
    """
    if args.layout == "folder":
        names = ["file_column", "label_column"]
        # Without such a column, folds are drawn; but not if it is asked for.
        names += ["split_column"] if args.split_column != "split" else []
        check_columns(args, names)
    options = {name: getattr(args, name) for name in DATA_FLAGS}
    files = labeled_files(modality, args.data, seed=args.seed, **options)
    report.add_missing(files.manifest)
    return files


def _is_pretraining(path):
    try:
        return "plan" in json.loads(path.read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
    add(
        "--loss",
        choices=("auto", "categorical", "binary"),
        default="auto",
        help="kind of cross-entropy",
    )
    add("--label-smoothing", type=from_0_below_1)
    add(
        "--ema-momentum",
        type=from_0_below_1,
        help="test moving averages of the weights",
    )
    add("--metric", choices=("accuracy", "mAP"), help="that finds the best epoch")
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
            **{name: getattr(args, name) for name in _FIT_FLAGS_COMMAND_LINE},
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
            self.stack.enter_context(run_lock(args.directory))
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


_FIT_FLAGS_COMMAND_LINE = (
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
