"""How evenly the codes of each level are used."""

from typing import NamedTuple

import numpy as np


class CodeUsage(NamedTuple):
    """Usage of the codes of each level.

    Args:
        counts: int64 array of shape `(levels, codebook_size)`, how often each code
            occurs.
        usage: float64 array of shape `(levels,)`, share of the codes that occur.
        perplexity: float64 array of shape `(levels,)`, the exponential of the
            entropy: the number of equally frequent codes that would be as varied.
    """

    counts: np.ndarray
    usage: np.ndarray
    perplexity: np.ndarray


class PublishedCodeUsage(NamedTuple):
    """The three numbers by which the published evaluation describes a codebook.

    Args:
        usage_rate: float64 array of shape `(levels,)`, "CUR": the share of the codes
            that occur.
        entropy: float64 array of shape `(levels,)`, "UE": the entropy in bits.
        efficiency: float64 array of shape `(levels,)`, "ECU":
            `usage_rate / (entropy * ln(codebook_size))`, which mixes two logarithms;
            infinite where the entropy is 0.
    """

    usage_rate: np.ndarray
    entropy: np.ndarray
    efficiency: np.ndarray


def code_usage(codes, codebook_size):
    """Counts the codes of each level and says how evenly they are used.

    Args:
        codes: int array of shape `(..., levels)`, values from 0 to
            `codebook_size - 1`.
        codebook_size: int, the number of codes of a level.

    Returns:
        A `CodeUsage`.

    Raises:
        ValueError: if there are no codes, or any is out of range or no integer.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation import code_usage

    codes = np.array([[0, 3], [1, 3], [0, 3], [1, 3]])
    usage = code_usage(codes, codebook_size=4)
    assert usage.usage.tolist() == [0.5, 0.25]
    assert np.allclose(usage.perplexity, [2, 1])
    ```
    """
    counts = _count_codes(codes, codebook_size)
    shares = counts / counts.sum(axis=1, keepdims=True)
    logs = np.log(np.where(counts > 0, shares, 1.0))
    return CodeUsage(
        counts=counts,
        usage=(counts > 0).mean(axis=1),
        perplexity=np.exp(-np.sum(shares * logs, axis=1)),
    )


def published_code_usage(codes, codebook_size):
    """Returns usage rate, entropy and efficiency as the published code does.

    For comparison with numbers that come out of it; `code_usage` has the sounder
    ones. Its entropy is a float32 sum, repeated here in the same order of additions,
    so that all digits agree.

    Args:
        codes: int array of shape `(..., levels)`, values from 0 to
            `codebook_size - 1`.
        codebook_size: int, the number of codes of a level.

    Returns:
        A `PublishedCodeUsage`.

    Raises:
        ValueError: if there are no codes, or any is out of range or no integer.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation import published_code_usage

    usage = published_code_usage(np.array([[0], [1], [0], [1]]), codebook_size=4)
    assert usage.entropy.tolist() == [1.0]  # bits
    ```

    Reference:
        [BRIDLE, 2025](https://arxiv.org/abs/2502.02118).
    """
    return published_usage_of_counts(_count_codes(codes, codebook_size))


def published_usage_of_counts(counts):
    """Returns the same as `published_code_usage` of codes that have been counted.

    Args:
        counts: int array of shape `(levels, codebook_size)`, how often each code
            occurs.

    Returns:
        A `PublishedCodeUsage`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation.code_usage import published_usage_of_counts

    print(published_usage_of_counts(np.array([[2, 2, 0, 0]])).entropy)  # [1.]
    ```
    """
    usage_rate = (counts > 0).mean(axis=1)
    entropy = np.array([_float32_entropy(level[level > 0]) for level in counts])
    with np.errstate(divide="ignore"):
        # abs: the entropy of a single code is -0.0.
        efficiency = usage_rate / np.abs(entropy * np.log(counts.shape[1]))
    return PublishedCodeUsage(usage_rate, entropy, efficiency)


def _count_codes(codes, codebook_size):
    codes = np.asarray(codes)
    if codebook_size < 2:
        raise ValueError(f"codebook_size must be at least 2; received {codebook_size}")
    if codes.ndim < 2 or codes.size == 0 or codes.dtype.kind not in "iu":
        raise ValueError(
            "codes must be a non-empty array of integers of shape (..., levels); "
            f"received shape {codes.shape}, dtype {codes.dtype}"
        )
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise ValueError(
            f"codes must lie between 0 and codebook_size - 1 = {codebook_size - 1}; "
            f"received {codes.min()} to {codes.max()}"
        )
    levels = codes.reshape(-1, codes.shape[-1]).T
    return np.stack([np.bincount(level, minlength=codebook_size) for level in levels])


def _float32_entropy(counts):
    shares = counts.astype("float32") / np.float32(counts.sum())
    # float64 in between: NumPy's float32 logarithm may miss the last bit.
    logs = np.log2(shares.astype("float64")).astype("float32")
    return -float(_float32_sum(shares * logs))


def _float32_sum(values):
    """Adds float32 values in the order in which PyTorch does on a CPU.

    Eight lanes side by side, four rows at a time; what is left over goes first.
    """
    lanes = 8 if len(values) >= 8 else 1
    whole = len(values) // lanes * lanes
    total = _column_sums(values[:whole].reshape(-1, lanes))
    if lanes == 1:
        return total[0]
    result = np.float32(0)
    for value in [*values[whole:], *total]:
        result += value
    return result


def _column_sums(rows):
    blocks = rows[: len(rows) // 4 * 4].reshape(-1, 4, rows.shape[1])
    # Every 16 additions a sum moves up a level, which keeps the rounding small.
    sums = np.zeros((4, *blocks.shape[1:]), "float32")
    for count, block in enumerate(blocks, start=1):
        sums[0] += block
        for level in range(1, 4):
            if count % 16**level:
                break
            sums[level] += sums[level - 1]
            sums[level - 1] = 0
    for level in range(1, 4):
        sums[0] += sums[level]
    result = sums[0]
    for row in rows[len(blocks) * 4 :]:
        result[0] += row
    for column in range(1, 4):
        result[0] += result[column]
    return result[0]
