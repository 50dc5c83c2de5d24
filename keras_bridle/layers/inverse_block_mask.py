"""Masks that hide all but some blocks."""

import math

import keras
from keras import ops

from keras_bridle.layers.block_scores import block_scores, num_blocks_for
from keras_bridle.layers.patch_mask import (
    check_grid,
    check_mask_ratio,
    in_natural_order,
    num_kept,
    patch_mask_spec,
    split_patches,
)


@keras.saving.register_keras_serializable(package="keras_bridle")
class InverseBlockMask(keras.layers.Layer):
    """Keeps square blocks at random places visible and hides everything else.

    Visible patches have neighbors to be understood with, even where they are few. Every
    example keeps the same number of patches: whole blocks until they are enough, of the
    last one its middle.

    Args:
        mask_ratio: float between 0 and 1, the share of patches to hide.
        block_size: int, the side of a visible block, in patches; smaller where the grid
            is.
        seed: optional int, makes the masks reproducible.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: tensor of shape `(batch, num_patches, ...)`; only its shape counts.
        grid: tuple of 2 ints, `(rows, columns)`.

    Returns:
        `PatchMask`, patches in their natural order.

    Raises:
        ValueError: for a ratio outside (0, 1), a block without patches, or a grid that
            is not that of the patches.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import InverseBlockMask

    layer = InverseBlockMask(mask_ratio=0.8, block_size=5, seed=1)
    mask = layer(np.zeros((2, 512, 1), "float32"), grid=(64, 8))
    print(mask.visible.shape, mask.masked.shape)  # (2, 102) (2, 410)
    ```

    Reference:
        - [Baevski et al., 2022](https://arxiv.org/abs/2212.07525), data2vec 2.0
        - [Chen et al., 2024](https://arxiv.org/abs/2401.03497), EAT
    """

    def __init__(self, mask_ratio=0.8, block_size=3, seed=None, **kwargs):
        super().__init__(**kwargs)
        check_mask_ratio("mask_ratio", mask_ratio)
        if block_size < 1:
            raise ValueError(
                f"`block_size` must be positive. Received: block_size={block_size}"
            )
        self.mask_ratio = mask_ratio
        self.block_size = block_size
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, patches, grid):
        check_grid(grid, patches, num_sides=2)
        num_patches = math.prod(grid)
        num_visible = num_kept(num_patches, self.mask_ratio)
        height, width = (min(self.block_size, side) for side in grid)
        num_blocks = num_blocks_for(
            num_visible / num_patches, height * width / num_patches
        )
        ones = ops.ones((ops.shape(patches)[0], num_blocks), dtype="float32")
        scores = block_scores(grid, height * ones, width * ones, self.seed_generator)
        return in_natural_order(split_patches(scores, num_visible))

    def compute_output_spec(self, patches, grid):
        # Stated, as Keras on JAX would trace the sides of `grid` to find it out.
        num_patches = math.prod(grid)
        return patch_mask_spec(
            patches, num_patches, num_kept(num_patches, self.mask_ratio)
        )

    def get_config(self):
        return {
            **super().get_config(),
            "mask_ratio": self.mask_ratio,
            "block_size": self.block_size,
            "seed": self.seed,
        }
