"""What all augmentations share."""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from scipy import special

from keras_bridle.replicas import draw_rows


class MixedBatch(NamedTuple):
    """What mixing layers return: the mixture, and what it was made of.

    Example `i` is `shares[i]` of itself and the rest of example `partners[i]`.

    Attributes:
        inputs: tensor, of the shape of the batch that was mixed.
        partners: int32 tensor of shape `(batch,)`.
        shares: float32 tensor of shape `(batch,)`, in [0, 1].
    """

    inputs: Any
    partners: Any
    shares: Any


def mix_labels(labels, partners, shares):
    """Mixes labels as a `MixedBatch` was mixed.

    Args:
        labels: float tensor of shape `(batch, classes)`.
        partners: int32 tensor of shape `(batch,)`.
        shares: float tensor of shape `(batch,)`.

    Returns:
        Float tensor of shape `(batch, classes)`.
    """
    shares = ops.cast(shares, labels.dtype)[:, None]
    return shares * labels + (1.0 - shares) * ops.take(labels, partners, axis=0)


def draw_partners(batch_size, seed):
    """Draws a permutation of a batch, an int32 tensor."""
    noise = keras.random.uniform((batch_size,), dtype="float32", seed=seed)
    return ops.cast(ops.argsort(noise), "int32")


def draw_uniform(shape, seed):
    """Draws even numbers from [0, 1), a float32 tensor; the first axis is the batch."""
    return draw_rows(keras.random.uniform, shape, dtype="float32", seed=seed)


class BetaShares:
    """Draws from a symmetric Beta distribution, by a table of its quantiles.

    TensorFlow cannot compile `keras.random.beta` with XLA, as it does on GPUs.

    Args:
        alpha: positive float, both parameters of the distribution.
    """

    size = 4096

    def __init__(self, alpha):
        edges = np.linspace(0.0, 1.0, self.size + 1)
        self._table = special.betaincinv(alpha, alpha, edges).astype("float32")

    def draw(self, shape, seed):
        """Draws a float32 tensor of numbers in [0, 1]."""
        uniform = draw_uniform(shape, seed) * self.size
        place = ops.clip(ops.cast(uniform, "int32"), 0, self.size - 1)
        table = ops.convert_to_tensor(self._table)
        low, high = ops.take(table, place), ops.take(table, place + 1)
        return low + (high - low) * (uniform - ops.cast(place, "float32"))
