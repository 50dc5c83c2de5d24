"""Fixed sine-cosine positions for grids of patches."""

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
        trained_grid: optional tuple of 2 ints `(rows, columns)`. When given,
            coordinates are scaled so that any grid covers the same range as this one.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: float tensor of shape `(batch, rows, columns, dim)`, or of any number
            of grid sides for the layout `"sequence"`; or `(batch, num_patches, dim)`
            together with `grid`.
        grid: optional tuple of ints, the grid of flat patches.

    Returns:
        Tensor like `patches`.

    Raises:
        ValueError: for an unknown layout, or channels that do not divide as needed.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import SineCosinePositionEncoding

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
        if trained_grid is not None and layout == "sequence":
            raise ValueError(
                "`trained_grid` needs a layout of rows and columns. "
                f"Received: layout={layout!r}, trained_grid={trained_grid}"
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

    def call(self, patches, grid=None):
        shape = ops.shape(patches)
        table = self.table(shape[1:-1] if grid is None else grid, patches.shape[-1])
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
        # float64 where the grid is known, as sines of large angles need it; TensorFlow
        # graphs with an unknown grid, which have float64 too, compute it as they run.
        known = all(isinstance(side, int) for side in grid)
        numpy = np if known else ops
        if self.layout == "sequence":
            table = _sequence_table(numpy, math.prod(grid), dim)
        else:
            table = numpy.concatenate(
                [
                    _sines_then_cosines(numpy, place, dim // 2)
                    for place in self._coordinates(numpy, *grid)
                ],
                axis=1,
            )
        return ops.cast(table, "float32")

    def _coordinates(self, numpy, rows, columns):
        """Column and row of each patch."""
        index = numpy.arange(rows * columns, dtype="int32")
        width = rows if self.layout == "transposed_grid" else columns
        row, column = index // width, index % width
        if self.trained_grid is not None:
            row = row * (self.trained_grid[0] / rows)
            column = column * (self.trained_grid[1] / columns)
        return column, row

    def compute_output_shape(self, patches_shape):
        return tuple(patches_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "layout": self.layout,
            "trained_grid": self.trained_grid,
        }


def _sines_then_cosines(numpy, place, dim):
    frequencies = 10000.0 ** (-np.arange(dim // 2) / (dim / 2))
    angles = _as_float64(numpy, place) * frequencies
    return numpy.concatenate([numpy.sin(angles), numpy.cos(angles)], axis=1)


def _sequence_table(numpy, length, dim):
    """Positions of a sequence: sines at even channels, cosines at odd ones."""
    frequencies = 10000.0 ** (-2 * (np.arange(dim) // 2) / dim)
    angles = _as_float64(numpy, numpy.arange(length, dtype="int32")) * frequencies
    is_even = np.arange(dim) % 2 == 0
    return numpy.where(is_even, numpy.sin(angles), numpy.cos(angles))


def _as_float64(numpy, place):
    column = numpy.expand_dims(place, 1)
    return column.astype("float64") if numpy is np else ops.cast(column, "float64")
