import numpy as np
import pytest
from harness import perturb, run, to_numpy
from keras import ops

from keras_bridle.models.heads import FeatureEstimator


def made(**settings):
    estimator = FeatureEstimator(10, 16, 2, 2, 32, **settings)
    estimator.build((None, None, 6))
    perturb(estimator.weights)
    return estimator


def vectors(length):
    rng = np.random.default_rng(0)
    return rng.normal(size=(1, length, 6)).astype("float32")


def estimate(estimator, x, grid, padding_mask=None):
    return run(lambda: estimator(x, grid=grid, padding_mask=padding_mask), estimator)


def test_estimator_step_by_step():
    estimator, x = made(), vectors(8)
    tokens = estimator.embedding(x) + estimator.position_encoding.table((4, 2), 16)
    for block in estimator.blocks:
        tokens = block(tokens)
    expected = to_numpy(estimator.head(estimator.norm(tokens)))
    np.testing.assert_allclose(estimate(estimator, x, (4, 2)), expected, 1e-5, 1e-5)


@pytest.mark.parametrize("attention", ["global", "window"])
def test_padded_map_has_the_features_it_has_alone(attention):
    estimator = made(attention=attention, window_size=(2, 2), window_shift=(0, 0))
    x, real = vectors(8), np.arange(8)[None] < 4
    padded = estimate(estimator, x, (4, 2), real)[:, :4]
    alone = estimate(estimator, x[:, :4], (2, 2))
    np.testing.assert_allclose(padded, alone, 1e-5, 1e-5)


def test_windows_are_shifted_in_every_other_block():
    estimator = made(attention="window", window_size=(2, 2), window_shift=(1, 0))
    assert [block.shift for block in estimator.blocks] == [(0, 0), (1, 0)]


def test_float32_under_half_precision():
    out = made(dtype="mixed_bfloat16")(ops.convert_to_tensor(vectors(4)), grid=(2, 2))
    assert "float32" in str(out.dtype)


def test_unknown_attention():
    with pytest.raises(ValueError, match=r"`attention` must be .*'local'"):
        made(attention="local")
