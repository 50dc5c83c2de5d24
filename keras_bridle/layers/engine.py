"""The few operations that need the backend itself rather than `keras.ops`."""

import keras
from keras import ops

if keras.backend.backend() == "torch":
    import torch
elif keras.backend.backend() == "jax":
    import jax


def segment_sum(values, segment_ids, num_segments):
    """Adds up the rows of `values` that share a segment.

    `keras.ops.segment_sum` is right everywhere, but on torch it spreads the ids to
    the size of the values first, which takes some thirty times as long.

    Args:
        values: Float tensor of shape `(rows, ...)`.
        segment_ids: Integer tensor of shape `(rows,)`, each in
            `[0, num_segments)`.
        num_segments: Integer.

    Returns:
        Tensor of shape `(num_segments, ...)`; zero where a segment has no rows.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.engine import segment_sum

    sums = segment_sum(np.float32([1, 2, 3]), np.int32([0, 2, 2]), num_segments=3)
    ```
    """
    values = ops.convert_to_tensor(values)
    segment_ids = ops.convert_to_tensor(segment_ids)
    if keras.backend.backend() == "torch":
        sums = torch.zeros(
            (num_segments, *values.shape[1:]), dtype=values.dtype, device=values.device
        )
        return sums.index_add_(0, segment_ids.long(), values)
    return ops.segment_sum(values, segment_ids, num_segments)


def exact_matmul(left, right):
    """Multiplies two float32 matrices with full float32 products.

    JAX rounds the factors to TF32 or bfloat16 on accelerators unless told otherwise,
    and rounded distances pick other codes.

    Args:
        left: Float32 tensor of shape `(rows, inner)`.
        right: Float32 tensor of shape `(inner, columns)`.

    Returns:
        Float32 tensor of shape `(rows, columns)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.engine import exact_matmul

    product = exact_matmul(np.ones((2, 3), "float32"), np.ones((3, 4), "float32"))
    ```
    """
    if keras.backend.backend() == "jax":
        return jax.numpy.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
    return ops.matmul(left, right)
