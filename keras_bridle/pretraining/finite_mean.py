"""Means that one bad step does not spoil."""

import keras
from keras import ops

from keras_bridle.layers.replicas import metric_share


class FiniteMean(keras.metrics.Mean):
    """The mean of the finite numbers among those it is given.

    Args:
        name: string.
        dtype: dtype of the sums.

    Example:
    ```python
    from keras_bridle.pretraining.finite_mean import FiniteMean

    mean = FiniteMean(name="cosine")
    for value in (1.0, float("nan"), 2.0):
        mean.update_state(value)
    print(float(mean.result()))  # 1.5
    ```
    """

    def update_state(self, values, sample_weight=None):
        values = ops.convert_to_tensor(values)
        is_finite = ops.isfinite(values)
        weight = 1.0 if sample_weight is None else ops.cast(sample_weight, self.dtype)
        super().update_state(
            ops.where(is_finite, values, ops.zeros_like(values)),
            ops.cast(is_finite, self.dtype) * weight,
        )


class FiniteLoss(FiniteMean):
    """The mean of the finite losses of an epoch, and how many others there were.

    Args:
        name: string, also of the mean in the result.
        dtype: dtype of the sums.

    Returns:
        A dict: `loss`, under the metric's name, and `skipped_steps`.
    """

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
