"""The decoder, which predicts codes, and the estimator, which predicts features."""

import keras
from keras import ops

from keras_bridle.layers.masks import gather_patches, restore_order
from keras_bridle.layers.positions import SineCosinePositionEncoding
from keras_bridle.layers.transformer import (
    attention_blocks,
    run_blocks,
)
from keras_bridle.models.arguments import Configured
from keras_bridle.models.backbone import with_class_token


class _Head(Configured, keras.Model):
    """A transformer between two dense layers."""

    def __init__(
        self,
        hidden_dim,
        num_layers,
        num_heads,
        mlp_dim,
        attention="global",
        window_size=(4, 4),
        window_shift=(2, 0),
        position_layout="grid",
        layer_norm_epsilon=1e-6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        self.window_size, self.window_shift = tuple(window_size), tuple(window_shift)
        dtype = self.dtype_policy
        self.embedding = keras.layers.Dense(hidden_dim, dtype=dtype, name="embedding")
        self.position_encoding = SineCosinePositionEncoding(
            position_layout, dtype=dtype, name="position_encoding"
        )
        self.blocks = attention_blocks(self)
        self.norm = keras.layers.LayerNormalization(
            epsilon=layer_norm_epsilon, dtype=dtype, name="norm"
        )

    def _add_head(self, output_dim):
        self.head = keras.layers.Dense(output_dim, dtype=self.dtype_policy, name="head")

    def build(self, tokens_shape):
        self.embedding.build(tokens_shape)
        hidden_shape = (None, None, self.hidden_dim)
        for layer in (self.position_encoding, *self.blocks, self.norm, self.head):
            layer.build(hidden_shape)
        self.built = True


@keras.saving.register_keras_serializable(package="keras_bridle")
class CodeDecoder(_Head):
    """A light transformer over visible and mask tokens, with a classifier per level.

    The head runs on the masked patches only.

    Args:
        num_levels: int, levels of the tokenizer's quantizer.
        codebook_size: int, codes of each level.
        hidden_dim: int, size of its tokens.
        num_layers: int, number of blocks.
        num_heads: int, attention heads of each block.
        mlp_dim: int, width of the blocks' hidden layer.
        use_class_token: bool, whether tokens start with the encoder's class token.
        keep_class_token: bool, whether the class token goes through the blocks. Window
            attention never keeps it.
        attention: string. `"global"`: every token sees all others. `"window"`: windows
            of `window_size`, shifted by `window_shift` in every other block; the grid
            of patches must be a multiple of the window.
        window_size: tuple of 2 ints, rows and columns, in patches.
        window_shift: tuple of 2 ints, rows and columns, in patches.
        position_layout: string, the `layout` of `SineCosinePositionEncoding`.
        layer_norm_epsilon: float, added to the variance in the norms.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        tokens: tensor of shape `(batch, num_visible (+ 1), dim)`, the encoder's output.
        patch_mask: `PatchMask`, the visible patches and those to predict.
        grid: tuple of ints, the grid of patches.
        padding_mask: optional bool tensor of shape `(batch, num_patches)`, `True` at
            real patches.

    Returns:
        float32 logits of shape `(batch, num_masked, num_levels, codebook_size)`.

    Raises:
        ValueError: for an unknown `attention`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.masks import RandomMask
    from keras_bridle.models.heads import CodeDecoder

    decoder = CodeDecoder(
        num_levels=4, codebook_size=16, hidden_dim=32, num_layers=1, num_heads=2,
        mlp_dim=64,
    )
    mask = RandomMask(0.75)(np.zeros((2, 16, 8), "float32"))
    tokens = np.zeros((2, 5, 48), "float32")
    print(decoder(tokens, mask, grid=(4, 4)).shape)  # (2, 12, 4, 16)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
        - [He et al., 2021](https://arxiv.org/abs/2111.06377)
    """

    def __init__(
        self,
        num_levels,
        codebook_size,
        hidden_dim=512,
        num_layers=8,
        num_heads=16,
        mlp_dim=2048,
        use_class_token=True,
        keep_class_token=True,
        **kwargs,
    ):
        super().__init__(hidden_dim, num_layers, num_heads, mlp_dim, **kwargs)
        self.keep_arguments(locals())
        self._add_head(num_levels * codebook_size)

    def build(self, tokens_shape):
        self.mask_token = self.add_weight(
            shape=(1, 1, self.hidden_dim),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="mask_token",
        )
        super().build(tokens_shape)

    def call(self, tokens, patch_mask, grid, padding_mask=None):
        tokens = self.embedding(tokens)
        patches = tokens[:, 1:] if self.use_class_token else tokens
        patches = self._with_mask_tokens(patches, patch_mask)
        patches = self.position_encoding(patches, grid=grid)
        kept = self.use_class_token and self.keep_class_token
        if kept and self.attention == "global":
            tokens = ops.concatenate([tokens[:, :1], patches], axis=1)
            mask = with_class_token(padding_mask)
            patches = run_blocks(self.blocks, tokens, grid, mask)[:, 1:]
        else:
            patches = run_blocks(self.blocks, patches, grid, padding_mask)
        logits = self.head(self.norm(gather_patches(patches, patch_mask.masked)))
        shape = (*ops.shape(logits)[:2], self.num_levels, self.codebook_size)
        return ops.cast(ops.reshape(logits, shape), "float32")

    def compute_output_spec(self, tokens, patch_mask, grid, padding_mask=None):
        # Without this, Keras on JAX would trace the sides of `grid`.
        shape = (*patch_mask.masked.shape, self.num_levels, self.codebook_size)
        return keras.KerasTensor(shape, dtype="float32")

    def copy_body(self, other):
        """Copies the weights of another decoder of the same size, except the head's."""
        weights = zip(self._body_weights(), other._body_weights(), strict=True)
        for weight, source in weights:
            # A copy, as training on JAX donates the arrays it starts from.
            weight.assign(ops.copy(source))

    def copy_last_levels(self, other, num_levels):
        """Copies the last levels of another decoder's head."""
        count = num_levels * self.codebook_size
        for weight, source in zip(self.head.weights, other.head.weights, strict=True):
            first = weight.shape[-1] - count
            kept = ops.convert_to_tensor(source)[..., -count:]
            new = ops.convert_to_tensor(weight)[..., :first]
            weight.assign(ops.concatenate([new, kept], axis=-1))

    def _body_weights(self):
        layers = (self.embedding, *self.blocks, self.norm)
        return [self.mask_token, *(w for layer in layers for w in layer.weights)]

    def _with_mask_tokens(self, visible, patch_mask):
        """Merges visible tokens and mask tokens in the order of the patches."""
        batch, num_masked = ops.shape(patch_mask.masked)
        mask_tokens = ops.broadcast_to(
            ops.convert_to_tensor(self.mask_token, dtype=visible.dtype),
            (batch, num_masked, self.hidden_dim),
        )
        tokens = ops.concatenate([visible, mask_tokens], axis=1)
        return gather_patches(tokens, restore_order(patch_mask))


@keras.saving.register_keras_serializable(package="keras_bridle")
class FeatureEstimator(_Head):
    """A small transformer from quantized vectors to the teacher's features.

    Args:
        output_dim: int, size of the teacher's features.
        hidden_dim, num_layers, num_heads, mlp_dim, **kwargs: as in `CodeDecoder`,
            except class tokens.

    Call arguments:
        vectors: tensor of shape `(batch, num_patches, code_dim)`.
        grid: tuple of ints, the grid of patches.
        padding_mask: optional bool tensor of shape `(batch, num_patches)`, `True` at
            real patches.

    Returns:
        float32 tensor of shape `(batch, num_patches, output_dim)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.heads import FeatureEstimator

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
        **kwargs,
    ):
        super().__init__(hidden_dim, num_layers, num_heads, mlp_dim, **kwargs)
        self.output_dim = output_dim
        self._add_head(output_dim)

    def call(self, vectors, grid, padding_mask=None):
        tokens = self.position_encoding(self.embedding(vectors), grid=grid)
        tokens = run_blocks(self.blocks, tokens, grid, padding_mask)
        return ops.cast(self.head(self.norm(tokens)), "float32")

    def compute_output_spec(self, vectors, grid, padding_mask=None):
        # Without this, Keras on JAX would trace the sides of `grid`.
        shape = (*vectors.shape[:-1], self.output_dim)
        return keras.KerasTensor(shape, dtype="float32")
