"""Masks that hide the same places in every frame."""

import math

import keras
from keras import ops

from keras_bridle.layers.patch_mask import (
    PatchMask,
    check_grid,
    check_mask_ratio,
    in_natural_order,
    num_kept,
    patch_mask_spec,
    split_patches,
)
from keras_bridle.layers.replicas import draw_rows


@keras.saving.register_keras_serializable(package="keras_bridle")
class TubeMask(keras.layers.Layer):
    """Hides a fixed share of the places of a clip, each through all of its frames.

    What a patch shows can therefore not be looked up in the frame before.

    Args:
        mask_ratio: float between 0 and 1, the share of places to hide.
        seed: optional int, makes the masks reproducible.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: tensor of shape `(batch, num_patches, ...)`; only its shape counts.
        grid: tuple of ints, `(frames, rows, columns)`, or any grid whose first side is
            time.
        noise: optional float tensor of shape `(batch, rows * columns)`, used instead of
            random numbers: the places of smallest noise stay visible.

    Returns:
        `PatchMask`, patches in their natural order.

    Raises:
        ValueError: for a ratio outside (0, 1), a grid that is not that of the patches,
            or one with fewer than 2 places.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import TubeMask

    mask = TubeMask(0.75, seed=1)(np.zeros((2, 32, 8), "float32"), grid=(2, 4, 4))
    print(mask.visible[0])  # 4 places, then the same ones 16 further
    ```

    Reference:
        - [Tong et al., 2022](https://arxiv.org/abs/2203.12602), VideoMAE
    """

    def __init__(self, mask_ratio=0.9, seed=None, **kwargs):
        super().__init__(**kwargs)
        check_mask_ratio("mask_ratio", mask_ratio)
        self.mask_ratio = mask_ratio
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, patches, grid, noise=None):
        check_grid(grid, patches)
        batch = ops.shape(patches)[0]
        frames, num_places = grid[0], math.prod(grid[1:])
        if num_places < 2:
            raise ValueError(
                "Masking tubes needs at least 2 places in a frame. "
                f"Received: grid={tuple(grid)}"
            )
        if noise is None:
            noise = draw_rows(
                keras.random.uniform,
                (batch, num_places),
                dtype="float32",
                seed=self.seed_generator,
            )
        noise = ops.convert_to_tensor(noise, dtype="float32")
        places = split_patches(noise, num_kept(num_places, self.mask_ratio))
        first = ops.expand_dims(ops.arange(frames, dtype="int32") * num_places, 1)
        return PatchMask(
            *(
                ops.reshape(
                    first + ops.expand_dims(indices, 1),
                    (batch, frames * indices.shape[1]),
                )
                for indices in in_natural_order(places)
            )
        )

    def compute_output_spec(self, patches, grid, noise=None):
        # Stated, as Keras on JAX would trace the sides of `grid` to find it out.
        kept = num_kept(math.prod(grid[1:]), self.mask_ratio)
        return patch_mask_spec(patches, math.prod(grid), grid[0] * kept)

    def get_config(self):
        return {
            **super().get_config(),
            "mask_ratio": self.mask_ratio,
            "seed": self.seed,
        }
