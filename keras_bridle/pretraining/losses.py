"""The two losses of BRIDLE, in float32 whatever the dtype policy.

Where a batch is divided among replicas, each computes its share of the batch's mean:
the shares add up to what one device would compute of the whole batch.
"""

import keras
from keras import ops

from keras_bridle.layers.replicas import num_replicas, sum_over_replicas


def code_prediction_loss(codes, logits, weights=None):
    """Cross-entropy of predicted codes, averaged over patches and levels.

    Args:
        codes: int32 tensor of shape `(batch, num_patches, num_levels)`, or with a last
            axis more where several codes of a level are right.
        logits: float tensor of shape
            `(batch, num_patches, num_levels, codebook_size)`.
        weights: optional float tensor of shape `(batch, num_patches)`; patches of
            weight 0 do not count.

    Returns:
        float32 scalar.
    """
    logits = ops.cast(logits, "float32")
    if len(codes.shape) == len(logits.shape):
        logits = ops.expand_dims(logits, 3)
        logits = ops.repeat(logits, codes.shape[-1], axis=3)
    # Padding has the code -1. Its weight is 0, but even so it must be a code.
    codes = ops.maximum(codes, 0)
    losses = keras.losses.sparse_categorical_crossentropy(
        codes, logits, from_logits=True
    )
    axes = tuple(range(2, len(losses.shape)))
    return weighted_mean(ops.mean(losses, axis=axes), weights)


def cosine_similarity(first, second, weights=None):
    """Cosine between two sets of vectors, averaged over patches.

    Args:
        first: float tensor of shape `(batch, num_patches, dim)`.
        second: tensor like `first`.
        weights: optional float tensor of shape `(batch, num_patches)`.

    Returns:
        float32 scalar.
    """
    first = ops.normalize(ops.cast(first, "float32"), axis=-1, epsilon=1e-8)
    second = ops.normalize(ops.cast(second, "float32"), axis=-1, epsilon=1e-8)
    return weighted_mean(ops.sum(first * second, axis=-1), weights)


def weighted_mean(values, weights):
    """Mean of `values`, or 0 where all weights are."""
    if weights is None:
        return ops.mean(values) / num_replicas()
    weights = ops.cast(weights, "float32")
    total = sum_over_replicas(ops.sum(weights))
    return ops.sum(values * weights) / ops.where(total > 0.0, total, 1.0)
