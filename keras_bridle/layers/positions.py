"""Position encodings."""

import functools
import math

import keras
import numpy as np
from keras import ops

LAYOUTS = ("grid", "transposed_grid", "sequence")


@keras.saving.register_keras_serializable(package="keras_bridle")
class SineCosinePositionEncoding(keras.layers.Layer):
    """Adds fixed sine-cosine positions to a grid of patch vectors.

    The positions are computed from the grid at hand, so any grid will do: a shorter
    one gets the slice that a longer one starts with. `trained_grid` stretches other
    grids onto the one a model was trained with instead.

    Args:
        layout: string. `"grid"`: half of the channels tell the column, half the row.
            `"sequence"`: all channels tell the place in the flat sequence of patches
            (the published positions of video). `"transposed_grid"`: the grid's table is
            made for (columns, rows) and read in the order of the patches, which
            scrambles it unless the grid is square (the published positions of audio).
        trained_grid: optional tuple of ints. When given, coordinates are scaled so that
            the sides of any grid cover the same range as this one's. A side may be
            `None` and is left as it is then: `(None, 14, 14)` stretches images and
            leaves time alone.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: float tensor of shape `(batch, rows, columns, dim)`, or of any number
            of grid sides for the layout `"sequence"`; or `(batch, num_patches, dim)`
            together with `grid`.
        grid: optional tuple of ints, the grid of flat patches.
        visible: optional int32 tensor of shape `(batch, num_visible)`, which patches of
            the grid there are; `patches` is then `(batch, num_visible, dim)`.

    Returns:
        Tensor like `patches`.

    Raises:
        ValueError: for an unknown layout, channels that do not divide as needed, or a
            grid that has other sides than `trained_grid`.

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
        super().__init__(**kwargs)
        if layout not in LAYOUTS:
            raise ValueError(
                f"`layout` must be one of {LAYOUTS}. Received: layout={layout!r}"
            )
        self.layout = layout
        self.trained_grid = None if trained_grid is None else tuple(trained_grid)

    def build(self, patches_shape):
        dim = patches_shape[-1]
        divisor = 2 if self.layout == "sequence" else 4
        if dim % divisor:
            raise ValueError(
                f"Positions of layout {self.layout!r} need channels that are a "
                f"multiple of {divisor}. Received: input shape {tuple(patches_shape)}"
            )

    def call(self, patches, grid=None, visible=None):
        shape = ops.shape(patches)
        table = self.table(shape[1:-1] if grid is None else grid, patches.shape[-1])
        if visible is not None:
            table = ops.take(table, visible, axis=0)
        else:
            table = ops.reshape(table, (1, *shape[1:]))
        return patches + ops.cast(table, patches.dtype)

    def table(self, grid, dim):
        """Computes the positions of a grid.

        Args:
            grid: tuple of ints, the number of patches along each side.
            dim: int, number of channels.

        Returns:
            float32 tensor of shape `(num_patches, dim)`, patches in row-major order.
        """
        grid = tuple(grid)
        if all(isinstance(side, int) for side in grid):
            table = _known_table(self.layout, self.trained_grid, grid, dim)
            return ops.convert_to_tensor(table)
        # TensorFlow graphs with an unknown grid compute it as they run.
        table = _table(ops, self.layout, self.trained_grid, grid, dim)
        return ops.cast(table, "float32")

    def compute_output_shape(self, patches_shape):
        return tuple(patches_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "layout": self.layout,
            "trained_grid": self.trained_grid,
        }


def check_layout(layout, sides):
    """Raises a `ValueError` if a layout is not for so many sides.

    Args:
        layout: string.
        sides: tuple, the patches along each side, or the sides of a patch; or an int.
    """
    is_flat = layout in ("grid", "transposed_grid")
    if is_flat and not isinstance(sides, int) and len(sides) != 2:
        raise ValueError(
            f"Positions of layout {layout!r} are for patches of 2 sides. Expected: "
            f"'sequence' for others, such as those of clips. Received: {tuple(sides)}"
        )


# Without it, torch would compute the sines anew at every step.
@functools.lru_cache(maxsize=32)
def _known_table(layout, trained_grid, grid, dim):
    return _table(np, layout, trained_grid, grid, dim).astype("float32")


def _table(numpy, layout, trained_grid, grid, dim):
    """Positions in float64, as sines of large angles need it."""
    trained_grid = trained_grid or (None,) * len(grid)
    if len(trained_grid) != len(grid):
        raise ValueError(
            "A grid must have as many sides as `trained_grid`. "
            f"Received: grid={grid}, trained_grid={trained_grid}"
        )
    check_layout(layout, grid)
    if layout == "sequence":
        return _sequence_table(numpy, _places(numpy, grid, trained_grid), dim)
    coordinates = _coordinates(numpy, layout, grid, trained_grid)
    return numpy.concatenate(
        [_sines_then_cosines(numpy, place, dim // 2) for place in coordinates], axis=1
    )


def _coordinates(numpy, layout, grid, trained_grid):
    """Column and row of each patch."""
    rows, columns = grid
    index = numpy.arange(rows * columns, dtype="int32")
    width = rows if layout == "transposed_grid" else columns
    return (
        _stretched(numpy, index % width, columns, trained_grid[1]),
        _stretched(numpy, index // width, rows, trained_grid[0]),
    )


def _places(numpy, grid, trained_grid):
    """Place of each patch in the flat sequence, that of the trained grid if any."""
    index = numpy.arange(math.prod(grid), dtype="int32")
    place, step, trained_step = 0.0, 1, 1.0
    # From the last side, whose neighbors are neighbors in the sequence.
    for side, trained_side in reversed(list(zip(grid, trained_grid, strict=True))):
        cell = _stretched(numpy, index // step % side, side, trained_side)
        place = place + cell * trained_step
        step = step * side
        trained_step = trained_step * _as_float64(numpy, trained_side or side)
    return place


def _sines_then_cosines(numpy, place, dim):
    frequencies = 10000.0 ** (-np.arange(dim // 2) / (dim / 2))
    angles = numpy.expand_dims(place, 1) * frequencies
    return numpy.concatenate([numpy.sin(angles), numpy.cos(angles)], axis=1)


def _sequence_table(numpy, place, dim):
    """Positions of a sequence: sines at even channels, cosines at odd ones."""
    frequencies = 10000.0 ** (-2 * (np.arange(dim) // 2) / dim)
    angles = numpy.expand_dims(place, 1) * frequencies
    is_even = np.arange(dim) % 2 == 0
    return numpy.where(is_even, numpy.sin(angles), numpy.cos(angles))


def _stretched(numpy, cells, side, trained_side):
    """Coordinates of cells along a side that is stretched onto another."""
    cells = _as_float64(numpy, cells)
    if trained_side is None:
        return cells
    return cells * (trained_side / _as_float64(numpy, side))


def _as_float64(numpy, number):
    return np.float64(number) if numpy is np else ops.cast(number, "float64")


@keras.saving.register_keras_serializable(package="keras_bridle")
class LearnedPositionEncoding(keras.layers.Layer):
    """Adds learned positions to a grid of patch vectors.

    A smaller grid gets the positions that the trained one starts with along each side.

    Args:
        trained_grid: tuple of ints, the grid that there are positions for.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: float tensor of shape `(batch, *grid, dim)`; or
            `(batch, num_visible, dim)` together with `grid` and `visible`.
        grid: optional tuple of ints.
        visible: optional int32 tensor of shape `(batch, num_visible)`, which patches of
            the grid there are.

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
        super().__init__(**kwargs)
        self.trained_grid = tuple(trained_grid)

    def build(self, patches_shape):
        self.positions = self.add_weight(
            shape=(1, math.prod(self.trained_grid), patches_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="positions",
        )

    def call(self, patches, grid=None, visible=None):
        grid = ops.shape(patches)[1:-1] if grid is None else tuple(grid)
        self._check_grid(grid)
        positions = ops.convert_to_tensor(self.positions, dtype=patches.dtype)
        positions = ops.reshape(positions, (*self.trained_grid, patches.shape[-1]))
        positions = positions[tuple(slice(0, side) for side in grid)]
        if visible is None:
            return patches + ops.expand_dims(positions, 0)
        positions = ops.reshape(positions, (-1, patches.shape[-1]))
        return patches + ops.take(positions, visible, axis=0)

    def _check_grid(self, grid):
        if len(grid) != len(self.trained_grid) or any(
            # Within TensorFlow's graphs some sides are known only as it runs.
            isinstance(side, int) and side > trained
            for side, trained in zip(grid, self.trained_grid, strict=True)
        ):
            raise ValueError(
                f"There are positions for a grid of {self.trained_grid}. "
                f"Received: patches in a grid of {tuple(grid)}"
            )

    def compute_output_shape(self, patches_shape):
        return tuple(patches_shape)

    def get_config(self):
        return {**super().get_config(), "trained_grid": self.trained_grid}
