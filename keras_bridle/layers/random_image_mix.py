"""Mixes pictures or clips of a batch in pairs."""

import keras
from keras import ops

from keras_bridle.layers.mixed_batch import (
    BetaShares,
    MixedBatch,
    draw_partners,
    draw_uniform,
)
from keras_bridle.layers.resized_crop import as_pixels


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomImageMix(keras.layers.Layer):
    """Blends pairs of pictures (mixup) or pastes boxes of others (CutMix) in training.

    Unlike `keras.layers.MixUp` and `keras.layers.CutMix` it also takes clips, all
    frames of which get the same box, chooses between the two for each picture, and can
    be compiled by XLA on every backend. Labels are mixed by what it returns.

    Args:
        mixup_alpha: float, both parameters of the Beta distribution of the shares of
            blended pictures; 0 leaves blending out.
        cutmix_alpha: float, likewise for pasting. With both, each picture is as likely
            to be blended as pasted into.
        rate: float in [0, 1], how likely a picture is mixed at all.
        seed: int or `None`, seed of the random numbers.
        dtype: dtype policy; float32 by default, since half precision is too coarse for
            pixels.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        images: tensor of shape `(batch, height, width, channels)`, or clips of shape
            `(batch, frames, height, width, channels)`, of any dtype and range.
        training: bool. Without training the images stay as they are.

    Returns:
        A `MixedBatch`: float images of the same shape, with which other one each was
        mixed, and the share that is its own. For a pasted box it is the exact share of
        the pixels outside it.

    Raises:
        ValueError: for settings out of range, and images of another rank.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import RandomImageMix

    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "uint8")
    mixed = RandomImageMix(seed=0)(images, training=True)
    print(mixed.inputs.shape, mixed.partners, mixed.shares)
    ```

    Reference:
        - [Zhang et al., 2017](https://arxiv.org/abs/1710.09412)
        - [Yun et al., 2019](https://arxiv.org/abs/1905.04899)
    """

    def __init__(
        self,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        rate=1.0,
        seed=None,
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        if not 0 <= rate <= 1:
            raise ValueError(f"`rate` must lie in [0, 1]. Received: {rate}")
        if min(mixup_alpha, cutmix_alpha) < 0 or mixup_alpha == cutmix_alpha == 0:
            raise ValueError(
                "`mixup_alpha` and `cutmix_alpha` must not be negative, nor both 0. "
                f"Received: mixup_alpha={mixup_alpha}, cutmix_alpha={cutmix_alpha}"
            )
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._blend_shares = BetaShares(mixup_alpha or 1.0)
        self._paste_shares = BetaShares(cutmix_alpha or 1.0)

    def call(self, images, training=None):
        images = as_pixels(images, "RandomImageMix")
        batch_size = ops.shape(images)[0]
        if not training:
            partners = ops.arange(batch_size, dtype="int32")
            shares = ops.ones((batch_size,), "float32")
        else:
            partners = draw_partners(batch_size, self.seed_generator)
            images, shares = self._mix(images, partners, batch_size)
        return MixedBatch(ops.cast(images, self.compute_dtype), partners, shares)

    def _mix(self, images, partners, batch_size):
        others = ops.take(images, partners, axis=0)
        pasting = self._is_pasted(batch_size)
        # Pixels of one's own: a share of each where pictures are blended, all of some
        # where a box is pasted.
        weights = shares = ops.ones((batch_size, 1, 1), "float32")
        if self.mixup_alpha:
            weights = shares = self._blend_shares.draw(
                (batch_size, 1, 1), self.seed_generator
            )
        if self.cutmix_alpha:
            outside = self._outside_boxes(batch_size, *ops.shape(images)[-3:-1])
            exact = ops.mean(outside, axis=(1, 2), keepdims=True)
            weights = ops.where(pasting, outside, weights)
            shares = ops.where(pasting, exact, shares)
        is_mixed = self._uniform((batch_size, 1, 1)) < self.rate
        weights = ops.where(is_mixed, weights, 1.0)
        shares = ops.where(is_mixed, shares, 1.0)
        weights = weights[..., None]
        if len(images.shape) == 5:
            weights = weights[:, None]
        return weights * images + (1.0 - weights) * others, shares[:, 0, 0]

    def _is_pasted(self, batch_size):
        likely = 0.5
        if 0 in (self.mixup_alpha, self.cutmix_alpha):
            likely = 1.0 if self.cutmix_alpha else 0.0
        return self._uniform((batch_size, 1, 1)) < likely

    def _outside_boxes(self, batch_size, height, width):
        """Draws boxes; 1 outside them and 0 inside, `(batch, height, width)`."""
        shares = self._paste_shares.draw((batch_size, 1), self.seed_generator)
        side = ops.sqrt(1.0 - shares)
        inside = []
        for size in (height, width):
            # The middle lies anywhere, so that a box may stand over the edge.
            middle = self._uniform((batch_size, 1)) * size
            pixels = ops.arange(size, dtype="float32")[None] + 0.5
            inside.append(ops.abs(pixels - middle) < side * size / 2)
        box = ops.logical_and(inside[0][:, :, None], inside[1][:, None, :])
        return 1.0 - ops.cast(box, "float32")

    def _uniform(self, shape):
        return draw_uniform(shape, self.seed_generator)

    def compute_output_spec(self, images, training=None):
        batch = tuple(images.shape)[:1]
        return MixedBatch(
            keras.KerasTensor(images.shape, dtype=self.compute_dtype),
            keras.KerasTensor(batch, dtype="int32"),
            keras.KerasTensor(batch, dtype="float32"),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "mixup_alpha": self.mixup_alpha,
            "cutmix_alpha": self.cutmix_alpha,
            "rate": self.rate,
            "seed": self.seed,
        }
