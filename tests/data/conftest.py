"""Settings of the tests that read files."""

import pytest


@pytest.fixture(autouse=True)
def clean_keras_state():
    """Replaces the slower one: nothing here leaves a state in Keras."""
