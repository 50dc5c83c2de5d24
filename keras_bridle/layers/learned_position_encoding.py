"""Learned positions for grids of patches."""

import math

import keras
from keras import ops


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
    from keras_bridle.layers import LearnedPositionEncoding

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
