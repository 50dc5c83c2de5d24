"""The trained tokenizer: an encoder of its own, then a residual quantizer."""

import keras

from keras_bridle.layers.patch_mask import gather_patches


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
    from keras_bridle.layers import ResidualQuantizer
    from keras_bridle.models import BridleBackbone, BridleTokenizer

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
