from collections import Counter
from math import exp, log, log2

import numpy as np
import pytest

from keras_bridle.evaluation.metrics import code_usage, published_code_usage


def _codes(size, rows=700, levels=3, seed=0):
    rng = np.random.default_rng(seed)
    columns = [
        rng.choice(size, rows, p=rng.dirichlet(np.full(size, concentration)))
        for concentration in (0.1, 1.0, 20.0)[:levels]
    ]
    return np.stack(columns, axis=-1).astype("int32")


def test_code_usage_against_plain_python():
    codes = _codes(50)
    result = code_usage(codes.reshape(7, 100, 3), 50)
    for level in range(3):
        counter = Counter(codes[:, level].tolist())
        shares = [count / 700 for count in counter.values()]
        assert result.counts[level].tolist() == [counter[code] for code in range(50)]
        assert result.usage[level] == pytest.approx(len(counter) / 50, rel=1e-14)
        entropy = -sum(share * log(share) for share in shares)
        assert result.perplexity[level] == pytest.approx(exp(entropy), rel=1e-12)


def test_even_use_has_the_perplexity_of_the_codebook():
    codes = np.tile(np.arange(16), 5)[:, None]
    result = code_usage(codes, 16)
    assert result.usage.tolist() == [1.0]
    assert result.perplexity[0] == pytest.approx(16, rel=1e-14)


def test_collapse():
    result = code_usage(np.full((9, 2), 3), 8)
    assert result.usage.tolist() == [1 / 8, 1 / 8]
    assert result.perplexity.tolist() == [1.0, 1.0]
    published = published_code_usage(np.full((9, 2), 3), 8)
    assert published.entropy.tolist() == [0.0, 0.0]
    assert published.efficiency.tolist() == [np.inf, np.inf]


@pytest.mark.parametrize("size", [3, 7, 16, 64, 1000])
def test_published_is_near_the_exact_entropy(size):
    codes = _codes(size, rows=3000)
    result = published_code_usage(codes, size)
    for level in range(3):
        counts = Counter(codes[:, level].tolist()).values()
        entropy = -sum(count / 3000 * log2(count / 3000) for count in counts)
        assert result.entropy[level] == pytest.approx(entropy, rel=1e-6)
        assert result.efficiency[level] == pytest.approx(
            len(counts) / size / (entropy * log(size)), rel=1e-6
        )


@pytest.mark.parametrize("size", [2, 5, 8, 30, 64, 600, 4096])
def test_published_is_bitwise_the_float32_sum_of_torch(size):
    torch = pytest.importorskip("torch")
    codes = _codes(size, rows=9000, seed=size)
    for level, entropy in enumerate(published_code_usage(codes, size).entropy):
        counts = torch.bincount(torch.from_numpy(codes[:, level]))
        shares = counts[counts > 0].float() / counts.sum()
        assert entropy == -torch.sum(shares * torch.log2(shares)).item()


@pytest.mark.parametrize("function", [code_usage, published_code_usage])
@pytest.mark.parametrize(
    ("codes", "size", "message"),
    [
        (np.zeros((0, 2), int), 4, "non-empty"),
        (np.zeros(5, int), 4, r"shape \(\.\.\., levels\)"),
        (np.zeros((5, 2)), 4, "float64"),
        (np.array([[0], [4]]), 4, "0 to 4"),
        (np.array([[-1], [0]]), 4, "-1 to 0"),
        (np.zeros((5, 2), int), 1, "codebook_size"),
    ],
)
def test_refusals(function, codes, size, message):
    with pytest.raises(ValueError, match=message):
        function(codes, size)
