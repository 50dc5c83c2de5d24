"""Masks, which choose the patches that the encoder sees."""

import math
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_bridle.layers.base import RandomLayer, check


class PatchMask(NamedTuple):
    """The visible and the masked patches of each example, as indices.

    Counts are the same for every example, so that shapes stay static.

    Attributes:
        visible: int32 tensor of shape `(batch, num_visible)`.
        masked: int32 tensor of shape `(batch, num_masked)`.
    """

    visible: Any
    masked: Any


def gather_patches(patches, indices):
    """Gathers patches by each example's own indices: `(batch, num_indices, ...)`."""
    # A flat `take` with row offsets: several times as fast as `take_along_axis`.
    batch, num_patches, *rest = ops.shape(patches)
    flat = ops.reshape(patches, (batch * num_patches, *rest))
    offsets = ops.expand_dims(ops.arange(batch, dtype="int32") * num_patches, 1)
    return ops.take(flat, ops.convert_to_tensor(indices) + offsets, axis=0)


def restore_order(mask):
    """Finds the position of each patch in the list of visible, then masked ones."""
    order = ops.concatenate([mask.visible, mask.masked], axis=1)
    return ops.cast(ops.argsort(order, axis=1), "int32")


def num_kept(length, mask_ratio):
    """Returns how many of `length` stay visible: at least one, but not all."""
    check(length > 1, "length", "at least 2 to hide some and keep some", length)
    # The small number makes 10 * (1 - 0.8) count as 2.
    kept = int(length * (1.0 - mask_ratio) + 1e-6)
    return min(max(kept, 1), length - 1)


def _split(scores, num_visible, sort=False):
    """Keeps the patches with the lowest scores visible, ordered by score or index."""
    # A single sort: two calls of `top_k` could return the same patch if scores tie.
    order = ops.cast(ops.argsort(scores, axis=1), "int32")
    mask = PatchMask(order[:, :num_visible], order[:, num_visible:])
    return PatchMask(*(ops.sort(part, axis=1) for part in mask)) if sort else mask


class _Mask(RandomLayer):
    """Base of the masks; a grid determines the number of visible patches."""

    max_sides: float = 2

    def __init__(self, arguments):
        super().__init__(arguments)
        for name, value in arguments.items():
            is_right = not name.endswith("mask_ratio") or 0.0 < value < 1.0
            check(is_right, name, "between 0 and 1, both excluded", value)

    def num_visible(self, grid):
        """Counts the patches of a grid that stay visible."""
        return num_kept(math.prod(grid), self.mask_ratio)

    def _sizes(self, patches, grid):
        """Returns the batch size and the grid, which must fit the patches."""
        grid = tuple(grid)
        fits = 2 <= len(grid) <= self.max_sides
        sides = "2 sides" + " or more" * (self.max_sides > 2)
        expected = f"of {sides}, with {patches.shape[1]} cells, one for each patch"
        check(fits and math.prod(grid) == patches.shape[1], "grid", expected, grid)
        return ops.shape(patches)[0], grid

    def _noise(self, noise, *shape):
        """Draws random numbers for each example, unless they are given."""
        noise = self.uniform(shape) if noise is None else noise
        return ops.convert_to_tensor(noise, dtype="float32")

    def compute_output_spec(self, patches, grid=None, noise=None):
        # Without this, Keras on JAX would trace the sides of `grid`.
        grid = (patches.shape[1],) if grid is None else grid
        num_visible = self.num_visible(grid)
        counts = num_visible, math.prod(grid) - num_visible
        batch = patches.shape[0]
        return PatchMask(
            *(keras.KerasTensor((batch, n), dtype="int32") for n in counts)
        )


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomMask(_Mask):
    """Hides a fixed share of the patches, picked at random for each example.

    Args:
        mask_ratio: float between 0 and 1, the share of patches to hide.
        seed: optional int, makes the masks reproducible.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: tensor of shape `(batch, num_patches, ...)`; only its shape counts.
        grid: tuple of ints, the grid of patches, which other masks need.
        noise: optional float tensor of shape `(batch, num_patches)`, used instead of
            random numbers: the patches with the lowest noise stay visible.

    Returns:
        `PatchMask`, with patches ordered by their noise.

    Raises:
        ValueError: for a ratio outside (0, 1), or fewer than 2 patches.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.masks import RandomMask

    mask = RandomMask(mask_ratio=0.75, seed=1)(np.zeros((2, 16, 8), "float32"))
    print(mask.visible.shape, mask.masked.shape)  # (2, 4) (2, 12)
    ```

    Reference:
        - [He et al., 2021](https://arxiv.org/abs/2111.06377)
    """

    def __init__(self, mask_ratio=0.8, seed=None, **kwargs):
        super().__init__(locals())

    def call(self, patches, grid=None, noise=None):
        batch, num_patches = ops.shape(patches)[:2]
        num_visible = self.num_visible((num_patches,))
        return _split(self._noise(noise, batch, num_patches), num_visible)

    def compute_output_spec(self, patches, grid=None, noise=None):
        return super().compute_output_spec(patches)


@keras.saving.register_keras_serializable(package="keras_bridle")
class TubeMask(_Mask):
    """Hides a fixed share of the cells of a clip's frames, the same in all frames.

    Everything else is as in `RandomMask`.

    Call arguments:
        grid: tuple of ints, `(frames, rows, columns)`, or any grid whose first side is
            time.
        noise: optional float tensor of shape `(batch, rows * columns)`.

    Returns:
        `PatchMask`, with patches in their natural order.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.masks import TubeMask

    mask = TubeMask(0.75, seed=1)(np.zeros((2, 32, 8), "float32"), grid=(2, 4, 4))
    print(mask.visible[0])  # 4 cells, then the same ones 16 further
    ```

    Reference:
        - [Tong et al., 2022](https://arxiv.org/abs/2203.12602), VideoMAE
    """

    max_sides: float = math.inf

    def __init__(self, mask_ratio=0.9, seed=None, **kwargs):
        super().__init__(locals())

    def num_visible(self, grid):
        return grid[0] * super().num_visible(grid[1:])

    def call(self, patches, grid, noise=None):
        batch, (frames, *sides) = self._sizes(patches, grid)
        num_cells = math.prod(sides)
        noise = self._noise(noise, batch, num_cells)
        cells = _split(noise, super().num_visible(sides), sort=True)
        first = ops.expand_dims(ops.arange(frames, dtype="int32") * num_cells, 1)
        return PatchMask(
            *(
                ops.reshape(first + part[:, None], (batch, frames * part.shape[1]))
                for part in cells
            )
        )


# The random part of a score; the rest is the distance to the block's center.
_NOISE = 0.1


class _BlockMask(_Mask):
    """Base of the block masks; `_block_sizes()` draws the sizes."""

    hides_blocks = True

    def call(self, patches, grid):
        batch, grid = self._sizes(patches, grid)
        scores = self._scores(batch, grid, *self._block_sizes(batch, grid))
        scores = -scores if self.hides_blocks else scores
        return _split(scores, self.num_visible(grid), sort=True)

    def _num_blocks(self, share, block_share):
        """Returns over twice the number of blocks that cover a share on average."""
        on_average = math.log(1.0 - share) / math.log(1.0 - min(block_share, 0.99))
        return 2 * math.ceil(on_average) + 2

    def _scores(self, batch, grid, heights, widths):
        """Scores patches by the first randomly placed block that contains them.

        Patches of the first block have the lowest scores, starting from its center.
        Patches in no block come last, in random order. So the lowest scores cover a few
        whole blocks and the center of another.
        """
        num_blocks = ops.shape(heights)[1]
        row = self._distances(grid[0], heights)
        column = self._distances(grid[1], widths)
        distance = ops.maximum(ops.expand_dims(row, 3), ops.expand_dims(column, 2))
        distance = ops.reshape(distance, (batch, num_blocks, math.prod(grid)))
        index = ops.expand_dims(ops.arange(num_blocks, dtype="float32"), 1)
        inside = index + (1.0 - _NOISE) * distance
        scores = ops.min(ops.where(distance < 1.0, inside, float(num_blocks)), axis=1)
        return scores + _NOISE * self.uniform((batch, math.prod(grid)))

    def _distances(self, length, sizes):
        """Draws blocks along a side; returns distances, below 1 inside a block."""
        draws = self.uniform(ops.shape(sizes))
        first = ops.floor(draws * (length - sizes + 1.0))
        middle = ops.expand_dims(first + 0.5 * (sizes - 1.0), 2)
        cells = ops.arange(length, dtype="float32")
        return 2.0 * ops.abs(cells - middle) / ops.expand_dims(sizes, 2)


@keras.saving.register_keras_serializable(package="keras_bridle")
class BlockMask(_BlockMask):
    """Hides rectangular blocks of random size, shape and position, as BEiT does.

    Every example loses the same number of patches: whole blocks, and the center of the
    last one. Everything else is as in `RandomMask`.

    Args:
        mask_ratio: float between 0 and 1, the share of patches to hide.
        block_share: tuple of 2 floats, the smallest and the largest area of a block, as
            shares of the grid.
        aspect_ratio: tuple of 2 floats, the smallest and the largest height of a block
            relative to its width.
        seed: optional int.

    Call arguments:
        grid: tuple of 2 ints, `(rows, columns)`.

    Returns:
        `PatchMask`, with patches in their natural order.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.masks import BlockMask

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
        super().__init__(locals())
        is_right = 0.0 < block_share[0] <= block_share[1] <= 1.0
        check(is_right, "block_share", "two ascending numbers in (0, 1]", block_share)
        is_right = 0.0 < aspect_ratio[0] <= aspect_ratio[1]
        check(is_right, "aspect_ratio", "two ascending positive numbers", aspect_ratio)

    def _block_sizes(self, batch, grid):
        shape = batch, self._num_blocks(self.mask_ratio, sum(self.block_share) / 2)
        area = math.prod(grid) * self.uniform(shape, *self.block_share)
        aspect = ops.exp(self.uniform(shape, *map(math.log, self.aspect_ratio)))
        sizes = ops.sqrt(area * aspect), ops.sqrt(area / aspect)
        return [
            ops.clip(ops.round(size), 1.0, float(side))
            for size, side in zip(sizes, grid, strict=True)
        ]


@keras.saving.register_keras_serializable(package="keras_bridle")
class InverseBlockMask(_BlockMask):
    """Keeps square blocks at random positions visible and hides everything else.

    So even few visible patches have visible neighbors. Everything else is as in
    `BlockMask`.

    Args:
        mask_ratio: float between 0 and 1, the share of patches to hide.
        block_size: int, the side of a visible block, in patches; smaller where the grid
            is.
        seed: optional int.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.masks import InverseBlockMask

    layer = InverseBlockMask(mask_ratio=0.8, block_size=5, seed=1)
    mask = layer(np.zeros((2, 512, 1), "float32"), grid=(64, 8))
    print(mask.visible.shape, mask.masked.shape)  # (2, 102) (2, 410)
    ```

    Reference:
        - [Baevski et al., 2022](https://arxiv.org/abs/2212.07525), data2vec 2.0
        - [Chen et al., 2024](https://arxiv.org/abs/2401.03497), EAT
    """

    hides_blocks = False

    def __init__(self, mask_ratio=0.8, block_size=3, seed=None, **kwargs):
        super().__init__(locals())
        check(block_size >= 1, "block_size", "positive", block_size)

    def _block_sizes(self, batch, grid):
        height, width = (min(self.block_size, side) for side in grid)
        num_patches = math.prod(grid)
        share = self.num_visible(grid) / num_patches
        num_blocks = self._num_blocks(share, height * width / num_patches)
        ones = ops.ones((batch, num_blocks), dtype="float32")
        return height * ones, width * ones


@keras.saving.register_keras_serializable(package="keras_bridle")
class TimeFrequencyMask(_Mask):
    """Hides whole rows (times) and whole columns (mel bands) of the grid of patches.

    A patch stays visible if its row and its column do. Everything else is as in
    `RandomMask`.

    Args:
        time_mask_ratio: float between 0 and 1, the share of rows to hide.
        frequency_mask_ratio: float between 0 and 1, the share of columns to hide.
        seed: optional int.

    Call arguments:
        grid: tuple of 2 ints, `(rows, columns)`, at least 2 of each.
        noise: optional tuple of float tensors of shapes `(batch, rows)` and `(batch,
            columns)`, used instead of random numbers: the rows and columns with the
            lowest noise stay visible.

    Returns:
        `PatchMask`, with patches in their natural order.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.masks import TimeFrequencyMask

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
        super().__init__(locals())

    def _kept(self, grid):
        """Returns the numbers of rows and columns that stay visible."""
        ratios = self.time_mask_ratio, self.frequency_mask_ratio
        return [num_kept(side, ratio) for side, ratio in zip(grid, ratios, strict=True)]

    def num_visible(self, grid):
        return math.prod(self._kept(grid))

    def call(self, patches, grid, noise=None):
        batch, grid = self._sizes(patches, grid)
        is_kept = []
        for axis, (side, kept) in enumerate(zip(grid, self._kept(grid), strict=True)):
            drawn = self._noise(None if noise is None else noise[axis], batch, side)
            rank = ops.argsort(ops.argsort(drawn, axis=1), axis=1)
            is_kept.append(rank < kept)
        is_visible = ops.logical_and(is_kept[0][:, :, None], is_kept[1][:, None])
        is_masked = ops.cast(ops.logical_not(is_visible), "float32")
        scores = ops.reshape(is_masked, (batch, math.prod(grid)))
        return _split(scores, self.num_visible(grid), sort=True)
