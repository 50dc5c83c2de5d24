"""Layers of BEATs: convolutional positions and gated attention biases."""

import functools

import keras
import numpy as np
from keras import ops

from keras_bridle.layers.base import ConfiguredLayer, check
from keras_bridle.layers.transformer import TransformerBlock


def _normal(stddev):
    """Returns an initializer by name, so that loading can replace it."""
    return {"class_name": "RandomNormal", "config": {"stddev": stddev}}


@keras.saving.register_keras_serializable(package="keras_bridle")
class ConvolutionalPositionEncoding(ConfiguredLayer):
    """Adds a grouped convolution over the sequence; padding counts as zero."""

    def __init__(self, kernel_size, groups, **kwargs):
        super().__init__(locals())

    def build(self, tokens_shape):
        dim = tokens_shape[-1]
        expected = f"a divisor of the tokens' size, {dim}"
        check(dim % self.groups == 0, "groups", expected, self.groups)
        self.convolution = keras.layers.Conv1D(
            dim,
            self.kernel_size,
            groups=self.groups,
            # As published.
            kernel_initializer=_normal(2.0 / (self.kernel_size * dim) ** 0.5),
            dtype=self.dtype_policy,
            name="convolution",
        )
        self.convolution.build((None, None, dim))

    def call(self, tokens, is_real=None):
        if is_real is not None:
            tokens = tokens * ops.cast(is_real, tokens.dtype)[:, :, None]
        # An even kernel needs one more token before than after.
        before, after = self.kernel_size // 2, (self.kernel_size - 1) // 2
        padded = ops.pad(tokens, [(0, 0), (before, after), (0, 0)])
        return tokens + ops.gelu(self.convolution(padded), approximate=False)


@keras.saving.register_keras_serializable(package="keras_bridle")
class BucketedPositionBias(ConfiguredLayer):
    """Learned attention biases by the distance in the sequence, in buckets.

    Half of the buckets are for keys behind the query. Half of those are for one
    distance each, the others cover ever wider ranges up to `max_distance`.
    """

    def __init__(self, num_heads, num_buckets=320, max_distance=800, **kwargs):
        super().__init__(locals())
        check(num_buckets >= 4, "num_buckets", "at least 4", num_buckets)
        expected = f"above a quarter of num_buckets={num_buckets}"
        check(max_distance > num_buckets // 4, "max_distance", expected, max_distance)

    def build(self, tokens_shape):
        self.positions = self.add_weight(
            (self.num_buckets, self.num_heads),
            _normal(0.02),
            name="positions",
        )

    def call(self, tokens, visible=None):
        """Returns the biases, `(batch or 1, num_heads, length, length)`."""
        place = visible
        if visible is None:
            place = ops.arange(ops.shape(tokens)[1], dtype="int32")[None]
        offsets = place[:, None, :] - place[:, :, None]
        offsets = ops.clip(offsets, -self.max_distance, self.max_distance)
        buckets = ops.convert_to_tensor(_buckets(self.num_buckets, self.max_distance))
        table = ops.cast(self.positions, self.compute_dtype)
        # First look up a bias for each offset, then for each pair of tokens.
        table = ops.take(table, buckets, axis=0)
        biases = ops.take(table, offsets + self.max_distance, axis=0)
        return ops.transpose(biases, (0, 3, 1, 2))

    def compute_output_spec(self, tokens, visible=None):
        batch, length = (1, tokens.shape[1]) if visible is None else visible.shape
        shape = (batch, self.num_heads, length, length)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)


@functools.lru_cache(maxsize=8)
def _buckets(num_buckets, max_distance):
    """Returns the bucket of each offset (key minus query) from `-max_distance` on."""
    offsets = np.arange(-max_distance, max_distance + 1)
    half = num_buckets // 2
    exact = half // 2
    distances = np.abs(offsets)
    # In float32 and this order, as published: some buckets depend on rounding.
    far = np.log(np.maximum(distances, 1).astype("float32") / np.float32(exact))
    far = far / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + far.astype("int32"), half - 1)
    return (offsets > 0) * half + np.where(distances < exact, distances, far)


@keras.saving.register_keras_serializable(package="keras_bridle")
class GatedTransformerBlock(TransformerBlock):
    """A post-norm block whose queries gate the position bias.

    `residual_scale` multiplies the tokens before a branch is added to them; it is above
    1 in deep networks (DeepNorm).
    """

    def __init__(
        self,
        num_heads,
        mlp_dim,
        layer_norm_epsilon=1e-5,
        drop_path_rate=0.0,
        residual_scale=1.0,
        **kwargs,
    ):
        super().__init__(
            num_heads, mlp_dim, layer_norm_epsilon, drop_path_rate, **kwargs
        )
        self.residual_scale = residual_scale

    def build(self, tokens_shape):
        super().build(tokens_shape)
        self._add("gate", tokens_shape[-1] // self.num_heads, 2)
        self.gate_scale = self.add_weight((self.num_heads,), "ones", name="gate_scale")

    def call(self, tokens, padding_mask=None, training=None, bias=None):
        attended = self._attend(tokens, padding_mask, bias)
        attended = self._scaled(attended, None, training)
        tokens = self.attention_norm(tokens * self.residual_scale + attended)
        mixed = self._scaled(self._mlp(tokens), None, training)
        return self.mlp_norm(tokens * self.residual_scale + mixed)

    def _bias_for(self, query, bias):
        first, second = ops.split(ops.sigmoid(self.gate(query)), 2, axis=-1)
        scale = ops.cast(self.gate_scale, query.dtype)[:, None]
        gates = first * (second * scale - 1.0) + 2.0
        return ops.swapaxes(gates, 1, 2) * bias
