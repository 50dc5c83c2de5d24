"""Every option of pretraining, fine-tuning and the recipes, declared once.

An option is a dataclass field. Its type defines the values it takes; `option()` holds
its default and help. Checks, saved settings, the arguments of `fit()` and the recipes'
command line derive from it.
"""

import contextlib
import dataclasses
import math
import numbers
import types
import typing
from typing import Annotated, Any, Literal


class ArgumentError(ValueError):
    """An argument has an invalid value.

    Attributes:
        argument: string, the argument's name.
        expected: string, the valid values.
        received: what came.
    """

    def __init__(self, argument, expected=None, received=None):
        text = f"`{argument}` must be {expected}. Received: {argument}={received!r}"
        if expected is None:
            # Keras recreates errors raised in `call()` from their text alone.
            argument, text = None, argument
        super().__init__(text)
        self.argument, self.expected, self.received = argument, expected, received


def check(is_right, argument, expected, received):
    """Raises an `ArgumentError` unless an argument is right."""
    if not is_right:
        raise ArgumentError(argument, expected, received)


class Range(typing.NamedTuple):
    """The numbers that an option takes, and a description for errors."""

    words: str
    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def __contains__(self, number):
        return (
            math.isfinite(number)
            and self.at_least <= number <= self.at_most
            and self.above < number < self.below
        )


Natural = Annotated[int, Range("an int, at least 0", at_least=0)]
Count = Annotated[int, Range("an int, at least 1", at_least=1)]
Positive = Annotated[float, Range("a number above 0", above=0)]
NotNegative = Annotated[float, Range("a number, at least 0", at_least=0)]
BelowOne = Annotated[
    float, Range("a number, at least 0 and below 1", at_least=0, below=1)
]
ZeroToOne = Annotated[float, Range("a number from 0 to 1", at_least=0, at_most=1)]
AboveZeroToOne = Annotated[
    float, Range("a number above 0 and at most 1", above=0, at_most=1)
]
# A file or folder that must exist.
Existing = Annotated[str, "path"]


def option(default, help, *, name=None, learned=True, only="", const=None):
    """Declares an option, a field of an `Options` class.

    Args:
        default: its default, or a function that returns it.
        help: string, one line that says what it does.
        name: string, a flag of recipes; or `True` for a flag of the same name. Options
            without a flag are set with `--set` and `--settings`.
        learned: bool, whether it changes what is learned, so that a run cannot be
            resumed with another value.
        only: string, its modalities, if not all.
        const: value of its flag without one.
    """
    metadata = {"help": help, "flag": name, "learned": learned}
    metadata |= {"only": only.split(), "const": const}
    kind = "default_factory" if callable(default) else "default"
    return dataclasses.field(**{kind: default}, metadata=metadata)


def flag(default, help, *, name: Any = True, **more):
    """Declares an option that has a flag, see `option()`."""
    return option(default, help, name=name, **more)


@dataclasses.dataclass(kw_only=True)
class Options:
    """Base of the classes of options."""

    def __post_init__(self):
        for name, field in self.fields().items():
            setattr(self, name, checked(field, getattr(self, name)))

    @classmethod
    def fields(cls):
        """The options by name, a dict of `dataclasses.Field`."""
        return {field.name: field for field in dataclasses.fields(cls)}

    @classmethod
    def make(cls, config=None, **options) -> Any:
        """Makes the options of a call: new ones, or those of a config with changes."""
        return cls(**options) if config is None else config.replace(**options)

    def replace(self, **options):
        """Returns a copy with other values."""
        return dataclasses.replace(self, **options)

    def of(self, kind):
        """Returns the options of another class of options."""
        return kind(**{name: getattr(self, name) for name in kind.fields()})

    def settings(self):
        """Returns the options that change what is learned, by name, for JSON."""
        return {
            name: getattr(self, name)
            for name, field in self.fields().items()
            if field.metadata["learned"]
        }


def checked(field, value, is_text=False):
    """Converts the value of an option, or with `is_text` a string, to its type."""
    try:
        return _converted(field.type, value, is_text)
    except (TypeError, ValueError):
        raise ArgumentError(field.name, expectation(field.type), value) from None


def kinds_of(kind):
    """Returns the members of a union type, `None` first."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return sorted(typing.get_args(kind), key=lambda one: one is not type(None))
    return [kind]


def expectation(kind):
    """Describes the values of a type, such as "an int, at least 1"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if len(kinds_of(kind)) > 1:
        return " or ".join(map(expectation, kinds_of(kind)))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is Annotated:
        return getattr(arguments[1], "words", arguments[1])
    if origin is tuple:
        count = "several" if ... in arguments else len(arguments)
        return f"{count} values, each {expectation(arguments[0])}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


_WORDS = {
    type(None): "None",
    int: "an int",
    float: "a number",
    bool: "true or false",
    str: "a string",
    dict: "a dict",
}


def _converted(kind, value, is_text):
    """Converts a value to a type, or raises a TypeError or ValueError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        same = [one for one in arguments if one == value and type(one) is type(value)]
        return same[0] if same else _refuse()
    if origin is Annotated:
        value = _converted(arguments[0], value, is_text)
        is_in = not isinstance(arguments[1], Range) or value in arguments[1]
        return value if is_in else _refuse()
    if len(kinds_of(kind)) > 1:
        for one in kinds_of(kind):
            with contextlib.suppress(TypeError, ValueError):
                return _converted(one, value, is_text)
        _refuse()
    if origin is tuple:
        if is_text and isinstance(value, str):
            value = value.replace(",", " ").split()
        value = value if isinstance(value, (list, tuple)) else _refuse()
        entries = len(value) * arguments[:1] if ... in arguments else arguments
        pairs = zip(entries, value, strict=True)
        return tuple(_converted(entry, one, is_text) for entry, one in pairs)
    if is_text and isinstance(value, str) and kind is not str:
        value = _from_text(kind, value)
    if isinstance(value, bool) and kind not in (bool, Any):
        _refuse()
    if kind is float and isinstance(value, numbers.Real):
        return float(value)
    if kind is int and isinstance(value, numbers.Integral):
        return int(value)
    return value if kind is Any or isinstance(value, kind) else _refuse()


def _from_text(kind, text):
    names = {"none": None, "null": None, "true": True, "false": False}
    return kind(text) if kind in (int, float) else names.get(text.casefold(), text)


def _refuse():
    raise ValueError


@dataclasses.dataclass(kw_only=True)
class MethodOptions(Options):
    """What is learned: the options of `InterleavedPretraining`."""

    num_levels: Count = flag(4, "levels of the residual quantizer")
    codebook_size: Count = flag(256, "codes of each level")
    code_dim: Count = option(256, "size of the code vectors")
    normalize: Literal["level", "input"] | None = option(
        "level", "normalize each level's residual, or only the input, to unit length"
    )
    restart_threshold: NotNegative | None = option(
        0.1, "restart codes used less than this share of uniform usage"
    )
    quantizer_options: dict = option(dict, "other arguments of ResidualQuantizer")
    decoder_options: dict = option(dict, "arguments of CodeDecoder")
    estimator_options: dict = option(dict, "arguments of FeatureEstimator")
    cold_start_positions: bool = option(
        False, "add positions before the random projection, as published"
    )
    cold_start_centered: bool = option(
        False, "subtract each patch's mean in the cold start, to ignore brightness"
    )
    keep_cold_start_codes: bool = option(
        True, "also predict the cold start's codes in later phases"
    )
    tokenizer_start: Literal["encoder", "random"] = option(
        "encoder", "start tokenizers from the encoder or from new weights"
    )
    decoder_start: Literal["previous", "random"] = option(
        "previous", "start decoders from the previous phase's or from new weights"
    )
    tokenize: Literal["all", "masked"] = option(
        "all", "patches that the tokenizer sees; masked for video, as published"
    )
    seed: Natural = flag(0, "random seed")


def current_settings(settings):
    """Converts the settings of a run of an earlier version to today's form."""
    settings = _without_modules(settings)
    quantizer = settings.get("quantizer_options", {})
    for name in ("normalize", "restart_threshold"):
        if name in quantizer:
            settings[name] = quantizer.pop(name)
    return settings


def _without_modules(config):
    """Copies a config without the modules of registered classes, as these may move."""
    if isinstance(config, dict):
        drop = {"module"} if config.get("registered_name") else set()
        return {k: _without_modules(v) for k, v in config.items() if k not in drop}
    if isinstance(config, (list, tuple)):
        return [_without_modules(value) for value in config]
    return config


@dataclasses.dataclass(kw_only=True)
class OptimizerOptions(Options):
    """Options that pretraining and fine-tuning share."""

    batch_size: Count = flag(64, "examples in a batch, over all devices")
    weight_decay: NotNegative = option(1e-4, "weight decay of AdamW")
    clip_norm: Positive | None = option(None, "largest norm of the gradients")
    gradient_accumulation_steps: Count | None = option(
        None, "batches for each optimizer step"
    )
    ema_momentum: BelowOne | None = option(
        None, "momentum of moving averages of the weights, kept at the end"
    )


@dataclasses.dataclass(kw_only=True)
class TrainingOptions(OptimizerOptions):
    """How it is learned: the options of `InterleavedPretraining.fit()`."""

    rounds: Natural | None = flag(
        None,
        "rounds of tokenizer and encoder phases; by default 0, or 1 with at least "
        "50,000 examples, a teacher or joint training",
    )
    cold_start_epochs: Count | None = flag(
        None, "epochs of the cold start; by default those of an encoder phase"
    )
    tokenizer_epochs: Count | None = flag(
        None, "epochs of a tokenizer phase; by default a quarter of an encoder phase's"
    )
    encoder_epochs: Count | None = flag(
        None,
        "epochs of an encoder phase; by default enough for 10,000 steps, "
        "from 20 to 400",
    )
    joint: bool = option(False, "train tokenizer and encoder in one phase")
    tokenizer_every: Count = option(4, "interval of tokenizer steps in a joint phase")
    tokenizer_loss_ratio: Positive = option(
        0.2, "weight of the tokenizer's loss in a joint phase"
    )
    encoder_learning_rate: Positive = flag(5e-4, "peak learning rate of encoder phases")
    tokenizer_learning_rate: Positive = option(
        2e-4, "peak learning rate of tokenizer phases"
    )
    cold_start_learning_rate: Positive | None = option(
        None, "peak learning rate of the cold start; by default the encoder's"
    )
    warmup: BelowOne = option(0.05, "share of each phase spent on warm-up")
    adapt_batches: Natural = option(
        16, "batches for k-means, which sets the codebooks; 0: no k-means"
    )
    jit_compile: bool | Literal["auto"] = option(
        "auto", "whether to compile; not worth it on PyTorch", learned=False
    )
    checkpoint_every: Count = option(1, "epochs between checkpoints", learned=False)
    checkpoint_every_steps: Count | None = option(
        None, "steps between checkpoints", learned=False
    )
    checkpoint_minutes: Positive | None = option(
        10.0, "minutes between checkpoints, with a single process", learned=False
    )
    max_nonfinite_steps: Natural = option(
        0, "most steps of an epoch to skip for a non-finite loss", learned=False
    )
    cache_codes: bool = option(
        False, "compute a frozen tokenizer's codes once per phase", learned=False
    )
    profile: bool = option(False, "record a trace of some steps", learned=False)
    tensorboard: bool = option(True, "write TensorBoard logs", learned=False)


@dataclasses.dataclass(kw_only=True)
class FineTuningOptions(OptimizerOptions):
    """The options of `fine_tune()`."""

    batch_size: Count = flag(32, "examples in a batch")
    weight_decay: NotNegative = option(0.05, "weight decay of AdamW")
    epochs: Count = flag(50, "epochs of training")
    learning_rate: Positive = flag(1e-3, "peak learning rate of the head")
    warmup_epochs: NotNegative = option(0.0, "epochs of warm-up")
    layer_decay: AboveZeroToOne = option(
        0.75, "learning rate of a layer relative to that of the layer above"
    )
    beta_2: BelowOne = option(0.999, "beta_2 of AdamW")
    loss: Literal["auto", "categorical", "binary"] = option(
        "auto", "kind of cross-entropy"
    )
    label_smoothing: BelowOne = option(0.0, "share of a label spread over all classes")
    balanced: bool = option(False, "sample rare classes as often as common ones")
    epoch_length: Count | None = option(None, "examples in an epoch; by default all")
    metric: Literal["accuracy", "mAP"] | None = option(
        None, "metric that selects the best epoch"
    )
    checkpoint_every: Count | None = option(
        None, "epochs between checkpoints", learned=False
    )
    seed: Natural = flag(0, "random seed")


@dataclasses.dataclass(kw_only=True)
class RunOptions(Options):
    """The run."""

    directory: str | None = flag(None, "folder of the run", learned=False)
    resume: bool = flag(False, "resume the run in --directory", learned=False)
    dtype_policy: str = flag("float32", "dtype policy, such as mixed_bfloat16")
    quiet: bool = flag(False, "no progress bars", learned=False)


@dataclasses.dataclass(kw_only=True)
class AudioReading(Options):
    """How recordings are read."""

    seconds: Positive | None = flag(None, "length of each recording", only="audio")
    reader: Literal["soundfile", "tensorflow-io"] = option(
        "soundfile", "decoder of recordings", only="audio"
    )


@dataclasses.dataclass(kw_only=True)
class ImageReading(Options):
    """How images are read."""

    image_size: Count | None = flag(
        None, "side of images and frames in pixels", only="image video"
    )


@dataclasses.dataclass(kw_only=True)
class VideoReading(ImageReading):
    """How videos are read."""

    num_frames: Count | None = flag(None, "frames of a clip", only="video")
    sampling_rate: Count | None = flag(
        None, "take every N-th frame of a video", only="video"
    )


@dataclasses.dataclass(kw_only=True)
class DataOptions(Options):
    """Data."""

    data: Existing | None = flag(
        None, "folder or CSV file; without it, the sample data"
    )
    layout: str = flag("folder", "folder, csv, or the name of a known data set")
    segments: Existing | None = flag(
        None, "AudioSet's CSV file of training segments", only="audio"
    )
    strict: bool = flag(False, "stop at unreadable files instead of skipping them")
    accept_changed_data: bool = option(
        False, "resume even if files have changed", learned=False
    )


@dataclasses.dataclass(kw_only=True)
class LabeledDataOptions(DataOptions):
    """Labeled data."""

    test_data: Existing | None = flag(None, "test split, if it is not in --data")
    root: Existing | None = option(None, "folder that a table's paths are relative to")
    test_segments: Existing | None = flag(
        None, "AudioSet's CSV file of test segments", only="audio"
    )
    ground_truth: Existing | None = option(
        None, "file with the classes of ImageNet's flat val/"
    )
    meta: Existing | None = option(
        None, "ImageNet's meta.mat, if the ground truth has numbers"
    )
    file_column: str | None = option(None, "column of a CSV file with the file")
    label_column: str | None = flag(None, "column of a CSV file with the class")
    label_separator: str | None = option(None, "text between several classes of a file")
    split_column: str | None = option(None, "column of a CSV file with the split")
    test_split: str | None = option(None, "the split or folder to test on")
    folds: Count | None = option(None, "folds if there are no splits; by default 5")
    fold: Count | None = flag(None, "test only on this fold, counted from 1")


@dataclasses.dataclass(kw_only=True)
class AugmentationOptions(Options):
    """Augmentation of fine-tuning."""

    repeats: Count = option(1, "copies of each example in a batch")
    mix_rate: ZeroToOne = option(0.0, "share of examples to mix with another")
    mixup: NotNegative = option(0.0, "alpha of mixup; 0: none")
    cutmix: NotNegative = option(0.0, "alpha of CutMix; 0: none", only="image video")
    gain: bool = option(False, "apply random gain to recordings", only="audio")
    roll: bool = option(False, "roll recordings in time", only="audio")
    hide_bins: Natural = option(0, "most bins that SpecAugment masks", only="audio")
    hide_frames: Natural = option(0, "most frames that SpecAugment masks", only="audio")
    token_drop: tuple[BelowOne, BelowOne] = option(
        (0.0, 0.0), "shares of patches to drop in time and frequency", only="audio"
    )
    smallest_crop: AboveZeroToOne = option(
        1.0, "smallest share of an image that a crop keeps", only="image"
    )
    flip: bool = option(False, "flip images and clips at random", only="image video")
    rand_augment: ZeroToOne = option(0.0, "strength of RandAugment", only="image video")
    rand_augment_ops: Count = option(2, "operations of RandAugment", only="image video")
    random_erasing: ZeroToOne = option(
        0.0, "share of images with a random box erased", only="image video"
    )
