"""The decoder, which predicts codes, and the estimator, which predicts features."""

import keras
from keras import ops

from keras_bridle.layers.masks import gather_patches, restore_order
from keras_bridle.layers.positions import SineCosinePositionEncoding
from keras_bridle.layers.transformer import (
    attention_blocks,
    check_attention,
    run_blocks,
)
from keras_bridle.models.backbone import with_class_token


@keras.saving.register_keras_serializable(package="keras_bridle")
class CodeDecoder(keras.Model):
    """A light transformer over all positions, with one classifier for each level.

    Visible tokens and mask tokens go through it together; the head runs on the masked
    patches alone.

    Args:
        num_levels: int, levels of the tokenizer's quantizer.
        codebook_size: int, codes of each level.
        hidden_dim: int, size of the tokens inside.
        num_layers: int, number of blocks.
        num_heads: int, attention heads of each block.
        mlp_dim: int, width of the blocks' hidden layer.
        attention: string. `"global"`: every token sees all others. `"window"`: windows
            of `window_size`, shifted by `window_shift` in every other block; the grid
            of patches must be a multiple of the window.
        window_size: tuple of 2 ints, rows and columns, in patches.
        window_shift: tuple of 2 ints, rows and columns, in patches.
        use_class_token: bool, whether tokens start with a class token (the same as the
            encoder's).
        keep_class_token: bool, whether the class token goes through the blocks. Windows
            have no place for one, so with them it is left out in any case.
        position_layout: string, the `layout` of `SineCosinePositionEncoding`.
        layer_norm_epsilon: float, added to the variance in the norms.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        tokens: tensor of shape `(batch, num_visible (+ 1), dim)`, the encoder's output.
        patch_mask: `PatchMask`, which patches those are and which are to be predicted.
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
        attention="global",
        window_size=(4, 4),
        window_shift=(2, 0),
        use_class_token=True,
        keep_class_token=True,
        position_layout="grid",
        layer_norm_epsilon=1e-6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_attention(attention)
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.attention = attention
        self.window_size = tuple(window_size)
        self.window_shift = tuple(window_shift)
        self.use_class_token = use_class_token
        self.keep_class_token = keep_class_token
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
        self.head = keras.layers.Dense(
            num_levels * codebook_size, dtype=self.dtype_policy, name="head"
        )

    def build(self, tokens_shape):
        self.mask_token = self.add_weight(
            shape=(1, 1, self.hidden_dim),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="mask_token",
        )
        self.embedding.build(tokens_shape)
        hidden_shape = (None, None, self.hidden_dim)
        for layer in (self.position_encoding, *self.blocks, self.norm, self.head):
            layer.build(hidden_shape)
        self.built = True

    def call(self, tokens, patch_mask, grid, padding_mask=None):
        tokens = self.embedding(tokens)
        patches = tokens[:, 1:] if self.use_class_token else tokens
        patches = self._fill_in(patches, patch_mask)
        patches = self.position_encoding(patches, grid=grid)
        if self._class_token_takes_part:
            tokens = ops.concatenate([tokens[:, :1], patches], axis=1)
            mask = with_class_token(padding_mask)
            patches = run_blocks(self.blocks, tokens, grid, mask)[:, 1:]
        else:
            patches = run_blocks(self.blocks, patches, grid, padding_mask)
        logits = self.head(self.norm(gather_patches(patches, patch_mask.masked)))
        shape = (*ops.shape(logits)[:2], self.num_levels, self.codebook_size)
        return ops.cast(ops.reshape(logits, shape), "float32")

    def compute_output_spec(self, tokens, patch_mask, grid, padding_mask=None):
        # Stated, as Keras on JAX would trace the sides of `grid` to find it out.
        shape = (*patch_mask.masked.shape, self.num_levels, self.codebook_size)
        return keras.KerasTensor(shape, dtype="float32")

    def copy_body(self, other):
        """Takes over another decoder's weights, but for those of the head.

        So a decoder begins to predict other codes with all that the other one learned
        about patches and their surroundings.

        Args:
            other: built `CodeDecoder` of the same width and depth.

        Raises:
            ValueError: if the weights' shapes differ.
        """
        ours = [self.mask_token, *self._body_weights()]
        theirs = [other.mask_token, *other._body_weights()]
        if [w.shape for w in ours] != [w.shape for w in theirs]:
            raise ValueError(
                "`other` must be a decoder of the same width and depth. Received: "
                f"other={other.get_config()}"
            )
        for weight, source in zip(ours, theirs, strict=True):
            # A copy, as training on JAX gives up the arrays it starts from.
            weight.assign(ops.copy(source))

    def copy_last_levels(self, other, num_levels):
        """Takes over another decoder's head, for codes that stay the same.

        Args:
            other: built `CodeDecoder` of the same width and size of codebooks.
            num_levels: int, how many levels, counted from the last of each.
        """
        count = num_levels * self.codebook_size
        for weight, source in zip(self.head.weights, other.head.weights, strict=True):
            first = weight.shape[-1] - count
            kept = ops.convert_to_tensor(source)[..., -count:]
            new = ops.convert_to_tensor(weight)[..., :first]
            weight.assign(ops.concatenate([new, kept], axis=-1))

    def _body_weights(self):
        layers = (self.embedding, *self.blocks, self.norm)
        return [weight for layer in layers for weight in layer.weights]

    @property
    def _class_token_takes_part(self):
        kept = self.use_class_token and self.keep_class_token
        return kept and self.attention == "global"

    def _fill_in(self, visible, patch_mask):
        """Puts visible tokens and mask tokens in the order of the patches."""
        batch, num_masked = ops.shape(patch_mask.masked)
        mask_tokens = ops.broadcast_to(
            ops.convert_to_tensor(self.mask_token, dtype=visible.dtype),
            (batch, num_masked, self.hidden_dim),
        )
        tokens = ops.concatenate([visible, mask_tokens], axis=1)
        return gather_patches(tokens, restore_order(patch_mask))

    def get_config(self):
        return {
            **super().get_config(),
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "attention": self.attention,
            "window_size": self.window_size,
            "window_shift": self.window_shift,
            "use_class_token": self.use_class_token,
            "keep_class_token": self.keep_class_token,
            "position_layout": self.position_layout,
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }


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
