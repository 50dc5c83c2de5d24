"""Cuts out a random part of each picture and resizes it."""

import math

import keras
from keras import ops

from keras_bridle.layers.replicas import draw_rows
from keras_bridle.layers.resized_crop import RandomBoxCrop

# As many as usual: with the usual scale and ratio, one in a million fails them all.
_TRIES = 10


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomResizedCrop(RandomBoxCrop):
    """Cuts out a random part of each picture and resizes it while training.

    Keras has no such layer. Area and proportions of the part are drawn for each picture
    alone, then its place; sides and place are whole pixels. If it sticks out of the
    picture, it is drawn again, up to ten times; then the largest centered part of
    allowed proportions is taken. All frames of a clip get the same part.

    Args:
        size: int or `(height, width)` of the result.
        scale: `(smallest, largest)` area as a share of the picture's.
        ratio: `(smallest, largest)` width divided by height; their logarithm is
            uniform.
        interpolation: `"bicubic"` or `"bilinear"`, with antialiasing.
        seed: int or `None`, seed of the random numbers.
        dtype: dtype policy; float32 by default, since half precision is too coarse for
            pixels.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        images: tensor of shape `(batch, height, width, channels)`, or clips of shape
            `(batch, frames, height, width, channels)`, of any dtype and range.
        training: bool. Without training, the result is the largest centered part with
            the proportions of `size`.

    Returns:
        Float tensor, as `images` with `size` for height and width, in the same range.

    Raises:
        ValueError: for an argument out of range, and images of another rank.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import RandomResizedCrop

    images = np.random.default_rng(0).integers(0, 256, (4, 40, 56, 3), "uint8")
    print(RandomResizedCrop(32, seed=1)(images, training=True).shape)
    ```

    Reference:
        - [Szegedy et al., 2014](https://arxiv.org/abs/1409.4842), section 6
    """

    def __init__(
        self,
        size,
        scale=(0.2, 1.0),
        ratio=(3 / 4, 4 / 3),
        interpolation="bicubic",
        seed=None,
        dtype="float32",
        **kwargs,
    ):
        super().__init__(size, interpolation, seed, dtype, **kwargs)
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                "`scale` must be (smallest, largest) with 0 < smallest <= largest <= "
                f"1. Received: {scale}"
            )
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                "`ratio` must be (smallest, largest) with 0 < smallest <= largest. "
                f"Received: {ratio}"
            )
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)

    def random_boxes(self, batch_size, height, width):
        def uniform(*shape, low=0.0, high=1.0):
            return draw_rows(
                keras.random.uniform,
                (batch_size, *shape),
                low,
                high,
                "float32",
                self.seed_generator,
            )

        smallest, largest = math.log(self.ratio[0]), math.log(self.ratio[1])
        area = uniform(_TRIES, low=self.scale[0], high=self.scale[1])
        area = area * (height * width)
        ratio = ops.exp(uniform(_TRIES, low=smallest, high=largest))
        # The largest part of allowed proportions comes last, and always fits.
        widest = min(max(width / height, self.ratio[0]), self.ratio[1])
        last = (min(height, width / widest), min(width, height * widest))
        heights = _with_last(ops.sqrt(area / ratio), last[0])
        widths = _with_last(ops.sqrt(area * ratio), last[1])
        fits = ops.logical_and(
            ops.logical_and(heights >= 1, heights <= height),
            ops.logical_and(widths >= 1, widths <= width),
        )
        chosen = ops.argmax(ops.cast(fits, "int32"), axis=1)[:, None]
        box_height = ops.take_along_axis(heights, chosen, axis=1)
        box_width = ops.take_along_axis(widths, chosen, axis=1)
        place = uniform(2)
        # The last one is centered.
        place = ops.where(chosen == _TRIES, 0.5, place)
        top = ops.floor(place[:, :1] * (height - box_height + 1))
        left = ops.floor(place[:, 1:] * (width - box_width + 1))
        return ops.concatenate([top, left, box_height, box_width], axis=1)

    def get_config(self):
        return {
            **super().get_config(),
            "scale": self.scale,
            "ratio": self.ratio,
        }


def _with_last(sides, last):
    """Rounds sides to whole pixels and puts one more behind each row."""
    return ops.round(ops.pad(sides, ((0, 0), (0, 1)), constant_values=last))
