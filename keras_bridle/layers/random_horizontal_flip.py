"""Mirrors pictures at random."""

import keras
from keras import ops

from keras_bridle.layers.replicas import draw_rows
from keras_bridle.layers.resized_crop import as_pixels


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomHorizontalFlip(keras.layers.Layer):
    """Exchanges left and right at random while training.

    Unlike `keras.layers.RandomFlip` it also takes clips, all frames of which are
    mirrored or none.

    Args:
        rate: float in [0, 1], how likely a picture is mirrored.
        seed: int or `None`, seed of the random numbers.
        dtype: dtype policy; float32 by default, since half precision is too coarse for
            pixels.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        images: tensor of shape `(batch, height, width, channels)`, or clips of shape
            `(batch, frames, height, width, channels)`, of any dtype and range.
        training: bool. Without training the images stay as they are.

    Returns:
        Float tensor of the same shape and range.

    Raises:
        ValueError: for a rate out of range, and images of another rank.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import RandomHorizontalFlip

    clips = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), "uint8")
    print(RandomHorizontalFlip(seed=1)(clips, training=True).shape)
    ```
    """

    def __init__(self, rate=0.5, seed=None, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        if not 0 <= rate <= 1:
            raise ValueError(f"`rate` must lie in [0, 1]. Received: {rate}")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, images, training=None):
        images = as_pixels(images, "RandomHorizontalFlip")
        if training:
            drawn = draw_rows(
                keras.random.uniform,
                (ops.shape(images)[0],),
                dtype="float32",
                seed=self.seed_generator,
            )
            mirrored = ops.reshape(
                drawn < self.rate, (-1,) + (1,) * (len(images.shape) - 1)
            )
            images = ops.where(mirrored, ops.flip(images, axis=-2), images)
        return ops.cast(images, self.compute_dtype)

    def compute_output_shape(self, images_shape):
        return images_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
