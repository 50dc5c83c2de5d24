"""Reads the teacher's features back from quantized vectors."""

import keras
from keras import ops

from keras_bridle.layers.position_encoding import SineCosinePositionEncoding
from keras_bridle.models.attention_blocks import (
    attention_blocks,
    check_attention,
    run_blocks,
)


@keras.saving.register_keras_serializable(package="keras_bridle")
class FeatureEstimator(keras.Model):
    """A small transformer from quantized vectors to the teacher's features.

    Args:
        output_dim: int, size of the teacher's features.
        hidden_dim: int, size of the tokens inside.
        num_layers: int, number of blocks.
        num_heads: int, attention heads of each block.
        mlp_dim: int, width of the blocks' hidden layer.
        attention: string, `"global"` or `"window"`, as in `CodeDecoder`.
        window_size: tuple of 2 ints, rows and columns, in patches.
        window_shift: tuple of 2 ints, rows and columns, in patches.
        position_layout: string, the `layout` of `SineCosinePositionEncoding`.
        layer_norm_epsilon: float, added to the variance in the norms.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        vectors: tensor of shape `(batch, num_patches, code_dim)`.
        grid: tuple of ints, the grid of patches.
        padding_mask: optional bool tensor of shape `(batch, num_patches)`, `True` at
            real patches.

    Returns:
        float32 tensor of shape `(batch, num_patches, output_dim)`.

    Raises:
        ValueError: for an unknown `attention`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models import FeatureEstimator

    estimator = FeatureEstimator(
        output_dim=48, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64
    )
    print(estimator(np.zeros((2, 16, 8), "float32"), grid=(4, 4)).shape)  # (2, 16, 48)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
    """

    def __init__(
        self,
        output_dim,
        hidden_dim=768,
        num_layers=3,
        num_heads=12,
        mlp_dim=3072,
        attention="global",
        window_size=(4, 4),
        window_shift=(2, 0),
        position_layout="grid",
        layer_norm_epsilon=1e-6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_attention(attention)
        self.output_dim = output_dim
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.attention = attention
        self.window_size = tuple(window_size)
        self.window_shift = tuple(window_shift)
        self.position_layout = position_layout
        self.layer_norm_epsilon = layer_norm_epsilon

        self.embedding = keras.layers.Dense(
            hidden_dim, dtype=self.dtype_policy, name="embedding"
        )
        self.position_encoding = SineCosinePositionEncoding(
            position_layout, dtype=self.dtype_policy, name="position_encoding"
        )
        self.blocks = attention_blocks(self)
        self.norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name="norm"
        )
        self.head = keras.layers.Dense(output_dim, dtype=self.dtype_policy, name="head")

    def build(self, vectors_shape):
        self.embedding.build(vectors_shape)
        hidden_shape = (None, None, self.hidden_dim)
        for layer in (self.position_encoding, *self.blocks, self.norm, self.head):
            layer.build(hidden_shape)
        self.built = True

    def call(self, vectors, grid, padding_mask=None):
        tokens = self.position_encoding(self.embedding(vectors), grid=grid)
        tokens = run_blocks(self.blocks, tokens, grid, padding_mask)
        return ops.cast(self.head(self.norm(tokens)), "float32")

    def compute_output_spec(self, vectors, grid, padding_mask=None):
        # Stated, as Keras on JAX would trace the sides of `grid` to find it out.
        shape = (*vectors.shape[:-1], self.output_dim)
        return keras.KerasTensor(shape, dtype="float32")

    def get_config(self):
        return {
            **super().get_config(),
            "output_dim": self.output_dim,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "attention": self.attention,
            "window_size": self.window_size,
            "window_shift": self.window_shift,
            "position_layout": self.position_layout,
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }
