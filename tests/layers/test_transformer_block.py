import math

import numpy as np
import pytest
from harness import perturb, run, to_numpy

from keras_bridle.layers import TransformerBlock

gelu = np.vectorize(lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))))


def norm(x, layer):
    gamma, beta = map(to_numpy, (layer.gamma, layer.beta))
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt(x.var(-1, keepdims=True) + layer.epsilon) * gamma + beta


def dense(x, layer):
    return x @ to_numpy(layer.kernel).astype("float64") + to_numpy(layer.bias)


def reference(block, x, real=None):
    """The block in float64, head by head."""
    x = x.astype("float64")
    _batch, _length, dim = x.shape
    size = dim // block.num_heads
    qkv = dense(norm(x, block.attention_norm), block.qkv)
    q, k, v = np.split(qkv, 3, axis=-1)
    attended = np.zeros_like(x)
    for head in range(block.num_heads):
        part = slice(head * size, (head + 1) * size)
        logits = q[..., part] @ k[..., part].swapaxes(1, 2) / math.sqrt(size)
        if real is not None:
            logits = np.where(real[:, None], logits, -1e30)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended[..., part] = weights @ v[..., part]
    x = x + dense(attended, block.attention_output)
    return x + dense(
        gelu(dense(norm(x, block.mlp_norm), block.mlp_hidden)), block.mlp_output
    )


@pytest.fixture
def block():
    block = TransformerBlock(num_heads=2, mlp_dim=24)
    block.build((None, None, 12))
    perturb(block.weights, scale=0.4)
    return block


@pytest.mark.parametrize("padded", [False, True])
def test_block_is_what_its_formula_says(block, padded):
    x = np.random.default_rng(0).normal(size=(2, 7, 12)).astype("float32")
    real = np.arange(7) < np.array([[7], [4]]) if padded else None
    y = run(lambda: block(x, padding_mask=real), block)
    expected = reference(block, x, real)
    where = np.ones((2, 7), bool) if real is None else real
    np.testing.assert_allclose(y[where], expected[where], 2e-5, 2e-5)


def test_padding_changes_nothing(block):
    x = np.random.default_rng(1).normal(size=(1, 7, 12)).astype("float32")
    real = np.arange(7)[None] < 4
    alone = to_numpy(block(x[:, :4]))
    padded = to_numpy(block(x, padding_mask=real))
    np.testing.assert_allclose(padded[:, :4], alone, 1e-6, 1e-6)


def test_heads_must_divide_the_size():
    with pytest.raises(ValueError, match=r"`num_heads` must divide .*num_heads=5"):
        TransformerBlock(5, 8).build((None, None, 12))
