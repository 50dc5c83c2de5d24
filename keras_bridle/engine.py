"""The few operations that use the backend itself rather than `keras.ops`."""

import keras
import numpy as np
from keras import ops

if keras.backend.backend() == "torch":
    import torch
elif keras.backend.backend() == "jax":
    import jax
elif keras.backend.backend() == "tensorflow":
    import tensorflow as tf


def after(tensor, *others):
    """Returns `tensor`, available only after `others` are computed.

    Only control dependencies tell TensorFlow's graphs that weights are read before a
    step updates them, if no gradient connects the two. Its graph optimizer drops some
    of these around a conditional whose branch is not taken.
    """
    if keras.backend.backend() != "tensorflow":
        return tensor
    with tf.control_dependencies(others):
        return tf.identity(tensor)


def _is_jax_on_cpu():
    return keras.backend.backend() == "jax" and jax.default_backend() == "cpu"


def attention(query, key, value, mask=None, bias=None):
    """Computes scaled dot-product attention of `(batch, length, heads, dim)`.

    `mask` and the additive `bias` broadcast to `(batch, heads, length, length)`. On
    CPUs, JAX has no fused attention, and XLA multiplies twice as fast with heads first.
    """
    if mask is not None and bias is not None:  # Keras takes only one of them
        mask, bias = None, ops.where(mask, bias, ops.cast(-3e4, bias.dtype))
    if not _is_jax_on_cpu():
        return ops.dot_product_attention(query, key, value, bias=bias, mask=mask)
    query, key, value = (ops.swapaxes(x, 1, 2) for x in (query, key, value))
    logits = ops.matmul(query * query.shape[-1] ** -0.5, ops.swapaxes(key, 2, 3))
    logits = ops.cast(logits, "float32")
    if bias is not None:
        logits = logits + ops.cast(bias, "float32")
    if mask is not None:
        logits = ops.where(mask, logits, -1e30)
    weights = ops.cast(ops.softmax(logits, axis=-1), value.dtype)
    return ops.swapaxes(ops.matmul(weights, value), 1, 2)


def by_rows(layer, tokens):
    """Calls a layer on tokens as a matrix, which is faster on CPUs with JAX."""
    if not _is_jax_on_cpu():
        return layer(tokens)
    shape = ops.shape(tokens)
    rows = layer(ops.reshape(tokens, (-1, shape[-1])))
    return ops.reshape(rows, (*shape[:-1], rows.shape[-1]))


def residual_sum(tokens, branch):
    """Adds a branch to the tokens that it comes from.

    The gradient of the tokens is a sum over all later branches. On CPUs, XLA fuses
    these additions into every use of the sum, which repeats them in each block and
    takes a third of a step. It does not fuse across a conditional.
    """
    return _held_gradient(tokens + branch) if _is_jax_on_cpu() else tokens + branch


if keras.backend.backend() == "jax":

    def _held(gradient):
        first = gradient[(0,) * gradient.ndim]
        # This is always true. Even otherwise, rounding would lose what is added.
        return jax.lax.cond(first < np.inf, lambda x: x, lambda x: x + 1e-30, gradient)

    _held_gradient = jax.custom_vjp(lambda tensor: tensor)
    _held_gradient.defvjp(lambda x: (x, None), lambda _, gradient: (_held(gradient),))


def is_symbolic(size):
    """Returns whether a size is a symbolic integer of `torch.export`."""
    return not (size is None or isinstance(size, int) or ops.is_tensor(size))


def segment_sum(values, segment_ids, num_segments):
    """Adds up the rows of `values` that share a segment, in `[0, num_segments)`.

    On torch, `keras.ops.segment_sum` first broadcasts the ids to the size of the
    values, which takes some thirty times as long.
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

    `penalties` are half the codes' squared lengths. On accelerators, JAX would round to
    TF32 or bfloat16, and choose other codes. Torch fuses the subtraction into the
    product.
    """
    if keras.backend.backend() == "torch":
        return torch.addmm(penalties, rows, table.T, beta=-1)
    if keras.backend.backend() == "jax":
        exact = jax.lax.Precision.HIGHEST
        return jax.numpy.matmul(rows, table.T, precision=exact) - penalties
    return ops.matmul(rows, ops.transpose(table)) - penalties


def argmax_of_rows(scores):
    """Finds the first maximum of each row; a valid column even with NaN.

    XLA and TensorFlow vectorize these two reductions, but no argmax; on torch its own
    argmax is faster.
    """
    if keras.backend.backend() == "torch":
        return torch.argmax(scores, dim=-1).to(torch.int32)
    columns = scores.shape[-1]
    best = ops.max(scores, axis=-1, keepdims=True)
    ids = ops.arange(columns, dtype="int32")[None]
    found = ops.min(ops.where(scores >= best, ids, columns), axis=-1)
    # NaN equals nothing.
    return ops.minimum(found, columns - 1)
