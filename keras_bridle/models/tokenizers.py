"""The tokenizers, which turn patches into codes."""

import math

import keras
from keras import ops

from keras_bridle.config import ArgumentError
from keras_bridle.layers.masks import gather_patches
from keras_bridle.layers.patches import PatchEmbedding
from keras_bridle.layers.positions import SineCosinePositionEncoding
from keras_bridle.models.arguments import Configured


class _Tokenizer(Configured, keras.Model):
    """Base of the tokenizers: vectors of patches, then a quantizer."""

    def __init__(self, quantizer, **kwargs):
        super().__init__(**kwargs)
        if quantizer.dim is None:
            raise ArgumentError("quantizer", "one with a known `dim`", quantizer)

    def build_quantizer(self):
        if not self.quantizer.built:  # it was loaded or adapted before
            self.quantizer.build((None, None, self.quantizer.dim))
        self.built = True

    def call(self, maps, padding_mask=None, visible=None, training=False):
        mask = self.patch_padding_mask(maps, padding_mask)
        if mask is not None and visible is not None:
            mask = gather_patches(mask, visible)
        vectors = self.vectors(maps, padding_mask, visible, training)
        return self.quantizer(vectors, padding_mask=mask, training=training)


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleTokenizer(_Tokenizer):
    """Converts maps to codes: a ViT, two dense layers and a residual quantizer.

    Args:
        backbone: `BridleBackbone`, the tokenizer's own encoder.
        quantizer: `ResidualQuantizer` with a known `dim`.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        maps: tensor of shape `(batch, *sides, channels)`, from `BridleBackbone.maps()`.
        padding_mask: optional bool tensor of shape `(batch, rows)`, from `maps()`.
        visible: optional int32 tensor of shape `(batch, num_visible)`, the indices of
            the patches to tokenize. `None` tokenizes all.
        training: bool, whether codebooks learn and examples skip blocks at random.

    Returns:
        `ResidualQuantizerOutput` for vectors of shape `(batch, num_patches, code_dim)`.

    Raises:
        ValueError: if the quantizer's `dim` is not known.

    Example:
    ```python
    import numpy as np
    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
    from keras_bridle.models.backbone import BridleBackbone
    from keras_bridle.models.tokenizers import BridleTokenizer

    backbone = BridleBackbone.from_preset("bridle_audio_tiny", load_weights=False)
    tokenizer = BridleTokenizer(backbone, ResidualQuantizer(4, 16, dim=8))
    maps, padding_mask = backbone.maps(np.ones((1, 16000), "float32"))
    print(tokenizer(maps, padding_mask).codes.shape)  # (1, 100, 4)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
    """

    def __init__(self, backbone, quantizer, **kwargs):
        super().__init__(quantizer, **kwargs)
        self.keep_arguments(locals())
        dtype = self.dtype_policy
        dim = backbone.hidden_dim
        self.hidden = keras.layers.Dense(dim, "tanh", dtype=dtype, name="hidden")
        self.projection = keras.layers.Dense(
            quantizer.dim, dtype=dtype, name="projection"
        )
        for layer in (self.hidden, self.projection):
            layer.build((None, None, dim))
        self.build_quantizer()

    def patch_padding_mask(self, maps, padding_mask):
        return self.backbone.patch_padding_mask(maps, padding_mask)

    def vectors(self, maps, padding_mask=None, visible=None, training=False):
        """Computes the vectors to quantize, `(batch, num_patches, code_dim)`."""
        tokens = self.backbone.encode(maps, padding_mask, visible, training=training)
        return self.projection(self.hidden(self.backbone.drop_class_token(tokens)))


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomProjectionTokenizer(_Tokenizer):
    """Converts maps to codes with a fixed random projection of each patch.

    The cold start learns from it. `quantizer.adapt()` on projected patches sets its
    codebooks once. Its call arguments and outputs are those of `BridleTokenizer`.

    Args:
        patch_size: int or tuple of ints, as in `BridleBackbone`.
        hidden_dim: int, size of the random patch vectors.
        quantizer: `ResidualQuantizer` with a known `dim`.
        position_layout: optional string, the layout of positions to add to the patch
            vectors, as published, so that codes also depend on the position.
        center_patches: bool, whether to subtract the mean of each channel from a patch,
            so that codes describe shape and motion rather than brightness; all flat
            patches get the same codes.
        **kwargs: keyword arguments of `keras.Model`.

    Raises:
        ValueError: if the quantizer's `dim` is not known.

    Example:
    ```python
    import numpy as np
    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
    from keras_bridle.models.tokenizers import RandomProjectionTokenizer

    tokenizer = RandomProjectionTokenizer(16, 32, ResidualQuantizer(4, 16, dim=8))
    print(tokenizer(np.ones((1, 64, 128, 1), "float32")).codes.shape)  # (1, 32, 4)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
        - [Chiu et al., 2022](https://arxiv.org/abs/2202.01855), BEST-RQ
    """

    def __init__(
        self,
        patch_size,
        hidden_dim,
        quantizer,
        position_layout=None,
        center_patches=False,
        **kwargs,
    ):
        super().__init__(quantizer, **kwargs)
        self.keep_arguments(locals())
        # In half precision, rounding errors would be as large as faint patches.
        self.patch_embedding = PatchEmbedding(
            hidden_dim, patch_size, dtype="float32", name="patch_embedding"
        )
        self.position_encoding = None
        if position_layout is not None:
            self.position_encoding = SineCosinePositionEncoding(
                position_layout, dtype="float32", name="position_encoding"
            )
        self.flatten_grid = keras.layers.Reshape(
            (-1, hidden_dim), dtype="float32", name="flatten_grid"
        )
        self.projection = keras.layers.Dense(
            quantizer.dim, use_bias=False, dtype="float32", name="projection"
        )

    def build(self, maps_shape):
        self.patch_embedding.build(maps_shape)
        if self.center_patches:
            self._center_projection()
        if self.position_encoding is not None:
            self.position_encoding.build(
                self.patch_embedding.compute_output_shape(maps_shape)
            )
        self.projection.build((None, None, self.hidden_dim))
        self.build_quantizer()

    def _center_projection(self):
        """Makes the projection ignore the brightness of a patch."""
        kernel = self.patch_embedding.projection.kernel
        # The mean of each channel.
        pixels = math.prod(self.patch_embedding.patch_size)
        by_pixel = ops.reshape(kernel, (pixels, -1, self.hidden_dim))
        centered = by_pixel - ops.mean(by_pixel, axis=0, keepdims=True)
        kernel.assign(ops.reshape(centered, kernel.shape))

    def patch_padding_mask(self, maps, padding_mask):
        return self.patch_embedding.patch_padding_mask(maps, padding_mask)

    def vectors(self, maps, padding_mask=None, visible=None, training=False):
        """Computes the vectors to quantize, of all patches or the `visible` ones."""
        if not self.built:  # as when its first vectors are to set the codebooks
            self.build(maps.shape)
        patches = self.patch_embedding(maps, visible=visible)
        if self.position_encoding is not None:
            grid = self.patch_embedding.grid(ops.shape(maps)[1:-1])
            patches = self.position_encoding(patches, grid=grid, visible=visible)
        if visible is None:
            patches = self.flatten_grid(patches)
        vectors = self.projection(patches)
        if not self.center_patches:
            return vectors
        # Only rounding errors are left of a flat patch, which depend on its brightness.
        # Unit length would magnify them, so a fixed vector replaces them.
        squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
        flat = self.quantizer.dim**-0.5
        return ops.where(squares > SHORTEST**2, vectors, flat)


# Other centered vectors are at least 9e-3 long (one pixel of 1,536 is 1 / 255
# brighter), rounding errors 5e-6, or 3e-5 in bright patches.
SHORTEST = 5e-4
