"""The command line of the recipes, generated from their options."""

import argparse
import contextlib
import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import keras
import yaml
from rich.console import Console

from keras_bridle.config import (
    ArgumentError,
    Existing,
    LabeledDataOptions,
    check,
    checked,
    current_settings,
    kinds_of,
)
from keras_bridle.data.files import ReadReport, digest_of, printable
from keras_bridle.data.layouts import list_files, splits_of
from keras_bridle.distribution import (
    WorkerLostError,
    distribute,
    is_chief,
    num_devices,
    own_directory,
)
from keras_bridle.modalities import modality_of, patch_grid
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.training.checkpoint import (
    NonFiniteLoss,
    SaveError,
    full_disk_error,
    write_json,
)
from keras_bridle.training.interleaved import load_run


class RecipeParser(argparse.ArgumentParser):
    """A parser with flags for the options of a class.

    Args:
        kind: class of `Options`. It may have an attribute `hidden`, a tuple of the
            names of options that have no flag in this recipe.
        description: string, the start of `--help`.
        profiles: dict from a condition, as text, to a dict of the recipe's own
            defaults.
    """

    def __init__(self, kind, description, profiles):
        self.kind = kind
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        others, set_by = [], [set(profile) for profile in profiles.values()]
        own = vars(kind).get("__annotations__", {})
        for name, field in sorted(
            kind.fields().items(), key=lambda item: item[0] not in own
        ):
            default = _text_of(field.default)
            help = field.metadata["help"]
            if self.flag(name).startswith("--set "):
                default = (
                    "" if set_by and name in set.intersection(*set_by) else default
                )
                others.append(f"  {name + (default and '=' + default):<30} {help}")
                continue
            if default and field.type is not bool and name not in set().union(*set_by):
                help = f"{help} (default: {default})"
            self._add_flag(field, help)
        self.add_argument(
            "--settings", metavar="FILE", help="YAML file, or a run's settings.json"
        )
        self.add_argument(
            "--set", metavar="NAME=VALUE", action="append", help="may be repeated"
        )
        self.epilog = "More options, for --set NAME=VALUE and --settings FILE:\n"
        self.epilog += "\n".join(others)
        for when, profile in profiles.items():
            pairs = (f"{name}={_text_of(value)}" for name, value in profile.items())
            text = textwrap.fill(f"{when}: {' '.join(pairs)}", 88)
            self.epilog += f"\n\n{text}"

    def flag(self, name):
        """Returns how the command line sets an option."""
        field = self.kind.fields().get(name)
        if field is None:
            return f"`{name}`"
        flag = field.metadata["flag"]
        if not flag or name in getattr(self.kind, "hidden", ()):
            return f"--set {name}"
        no = "no-" if field.default is True else ""
        return flag if isinstance(flag, str) else f"--{no}{name.replace('_', '-')}"

    def _add_flag(self, field, help):
        about: dict[str, Any] = {"dest": field.name, "help": help}
        kind = kinds_of(field.type)[-1]
        if kind is bool:
            about |= {"action": "store_const", "const": not field.default}
        else:
            if get_origin(kind) is tuple:
                about["nargs"], kind = "+", get_args(kind)[0]
            if field.metadata["const"] is not None:
                about |= {"nargs": "?", "const": field.metadata["const"]}
            base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
            names = {int: "N", float: "X"}
            about["metavar"] = "PATH" if kind is Existing else names.get(base, "NAME")
        self.add_argument(self.flag(field.name), **about)

    def error(self, message):
        message = printable(" ".join(str(message).split()))
        self.exit(2, f"{self.prog}: error: {message} (--help explains the flags)\n")

    def given(self, arguments):
        """Parses a command line.

        Returns:
            A tuple of two dicts from an option to its value: from the command line, and
            from a settings file.
        """
        found, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(self._hint(unknown[0]))
        values, fields = vars(found), self.kind.fields()
        path, pairs = values.pop("settings", None), values.pop("set", ())
        for pair in pairs:
            name, is_pair, text = pair.partition("=")
            if name not in fields or not is_pair:
                self.error(f"--set {pair}: expected NAME=VALUE, names as --help lists")
            values[name] = yaml.safe_load(text) if text[:1] in ("{", "[") else text
        settings = {} if path is None else self._read(path)
        return tuple(
            {name: checked(fields[name], x, is_text=True) for name, x in some.items()}
            for some in (values, settings)
        )

    def _hint(self, word):
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        for known, value in ((name, "..."), (name.removeprefix("no_"), "false")):
            if known in self.kind.fields():
                return (
                    f"{word.partition('=')[0]} is not a flag: use --set {known}={value}"
                )
        return f"unknown argument {word}"

    def _read(self, path) -> Any:
        """Reads a settings file; a run's may hold options that a recipe lacks."""
        fields = self.kind.fields()
        try:
            found = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            self.error(f"--settings {path}: {error}")
        if not isinstance(found, dict):
            self.error(f"--settings {path}: expected names and values of options")
        if isinstance(found.get("settings"), dict):
            saved = found.get("recipe") or current_settings(found["settings"])
            found = {name: x for name, x in saved.items() if name in fields}
        unknown = ", ".join(map(str, found.keys() - fields.keys()))
        if unknown:
            self.error(f"--settings {path}: unknown options: {unknown}")
        return found


def _text_of(default):
    """Returns a value as `--set` takes it, empty for `None`."""
    if default is None or default is dataclasses.MISSING:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(map(str, default)) if isinstance(default, tuple) else f"{default}"


class Setup:
    """Parses a command line; errors end the program with one line.

    In a `with` block, errors in values and files become one line and exit code 2, until
    `is_over` is set. Later errors keep their traceback, except lost workers, full disks
    and losses that are not finite, which become one line and exit code 1. With
    `distribute`, everything in the block is spread over the devices.

    Args:
        kind: class of `Options` with those of `RunOptions`.
        description: string, the start of `--help`.
        arguments: optional list of strings, by default the command line's.
        profiles: optional dict, see `RecipeParser`.

    Attributes:
        options: object of the class.
        given: dict, the options given on the command line.
        is_over: bool.
        console: `rich.console.Console`.
        read_report: `ReadReport` for unreadable files.
    """

    # The option that allows an existing run directory.
    again = "resume"

    def __init__(self, kind, description, arguments=None, profiles=None):
        self.parser = RecipeParser(kind, description, profiles or {})
        self.is_over = False
        self._said = 0
        self.read_report = ReadReport()
        self.console = Console()
        self._scope = contextlib.ExitStack()
        with self._in_one_line():
            self.given, settings = self.parser.given(arguments)
            found = {**settings, **self.given}
            self.options = kind(**{**self.defaults(found), **found})
            self.check()

    def defaults(self, given):
        """Returns the recipe's own defaults, given other options."""
        return {}

    def check(self):
        """Raises an error for options that conflict with each other or with files."""
        options = self.options
        for name, field in options.fields().items():
            path = getattr(options, name)
            is_path = Existing in kinds_of(field.type) and path is not None
            check(not is_path or Path(path).exists(), name, "a path that exists", path)
        folder = Path(options.directory)
        for path in (folder, *folder.parents):
            if path.is_file():
                raise ArgumentError(
                    "directory", f"a folder, but {path} is a file", folder
                )
        if self.is_taken(folder) and not getattr(options, self.again):
            expected = f"another folder, or used with {self.parser.flag(self.again)}"
            raise ArgumentError("directory", expected, folder)

    def is_taken(self, folder):
        """Returns whether a folder holds a run."""
        return (folder / "settings.json").exists()

    def refuse_idle(self, modality):
        """Raises an error for given options that would have no effect."""
        fields = self.options.fields()
        labeled = {*LabeledDataOptions.fields(), "reader", "sampling_rate"} - {"data"}
        for name in self.given:
            only = fields[name].metadata["only"]
            if only and modality.name not in only:
                self.parser.error(
                    f"{self.parser.flag(name)} is not for {modality.name}"
                )
            if name in labeled and self.options.data is None:
                self.parser.error(f"{self.parser.flag(name)} needs --data")

    def __enter__(self):
        options = self.options
        with self._in_one_line():
            if getattr(options, "distribute", 0):
                self._distribute()
            keras.utils.set_random_seed(options.seed)
            keras.config.set_dtype_policy(options.dtype_policy)
        return self

    def _distribute(self):
        options = self.options
        with contextlib.ExitStack() as stack:
            stack.enter_context(distribute(options.distribute))
            if options.batch_size % num_devices():
                expected = f"a multiple of the number of devices, {num_devices()}"
                raise ArgumentError("batch_size", expected, options.batch_size)
            self._scope = stack.pop_all()
        # Only the chief prints and writes to the run's directory.
        options.directory = own_directory(options.directory)
        options.quiet = options.quiet or not is_chief()
        self.console = Console(quiet=not is_chief())

    def __exit__(self, kind, error, traceback):
        try:
            self._scope.__exit__(kind, error, traceback)
        except WorkerLostError as lost:
            raise SystemExit(str(lost)) from error
        if isinstance(error, (WorkerLostError, SaveError, NonFiniteLoss)):
            raise SystemExit(" ".join(str(error).split())) from error
        if error is not None and self.read_report.error is not None:
            self.parser.error(
                f"{self.read_report.error} (--strict stops at such files)"
            )
        full = full_disk_error(error) if isinstance(error, Exception) else None
        if full is not None:
            raise SystemExit(
                f"The disk is full: {' '.join(str(full).split())}. Earlier "
                "checkpoints are unharmed: free space, and resume with --resume"
            ) from error
        if not self.is_over and error is not None:
            with self._in_one_line():
                raise error

    @contextlib.contextmanager
    def _in_one_line(self):
        try:
            yield
        except ArgumentError as error:
            flag = self.parser.flag(error.argument)
            self.parser.error(
                f"{flag} must be {error.expected}. Received: {error.received}"
            )
        except (ValueError, OSError, ImportError) as error:
            self.parser.error(error)

    def list_data(self, files):
        """Reports what a list leaves out, and checks the files of a resumed run."""
        self.read_report.add_missing(files)
        self.say_notes()
        self._digest = digest_of(files)
        path = Path(self.options.directory, "data.json")
        if self.options.resume and path.exists():
            found = json.loads(path.read_text())
            if found != self._digest and not self.options.accept_changed_data:
                expected = (
                    f"the {found['files']} files of the run, but they have changed "
                    "(or use --set accept_changed_data=true)"
                )
                raise ArgumentError("data", expected, self.options.data)

    def keep_digest(self):
        """Saves a digest of the run's files in its directory."""
        if self.options.data is not None:
            write_json(Path(self.options.directory, "data.json"), self._digest)

    def say_notes(self):
        """Prints each note once."""
        for note in self.read_report.notes[self._said :]:
            self.say(f"Note: {note}", style="yellow")
        self._said = len(self.read_report.notes)

    def list_skipped(self):
        """Writes the lists of unreadable files, and prints their number."""
        self.say_notes()
        report, folder = self.read_report, self.options.directory
        if report.skipped or report.incomplete or report.notes:
            path = report.write(folder)
            skipped, faulty = len(report.skipped), len(report.incomplete)
            if skipped or faulty:
                self.say(
                    f"{skipped} {'file' if skipped == 1 else 'files'} could not be read"
                    f"{f', {faulty} read with faults' if faulty else ''}: {path}"
                )

    def say(self, text, **style):
        """Prints a line without interpreting brackets as styles."""
        self.console.print(printable(text), markup=False, highlight=False, **style)


class Encoder(NamedTuple):
    """An encoder, its source, and its tokenizer if it has one."""

    name: str
    backbone: Any
    tokenizer: Any


def load_encoder(source):
    """Loads the encoder that `--from` names.

    Args:
        source: string: the directory of a run, a preset's folder or address, or the
            name of a size such as `"bridle_audio_tiny"`, which is untrained.

    Returns:
        An `Encoder`; of a run, with the tokenizer of its last phase.
    """
    check_source(source)
    path = Path(source)
    if (path / "phases").is_dir():
        run = load_run(path)
        return Encoder(source, run.backbone, run.tokenizer)
    # Presets that name a size have no weights.
    has_weights = path.exists() or "://" in source
    backbone = BridleBackbone.from_preset(source, load_weights=has_weights)
    return Encoder(source, backbone, None)


def check_source(source):
    """Raises an error if `--from` names neither a path, an address nor a size."""
    # KerasHub's error for unknown names would list its own models.
    if not (source.startswith("bridle_") or "://" in source or Path(source).exists()):
        expected = (
            "the directory of a run, a preset's folder or address, such as "
            "hf://user/name, or a size without training, such as bridle_audio_tiny"
        )
        raise ArgumentError("source", expected, source)


def labeled_data(options, modality, report):
    """Lists labeled files and splits them.

    Args:
        options: object of `LabeledDataOptions`.
        modality: `AUDIO`, `IMAGE` or `VIDEO`.
        report: `ReadReport`, to which missing files are added.

    Returns:
        A tuple of the list of files, list of tuples `(train, test)` of indices, and the
        indices of validation or `None`.
    """
    data = vars(options.of(LabeledDataOptions))
    del data["strict"], data["accept_changed_data"]
    splitting = {name: data.pop(name) for name in ("test_split", "folds", "fold")}
    if options.layout == "folder" and Path(options.data).is_dir():
        data["test_split"] = options.test_split
    files = list_files(modality.name, labels=True, **data)
    report.add_missing(files)
    return files, *splits_of(files, seed=options.seed, report=report, **splitting)


def check_segments(count, encoder, reading):
    """Raises an error if inputs have fewer rows of patches than segments."""
    shape = modality_of(encoder.backbone).input_shape(reading)
    rows = patch_grid(encoder.backbone, shape)[0]
    if count is not None and rows is not None and count > rows:
        expected = f"at most {rows}, the patches along an input's time or height"
        raise ArgumentError("segment_means", expected, count)
