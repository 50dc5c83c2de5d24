"""Position encodings."""

import functools
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bridle.layers.base import ConfiguredLayer, check

LAYOUTS = ("grid", "transposed_grid", "sequence")


@keras.saving.register_keras_serializable(package="keras_bridle")
class SineCosinePositionEncoding(ConfiguredLayer):
    """Adds fixed sine-cosine positions to a grid of patch vectors.

    It takes any grid: a smaller one has the first positions of a larger one, or is
    stretched to `trained_grid`.

    Args:
        layout: string. `"grid"`: half of the channels encode the column, half the row.
            `"sequence"`: all channels encode the index in the flat sequence of patches
            (as published for video). `"transposed_grid"`: the table is made for
            (columns, rows) but read in the order of the patches, which scrambles it
            unless the grid is square (as published for audio).
        trained_grid: optional tuple of ints. The sides of any grid are scaled to the
            range of this one, except sides that are `None` here.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: float tensor of shape `(batch, rows, columns, dim)`, or of any number
            of grid sides for the layout `"sequence"`; or `(batch, num_patches, dim)`
            together with `grid`.
        grid: optional tuple of ints, the grid of flat patches.
        visible: optional int32 tensor of shape `(batch, num_visible)`, the indices of
            the patches; `patches` is then `(batch, num_visible, dim)`.

    Returns:
        Tensor like `patches`.

    Raises:
        ValueError: for an unknown layout, a number of channels that does not divide as
            needed, or a grid of another rank than `trained_grid`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.positions import SineCosinePositionEncoding

    patches = np.zeros((1, 4, 8, 32), "float32")
    positions = SineCosinePositionEncoding()(patches)
    print(positions.shape)  # (1, 4, 8, 32)
    ```

    Reference:
        - [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)
        - [He et al., 2021](https://arxiv.org/abs/2111.06377), the two-dimensional form
    """

    def __init__(self, layout="grid", trained_grid=None, **kwargs):
        super().__init__(locals())
        check(layout in LAYOUTS, "layout", f"one of {LAYOUTS}", layout)

    def build(self, patches_shape):
        dim = patches_shape[-1]
        divisor = 2 if self.layout == "sequence" else 4
        expected = f"a multiple of {divisor} for the layout {self.layout!r}"
        check(dim % divisor == 0, "dim", expected, dim)

    def call(self, patches, grid=None, visible=None):
        shape = ops.shape(patches)
        table = self.table(shape[1:-1] if grid is None else grid, patches.shape[-1])
        if visible is not None:
            table = ops.take(table, visible, axis=0)
        else:
            table = ops.reshape(table, (1, *shape[1:]))
        return patches + ops.cast(table, patches.dtype)

    def table(self, grid, dim):
        """Computes the positions of a grid, float32 of shape `(num_patches, dim)`."""
        grid = tuple(grid)
        if all(isinstance(side, int) for side in grid):
            table = _known_table(self.layout, self.trained_grid, grid, dim)
            return ops.convert_to_tensor(table)
        # Graphs for inputs of any size compute the table when they run.
        table = _table(ops, self.layout, self.trained_grid, grid, dim)
        return ops.cast(table, "float32")


def check_layout(layout, sides):
    """Raises a `ValueError` if a layout does not fit the number of sides."""
    num_sides = 2 if isinstance(sides, int) else len(sides)
    expected = "'sequence' for patches of other than 2 sides, such as those of clips"
    check(num_sides == 2 or layout == "sequence", "layout", expected, layout)


# Without the cache, torch would compute the sines again in each step.
@functools.lru_cache(maxsize=32)
def _known_table(layout, trained_grid, grid, dim):
    return _table(np, layout, trained_grid, grid, dim).astype("float32")


def _table(numpy, layout, trained_grid, grid, dim):
    """Computes positions in float64, as sines of large angles need it."""
    trained_grid = trained_grid or (None,) * len(grid)
    is_right = len(trained_grid) == len(grid)
    check(is_right, "grid", f"of as many sides as `trained_grid` {trained_grid}", grid)
    check_layout(layout, grid)
    if layout == "sequence":
        return _sequence_table(numpy, grid, trained_grid, dim)
    rows, columns = grid
    index = numpy.arange(rows * columns, dtype="int32")
    width = rows if layout == "transposed_grid" else columns
    column = _stretched(index % width, columns, trained_grid[1])
    row = _stretched(index // width, rows, trained_grid[0])
    frequencies = 10000.0 ** (-np.arange(dim // 4) / (dim // 2 / 2))
    waves = []
    for coordinate in (column, row):
        angles = numpy.multiply(numpy.expand_dims(coordinate, 1), frequencies)
        waves += [numpy.sin(angles), numpy.cos(angles)]
    return numpy.concatenate(waves, axis=1)


def _sequence_table(numpy, grid, trained_grid, dim):
    """Computes positions of a sequence: sines at even channels, cosines at odd ones."""
    index = numpy.arange(math.prod(grid), dtype="int32")
    position, step, trained_step = 0.0, 1, 1.0
    # From the last side, which varies fastest in the sequence.
    for side, trained_side in reversed(list(zip(grid, trained_grid, strict=True))):
        cell = _stretched(index // step % side, side, trained_side)
        position = position + cell * trained_step
        step = step * side
        trained_step = trained_step * _as_float64(trained_side or side)
    frequencies = 10000.0 ** (-2 * (np.arange(dim) // 2) / dim)
    angles = numpy.multiply(numpy.expand_dims(position, 1), frequencies)
    is_even = np.arange(dim) % 2 == 0
    return numpy.where(is_even, numpy.sin(angles), numpy.cos(angles))


def _stretched(cells, side, trained_side):
    """Returns the coordinates of cells along a side stretched to the trained one."""
    cells = _as_float64(cells)
    if trained_side is None:
        return cells
    return cells * (trained_side / _as_float64(side))


def _as_float64(number):
    if isinstance(number, np.ndarray):
        return number.astype("float64")
    # Other sides are integers, symbolic ones in `torch.export`.
    return ops.cast(number, "float64") if ops.is_tensor(number) else number


@keras.saving.register_keras_serializable(package="keras_bridle")
class LearnedPositionEncoding(ConfiguredLayer):
    """Adds learned positions to a grid of patch vectors.

    A smaller grid has the first positions of the trained one along each side.

    Args:
        trained_grid: tuple of ints, the grid of the positions.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: float tensor of shape `(batch, *grid, dim)`; or
            `(batch, num_visible, dim)` together with `grid` and `visible`.
        grid: optional tuple of ints.
        visible: optional int32 tensor of shape `(batch, num_visible)`, the indices of
            the patches.

    Returns:
        Tensor like `patches`.

    Raises:
        ValueError: for a grid with more cells along a side than the trained one.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.positions import LearnedPositionEncoding

    patches = np.zeros((1, 3, 8, 32), "float32")
    print(LearnedPositionEncoding((4, 8))(patches).shape)  # (1, 3, 8, 32)
    ```

    Reference:
        - [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929)
    """

    def __init__(self, trained_grid, **kwargs):
        super().__init__(locals())

    def build(self, patches_shape):
        self.positions = self.add_weight(
            shape=(1, math.prod(self.trained_grid), patches_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="positions",
        )

    def call(self, patches, grid=None, visible=None):
        grid = _checked_grid(patches, grid, self.trained_grid)
        positions = ops.convert_to_tensor(self.positions, dtype=patches.dtype)
        positions = ops.reshape(positions, (*self.trained_grid, patches.shape[-1]))
        positions = positions[tuple(slice(0, side) for side in grid)]
        if visible is None:
            return patches + ops.expand_dims(positions, 0)
        positions = ops.reshape(positions, (-1, patches.shape[-1]))
        return patches + ops.take(positions, visible, axis=0)


@keras.saving.register_keras_serializable(package="keras_bridle")
class RelativePositionBias(ConfiguredLayer):
    """Learned attention biases, one per head for each offset between two patches.

    A smaller grid uses the offsets that it has. Call arguments and errors are those of
    `LearnedPositionEncoding`.

    Args:
        num_heads: int, attention heads.
        trained_grid: tuple of ints, the largest grid whose offsets have biases.
        use_class_token: bool, whether a class token precedes the patches. It adds three
            biases: token to patch, patch to token, and token to itself.

    Returns:
        Tensor of shape `(batch, num_heads, length, length)`, from queries to keys, to
        add to the attention logits. The batch is 1 without `visible`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.positions import RelativePositionBias

    patches = np.zeros((2, 3, 8, 32), "float32")
    print(RelativePositionBias(4, trained_grid=(4, 8))(patches).shape)  # (1, 4, 25, 25)
    ```

    Reference:
        - [Bao et al., 2021](https://arxiv.org/abs/2106.08254), BEiT
    """

    def __init__(self, num_heads, trained_grid, use_class_token=True, **kwargs):
        super().__init__(locals())

    def build(self, patches_shape):
        self.num_offsets = math.prod(2 * side - 1 for side in self.trained_grid)
        self.positions = self.add_weight(
            shape=(self.num_offsets + 3 * self.use_class_token, self.num_heads),
            initializer="zeros",
            name="positions",
        )

    def call(self, patches, grid=None, visible=None):
        grid = _checked_grid(patches, grid, self.trained_grid)
        if visible is None:
            visible = ops.arange(math.prod(grid), dtype="int32")[None]
        offsets = self._offsets(ops.cast(visible, "int32"), grid)
        if self.use_class_token:
            offsets = self._with_class_token(offsets)
        positions = ops.convert_to_tensor(self.positions, dtype=self.compute_dtype)
        return ops.transpose(ops.take(positions, offsets, axis=0), (0, 3, 1, 2))

    def _offsets(self, cells, grid):
        """Numbers the offset of each pair of cells, `(batch, queries, keys)`."""
        number: Any = 0
        center, step, stride = 0, 1, 1
        for side, trained in reversed(list(zip(grid, self.trained_grid, strict=True))):
            number = number + cells // step % side * stride
            center += (trained - 1) * stride
            step, stride = step * side, stride * (2 * trained - 1)
        return number[:, :, None] - number[:, None] + center

    def _with_class_token(self, offsets):
        to_patch, to_token, to_itself = (self.num_offsets + kind for kind in range(3))
        column = ops.full_like(offsets[:, :, :1], to_token)
        offsets = ops.concatenate([column, offsets], axis=2)
        corner = ops.full_like(offsets[:, :1, :1], to_itself)
        row = ops.full_like(offsets[:, :1, 1:], to_patch)
        row = ops.concatenate([corner, row], axis=2)
        return ops.concatenate([row, offsets], axis=1)

    def compute_output_shape(self, patches_shape, visible_shape=None):
        batch, cells = visible_shape or (1, None)
        if visible_shape is None and None not in patches_shape[1:-1]:
            cells = math.prod(patches_shape[1:-1])
        length = None if cells is None else cells + self.use_class_token
        return (batch, self.num_heads, length, length)


def _checked_grid(patches, grid, trained_grid):
    """Returns the grid of patches, which a table of positions must cover."""
    grid = ops.shape(patches)[1:-1] if grid is None else tuple(grid)
    # In TensorFlow's graphs, some sides are known only at run time.
    fits = len(grid) == len(trained_grid) and not any(
        isinstance(side, int) and side > trained
        for side, trained in zip(grid, trained_grid, strict=True)
    )
    check(fits, "grid", f"within {trained_grid}", grid)
    return grid
