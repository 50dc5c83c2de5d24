"""Which patches an encoder sees and which it has to predict."""

from typing import Any, NamedTuple

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
