"""Networks that turn patches into codes."""

import math

import keras
from keras import ops

from keras_bridle.layers.masks import gather_patches
from keras_bridle.layers.patches import PatchEmbedding
from keras_bridle.layers.positions import SineCosinePositionEncoding


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleTokenizer(keras.Model):
    """Turns maps into codes: a ViT, two dense layers, a residual quantizer.

    Args:
        backbone: `BridleBackbone`, an encoder of the tokenizer's own.
        quantizer: `ResidualQuantizer` with a known `dim`.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        features: tensor of shape `(batch, *sides, channels)`, a map such as
            `BridleBackbone.features()` gives.
        padding_mask: optional bool tensor of shape `(batch, rows)`, `True` at real
            rows.
        visible: optional int32 tensor of shape `(batch, num_visible)`, the patches to
            tokenize; the others are left out. `None` tokenizes all.
        training: bool, whether codebooks move and examples skip blocks at random.

    Returns:
        `ResidualQuantizerOutput` with quantized vectors of shape
        `(batch, num_patches, code_dim)` and codes of shape
        `(batch, num_patches, num_levels)`.

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
    features, padding_mask = backbone.features(np.ones((1, 16000), "float32"))
    print(tokenizer(features, padding_mask).codes.shape)  # (1, 100, 4)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
    """

    def __init__(self, backbone, quantizer, **kwargs):
        super().__init__(**kwargs)
        check_quantizer(quantizer)
        self.backbone = backbone
        self.quantizer = quantizer
        self.hidden = keras.layers.Dense(
            backbone.hidden_dim,
            activation="tanh",
            dtype=self.dtype_policy,
            name="hidden",
        )
        self.projection = keras.layers.Dense(
            quantizer.dim, dtype=self.dtype_policy, name="projection"
        )
        self.hidden.build((None, None, backbone.hidden_dim))
        self.projection.build((None, None, backbone.hidden_dim))
        if not quantizer.built:  # one from a file is, with its codebooks
            quantizer.build((None, None, quantizer.dim))
        self.built = True

    def vectors(self, features, padding_mask=None, visible=None, training=False):
        """Computes the vectors that are quantized.

        Args:
            features: tensor of shape `(batch, *sides, channels)`.
            padding_mask: optional bool tensor of shape `(batch, rows)`.
            visible: optional int32 tensor of shape `(batch, num_visible)`.
            training: bool, whether examples skip blocks at random.

        Returns:
            Tensor of shape `(batch, num_patches, code_dim)`.
        """
        tokens = self.backbone.encode(
            features, padding_mask, visible, training=training
        )
        return self.projection(self.hidden(self.backbone.drop_class_token(tokens)))

    def call(self, features, padding_mask=None, visible=None, training=False):
        mask = self.backbone.patch_padding_mask(features, padding_mask)
        if mask is not None and visible is not None:
            mask = gather_patches(mask, visible)
        vectors = self.vectors(features, padding_mask, visible, training)
        return self.quantizer(vectors, padding_mask=mask, training=training)

    def get_config(self):
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "quantizer": keras.saving.serialize_keras_object(self.quantizer),
        }

    @classmethod
    def from_config(cls, config):
        parts = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in ("backbone", "quantizer")
        }
        return cls(**{**config, **parts})


def check_quantizer(quantizer):
    """Raises a `ValueError` if a quantizer does not know the size of its vectors."""
    if quantizer.dim is None:
        raise ValueError(
            "`quantizer` must know the size of its vectors. Expected: "
            "ResidualQuantizer(..., dim=256). Received: dim=None"
        )


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomProjectionTokenizer(keras.Model):
    """Turns maps into codes by one fixed random projection of each patch.

    The first encoder phase learns from it. Its codebooks are set once by
    `quantizer.adapt()` on projected patches.

    Args:
        patch_size: int or tuple of ints, as of `BridleBackbone`.
        hidden_dim: int, size of the random patch vectors.
        quantizer: `ResidualQuantizer` with a known `dim`.
        position_layout: optional string. When given, positions of this layout are added
            to the patch vectors, as published; codes then tell the place of a patch as
            well as its content. `None` leaves them out.
        center_patches: bool, whether codes are of patches less the mean of each of
            their channels, and so tell shape and motion alone, not brightness.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        features: tensor of shape `(batch, *sides, channels)`, a map such as
            `BridleBackbone.features()` gives.
        padding_mask: optional bool tensor of shape `(batch, rows)`, `True` at real
            rows.
        visible: optional int32 tensor of shape `(batch, num_visible)`, the patches to
            tokenize; the others are left out. `None` tokenizes all.
        training: bool, whether codebooks move.

    Returns:
        `ResidualQuantizerOutput`.

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
        super().__init__(**kwargs)
        check_quantizer(quantizer)
        self.patch_size = patch_size
        self.hidden_dim = hidden_dim
        self.quantizer = quantizer
        self.position_layout = position_layout
        self.center_patches = center_patches
        self.patch_embedding = PatchEmbedding(
            hidden_dim, patch_size, dtype=self.dtype_policy, name="patch_embedding"
        )
        self.position_encoding = None
        if position_layout is not None:
            self.position_encoding = SineCosinePositionEncoding(
                position_layout, dtype=self.dtype_policy, name="position_encoding"
            )
        self.flatten_grid = keras.layers.Reshape(
            (-1, hidden_dim), dtype=self.dtype_policy, name="flatten_grid"
        )
        self.projection = keras.layers.Dense(
            quantizer.dim, use_bias=False, dtype=self.dtype_policy, name="projection"
        )

    def build(self, features_shape):
        self.patch_embedding.build(features_shape)
        if self.center_patches:
            self._center_projection()
        if self.position_encoding is not None:
            self.position_encoding.build(
                self.patch_embedding.compute_output_shape(features_shape)
            )
        self.projection.build((None, None, self.hidden_dim))
        if not self.quantizer.built:  # one that was adapted before is
            self.quantizer.build((None, None, self.quantizer.dim))
        self.built = True

    def _center_projection(self):
        """Makes the projection of a patch and of the same, but brighter, equal."""
        kernel = self.patch_embedding.projection.kernel
        # Of each channel by itself.
        pixels = math.prod(self.patch_embedding.patch_size)
        by_pixel = ops.reshape(kernel, (pixels, -1, self.hidden_dim))
        centered = by_pixel - ops.mean(by_pixel, axis=0, keepdims=True)
        kernel.assign(ops.reshape(centered, kernel.shape))

    def vectors(self, features, padding_mask=None, visible=None):
        """Computes the vectors that are quantized.

        Args:
            features: tensor of shape `(batch, *sides, channels)`.
            padding_mask: not used, as no patch looks at another one here; taken for the
                sake of a common interface with `BridleTokenizer`.
            visible: optional int32 tensor of shape `(batch, num_visible)`.

        Returns:
            Tensor of shape `(batch, num_patches, code_dim)`.
        """
        if not self.built:  # as when its first vectors are to set the codebooks
            self.build(features.shape)
        patches = self.patch_embedding(features, visible=visible)
        if self.position_encoding is not None:
            grid = self.patch_embedding.grid(ops.shape(features)[1:-1])
            patches = self.position_encoding(patches, grid=grid, visible=visible)
        if visible is None:
            patches = self.flatten_grid(patches)
        return self.projection(patches)

    def call(self, features, padding_mask=None, visible=None, training=False):
        mask = self.patch_embedding.patch_padding_mask(features, padding_mask)
        if mask is not None and visible is not None:
            mask = gather_patches(mask, visible)
        vectors = self.vectors(features, padding_mask, visible)
        return self.quantizer(vectors, padding_mask=mask, training=training)

    def get_config(self):
        return {
            **super().get_config(),
            "patch_size": self.patch_size,
            "hidden_dim": self.hidden_dim,
            "quantizer": keras.saving.serialize_keras_object(self.quantizer),
            "position_layout": self.position_layout,
            "center_patches": self.center_patches,
        }

    @classmethod
    def from_config(cls, config):
        quantizer = keras.saving.deserialize_keras_object(config["quantizer"])
        return cls(**{**config, "quantizer": quantizer})
