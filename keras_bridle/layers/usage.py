"""How well a codebook is used, from counts of its codes."""

from typing import NamedTuple

from keras import ops


class CodebookUsage(NamedTuple):
    """Usage of each level's codebook, float32, one number a level.

    Attributes:
        usage: Share of the codes that occur, 0 to 1.
        perplexity: Exponential of the entropy of the codes, 1 to `codebook_size`:
            how many codes there seem to be. 0 where nothing was counted.
        dead_codes: Number of codes that do not occur.
    """

    usage: object
    perplexity: object
    dead_codes: object


def usage_of_counts(counts):
    """Computes usage, perplexity and dead codes from how often each code occurs.

    Args:
        counts: Tensor of shape `(..., codebook_size)`, how often each code occurs.

    Returns:
        A `CodebookUsage` of float32 tensors of shape `(...)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.usage import usage_of_counts

    print(usage_of_counts(np.array([[5, 5, 0, 0], [1, 2, 3, 4]])))
    ```
    """
    counts = ops.cast(counts, "float32")
    used = ops.cast(counts > 0, "float32")
    total = ops.sum(counts, axis=-1, keepdims=True)
    share = counts / ops.maximum(total, 1.0)
    entropy = -ops.sum(share * ops.log(ops.where(counts > 0, share, 1.0)), axis=-1)
    perplexity = ops.where(total[..., 0] > 0, ops.exp(entropy), 0.0)
    return CodebookUsage(
        usage=ops.mean(used, axis=-1),
        perplexity=perplexity,
        dead_codes=ops.sum(1.0 - used, axis=-1),
    )
