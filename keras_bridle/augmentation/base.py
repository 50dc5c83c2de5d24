"""The bases of all augmentations."""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from scipy import special

from keras_bridle.layers.base import RandomLayer, check


class Augmentation(RandomLayer):
    """Base of the augmentations, which `augment()` float32 inputs in training."""

    def __init__(self, arguments):
        # Half precision is too coarse for samples and pixels.
        arguments["kwargs"].setdefault("dtype", "float32")
        super().__init__(arguments)

    def call(self, inputs, training=None):
        inputs = self.checked(inputs)
        outputs = self.augment(inputs) if training else self.leave(inputs)
        return ops.cast(outputs, self.compute_dtype)

    def leave(self, inputs):
        """Returns the outputs for inference."""
        return inputs


class MixedBatch(NamedTuple):
    """The output of mixing layers: the mixture, its partners and shares.

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
    """Mixes labels `(batch, classes)` by the partners and shares of a `MixedBatch`."""
    shares = ops.cast(shares, labels.dtype)[:, None]
    return shares * labels + (1.0 - shares) * ops.take(labels, partners, axis=0)


class Mixing(Augmentation):
    """Base of layers whose `mix()` returns mixtures with partners, and the shares."""

    def __init__(self, arguments):
        super().__init__(arguments)
        check(0 <= self.rate <= 1, "rate", "in [0, 1]", self.rate)
        alphas = {name: x for name, x in arguments.items() if name.endswith("alpha")}
        for name, alpha in alphas.items():
            check(alpha >= 0, name, "0 or more", alpha)
        check(any(alphas.values()), " and ".join(alphas), "positive", alphas)
        edges = np.linspace(0.0, 1.0, 4097)
        self._quantiles = {
            name: special.betaincinv(alpha, alpha, edges).astype("float32")
            for name, alpha in alphas.items()
            if alpha
        }

    def call(self, inputs, training=None):
        inputs = self.checked(inputs)
        batch_size = ops.shape(inputs)[0]
        if training:
            noise = keras.random.uniform(
                (batch_size,), dtype="float32", seed=self.seed_generator
            )
            partners = ops.cast(ops.argsort(noise), "int32")
            inputs, shares = self.mix(inputs, partners)
        else:
            partners = ops.arange(batch_size, dtype="int32")
            shares = ops.ones((batch_size,), "float32")
        return MixedBatch(ops.cast(inputs, self.compute_dtype), partners, shares)

    def beta(self, name, shape):
        """Draws from Beta by a table: XLA cannot compile TensorFlow's `random.beta`."""
        table = ops.convert_to_tensor(self._quantiles[name])
        size = len(self._quantiles[name]) - 1
        uniform = self.uniform(shape) * size
        index = ops.clip(ops.cast(uniform, "int32"), 0, size - 1)
        low, high = ops.take(table, index), ops.take(table, index + 1)
        return low + (high - low) * (uniform - ops.cast(index, "float32"))

    def compute_output_spec(self, inputs, training=None):
        batch = tuple(inputs.shape)[:1]
        return MixedBatch(
            keras.KerasTensor(inputs.shape, dtype=self.compute_dtype),
            keras.KerasTensor(batch, dtype="int32"),
            keras.KerasTensor(batch, dtype="float32"),
        )
