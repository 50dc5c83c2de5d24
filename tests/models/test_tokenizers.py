"""Tests of `BridleTokenizer` and `RandomProjectionTokenizer`."""

import numpy as np
import pytest
from harness import perturb, run, to_numpy

from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer


def quantizer(dim=6):
    return ResidualQuantizer(2, 8, dim=dim, seed=0)


def trained():
    backbone = BridleBackbone((4, 8), 16, 1, 2, 32, (None, 16, 1))
    return BridleTokenizer(backbone, quantizer())


def random_projection(**settings):
    return RandomProjectionTokenizer((4, 8), 16, quantizer(), **settings)


def built(tokenizer):
    tokenizer.build((None, None, 16, 1))
    perturb(tokenizer.trainable_variables)
    return tokenizer


def maps(rows, batch=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(batch, rows, 16, 1)).astype("float32")


@pytest.mark.parametrize("make", [trained, random_projection])
def test_padded_map_has_the_codes_it_has_alone(make):
    tokenizer, x = built(make()), maps(20)
    rows = np.arange(20) < np.array([[12], [20]])
    padded = run(lambda: tokenizer(x, padding_mask=rows).codes, tokenizer)
    alone = run(lambda: tokenizer(x[:1, :12]).codes, tokenizer)
    np.testing.assert_array_equal(padded[:1, :6], alone)
    assert (padded[0, 6:] == -1).all()
    assert (padded[1] >= 0).all()
    if make is random_projection:
        visible = np.int32([[4, 0, 8], [9, 1, 3]])
        some = run(lambda: tokenizer(x, rows, visible=visible).codes, tokenizer)
        expected = np.take_along_axis(padded, visible[:, :, None], axis=1)
        np.testing.assert_array_equal(some, expected)


@pytest.mark.parametrize("layout", [None, "grid"])
@pytest.mark.parametrize("center", [True, False])
def test_random_projection_sees_positions_and_brightness_if_asked(layout, center):
    # The same patch six times, and brighter.
    x = np.tile(maps(4)[:, :, :8], (1, 3, 2, 1))
    tokenizer = random_projection(position_layout=layout, center_patches=center)
    vectors, brighter = (to_numpy(tokenizer.vectors(v)) for v in (x, x + 3))
    assert np.abs(vectors).max() > 0.1
    spread = np.abs(vectors - vectors[:, :1]).max()
    assert (spread < 1e-5) == (layout is None)
    assert (np.abs(brighter - vectors).max() < 1e-4) == center


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_flat_patches_have_codes_of_their_own_whatever_their_brightness(policy):
    x = maps(8, batch=64)
    x[32:] = maps(8, batch=32)[:, :1, :1]
    quantizer = ResidualQuantizer(2, 16, dim=32, normalize="level", seed=0)
    tokenizer = RandomProjectionTokenizer(
        (4, 8), 16, quantizer, center_patches=True, dtype=policy
    )
    tokenizer.build((None, None, 16, 1))
    quantizer.adapt(tokenizer.vectors(x))
    codes = to_numpy(tokenizer(x).codes)
    assert (codes[32:] == codes[32, 0]).all()
    assert (codes[:32, :, 0] != codes[32, 0, 0]).all()
