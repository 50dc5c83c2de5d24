"""Settings of the tests that read files: nothing here leaves a state in Keras."""

import pytest


@pytest.fixture(autouse=True)
def clean_keras_state():
    """Replaces a slower one, as the next."""


@pytest.fixture(autouse=True, scope="module")
def memory_given_back():
    """Nothing large is compiled."""
