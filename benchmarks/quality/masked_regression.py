"""The rival objective: the values of masked patches, not their codes (MAE)."""

import math

import keras
from keras import ops

import keras_bridle as kb
from keras_bridle.layers.masks import gather_patches


class MaskedRegression(keras.Model):
    """Predicts the values of masked patches, each brought to mean 0 and deviation 1.

    Encoder, decoder and mask are those of `EncoderPretrainer`: the decoder's head gives
    one "level" of as many numbers as a patch has values.
    """

    def __init__(self, backbone, decoder_options, mask, augmentation=None):
        super().__init__(autocast=False)
        self.backbone, self.mask, self.augmentation = backbone, mask, augmentation
        self.values = math.prod(backbone.patch_size) * backbone.maps_shape[-1]
        self.decoder = kb.CodeDecoder(
            1, self.values, use_class_token=backbone.use_class_token, **decoder_options
        )
        self.decoder.build((None, None, backbone.hidden_dim))
        self.built = True

    def call(self, inputs, training=False):
        backbone = self.backbone
        if self.augmentation is not None:
            inputs = self.augmentation(inputs, training=training)
        maps, padding_mask = backbone.maps(inputs)
        grid = backbone.grid(maps)
        hidden = self.mask(ops.zeros((ops.shape(maps)[0], math.prod(grid))), grid=grid)
        tokens = backbone.encode(maps, padding_mask, hidden.visible)
        is_real = backbone.patch_padding_mask(maps, padding_mask)
        found = self.decoder(tokens, hidden, grid=grid, padding_mask=is_real)[:, :, 0]
        target = gather_patches(cut(maps, backbone.patch_size), hidden.masked)
        mean = ops.mean(target, axis=-1, keepdims=True)
        target = (target - mean) / ops.sqrt(ops.var(target, -1, keepdims=True) + 1e-6)
        errors = ops.mean(ops.square(found - target), axis=-1)
        weights = ops.ones_like(errors)
        if is_real is not None:
            weights = gather_patches(ops.cast(is_real, "float32"), hidden.masked)
        return ops.sum(errors * weights) / ops.maximum(ops.sum(weights), 1.0)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return y_pred


def cut(maps, patch_size):
    """Cuts maps into patches of shape `(batch, patches, values)`, padded with zeros."""
    sides = tuple(maps.shape[1:-1])
    pad = [(0, -side % size) for side, size in zip(sides, patch_size, strict=True)]
    maps = ops.pad(maps, [(0, 0), *pad, (0, 0)])
    shape = [-1]
    for side, size in zip(maps.shape[1:-1], patch_size, strict=True):
        shape += [side // size, size]
    count = len(sides)
    order = [0, *range(1, 2 * count, 2), *range(2, 2 * count + 1, 2), 2 * count + 1]
    patches = ops.transpose(ops.reshape(maps, (*shape, maps.shape[-1])), order)
    values = math.prod(patch_size) * maps.shape[-1]
    return ops.reshape(patches, (-1, math.prod(shape[1::2]), values))
