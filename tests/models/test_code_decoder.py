import numpy as np
import pytest
from harness import perturb, run, to_numpy
from keras import ops

from keras_bridle.layers.masks import PatchMask
from keras_bridle.models.heads import CodeDecoder

LEVELS, CODES = 2, 5
GRID = (4, 2)
MASK = PatchMask(
    np.int32([[3, 0, 6], [1, 7, 4]]), np.int32([[1, 2, 4, 5, 7], [0, 2, 3, 5, 6]])
)


def made(**settings):
    decoder = CodeDecoder(
        LEVELS, CODES, hidden_dim=16, num_layers=2, num_heads=2, mlp_dim=32, **settings
    )
    decoder.build((None, None, 12))
    perturb(decoder.weights)
    return decoder


def tokens(length=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, length, 12)).astype("float32")


def logits(decoder, x, mask=MASK, grid=GRID, padding_mask=None):
    return run(lambda: decoder(x, mask, grid=grid, padding_mask=padding_mask), decoder)


def test_decoder_step_by_step():
    decoder, x = made(), tokens()
    embedded = to_numpy(decoder.embedding(x))
    places = np.broadcast_to(to_numpy(decoder.mask_token), (2, 8, 16)).copy()
    for example in range(2):
        places[example, MASK.visible[example]] = embedded[example, 1:]
    places = places + to_numpy(decoder.position_encoding.table(GRID, 16))
    inside = ops.convert_to_tensor(np.concatenate([embedded[:, :1], places], axis=1))
    for block in decoder.blocks:
        inside = block(inside)
    inside = to_numpy(decoder.head(decoder.norm(inside[:, 1:])))
    expected = np.take_along_axis(inside, MASK.masked[:, :, None], axis=1)
    expected = expected.reshape(2, 5, LEVELS, CODES)
    np.testing.assert_allclose(logits(decoder, x), expected, 1e-5, 1e-5)


@pytest.mark.parametrize("attention", ["global", "window"])
def test_order_of_visible_patches_does_not_matter(attention):
    decoder, x = made(attention=attention, window_size=(2, 2)), tokens()
    order = [2, 0, 1]
    other = x[:, [0, *(1 + index for index in order)]]
    mask = PatchMask(MASK.visible[:, order], MASK.masked)
    np.testing.assert_allclose(
        logits(decoder, x), logits(decoder, other, mask), 1e-5, 1e-5
    )


@pytest.mark.parametrize(
    ("settings", "matters"),
    [
        ({}, True),
        ({"keep_class_token": False}, False),
        ({"attention": "window", "window_size": (2, 2)}, False),
    ],
)
def test_class_token(settings, matters):
    decoder, x = made(**settings), tokens()
    other = x.copy()
    other[:, 0] += 1.0
    changed = np.abs(logits(decoder, x) - logits(decoder, other)).max()
    assert (changed > 1e-3) == matters


def test_without_class_token():
    decoder, x = made(use_class_token=False), tokens(3)
    kept = made(keep_class_token=False)
    kept.set_weights(decoder.get_weights())
    with_token = np.concatenate([np.ones((2, 1, 12), "float32"), x], axis=1)
    np.testing.assert_allclose(logits(decoder, x), logits(kept, with_token), 1e-5, 1e-5)


@pytest.mark.parametrize("attention", ["global", "window"])
def test_padded_map_has_the_logits_it_has_alone(attention):
    decoder = made(attention=attention, window_size=(2, 2), window_shift=(0, 0))
    x = tokens()[:1]
    mask = PatchMask(np.int32([[0, 3, 6]]), np.int32([[1, 2, 4, 5, 7]]))
    real = np.arange(8)[None] < 4
    padded = logits(decoder, x, mask, GRID, real)[:, :2]
    short = PatchMask(np.int32([[0, 3]]), np.int32([[1, 2]]))
    alone = logits(decoder, x[:, :3], short, (2, 2))
    np.testing.assert_allclose(padded, alone, 1e-5, 1e-5)


def test_unknown_attention():
    with pytest.raises(ValueError, match=r"`attention` must be .*'local'"):
        made(attention="local")


def test_copy_of_the_body():
    decoder, other, x = made(), made(), tokens()
    perturb(other.weights, seed=5)
    kept = to_numpy(decoder.head.kernel)
    decoder.copy_body(other)
    np.testing.assert_array_equal(to_numpy(decoder.head.kernel), kept)
    decoder.head.set_weights(other.head.get_weights())
    np.testing.assert_array_equal(logits(decoder, x), logits(other, x))


def test_copy_of_the_last_levels():
    decoder, other, x = made(), made(), tokens()
    perturb(other.weights, seed=5)
    before = logits(decoder, x)
    decoder.copy_body(other)
    decoder.copy_last_levels(other, LEVELS - 1)
    expected = logits(other, x)
    np.testing.assert_allclose(logits(decoder, x)[:, :, 1:], expected[:, :, 1:], 1e-6)
    assert (logits(decoder, x)[:, :, 0] != expected[:, :, 0]).any()
    assert (logits(decoder, x) != before).any()


def test_body_of_another_size():
    other = CodeDecoder(
        LEVELS, CODES, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=32
    )
    other.build((None, None, 12))
    with pytest.raises(ValueError, match=r"`other`.*same width and depth"):
        made().copy_body(other)
