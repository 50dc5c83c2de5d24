"""How much of a codebook is used."""

from typing import NamedTuple

import keras
from keras import ops

from keras_bridle.engine import segment_sum
from keras_bridle.replicas import metric_increment


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
    from keras_bridle.quantizer.usage import usage_of_counts

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


__all__ = ["CodeUsage", "named_usage", "usage_of_counts"]


def named_usage(counts, prefix=""):
    """Computes usage as a flat dict, as Keras logs want it.

    Args:
        counts: Tensor of shape `(num_levels, codebook_size)`, how often each code
            occurs.
        prefix: String in front of every name.

    Returns:
        Dict of float32 scalars: `usage_1`, `perplexity_1`, `dead_codes_1`, `usage_2`
        and so on, levels counted from 1.

    Example:
    ```python
    import numpy as np
    from keras_bridle.quantizer.usage import named_usage

    print(named_usage(np.array([[5, 5, 0, 0], [1, 2, 3, 4]])))
    ```
    """
    usage = usage_of_counts(counts)
    return {
        f"{prefix}{name}_{level + 1}": values[level]
        for level in range(counts.shape[0])
        for name, values in usage._asdict().items()
    }


@keras.saving.register_keras_serializable(package="keras_bridle")
class CodeUsage(keras.metrics.Metric):
    """Usage, perplexity and dead codes of each level since the last reset.

    Args:
        num_levels: Integer, number of levels of the codes.
        codebook_size: Integer, number of codes of a level.
        name: String, the metric's name; the names of its results do not contain it.
        dtype: Dtype of the results' computation.

    Raises:
        ValueError: if an argument is not positive.

    Example:
    ```python
    import numpy as np
    from keras_bridle.quantizer.usage import CodeUsage

    metric = CodeUsage(num_levels=2, codebook_size=4)
    metric.update_state(np.array([[0, 3], [0, 2], [1, 1]]))
    print({name: float(value) for name, value in metric.result().items()})
    ```
    """

    def __init__(self, num_levels, codebook_size, name="code_usage", dtype=None):
        super().__init__(name=name, dtype=dtype)
        if num_levels < 1 or codebook_size < 1:
            raise ValueError(
                "`num_levels` and `codebook_size` must be at least 1. Received: "
                f"num_levels={num_levels}, codebook_size={codebook_size}"
            )
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        # Integers: float32 stops counting at 2 ** 24.
        self.counts = self.add_variable(
            shape=(num_levels, codebook_size),
            initializer="zeros",
            dtype="int",
            name="counts",
        )

    def update_state(self, codes, mask=None):
        """Counts codes.

        Args:
            codes: Integer tensor of shape `(..., num_levels)`. Negative codes do not
                count.
            mask: Boolean tensor of shape `(...)`, `True` for codes that count. `None`
                counts all.

        Raises:
            ValueError: if the last axis of `codes` is not of size `num_levels`.
        """
        codes = ops.convert_to_tensor(codes)
        if codes.shape[-1] != self.num_levels:
            raise ValueError(
                f"`codes` must have a last axis of size num_levels={self.num_levels}. "
                f"Received shape: {tuple(codes.shape)}"
            )
        if mask is not None:
            mask = ops.cast(ops.convert_to_tensor(mask), "bool")
            codes = ops.where(mask[..., None], codes, -1)
        codes = ops.cast(ops.reshape(codes, (-1, self.num_levels)), "int32")
        size = self.codebook_size + 1
        ids = ops.where(codes < 0, self.codebook_size, codes)
        # Each level's codes in a range of their own.
        ids = ops.reshape(
            ids + size * ops.arange(self.num_levels, dtype="int32"), (-1,)
        )
        counts = segment_sum(ops.ones_like(ids), ids, self.num_levels * size)
        counts = ops.reshape(counts, (self.num_levels, size))[:, :-1]
        counts = metric_increment(counts)
        self.counts.assign_add(ops.cast(counts, self.counts.dtype))

    def result(self):
        """Returns a flat dict of float32 scalars; see `named_usage`."""
        return named_usage(self.counts)

    def get_config(self):
        """Returns the constructor's arguments."""
        config = super().get_config()
        return config | {
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
        }
