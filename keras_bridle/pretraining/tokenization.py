"""What a tokenizer makes of raw input, as a model of its own."""

import keras
from keras import ops

from keras_bridle.layers.residual_quantizer import unit_vectors


class Tokenization(keras.Model):
    """Vectors of a tokenizer, or its codes, for `predict()` on raw input.

    Args:
        backbone: `BridleBackbone`, which prepares the input.
        tokenizer: `BridleTokenizer` or `RandomProjectionTokenizer`.
        augmentation: optional Keras layer, which is called as without training: it may
            bring input to its size.
        with_codes: bool.

    Returns:
        A dict. With codes: `codes` of shape `(batch, num_patches, num_levels)` and
        `distances` of shape `(batch, num_patches)`, from each vector to its first code
        vector. Else: `vectors` of shape `(batch, num_patches, code_dim)` and `is_real`
        of shape `(batch, num_patches)`, `False` at padding.
    """

    def __init__(self, backbone, tokenizer, augmentation=None, with_codes=False):
        super().__init__(autocast=False, name="tokenization")
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.augmentation = augmentation
        self.with_codes = with_codes

    def call(self, inputs):
        if self.augmentation is not None:
            inputs = self.augmentation(inputs, training=False)
        features, padding_mask = self.backbone.features(inputs)
        vectors = self.tokenizer.vectors(features, padding_mask)
        is_real = self.backbone.patch_padding_mask(features, padding_mask)
        if self.with_codes:
            codes = self.tokenizer.quantizer(vectors, is_real).codes
            return {"codes": codes, "distances": self._distances(vectors, codes)}
        if is_real is None:
            is_real = ops.ones(ops.shape(vectors)[:2], dtype="bool")
        return {"vectors": ops.cast(vectors, "float32"), "is_real": is_real}

    def _distances(self, vectors, codes):
        quantizer = self.tokenizer.quantizer
        vectors = ops.cast(vectors, "float32")
        if quantizer.normalize is not None:
            vectors = unit_vectors(vectors)
        first = codes[:, :, :1]
        if quantizer.top_k > 1:
            first = ops.where(ops.arange(quantizer.top_k) == 0, first, -1)
        code_vectors = ops.cast(quantizer.decode(first), "float32")
        return ops.sqrt(ops.sum(ops.square(vectors - code_vectors), axis=-1))
