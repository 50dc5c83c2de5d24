"""Patches and the tokens made of them."""

import itertools
import math

import keras
from keras import ops

from keras_bridle.layers.base import ConfiguredLayer, check, fitted
from keras_bridle.layers.masks import gather_patches


@keras.saving.register_keras_serializable(package="keras_bridle")
class PatchEmbedding(ConfiguredLayer):
    """Cuts images, spectrograms or clips into patches, and projects each to a vector.

    Patches do not overlap. Sides that are not multiples of the patch are zero-padded at
    the end, so that nothing is lost.

    Args:
        hidden_dim: int, size of a patch's vector.
        patch_size: int, or tuple of 2 ints (rows, columns) or of 3 ints (frames, rows,
            columns). An int means a square patch.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: float tensor of shape `(batch, rows, columns, channels)`, or
            `(batch, frames, rows, columns, channels)` for patches of 3 sides.
        visible: optional int32 tensor of shape `(batch, num_visible)`, the patches to
            embed; the others are not projected.

    Returns:
        Tensor of shape `(batch, *grid, hidden_dim)`, one vector for each patch; or of
        shape `(batch, num_visible, hidden_dim)`.

    Raises:
        ValueError: for an invalid patch size, or an input of another rank.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.patches import PatchEmbedding

    spectrogram = np.zeros((2, 64, 128, 1), "float32")
    patches = PatchEmbedding(hidden_dim=32, patch_size=16)(spectrogram)
    print(patches.shape)  # (2, 4, 8, 32)
    ```

    Reference:
        - [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929)
    """

    def __init__(self, hidden_dim, patch_size, **kwargs):
        super().__init__(locals())
        sides = (patch_size,) * 2 if isinstance(patch_size, int) else tuple(patch_size)
        is_right = len(sides) in (2, 3) and min(sides) >= 1
        check(is_right, "patch_size", "a positive int, or 2 or 3 of them", patch_size)
        self.patch_size = sides

    def build(self, inputs_shape):
        self.grid(inputs_shape[1:-1])
        # On every backend, this is faster than the equivalent convolution.
        self.projection = keras.layers.Dense(
            self.hidden_dim, dtype=self.dtype_policy, name="projection"
        )
        numbers = math.prod(self.patch_size) * inputs_shape[-1]
        self.projection.build((None, None, numbers))

    def call(self, inputs, visible=None):
        batch, *sides, channels = ops.shape(inputs)
        grid = self.grid(sides)
        for axis, patch in enumerate(self.patch_size, start=1):
            inputs = fitted(inputs, axis, grid[axis - 1] * patch, patch - 1)
        # Merge axes that stay adjacent, as LiteRT has at most six.
        sizes = [*itertools.chain(*zip(grid, self.patch_size, strict=True))]
        sizes[0], sizes[-1] = batch * sizes[0], sizes[-1] * channels
        patches = ops.reshape(inputs, sizes)
        order = (*range(0, len(sizes), 2), *range(1, len(sizes), 2))
        shape = (batch, math.prod(grid), math.prod(self.patch_size) * channels)
        patches = ops.reshape(ops.transpose(patches, order), shape)
        if visible is not None:
            return self.projection(gather_patches(patches, visible))
        return ops.reshape(self.projection(patches), (batch, *grid, self.hidden_dim))

    def compute_output_shape(self, inputs_shape, visible_shape=None):
        if visible_shape is not None:
            return (*visible_shape, self.hidden_dim)
        return (inputs_shape[0], *self.grid(inputs_shape[1:-1]), self.hidden_dim)

    def grid(self, sides):
        """Counts the patches along each side, `None` where a side is unknown.

        Args:
            sides: tuple of ints or `None`, the input's without batch and channels.
        """
        expected = f"an input with as many sides as the patch {self.patch_size}"
        check(len(sides) == len(self.patch_size), "inputs", expected, tuple(sides))
        return tuple(
            None if side is None else (side + patch - 1) // patch
            for side, patch in zip(sides, self.patch_size, strict=True)
        )

    def patch_padding_mask(self, inputs, padding_mask):
        """Computes which patches are real: a patch is real if its first row is.

        Args:
            inputs: tensor of shape `(batch, *sides, channels)`.
            padding_mask: optional bool tensor of shape `(batch, rows)`.

        Returns:
            Bool tensor of shape `(batch, num_patches)`, or `None`.
        """
        if padding_mask is None:
            return None
        _, *columns = self.grid(tuple(inputs.shape[1:-1]))
        first_rows = padding_mask[:, :: self.patch_size[0]]
        if None in columns:
            return self._spread_over_columns(first_rows, inputs)
        return ops.repeat(first_rows, math.prod(columns), axis=1)

    def _spread_over_columns(self, first_rows, inputs):
        """Repeats a mask of rows for an unknown number of columns."""
        corners = inputs[..., 0]
        for axis, size in enumerate(self.patch_size, start=1):
            corners = corners[(*[slice(None)] * axis, slice(None, None, size))]
        rows = ops.expand_dims(first_rows, tuple(range(2, len(corners.shape))))
        is_real = ops.logical_and(rows, ops.ones_like(corners, dtype="bool"))
        return ops.reshape(is_real, (ops.shape(is_real)[0], -1))


@keras.saving.register_keras_serializable(package="keras_bridle")
class ClassToken(keras.layers.Layer):
    """Prepends a learned vector to every sequence.

    Call arguments:
        tokens: float tensor of shape `(batch, length, dim)`.

    Returns:
        Tensor of shape `(batch, 1 + length, dim)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.patches import ClassToken

    print(ClassToken()(np.zeros((2, 8, 32), "float32")).shape)  # (2, 9, 32)
    ```

    Reference:
        - [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929)
    """

    def build(self, tokens_shape):
        self.class_token = self.add_weight(
            shape=(1, 1, tokens_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="class_token",
        )

    def call(self, tokens):
        token = ops.broadcast_to(
            ops.convert_to_tensor(self.class_token, dtype=tokens.dtype),
            (ops.shape(tokens)[0], 1, tokens.shape[-1]),
        )
        return ops.concatenate([token, tokens], axis=1)

    def compute_output_shape(self, tokens_shape):
        batch, length, dim = tokens_shape
        return (batch, None if length is None else length + 1, dim)
