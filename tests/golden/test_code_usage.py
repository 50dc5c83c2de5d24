"""Code usage against the published evaluation's numbers."""

import numpy as np
import pytest
from golden_files import golden_files, load

from keras_bridle.evaluation.metrics import code_usage, published_code_usage


@pytest.mark.parametrize("path", golden_files("code_usage*.npz"), ids=lambda p: p.stem)
def test_published_code_usage(path):
    config, arrays = load(path)
    codes = arrays["in.codes"]
    assert codes.shape == (config["n"], config["levels"])

    usage = published_code_usage(codes, config["codes"])

    for name, values in (
        ("CUR", usage.usage_rate),
        ("UE", usage.entropy),
        ("ECU", usage.efficiency),
    ):
        assert values.dtype == np.float64
        np.testing.assert_allclose(values, arrays[f"out.{name}"], rtol=1e-12)

    # The sounder numbers describe the same codes; the published entropy is float32.
    sound = code_usage(codes, config["codes"])
    np.testing.assert_array_equal(sound.usage, arrays["out.CUR"])
    np.testing.assert_allclose(
        np.log2(sound.perplexity), arrays["out.UE"], rtol=1e-6, atol=1e-12
    )
