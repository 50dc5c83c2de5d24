"""Every option of pretraining and fine-tuning, declared once.

An option is a dataclass field made by `option()`, which holds its default, range and
help. Checks, saved settings, the arguments of `fit()` and the recipes' flags are made
from it.
"""

import dataclasses
import math
import types
import typing
from typing import Any


class ArgumentError(ValueError):
    """An argument has a value that it cannot have.

    Attributes:
        argument: string, the argument's name.
        expected: string, what it takes.
        received: what came.
    """

    def __init__(self, argument, expected, received):
        super().__init__(
            f"`{argument}` must be {expected}. Received: {argument}={received!r}"
        )
        self.argument = argument
        self.expected = expected
        self.received = received


def option(
    default,
    help,
    *,
    at_least=None,
    above=None,
    at_most=None,
    below=None,
    choices=None,
    flag=False,
    learned=True,
):
    """Declares an option, a field of an `Options` class.

    Args:
        default: its default, or a function that makes it.
        help: string, one line that says what it does.
        at_least: optional number, the smallest value.
        above: optional number, below all values.
        at_most: optional number, the largest value.
        below: optional number, above all values.
        choices: optional tuple of the values it takes.
        flag: bool, whether recipes have a flag for it. All others are reached by
            `--set` and `--settings`.
        learned: bool, whether it changes what is learned, so that a run cannot be
            resumed with another value.
    """
    metadata = {
        "help": help,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "below": below,
        "choices": choices,
        "flag": flag,
        "learned": learned,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Options:
    """Base of the classes of options, which are dataclasses."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            setattr(self, field.name, checked(field, getattr(self, field.name)))

    @classmethod
    def fields(cls):
        """The options by name, a dict of `dataclasses.Field`."""
        return {field.name: field for field in dataclasses.fields(cls)}

    @classmethod
    def make(cls, config=None, **options):
        """Makes the options of a call: those of a config, with others in their place.

        Args:
            config: optional object of this class, for the options that are not given.
            **options: options by name.

        Raises:
            TypeError: for a name that is no option.
            ArgumentError: for a value that an option cannot have.
        """
        unknown = sorted(options.keys() - cls.fields().keys())
        if unknown:
            raise TypeError(
                f"Unknown options: {', '.join(unknown)}. {cls.__name__} has "
                f"{', '.join(cls.fields())}"
            )
        return cls(**options) if config is None else config.replace(**options)

    def replace(self, **options):
        """Makes a copy with other values."""
        return dataclasses.replace(self, **options)

    def asdict(self):
        """The options by name, values as they are."""
        return {name: getattr(self, name) for name in self.fields()}

    def settings(self):
        """Those that change what is learned, by name, for JSON."""
        return {
            name: getattr(self, name)
            for name, field in self.fields().items()
            if field.metadata["learned"]
        }


def checked(field, value):
    """Checks the value of an option, and gives it in the option's type.

    Args:
        field: `dataclasses.Field` that `option()` made.
        value: its value.

    Returns:
        The value; ints as floats where the option is a float, lists as tuples.

    Raises:
        ArgumentError: for a value of another type or out of range.
    """
    kinds, is_optional = kinds_of(field)
    rules = field.metadata
    if value is None and is_optional:
        return None
    if isinstance(value, list) and tuple in kinds:
        value = tuple(value)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    is_right = any(_is_a(value, kind) for kind in kinds)
    if is_right and rules["choices"] is not None:
        is_right = value in rules["choices"]
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        if is_right and isinstance(number, (int, float)):
            is_right = _in_range(number, rules)
    if not is_right:
        raise ArgumentError(field.name, expectation(field), value)
    return value


def kinds_of(field):
    """The types of an option's values, and whether it may be `None`."""
    kind = field.type
    arguments = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    kinds = [typing.get_origin(x) or x for x in arguments if x is not type(None)]
    return kinds, type(None) in arguments


def expectation(field):
    """Says what an option takes, such as "an int, at least 1"."""
    kinds, is_optional = kinds_of(field)
    rules = field.metadata
    if rules["choices"] is not None:
        names = [repr(choice) for choice in rules["choices"]]
    else:
        names = [_KINDS.get(kind, kind.__name__) for kind in kinds]
        bounds = [
            f"{words} {rules[name]:g}"
            for name, words in _BOUNDS.items()
            if rules[name] is not None
        ]
        names[-1] = ", ".join([names[-1], " and ".join(bounds)][: 1 + bool(bounds)])
    names = ["None", *names] if is_optional else names
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


_BOUNDS = {
    "at_least": "at least",
    "above": "above",
    "at_most": "at most",
    "below": "below",
}
_KINDS = {
    int: "an int",
    float: "a number",
    bool: "a bool",
    str: "a string",
    tuple: "a tuple",
    dict: "a dict",
}


def _is_a(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return kind is Any or isinstance(value, kind)


def _in_range(number, rules):
    least, above, most, below = (rules[name] for name in _BOUNDS)
    return (
        math.isfinite(number)
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    )


@dataclasses.dataclass(kw_only=True)
class MethodOptions(Options):
    """What is learned: the options of `InterleavedPretraining`."""

    num_levels: int = option(
        4, "levels of the residual quantizer", at_least=1, flag=True
    )
    codebook_size: int = option(256, "codes of each level", at_least=1, flag=True)
    code_dim: int = option(256, "size of the code vectors", at_least=1)
    normalize: str | None = option(
        "level",
        "bring each level's residual, the input alone or nothing to unit length",
        choices=("level", "input"),
    )
    restart_threshold: float | None = option(
        0.1, "re-seat codes used less than this share of an even use", at_least=0
    )
    quantizer_options: dict = option(dict, "more arguments of ResidualQuantizer")
    decoder_options: dict = option(dict, "arguments of CodeDecoder")
    estimator_options: dict = option(dict, "arguments of FeatureEstimator")
    cold_start_positions: bool = option(
        False, "let the random projection see positions, as published"
    )
    cold_start_centered: bool = option(
        False, "let it see patches less their mean: shape and motion, not brightness"
    )
    keep_cold_start_codes: bool = option(
        True, "predict the cold start's codes in later phases as well"
    )
    tokenizer_start: str = option(
        "encoder",
        "start tokenizers from the encoder or from new weights",
        choices=("encoder", "random"),
    )
    decoder_start: str = option(
        "previous",
        "start decoders from the last phase's or, as published, from new weights",
        choices=("previous", "random"),
    )
    tokenize: str = option(
        "all",
        "let the tokenizer see all patches or, as published for video, masked ones",
        choices=("all", "masked"),
    )
    seed: int = option(0, "seed of everything that is drawn", at_least=0, flag=True)


@dataclasses.dataclass(kw_only=True)
class OptimizerOptions(Options):
    """What pretraining and fine-tuning share."""

    batch_size: int = option(
        64, "examples of a batch, on all devices together", at_least=1, flag=True
    )
    weight_decay: float = option(1e-4, "weight decay of AdamW", at_least=0)
    clip_norm: float | None = option(None, "largest norm of the gradients", above=0)
    gradient_accumulation_steps: int | None = option(
        None, "batches to each step of the optimizer", at_least=1
    )
    ema_momentum: float | None = option(
        None, "end with moving averages of the weights", at_least=0, below=1
    )


@dataclasses.dataclass(kw_only=True)
class TrainingOptions(OptimizerOptions):
    """How long and how it is learned: the options of `InterleavedPretraining.fit()`."""

    rounds: int = option(
        2, "tokenizer and encoder phases after the cold start", at_least=0, flag=True
    )
    cold_start_epochs: int | None = option(
        None,
        "epochs of the cold start, if not those of an encoder phase",
        at_least=1,
        flag=True,
    )
    tokenizer_epochs: int = option(
        30, "epochs of a tokenizer phase", at_least=1, flag=True
    )
    encoder_epochs: int = option(
        100, "epochs of an encoder phase", at_least=1, flag=True
    )
    joint: bool = option(False, "train tokenizer and encoder in one phase", flag=True)
    tokenizer_every: int = option(
        4, "steps of a joint phase between those of the tokenizer", at_least=1
    )
    tokenizer_loss_ratio: float = option(0.2, "weight of its loss there", above=0)
    encoder_learning_rate: float = option(
        5e-4, "peak learning rate of encoder phases", above=0, flag=True
    )
    tokenizer_learning_rate: float = option(
        2e-4, "peak learning rate of tokenizer phases", above=0
    )
    cold_start_learning_rate: float | None = option(
        None, "peak learning rate of the cold start, if not the encoder's", above=0
    )
    warmup: float = option(
        0.05, "share of a phase's steps in which the rate rises", at_least=0, below=1
    )
    adapt_batches: int = option(
        16, "batches for the k-means that sets the codebooks; 0: none", at_least=0
    )
    jit_compile: bool | str = option(
        "auto",
        "whether to compile, as in keras.Model.compile()",
        choices=("auto", True, False),
        learned=False,
    )
    checkpoint_every: int = option(
        1, "epochs between checkpoints", at_least=1, learned=False
    )
    checkpoint_every_steps: int | None = option(
        None, "steps between checkpoints", at_least=1, learned=False
    )
    checkpoint_minutes: float | None = option(
        10.0, "minutes between checkpoints, in one process", above=0, learned=False
    )
    max_nonfinite_steps: int = option(
        0, "steps of an epoch without a finite loss to skip", at_least=0, learned=False
    )
    cache_codes: bool = option(
        False, "compute a frozen tokenizer's codes once a phase", learned=False
    )
    profile: bool = option(False, "record a trace of some steps", learned=False)
    tensorboard: bool = option(True, "write TensorBoard logs", learned=False)


@dataclasses.dataclass(kw_only=True)
class FineTuningOptions(OptimizerOptions):
    """The options of `fine_tune()`."""

    batch_size: int = option(32, "examples of a batch", at_least=1, flag=True)
    weight_decay: float = option(0.05, "weight decay of AdamW", at_least=0)
    epochs: int = option(50, "epochs", at_least=1, flag=True)
    learning_rate: float = option(
        1e-3, "peak learning rate of the head", above=0, flag=True
    )
    warmup_epochs: float = option(
        0.0, "epochs in which the learning rate rises", at_least=0
    )
    layer_decay: float = option(
        0.75, "learning rate of a layer to that of the one above", above=0, at_most=1
    )
    beta_2: float = option(0.999, "beta_2 of AdamW", at_least=0, below=1)
    loss: str = option(
        "auto", "kind of cross-entropy", choices=("auto", "categorical", "binary")
    )
    label_smoothing: float = option(0.0, "label smoothing", at_least=0, below=1)
    balanced: bool = option(False, "draw rare classes as often as common ones")
    epoch_length: int | None = option(
        None, "examples of an epoch, if not all", at_least=1
    )
    metric: str | None = option(
        None, "metric that finds the best epoch", choices=("accuracy", "mAP")
    )
    checkpoint_every: int | None = option(
        None, "epochs between checkpoints", at_least=1, learned=False
    )
    seed: int = option(0, "seed of everything that is drawn", at_least=0, flag=True)
