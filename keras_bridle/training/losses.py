"""Losses and metrics of the phases."""

import keras
from keras import ops

from keras_bridle.replicas import (
    metric_increment,
    metric_share,
    num_replicas,
    sum_over_replicas,
)


def code_prediction_loss(codes, logits, weights=None):
    """Cross-entropy of predicted codes, averaged over patches and levels.

    A fourth axis of `codes` is for several right codes of a level.
    """
    logits = ops.cast(logits, "float32")
    if len(codes.shape) == len(logits.shape):
        logits = ops.expand_dims(logits, 3)
        logits = ops.repeat(logits, codes.shape[-1], axis=3)
    # Padding has the code -1. Its weight is 0, but the index must be valid.
    codes = ops.maximum(codes, 0)
    losses = keras.losses.sparse_categorical_crossentropy(
        codes, logits, from_logits=True
    )
    axes = tuple(range(2, len(losses.shape)))
    return weighted_mean(ops.mean(losses, axis=axes), weights)


def cosine_similarity(first, second, weights=None):
    """Mean cosine similarity of vectors `(batch, num_patches, dim)`."""
    first = ops.normalize(ops.cast(first, "float32"), axis=-1, epsilon=1e-8)
    second = ops.normalize(ops.cast(second, "float32"), axis=-1, epsilon=1e-8)
    return weighted_mean(ops.sum(first * second, axis=-1), weights)


def weighted_mean(values, weights):
    """This replica's share of the weighted mean of `values`, 0 if all weights are 0."""
    if weights is None:
        return ops.mean(values) / num_replicas()
    weights = ops.cast(weights, "float32")
    total = sum_over_replicas(ops.sum(weights))
    return ops.sum(values * weights) / ops.where(total > 0.0, total, 1.0)


class FiniteMean(keras.metrics.Mean):
    """The mean of finite values; others are ignored."""

    def update_state(self, values, sample_weight=None):
        values = ops.convert_to_tensor(values)
        is_finite = ops.isfinite(values)
        weight = 1.0 if sample_weight is None else ops.cast(sample_weight, self.dtype)
        super().update_state(
            ops.where(is_finite, values, ops.zeros_like(values)),
            ops.cast(is_finite, self.dtype) * weight,
        )


class FiniteLoss(FiniteMean):
    """The mean of finite losses; `skipped_steps` is the number of others."""

    def __init__(self, name="loss", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.skipped = self.add_variable((), "zeros", name="skipped_steps")

    def update_state(self, values, sample_weight=None):
        super().update_state(values, sample_weight)
        is_finite = ops.all(ops.isfinite(ops.convert_to_tensor(values)))
        skipped = metric_share(1.0 - ops.cast(is_finite, "float32"))
        self.skipped.assign(self.skipped + skipped)

    def reset_state(self):
        super().reset_state()
        self.skipped.assign(0.0)

    def result(self):
        skipped = ops.convert_to_tensor(self.skipped)
        return {self.name: super().result(), "skipped_steps": skipped}


@keras.saving.register_keras_serializable(package="keras_bridle")
class CodeAccuracy(keras.metrics.Metric):
    """Accuracy of codes at each level, `{"accuracy_1": ..., "accuracy_2": ...}`."""

    def __init__(self, num_levels, name="accuracy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.num_levels = num_levels
        self.right = self.add_variable((num_levels,), "zeros", name="right")
        self.seen = self.add_variable((), "zeros", name="seen")

    def update_state(self, codes, logits, weights=None):
        """Counts a batch; arguments are those of `code_prediction_loss()`."""
        predicted = ops.cast(ops.argmax(logits, axis=-1), "int32")
        codes = ops.cast(codes, "int32")
        if len(codes.shape) == 4:
            right = ops.any(codes == ops.expand_dims(predicted, 3), axis=3)
        else:
            right = codes == predicted
        right = ops.cast(right, "float32")
        if weights is None:
            weights = ops.ones_like(right[..., 0])
        weights = ops.cast(weights, "float32")
        right = ops.sum(right * ops.expand_dims(weights, 2), axis=(0, 1))
        right, seen = metric_increment((right, ops.sum(weights)))
        self.right.assign(self.right + right)
        self.seen.assign(self.seen + seen)

    def result(self):
        seen = ops.convert_to_tensor(self.seen)
        share = self.right / ops.where(seen > 0.0, seen, 1.0)
        return {
            f"{self.name}_{level + 1}": share[level] for level in range(self.num_levels)
        }

    def get_config(self):
        return {**super().get_config(), "num_levels": self.num_levels}
