"""The encoder phase: predict the codes of masked patches."""

import math

import keras
from keras import ops

from keras_bridle.layers.patch_mask import gather_patches
from keras_bridle.layers.random_mask import RandomMask
from keras_bridle.layers.replicas import with_value_of_batch
from keras_bridle.pretraining.code_accuracy import CodeAccuracy
from keras_bridle.pretraining.code_usage import CodeUsage
from keras_bridle.pretraining.losses import code_prediction_loss
from keras_bridle.pretraining.pretrainer import Pretrainer


@keras.saving.register_keras_serializable(package="keras_bridle")
class EncoderPretrainer(Pretrainer):
    """Trains encoder and decoder to predict a frozen tokenizer's codes.

    Use it like any Keras model: `compile()` with an optimizer alone, `fit()` on raw
    input without targets. `compile()` freezes the tokenizer.

    Args:
        backbone: `BridleBackbone`, the encoder.
        decoder: `CodeDecoder` with the levels and codes of the tokenizer's quantizer,
            or the levels of both tokenizers.
        tokenizer: `BridleTokenizer` or `RandomProjectionTokenizer`.
        earlier_tokenizer: optional tokenizer of a phase before, such as the cold
            start's, whose codes are predicted as well, so that what the encoder learned
            from them stays. Its levels come after those of `tokenizer`.
        mask: mask layer, such as `RandomMask` (the default, with its default ratio) or
            `TimeFrequencyMask`.
        augmentation: optional Keras layer applied to raw input in training.
        tokenize: string, what the tokenizer sees: `"all"` patches, or the `"masked"`
            ones alone, whose codes are wanted, as published for video. It costs less
            and gives other codes where patches attend to each other.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        inputs: raw input, of shape `(batch, *input_dims)`; or a dict of it, as
            `inputs`, and of the tokenizer's `codes` of all patches, of shape
            `(batch, num_patches, num_levels)`, which are then not computed.
        training: bool, whether to augment, and whether examples skip blocks at random.

    Returns:
        A dict: `logits` of shape `(batch, num_masked, num_levels, codebook_size)`,
        `codes` of shape `(batch, num_masked, num_levels)`, and `weights` of shape
        `(batch, num_masked)`, 0 at padded patches.

    Raises:
        ValueError: if decoder and quantizer do not fit each other.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.layers import ResidualQuantizer
    from keras_bridle.models import (
        BridleBackbone, CodeDecoder, RandomProjectionTokenizer,
    )
    from keras_bridle.pretraining import EncoderPretrainer

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    tokenizer = RandomProjectionTokenizer(8, 32, ResidualQuantizer(2, 16, dim=8))
    decoder = CodeDecoder(2, 16, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64)
    trainer = EncoderPretrainer(backbone, decoder, tokenizer)
    trainer.compile(keras.optimizers.AdamW(1e-3))
    history = trainer.fit(np.random.rand(8, 32, 32, 1), batch_size=4, verbose=0)
    print(sorted(history.history))
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
    """

    parts: tuple[str, ...] = (
        "backbone",
        "decoder",
        "tokenizer",
        "earlier_tokenizer",
        "mask",
        "augmentation",
    )
    trained_parts: tuple[str, ...] = ("backbone", "decoder")

    def __init__(
        self,
        backbone,
        decoder,
        tokenizer,
        mask=None,
        augmentation=None,
        tokenize="all",
        earlier_tokenizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.earlier_tokenizer = earlier_tokenizer
        check_decoder(decoder, [t.quantizer for t in self.tokenizers], backbone)
        check_tokenize(tokenize)
        check_own_backbone(tokenizer, backbone)
        self.backbone = backbone
        self.decoder = decoder
        self.mask = RandomMask() if mask is None else mask
        self.augmentation = augmentation
        self.tokenize = tokenize
        self.build_parts(backbone.features_shape, *self.tokenizers)
        self.build_parts((None, None, backbone.hidden_dim), decoder)
        self.code_accuracy = CodeAccuracy(decoder.num_levels)
        self.code_usage = CodeUsage(decoder.num_levels, decoder.codebook_size)

    @property
    def tokenizers(self):
        """The tokenizers whose codes are predicted, in the order of the levels."""
        both = (self.tokenizer, self.earlier_tokenizer)
        return [tokenizer for tokenizer in both if tokenizer is not None]

    def call(self, inputs, training=False):
        known = inputs["codes"] if isinstance(inputs, dict) else None
        inputs = inputs if known is None else inputs["inputs"]
        features, padding_mask = self.prepare(self.backbone, inputs, training)
        patch_mask = self.draw_mask(features)
        if known is not None:
            codes = gather_patches(ops.cast(known, "int32"), patch_mask.masked)
        else:
            codes = self._masked_codes(features, padding_mask, patch_mask)
        return self.predict_codes(features, padding_mask, patch_mask, codes, training)

    def _masked_codes(self, features, padding_mask, patch_mask):
        visible = patch_mask.masked if self.tokenize == "masked" else None
        codes = [
            tokenizer(features, padding_mask, visible=visible, training=False).codes
            for tokenizer in self.tokenizers
        ]
        codes = codes[0] if len(codes) == 1 else ops.concatenate(codes, axis=2)
        if self.tokenize == "masked":
            return codes
        return gather_patches(codes, patch_mask.masked)

    def draw_mask(self, features):
        """Draws the `PatchMask` of a batch of maps."""
        grid = self.backbone.grid(features)
        # A mask asks for the patches' shape alone.
        patches = ops.zeros((ops.shape(features)[0], math.prod(grid)))
        return self.mask(patches, grid=grid)

    def predict_codes(self, features, padding_mask, patch_mask, codes, training):
        """Predicts the codes of masked patches from the others.

        Args:
            features: tensor of shape `(batch, *sides, channels)`.
            padding_mask: bool tensor of shape `(batch, rows)`, or `None`.
            patch_mask: `PatchMask`.
            codes: int32 tensor of shape `(batch, num_masked, num_levels)`.
            training: bool, whether examples skip blocks of the encoder at random.

        Returns:
            The dict that `call()` returns.
        """
        grid = self.backbone.grid(features)
        tokens = self.backbone.encode(
            features, padding_mask, patch_mask.visible, training=training
        )
        is_real = self.backbone.patch_padding_mask(features, padding_mask)
        logits = self.decoder(tokens, patch_mask, grid=grid, padding_mask=is_real)
        if is_real is None:
            weights = ops.ones_like(patch_mask.masked, dtype="float32")
        else:
            weights = gather_patches(ops.cast(is_real, "float32"), patch_mask.masked)
        return {"logits": logits, "codes": ops.stop_gradient(codes), "weights": weights}

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return with_value_of_batch(encoder_loss(y_pred))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        codes, weights = y_pred["codes"], y_pred["weights"]
        self.code_accuracy.update_state(codes, y_pred["logits"], weights)
        self.count_codes(codes, weights)
        return self.get_metrics_result()

    def get_config(self):
        return {**super().get_config(), "tokenize": self.tokenize}


def encoder_loss(outputs):
    """The encoder phase's loss, a float32 scalar."""
    return code_prediction_loss(outputs["codes"], outputs["logits"], outputs["weights"])


def check_decoder(decoder, quantizers, backbone):
    """Raises a `ValueError` if a decoder does not fit quantizers and an encoder."""
    if decoder.use_class_token != backbone.use_class_token:
        raise ValueError(
            "`decoder` and `backbone` must have the same `use_class_token`. "
            f"Received: {decoder.use_class_token} and {backbone.use_class_token}"
        )
    num_levels = sum(quantizer.num_levels for quantizer in quantizers)
    if decoder.num_levels != num_levels:
        raise ValueError(
            "`decoder` and the tokenizer's quantizer must have the same `num_levels`. "
            f"Received: {decoder.num_levels} and {num_levels}"
        )
    sizes = {quantizer.codebook_size for quantizer in quantizers}
    if sizes != {decoder.codebook_size}:
        raise ValueError(
            "`decoder` and the tokenizer's quantizer must have the same "
            f"`codebook_size`. Received: {decoder.codebook_size} and {sorted(sizes)}"
        )


def check_own_backbone(tokenizer, backbone):
    """Raises a `ValueError` if a tokenizer has no encoder of its own."""
    if getattr(tokenizer, "backbone", None) is backbone:
        raise ValueError(
            "The tokenizer must have an encoder of its own, as one is frozen where the "
            "other is trained. Received: the same backbone for both. A copy is "
            "`keras.models.clone_model(backbone)`, with `set_weights()`"
        )


def check_tokenize(tokenize):
    """Raises a `ValueError` if there is no such way to tokenize."""
    if tokenize not in ("all", "masked"):
        raise ValueError(
            f"`tokenize` must be 'all' or 'masked'. Received: tokenize={tokenize!r}"
        )
