"""What numbers the flags of recipes take: functions for argparse's `type`."""

import argparse
import math


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
