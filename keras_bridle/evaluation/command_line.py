"""The command line that recipes for trained encoders share."""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from keras_bridle.data.file_manifest import read_table
from keras_bridle.data.labeled_files import LAYOUTS, labeled_files
from keras_bridle.evaluation.file_inputs import modality_of, reading_options
from keras_bridle.models.bridle_backbone import BridleBackbone
from keras_bridle.pretraining.command_line import (
    DATA_PATHS,
    RecipeParser,
    add_common_flags,
)
from keras_bridle.pretraining.flag_types import above_0, whole_number
from keras_bridle.pretraining.saved_run import load_run

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
