"""The few operations that need the backend itself rather than `keras.ops`."""

import keras
from keras import ops

if keras.backend.backend() == "torch":
    import torch
elif keras.backend.backend() == "jax":
    import jax
elif keras.backend.backend() == "tensorflow":
    import tensorflow as tf


def after(tensor, *others):
    """Returns `tensor`, which nothing can use before `others` are computed.

    That weights are read before a step moves them is known to TensorFlow's graphs by
    control dependencies alone, where no gradient leads from what was read to the
    move. Its graph optimizer drops some of those around a conditional that does not
    take its branch.

    Args:
        tensor: tensor.
        *others: tensors that use the weights as they were.

    Returns:
        The same tensor. Only TensorFlow's graphs have an order to keep.

    Example:
    ```python
    import keras
    from keras_bridle.engine import after

    print(after(keras.ops.ones(()), keras.ops.zeros((3,))))
    ```
    """
    if keras.backend.backend() != "tensorflow":
        return tensor
    with tf.control_dependencies(others):
        return tf.identity(tensor)


def attention(query, key, value, mask=None):
    """Lets every query see all keys, scaled by the root of the size of a head.

    JAX has no fused attention on CPUs, and there XLA multiplies twice as fast with the
    heads in front.

    Args:
        query: Float tensor of shape `(batch, length, heads, dim)`.
        key: Float tensor likewise.
        value: Float tensor likewise.
        mask: Optional boolean tensor that broadcasts to
            `(batch, heads, length, length)`, `True` where a query sees a key.

    Returns:
        Tensor like `query`.

    Example:
    ```python
    import keras
    from keras_bridle.engine import attention

    heads = keras.random.normal((2, 9, 4, 8))
    print(attention(heads, heads, heads).shape)  # (2, 9, 4, 8)
    ```
    """
    if keras.backend.backend() != "jax" or jax.default_backend() != "cpu":
        return ops.dot_product_attention(query, key, value, mask=mask)
    query, key, value = (ops.swapaxes(x, 1, 2) for x in (query, key, value))
    logits = ops.matmul(query * query.shape[-1] ** -0.5, ops.swapaxes(key, 2, 3))
    logits = ops.cast(logits, "float32")
    if mask is not None:
        logits = ops.where(mask, logits, -1e30)
    weights = ops.cast(ops.softmax(logits, axis=-1), value.dtype)
    return ops.swapaxes(ops.matmul(weights, value), 1, 2)


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
    from keras_bridle.engine import segment_sum

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


def nearness(rows, table, penalties):
    """Scores how near rows are to codes: half of `|row|^2 - |row - code|^2`.

    JAX would round the factors to TF32 or bfloat16 on accelerators, and rounded
    distances pick other codes. Torch subtracts the penalties while it multiplies.

    Args:
        rows: Float32 tensor of shape `(rows, dim)`.
        table: Float32 tensor of shape `(codes, dim)`.
        penalties: Float32 tensor of shape `(codes,)`, half the codes' squared lengths.

    Returns:
        Float32 tensor of shape `(rows, codes)`, larger for nearer codes.

    Example:
    ```python
    import keras
    from keras_bridle.engine import nearness

    rows, table = keras.ops.ones((2, 3)), keras.ops.eye(4, 3)
    scores = nearness(rows, table, 0.5 * keras.ops.sum(table**2, axis=-1))
    ```
    """
    if keras.backend.backend() == "torch":
        return torch.addmm(penalties, rows, table.T, beta=-1)
    if keras.backend.backend() == "jax":
        exact = jax.lax.Precision.HIGHEST
        return jax.numpy.matmul(rows, table.T, precision=exact) - penalties
    return ops.matmul(rows, ops.transpose(table)) - penalties


def argmax_of_rows(scores):
    """Finds where each row has its (first) largest number.

    XLA and TensorFlow compute an argmax one number at a time, and vectorize these two
    plain reductions; torch's own argmax is the faster one there.

    Args:
        scores: Float tensor of shape `(rows, columns)`.

    Returns:
        int32 tensor of shape `(rows,)`; a valid column even for a row with NaN.

    Example:
    ```python
    import keras
    from keras_bridle.engine import argmax_of_rows

    print(argmax_of_rows(keras.ops.eye(3)))
    ```
    """
    if keras.backend.backend() == "torch":
        return torch.argmax(scores, dim=-1).to(torch.int32)
    columns = scores.shape[-1]
    best = ops.max(scores, axis=-1, keepdims=True)
    ids = ops.arange(columns, dtype="int32")[None]
    found = ops.min(ops.where(scores >= best, ids, columns), axis=-1)
    # NaN equals nothing.
    return ops.minimum(found, columns - 1)
