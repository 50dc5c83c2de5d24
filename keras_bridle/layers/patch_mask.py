"""Which patches an encoder sees and which it has to predict."""

import math
from typing import Any, NamedTuple

import keras
from keras import ops


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
