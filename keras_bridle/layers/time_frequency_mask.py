"""Masks that hide whole stretches of time and whole bands of frequency."""

import keras
from keras import ops

from keras_bridle.layers.patch_mask import (
    PatchMask,
    check_grid,
    check_mask_ratio,
    num_kept,
    patch_mask_spec,
)
from keras_bridle.layers.replicas import draw_rows


@keras.saving.register_keras_serializable(package="keras_bridle")
class TimeFrequencyMask(keras.layers.Layer):
    """Hides whole rows (times) and whole columns (mel bands) of the grid of patches.

    A patch stays visible where its row and its column both do.

    Args:
        time_mask_ratio: float between 0 and 1, the share of rows to hide.
        frequency_mask_ratio: float between 0 and 1, the share of columns to hide.
        seed: optional int, makes the masks reproducible.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: tensor of shape `(batch, num_patches, ...)`; only its shape counts.
        grid: tuple of 2 ints, `(rows, columns)`.
        noise: optional tuple of float tensors of shapes `(batch, rows)` and
            `(batch, columns)`, used instead of random numbers: the rows and columns of
            smallest noise stay visible.

    Returns:
        `PatchMask`, patches in their natural order.

    Raises:
        ValueError: for a ratio outside (0, 1), or a grid with fewer than 2 rows or
            columns.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import TimeFrequencyMask

    layer = TimeFrequencyMask(time_mask_ratio=0.5, frequency_mask_ratio=0.25, seed=1)
    mask = layer(np.zeros((2, 32, 8), "float32"), grid=(8, 4))
    print(mask.visible.shape, mask.masked.shape)  # (2, 12) (2, 20)
    ```

    Reference:
        - [Huang et al., 2022](https://arxiv.org/abs/2207.06405)
    """

    def __init__(
        self, time_mask_ratio=0.7, frequency_mask_ratio=0.3, seed=None, **kwargs
    ):
        super().__init__(**kwargs)
        check_mask_ratio("time_mask_ratio", time_mask_ratio)
        check_mask_ratio("frequency_mask_ratio", frequency_mask_ratio)
        self.time_mask_ratio = time_mask_ratio
        self.frequency_mask_ratio = frequency_mask_ratio
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, patches, grid, noise=None):
        check_grid(grid, patches, num_sides=2)
        if min(grid) < 2:
            raise ValueError(
                "`grid` must have at least 2 rows and 2 columns. "
                f"Received: grid={tuple(grid)}"
            )
        batch, num_patches = ops.shape(patches)[:2]
        rows, columns = grid
        if noise is None:
            noise = tuple(
                draw_rows(
                    keras.random.uniform,
                    (batch, side),
                    dtype="float32",
                    seed=self.seed_generator,
                )
                for side in grid
            )
        kept_rows = num_kept(rows, self.time_mask_ratio)
        kept_columns = num_kept(columns, self.frequency_mask_ratio)
        row = _smallest(noise[0], kept_rows)
        column = _smallest(noise[1], kept_columns)
        visible = ops.expand_dims(row * columns, 2) + ops.expand_dims(column, 1)
        visible = ops.reshape(visible, (batch, kept_rows * kept_columns))
        hidden = ops.logical_not(
            ops.logical_and(
                ops.expand_dims(_is_in(row, rows), 2),
                ops.expand_dims(_is_in(column, columns), 1),
            )
        )
        hidden = ops.reshape(hidden, (batch, num_patches))
        index = ops.arange(num_patches, dtype="int32")
        # Visible patches sort behind all others, which stay in their natural order.
        masked = ops.sort(ops.where(hidden, index, num_patches), axis=1)
        masked = masked[:, : num_patches - kept_rows * kept_columns]
        return PatchMask(visible, masked)

    def compute_output_spec(self, patches, grid, noise=None):
        # Stated, as Keras on JAX would trace the sides of `grid` to find it out.
        check_grid(grid, patches, num_sides=2)
        rows, columns = grid
        kept = num_kept(rows, self.time_mask_ratio)
        kept = kept * num_kept(columns, self.frequency_mask_ratio)
        return patch_mask_spec(patches, rows * columns, kept)

    def get_config(self):
        return {
            **super().get_config(),
            "time_mask_ratio": self.time_mask_ratio,
            "frequency_mask_ratio": self.frequency_mask_ratio,
            "seed": self.seed,
        }


def _smallest(noise, count):
    """Indices of the smallest values of each row of `noise`, in natural order."""
    noise = ops.convert_to_tensor(noise, dtype="float32")
    return ops.sort(ops.cast(ops.top_k(-noise, count)[1], "int32"), axis=1)


def _is_in(indices, length):
    """Bool of shape `(batch, length)`: whether a place is among the indices."""
    places = ops.arange(length, dtype="int32")
    return ops.any(ops.expand_dims(indices, 2) == places, axis=1)
