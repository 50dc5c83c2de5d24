"""Masks that hide rectangular blocks."""

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
from keras_bridle.layers.replicas import draw_rows


@keras.saving.register_keras_serializable(package="keras_bridle")
class BlockMask(keras.layers.Layer):
    """Hides rectangular blocks of random size, shape and place, as BEiT does.

    Every example loses the same number of patches: whole blocks until they are enough,
    of the last one its middle.

    Args:
        mask_ratio: float between 0 and 1, the share of patches to hide.
        block_share: tuple of 2 floats, the smallest and the largest area of a block, as
            shares of the grid.
        aspect_ratio: tuple of 2 floats, the smallest and the largest height of a block
            relative to its width.
        seed: optional int, makes the masks reproducible.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: tensor of shape `(batch, num_patches, ...)`; only its shape counts.
        grid: tuple of 2 ints, `(rows, columns)`.

    Returns:
        `PatchMask`, patches in their natural order.

    Raises:
        ValueError: for shares or ratios out of range, or a grid that is not that of the
            patches.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import BlockMask

    mask = BlockMask(0.4, seed=1)(np.zeros((2, 196, 1), "float32"), grid=(14, 14))
    print(mask.visible.shape, mask.masked.shape)  # (2, 117) (2, 79)
    ```

    Reference:
        - [Bao et al., 2021](https://arxiv.org/abs/2106.08254)
    """

    def __init__(
        self,
        mask_ratio=0.4,
        block_share=(0.08, 0.4),
        aspect_ratio=(0.3, 1 / 0.3),
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_mask_ratio("mask_ratio", mask_ratio)
        if not 0.0 < block_share[0] <= block_share[1] <= 1.0:
            raise ValueError(
                "`block_share` must be two rising numbers in (0, 1]. "
                f"Received: block_share={block_share}"
            )
        if not 0.0 < aspect_ratio[0] <= aspect_ratio[1]:
            raise ValueError(
                "`aspect_ratio` must be two rising positive numbers. "
                f"Received: aspect_ratio={aspect_ratio}"
            )
        self.mask_ratio = mask_ratio
        self.block_share = tuple(block_share)
        self.aspect_ratio = tuple(aspect_ratio)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, patches, grid):
        check_grid(grid, patches, num_sides=2)
        num_patches = math.prod(grid)
        heights, widths = self._block_sizes(ops.shape(patches)[0], grid)
        scores = block_scores(grid, heights, widths, self.seed_generator)
        mask = split_patches(-scores, num_kept(num_patches, self.mask_ratio))
        return in_natural_order(mask)

    def _block_sizes(self, batch, grid):
        """Draws heights and widths, float tensors of shape `(batch, num_blocks)`."""
        num_blocks = num_blocks_for(self.mask_ratio, sum(self.block_share) / 2)
        shape = (batch, num_blocks)
        area = math.prod(grid) * self._uniform(shape, *self.block_share)
        logarithms = [math.log(ratio) for ratio in self.aspect_ratio]
        aspect = ops.exp(self._uniform(shape, *logarithms))
        rows, columns = grid
        heights = ops.round(ops.sqrt(area * aspect))
        widths = ops.round(ops.sqrt(area / aspect))
        return ops.clip(heights, 1.0, float(rows)), ops.clip(
            widths, 1.0, float(columns)
        )

    def _uniform(self, shape, low, high):
        return draw_rows(
            keras.random.uniform,
            shape,
            low,
            high,
            dtype="float32",
            seed=self.seed_generator,
        )

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
            "block_share": self.block_share,
            "aspect_ratio": self.aspect_ratio,
            "seed": self.seed,
        }
