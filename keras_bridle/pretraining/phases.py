"""The plan of a run: which phases it has, and in which order."""

from typing import NamedTuple


class Phase(NamedTuple):
    """One phase of the plan.

    Attributes:
        name: string, such as `"2_encoder"`.
        kind: string: `"cold_start"`, `"tokenizer"`, `"encoder"` or `"joint"`.
        epochs: int.
        learning_rate: float, the highest of the phase.
    """

    name: str
    kind: str
    epochs: int
    learning_rate: float


def phases(
    rounds,
    encoder_epochs,
    tokenizer_epochs,
    cold_start_epochs,
    joint,
    encoder_learning_rate,
    tokenizer_learning_rate,
    cold_start_learning_rate=None,
):
    """Lists the phases of a run.

    Args: those of `InterleavedPretraining.fit()`.

    Returns:
        A list of `Phase`.

    Raises:
        ValueError: for numbers that are too small, or a joint run of no rounds.
    """
    if cold_start_epochs is None:
        cold_start_epochs = encoder_epochs
    if cold_start_learning_rate is None:
        cold_start_learning_rate = encoder_learning_rate
    if rounds < 0 or min(encoder_epochs, tokenizer_epochs, cold_start_epochs) < 1:
        raise ValueError(
            "`rounds` must not be negative, and epochs must be positive. "
            f"Received: rounds={rounds}, encoder_epochs={encoder_epochs}, "
            f"tokenizer_epochs={tokenizer_epochs}, "
            f"cold_start_epochs={cold_start_epochs}"
        )
    for name, rate in (
        ("cold_start_learning_rate", cold_start_learning_rate),
        ("encoder_learning_rate", encoder_learning_rate),
        ("tokenizer_learning_rate", tokenizer_learning_rate),
    ):
        if not rate > 0:
            raise ValueError(f"`{name}` must be positive. Received: {name}={rate}")
    if joint and rounds == 0:
        raise ValueError(
            "Joint training needs `rounds` of 1 or more. Received: rounds=0"
        )
    kinds = [("cold_start", cold_start_epochs, cold_start_learning_rate)]
    if joint:
        kinds.append(("joint", rounds * encoder_epochs, encoder_learning_rate))
    else:
        kinds += rounds * [
            ("tokenizer", tokenizer_epochs, tokenizer_learning_rate),
            ("encoder", encoder_epochs, encoder_learning_rate),
        ]
    return [Phase(f"{i}_{kind}", kind, *rest) for i, (kind, *rest) in enumerate(kinds)]
