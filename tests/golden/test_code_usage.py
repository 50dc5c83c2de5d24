"""Code usage against the published evaluation's numbers."""

import numpy as np
import pytest
from golden_files import golden_files, load

from keras_bridle.evaluation.metrics import code_usage

pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize("path", golden_files("code_usage*.npz"), ids=lambda p: p.stem)
def test_published_code_usage(path):
    config, arrays = load(path)
    codes = arrays["in.codes"]
    assert codes.shape == (config["n"], config["levels"])
    found = code_usage(codes, config["codes"]).published()
    np.testing.assert_array_equal(found["CUR"], arrays["out.CUR"])
    # The published entropy is a float32 sum.
    for name in ("UE", "ECU"):
        np.testing.assert_allclose(
            found[name], arrays[f"out.{name}"], rtol=1e-6, atol=1e-12
        )
