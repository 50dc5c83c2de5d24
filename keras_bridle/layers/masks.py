"""Which patches are hidden."""

import math
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_bridle.replicas import draw_rows


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
    """Picks patches by index, each example its own.

    Args:
        patches: tensor of shape `(batch, num_patches, ...)`.
        indices: int32 tensor of shape `(batch, num_picked)`.

    Returns:
        Tensor of shape `(batch, num_picked, ...)`.
    """
    # A flat `take` with row offsets: several times as fast as `take_along_axis`.
    batch, num_patches, *rest = ops.shape(patches)
    flat = ops.reshape(patches, (batch * num_patches, *rest))
    offsets = ops.expand_dims(ops.arange(batch, dtype="int32") * num_patches, 1)
    return ops.take(flat, ops.convert_to_tensor(indices) + offsets, axis=0)


def restore_order(mask):
    """Finds where each patch stands in the list "visible ones, then masked ones".

    Args:
        mask: `PatchMask`.

    Returns:
        int32 tensor of shape `(batch, num_patches)`.
    """
    order = ops.concatenate([mask.visible, mask.masked], axis=1)
    return ops.cast(ops.argsort(order, axis=1), "int32")


def split_patches(scores, num_visible):
    """Keeps the patches of smallest score visible and masks the others.

    Args:
        scores: float tensor of shape `(batch, num_patches)`.
        num_visible: int, the patches of each example to keep.

    Returns:
        `PatchMask`, patches in the order of their scores.
    """
    # One sort: two `top_k` could both take a patch that has the same score as another.
    order = ops.cast(ops.argsort(scores, axis=1), "int32")
    return PatchMask(order[:, :num_visible], order[:, num_visible:])


def in_natural_order(mask):
    """Sorts the visible and the masked patches of a `PatchMask`."""
    return PatchMask(*(ops.sort(indices, axis=1) for indices in mask))


def patch_mask_spec(patches, num_patches, num_visible):
    """Describes a mask of known counts, for `compute_output_spec()` of mask layers.

    Args:
        patches: `keras.KerasTensor` with the batch in front.
        num_patches: int.
        num_visible: int.

    Returns:
        `PatchMask` of `keras.KerasTensor`.
    """
    return PatchMask(
        *(
            keras.KerasTensor((patches.shape[0], count), dtype="int32")
            for count in (num_visible, num_patches - num_visible)
        )
    )


def check_grid(grid, patches, num_sides=None):
    """Raises a `ValueError` for a grid that is not that of the patches.

    Args:
        grid: tuple of ints.
        patches: tensor of shape `(batch, num_patches, ...)`.
        num_sides: optional int, the sides that the grid must have; else 2 or more.
    """
    sides = 2 if num_sides is None else num_sides
    wrong = len(grid) != sides if num_sides else len(grid) < sides
    if wrong or math.prod(grid) != patches.shape[1]:
        raise ValueError(
            f"`grid` must have {sides} sides{'' if num_sides else ' or more'} and as "
            f"many cells as there are patches. Received: grid={tuple(grid)}, patches "
            f"of shape {tuple(patches.shape)}"
        )


def num_kept(length, mask_ratio):
    """Tells how many of `length` things stay visible: never none, never all.

    Args:
        length: int.
        mask_ratio: float, the share to hide.

    Returns:
        int between 1 and `length - 1`.
    """
    # The small number keeps 10 x (1 - 0.8) at 2 in floating point.
    kept = int(length * (1.0 - mask_ratio) + 1e-6)
    return min(max(kept, 1), length - 1)


def check_mask_ratio(name, value):
    """Raises a `ValueError` for a ratio that hides nothing or everything."""
    if not 0.0 < value < 1.0:
        raise ValueError(
            f"`{name}` must be between 0 and 1, both excluded. Received: {name}={value}"
        )


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomMask(keras.layers.Layer):
    """Hides a fixed share of the patches, picked at random for each example.

    Args:
        mask_ratio: float between 0 and 1, the share of patches to hide.
        seed: optional int, makes the masks reproducible.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: tensor of shape `(batch, num_patches, ...)`; only its shape counts.
        grid: tuple of ints, the grid of patches (not used here; other masks do).
        noise: optional float tensor of shape `(batch, num_patches)`, used instead of
            random numbers: the patches of smallest noise stay visible.

    Returns:
        `PatchMask`, patches in the order of their noise.

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
        super().__init__(**kwargs)
        check_mask_ratio("mask_ratio", mask_ratio)
        self.mask_ratio = mask_ratio
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, patches, grid=None, noise=None):
        batch, num_patches = ops.shape(patches)[:2]
        if num_patches < 2:
            raise ValueError(
                "Masking needs at least 2 patches. "
                f"Received: patches of shape {tuple(patches.shape)}"
            )
        if noise is None:
            noise = draw_rows(
                keras.random.uniform,
                (batch, num_patches),
                dtype="float32",
                seed=self.seed_generator,
            )
        noise = ops.convert_to_tensor(noise, dtype="float32")
        visible_count = num_kept(num_patches, self.mask_ratio)
        return split_patches(noise, visible_count)

    def get_config(self):
        return {
            **super().get_config(),
            "mask_ratio": self.mask_ratio,
            "seed": self.seed,
        }


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
    from keras_bridle.layers.masks import TubeMask

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


# The part of a score that is drawn for each patch; the rest tells its place in a block.
_NOISE = 0.1


def block_scores(grid, heights, widths, seed_generator):
    """Scores patches by the first of some randomly placed blocks that they lie in.

    Patches of the first block have the smallest scores, the middle of the block in
    front, then come those of the second block that are not in the first, and so on.
    Patches in no block come last, in random order. So any number of patches with the
    smallest scores is a few whole blocks and the middle of one more.

    Args:
        grid: tuple of 2 ints, `(rows, columns)`.
        heights: float tensor of shape `(batch, num_blocks)`, whole numbers of rows, at
            most those of the grid.
        widths: float tensor of shape `(batch, num_blocks)` likewise.
        seed_generator: `keras.random.SeedGenerator`.

    Returns:
        float32 tensor of shape `(batch, rows * columns)`.
    """
    batch, num_blocks = ops.shape(heights)
    rows, columns = grid
    row = _distances(rows, heights, seed_generator)
    column = _distances(columns, widths, seed_generator)
    distance = ops.maximum(ops.expand_dims(row, 3), ops.expand_dims(column, 2))
    distance = ops.reshape(distance, (batch, num_blocks, rows * columns))
    index = ops.expand_dims(ops.arange(num_blocks, dtype="float32"), 1)
    inside = index + (1.0 - _NOISE) * distance
    scores = ops.min(ops.where(distance < 1.0, inside, float(num_blocks)), axis=1)
    noise = draw_rows(
        keras.random.uniform,
        (batch, rows * columns),
        dtype="float32",
        seed=seed_generator,
    )
    return scores + _NOISE * noise


def num_blocks_for(share, block_share):
    """Tells how many random blocks surely cover enough, or nearly always.

    Args:
        share: float, the share of the grid to cover.
        block_share: float, the mean share of the grid that one block covers.

    Returns:
        int, twice as many as cover the share on average, and some more.
    """
    on_average = math.log(1.0 - share) / math.log(1.0 - min(block_share, 0.99))
    return 2 * math.ceil(on_average) + 2


def _distances(length, sizes, seed_generator):
    """Places blocks along one side; how far each cell is from their middles.

    Returns:
        float32 tensor of shape `(batch, num_blocks, length)`: 0 in the middle of a
        block, below 1 inside and 1 or more outside.
    """
    draws = draw_rows(
        keras.random.uniform, ops.shape(sizes), dtype="float32", seed=seed_generator
    )
    first = ops.floor(draws * (length - sizes + 1.0))
    middle = ops.expand_dims(first + 0.5 * (sizes - 1.0), 2)
    cells = ops.arange(length, dtype="float32")
    return 2.0 * ops.abs(cells - middle) / ops.expand_dims(sizes, 2)


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
    from keras_bridle.layers.masks import InverseBlockMask

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
