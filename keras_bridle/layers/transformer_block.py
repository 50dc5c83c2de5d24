"""The pre-norm transformer block of a ViT."""

import keras
from keras import ops

from keras_bridle.layers.engine import attention


@keras.saving.register_keras_serializable(package="keras_bridle")
class TransformerBlock(keras.layers.Layer):
    """Self-attention among all tokens, then an MLP, each with a norm in front.

    Args:
        num_heads: int, attention heads; must divide the tokens' size.
        mlp_dim: int, width of the MLP's hidden layer.
        layer_norm_epsilon: float, added to the variance in the norms.
        drop_path_rate: float in [0, 1), how likely an example skips the attention, and
            likewise the MLP, in training: stochastic depth. What is not skipped is
            scaled up, so that its mean stays.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        tokens: float tensor of shape `(batch, length, dim)`.
        padding_mask: optional bool tensor of shape `(batch, length)`, `True` at real
            tokens. No token attends to a padded one.
        training: bool, whether examples skip at random.

    Returns:
        Tensor like `tokens`.

    Raises:
        ValueError: if `num_heads` does not divide the tokens' size, or a rate is out of
            range.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import TransformerBlock

    block = TransformerBlock(num_heads=4, mlp_dim=128)
    print(block(np.zeros((2, 9, 32), "float32")).shape)  # (2, 9, 32)
    ```

    Reference:
        - [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929)
        - [Huang et al., 2016](https://arxiv.org/abs/1603.09382), stochastic depth
    """

    def __init__(
        self,
        num_heads,
        mlp_dim,
        layer_norm_epsilon=1e-6,
        drop_path_rate=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_drop_path_rate(drop_path_rate)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.layer_norm_epsilon = layer_norm_epsilon
        self.drop_path_rate = drop_path_rate
        # It has no weights, so files fit whether it is there or not.
        self.drop_path = None
        if drop_path_rate:
            self.drop_path = keras.layers.Dropout(
                drop_path_rate,
                noise_shape=(None, 1, 1),
                dtype=self.dtype_policy,
                name="drop_path",
            )

    def build(self, tokens_shape):
        dim = tokens_shape[-1]
        check_heads(self.num_heads, dim)
        self.attention_norm = self._norm("attention_norm")
        self.qkv = self._dense(3 * dim, "qkv")
        self.attention_output = self._dense(dim, "attention_output")
        self.mlp_norm = self._norm("mlp_norm")
        self.mlp_hidden = self._dense(self.mlp_dim, "mlp_hidden")
        self.mlp_output = self._dense(dim, "mlp_output")
        token_layers = (
            self.attention_norm,
            self.qkv,
            self.attention_output,
            self.mlp_norm,
            self.mlp_hidden,
        )
        for layer in token_layers:
            layer.build((None, None, dim))
        self.mlp_output.build((None, None, self.mlp_dim))

    def _norm(self, name):
        return keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name=name
        )

    def _dense(self, units, name):
        return keras.layers.Dense(units, dtype=self.dtype_policy, name=name)

    def call(self, tokens, padding_mask=None, training=None):
        attended = self._attend(self.attention_norm(tokens), padding_mask)
        tokens = tokens + self._dropped(attended, training)
        hidden = self.mlp_hidden(self.mlp_norm(tokens))
        hidden = self.mlp_output(ops.gelu(hidden, approximate=False))
        return tokens + self._dropped(hidden, training)

    def _dropped(self, branch, training):
        if self.drop_path is None:
            return branch
        return self.drop_path(branch, training=training)

    def _attend(self, tokens, padding_mask):
        batch, length, dim = ops.shape(tokens)
        heads = (batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = ops.unstack(ops.reshape(self.qkv(tokens), heads), axis=2)
        mask = None
        if padding_mask is not None:
            mask = ops.cast(padding_mask, "bool")[:, None, None, :]
            mask = ops.broadcast_to(mask, (batch, 1, length, length))
        attended = attention(query, key, value, mask)
        return self.attention_output(ops.reshape(attended, (batch, length, dim)))

    def compute_output_shape(self, tokens_shape):
        return tuple(tokens_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "drop_path_rate": self.drop_path_rate,
        }


def check_drop_path_rate(drop_path_rate):
    """Raises a `ValueError` for a rate that drops everything, or is none."""
    if not 0.0 <= drop_path_rate < 1.0:
        raise ValueError(
            "`drop_path_rate` must lie in [0, 1). "
            f"Received: drop_path_rate={drop_path_rate}"
        )


def check_heads(num_heads, dim):
    """Raises a `ValueError` if attention heads do not divide the tokens' size."""
    if dim % num_heads:
        raise ValueError(
            "`num_heads` must divide the tokens' size. "
            f"Received: num_heads={num_heads}, tokens of size {dim}"
        )
