"""A learned vector in front of a sequence."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_bridle")
class ClassToken(keras.layers.Layer):
    """Puts one learned vector in front of every sequence.

    Call arguments:
        tokens: float tensor of shape `(batch, length, dim)`.

    Returns:
        Tensor of shape `(batch, 1 + length, dim)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import ClassToken

    print(ClassToken()(np.zeros((2, 8, 32), "float32")).shape)  # (2, 9, 32)
    ```

    Reference:
        - [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929)
    """

    def build(self, tokens_shape):
        self.class_token = self.add_weight(
            shape=(1, 1, tokens_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="class_token",
        )

    def call(self, tokens):
        token = ops.broadcast_to(
            ops.convert_to_tensor(self.class_token, dtype=tokens.dtype),
            (ops.shape(tokens)[0], 1, tokens.shape[-1]),
        )
        return ops.concatenate([token, tokens], axis=1)

    def compute_output_shape(self, tokens_shape):
        batch, length, dim = tokens_shape
        return (batch, None if length is None else length + 1, dim)
