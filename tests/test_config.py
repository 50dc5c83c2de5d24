"""Options: their types, their ranges, and what is made of them."""

import numpy as np
import pytest

from keras_bridle.config import (
    ArgumentError,
    AugmentationOptions,
    FineTuningOptions,
    MethodOptions,
    TrainingOptions,
    checked,
)

pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize(
    ("kind", "name", "value", "expected"),
    [
        (TrainingOptions, "weight_decay", 1, 1.0),
        (TrainingOptions, "rounds", np.int64(3), 3),
        (TrainingOptions, "clip_norm", np.float32(0.5), 0.5),
        (TrainingOptions, "cold_start_epochs", None, None),
        (TrainingOptions, "jit_compile", True, True),
        (TrainingOptions, "jit_compile", "auto", "auto"),
        (MethodOptions, "quantizer_options", {"top_k": 2}, {"top_k": 2}),
        (AugmentationOptions, "token_drop", [0, 0.5], (0.0, 0.5)),
    ],
)
def test_values_come_in_the_type_of_their_option(kind, name, value, expected):
    found = getattr(kind.make(**{name: value}), name)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (TrainingOptions, "rounds", -1),
        (TrainingOptions, "rounds", True),
        (TrainingOptions, "rounds", 1.0),
        (TrainingOptions, "rounds", "1"),
        (TrainingOptions, "tokenizer_every", None),
        (TrainingOptions, "warmup", 1),
        (TrainingOptions, "warmup", float("nan")),
        (TrainingOptions, "encoder_learning_rate", 0),
        (TrainingOptions, "checkpoint_minutes", float("inf")),
        (TrainingOptions, "jit_compile", 1),
        (TrainingOptions, "cache_codes", 1),
        (MethodOptions, "normalize", "all"),
        (MethodOptions, "quantizer_options", []),
        (FineTuningOptions, "layer_decay", 1.5),
        (AugmentationOptions, "token_drop", (0.5,)),
        (AugmentationOptions, "token_drop", (0.5, 2)),
    ],
)
def test_other_values_are_refused_by_name(kind, name, value):
    with pytest.raises(ArgumentError) as caught:
        kind.make(**{name: value})
    assert caught.value.argument == name
    assert caught.value.received is value or caught.value.received == value


def test_a_config_gives_what_is_not_given():
    config = TrainingOptions(rounds=1, joint=True)
    options = TrainingOptions.make(config, rounds=3)
    assert (options.rounds, options.joint, config.rounds) == (3, True, 1)
    with pytest.raises(TypeError):
        TrainingOptions.make(round=1)


def test_settings_are_what_changes_the_result():
    settings = TrainingOptions(profile=True).settings()
    assert settings["warmup"] == 0.05
    assert not settings.keys() & {"profile", "checkpoint_every", "jit_compile"}


@pytest.mark.parametrize(
    ("kind", "name", "text", "expected"),
    [
        (TrainingOptions, "encoder_learning_rate", "1e-3", 1e-3),
        (TrainingOptions, "rounds", "2", 2),
        (TrainingOptions, "joint", "true", True),
        (TrainingOptions, "cold_start_epochs", "none", None),
        (TrainingOptions, "jit_compile", "false", False),
        (TrainingOptions, "jit_compile", "auto", "auto"),
        (MethodOptions, "normalize", "none", None),
        (MethodOptions, "normalize", "input", "input"),
        (AugmentationOptions, "token_drop", "0.2,0.3", (0.2, 0.3)),
    ],
)
def test_texts_of_a_command_line(kind, name, text, expected):
    assert checked(kind.fields()[name], text, is_text=True) == expected


@pytest.mark.parametrize("text", ["1.5", "", "one", "none", "-1", "true"])
def test_texts_that_are_no_count(text):
    with pytest.raises(ArgumentError):
        checked(TrainingOptions.fields()["tokenizer_every"], text, is_text=True)
