"""Hides stripes of a spectrogram."""

import keras
from keras import ops

from keras_bridle.layers.mixed_batch import draw_uniform


@keras.saving.register_keras_serializable(package="keras_bridle")
class SpecAugment(keras.layers.Layer):
    """Hides random stripes of time and of frequency while training.

    A stripe's width is drawn evenly from 0 to below the largest, its place evenly from
    those where it fits. The layer works on the map that a front end makes, such as
    `LogMelSpectrogram`: give it to a classifier as `feature_augmentation`.

    Args:
        max_bins: int, largest width of a frequency stripe in mel bins.
        max_frames: int, largest width of a time stripe in frames. Of a shorter map a
            stripe may hide all.
        num_masks: int, stripes of each kind.
        fill_value: float, what is seen in place of the map. 0 is the mean of a
            normalized one.
        seed: int or `None`, seed of the random numbers.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        features: tensor of shape `(batch, frames, bins, channels)`.
        training: bool. Without training the map stays as it is.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: for widths below 0, no stripes at all, and maps of another rank.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import SpecAugment

    log_mel = np.ones((2, 100, 128, 1), "float32")
    stripes = SpecAugment(max_bins=48, max_frames=20, seed=0)(log_mel, training=True)
    print(stripes.shape)
    ```

    Reference:
        - [Park et al., 2019](https://arxiv.org/abs/1904.08779)
    """

    def __init__(
        self,
        max_bins=48,
        max_frames=192,
        num_masks=1,
        fill_value=0.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if min(max_bins, max_frames) < 0 or num_masks < 1:
            raise ValueError(
                "`max_bins` and `max_frames` must be 0 or more, and `num_masks` 1 or "
                f"more. Received: max_bins={max_bins}, max_frames={max_frames}, "
                f"num_masks={num_masks}"
            )
        self.max_bins = max_bins
        self.max_frames = max_frames
        self.num_masks = num_masks
        self.fill_value = fill_value
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, features, training=None):
        if len(features.shape) != 4:
            raise ValueError(
                "SpecAugment expects maps of shape (batch, frames, bins, channels). "
                f"Received shape: {tuple(features.shape)}"
            )
        if not training:
            return features
        batch_size, frames, bins = ops.shape(features)[:3]
        for _ in range(self.num_masks):
            rows = self._stripe(batch_size, frames, self.max_frames)[:, :, None, None]
            columns = self._stripe(batch_size, bins, self.max_bins)[:, None, :, None]
            hidden = ops.logical_or(rows, columns)
            fill = ops.cast(self.fill_value, features.dtype)
            features = ops.where(hidden, fill, features)
        return features

    def _stripe(self, batch_size, size, largest):
        """Draws a stripe of an axis; `True` inside it, of shape `(batch, size)`."""
        shape = (batch_size, 1)
        width, start = (draw_uniform(shape, self.seed_generator) for _ in range(2))
        positions = ops.arange(size, dtype="float32")[None]
        size = ops.cast(size, "float32")
        width = ops.floor(width * ops.minimum(ops.cast(largest, "float32"), size))
        start = ops.floor(start * (size - width + 1.0))
        return ops.logical_and(positions >= start, positions < start + width)

    def compute_output_shape(self, features_shape):
        return features_shape

    def get_config(self):
        return {
            **super().get_config(),
            "max_bins": self.max_bins,
            "max_frames": self.max_frames,
            "num_masks": self.num_masks,
            "fill_value": self.fill_value,
            "seed": self.seed,
        }
