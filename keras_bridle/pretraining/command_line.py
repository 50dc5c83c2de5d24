"""The command line that the recipes of all modalities share."""

import argparse
import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from rich.console import Console

from keras_bridle.data.pipeline import unreadable_file
from keras_bridle.data.read_report import ReadReport
from keras_bridle.data.tensorflow_input import import_tensorflow
from keras_bridle.distribution import (
    WorkerLostError,
    broadcast,
    distribute,
    is_chief,
    num_devices,
    own_directory,
    process_shard,
)
from keras_bridle.evaluation.run_report import RunReport
from keras_bridle.models.bridle_backbone import BridleBackbone
from keras_bridle.models.presets import (
    MODALITIES_BY_RANK,
    decoder_size,
    saved_encoder_config,
)
from keras_bridle.pretraining.atomic_files import SaveError, full_disk_error
from keras_bridle.pretraining.flag_types import (
    above_0,
    from_0,
    from_0_below_1,
    whole_number,
)
from keras_bridle.pretraining.interleaved import InterleavedPretraining
from keras_bridle.pretraining.nonfinite_steps import NonFiniteLoss


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
