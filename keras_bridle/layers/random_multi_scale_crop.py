"""Cuts out one of a few fixed parts of each clip and resizes it."""

import keras
from keras import ops

from keras_bridle.layers.replicas import draw_rows
from keras_bridle.layers.resized_crop import RandomBoxCrop

# Places of a part, in quarters of the room along height and width: the corners, the
# middle, the middles of the sides, and the middles of the quadrants.
_PLACES = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((2, 0), (2, 4), (4, 2), (0, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomMultiScaleCrop(RandomBoxCrop):
    """Cuts out a part of each clip, at one of a few scales, while training.

    The part's sides are the clip's shorter side times one of `scales` each, and it lies
    at one of 13 places: corners, center, middles of sides and quadrants. All frames of
    a clip get the same part. For images it does the same, each by itself.

    Args:
        size: int or `(height, width)` of the result.
        scales: floats in (0, 1]. Sides as shares of the shorter side.
        max_distortion: int. How many places in `scales` the scales of height and width
            may be apart; 0 keeps the parts square.
        interpolation: `"bilinear"` or `"bicubic"`, with antialiasing.
        seed: int or `None`, seed of the random numbers.
        dtype: dtype policy; float32 by default, since half precision is too coarse for
            pixels.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        images: clips of shape `(batch, frames, height, width, channels)`, or a tensor
            of shape `(batch, height, width, channels)`, of any dtype and range.
        training: bool. Without training, the result is the largest centered part with
            the proportions of `size`.

    Returns:
        Float tensor, as `images` with `size` for height and width, in the same range.

    Raises:
        ValueError: for an argument out of range, and images of another rank.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import RandomMultiScaleCrop

    clips = np.random.default_rng(0).integers(0, 256, (2, 8, 40, 56, 3), "uint8")
    print(RandomMultiScaleCrop(32, seed=1)(clips, training=True).shape)
    ```

    Reference:
        - [Wang et al., 2015](https://arxiv.org/abs/1507.02159), multi-scale cropping
        - [Tong et al., 2022](https://arxiv.org/abs/2203.12602), VideoMAE
    """

    def __init__(
        self,
        size,
        scales=(1.0, 0.875, 0.75, 0.66),
        max_distortion=1,
        interpolation="bilinear",
        seed=None,
        dtype="float32",
        **kwargs,
    ):
        super().__init__(size, interpolation, seed, dtype, **kwargs)
        if not scales or not all(0 < scale <= 1 for scale in scales):
            raise ValueError(f"`scales` must lie in (0, 1]. Received: {scales}")
        if max_distortion < 0:
            raise ValueError(
                f"`max_distortion` must be at least 0. Received: {max_distortion}"
            )
        self.scales = tuple(scales)
        self.max_distortion = max_distortion

    def random_boxes(self, batch_size, height, width):
        sides = [max(int(scale * min(height, width)), 1) for scale in self.scales]
        pairs = [
            (sides[i], sides[j])
            for i in range(len(sides))
            for j in range(len(sides))
            if abs(i - j) <= self.max_distortion
        ]
        boxes = [
            (
                (height - box_height) // 4 * down,
                (width - box_width) // 4 * right,
                box_height,
                box_width,
            )
            for box_height, box_width in pairs
            for down, right in _PLACES
        ]
        chosen = draw_rows(
            keras.random.randint,
            (batch_size,),
            0,
            len(boxes),
            seed=self.seed_generator,
        )
        return ops.take(ops.convert_to_tensor(boxes, dtype="float32"), chosen, axis=0)

    def get_config(self):
        return {
            **super().get_config(),
            "scales": self.scales,
            "max_distortion": self.max_distortion,
        }
