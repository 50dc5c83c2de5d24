"""How many codes a decoder predicts right."""

import keras
from keras import ops

from keras_bridle.layers.replicas import metric_increment


@keras.saving.register_keras_serializable(package="keras_bridle")
class CodeAccuracy(keras.metrics.Metric):
    """Share of right codes at each level.

    Args:
        num_levels: int.
        name: string, the prefix of the results' names.
        **kwargs: keyword arguments of `keras.metrics.Metric`.

    Returns:
        A dict, `{"accuracy_1": ..., "accuracy_2": ...}`, levels counted from 1.

    Example:
    ```python
    import numpy as np
    from keras_bridle.pretraining import CodeAccuracy

    metric = CodeAccuracy(num_levels=2)
    logits = np.eye(4)[[[[0, 1], [2, 3]]]]
    metric.update_state(np.array([[[0, 1], [2, 2]]]), logits)
    print({name: float(value) for name, value in metric.result().items()})
    ```
    """

    def __init__(self, num_levels, name="accuracy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.num_levels = num_levels
        self.right = self.add_variable((num_levels,), "zeros", name="right")
        self.seen = self.add_variable((), "zeros", name="seen")

    def update_state(self, codes, logits, weights=None):
        """Counts a batch.

        Args:
            codes: int32 tensor of shape `(batch, num_patches, num_levels)`, or with a
                last axis more where several codes are right.
            logits: tensor of shape `(batch, num_patches, num_levels, codebook_size)`.
            weights: optional tensor of shape `(batch, num_patches)`.
        """
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
