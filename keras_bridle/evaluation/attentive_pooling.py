"""Pools patches by what a learned query finds in them."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_bridle")
class AttentivePooling(keras.layers.Layer):
    """One vector from many: cross-attention of a learned query over patches.

    Args:
        num_heads: int, heads of the attention; the size of the patches must be a
            multiple of it.
        seed: optional int, seeds the weights.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: tensor of shape `(batch, num_patches, dim)`.
        is_real: optional bool tensor of shape `(batch, num_patches)`; the others are
            not attended to.

    Returns:
        Tensor of shape `(batch, dim)`.

    Raises:
        ValueError: if the sizes do not fit.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation import AttentivePooling

    pooled = AttentivePooling(num_heads=4)(np.ones((2, 10, 32), "float32"))
    print(pooled.shape)  # (2, 32)
    ```

    Reference:
        - [Yu et al., 2022](https://arxiv.org/abs/2205.01917), section 3.2
        - [Bardes et al., 2024](https://arxiv.org/abs/2404.08471), section 4.1
    """

    def __init__(self, num_heads, seed=None, **kwargs):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"`num_heads` must be positive. Received: {num_heads}")
        self.num_heads = num_heads
        self.seed = seed

    def build(self, patches_shape):
        dim = patches_shape[-1]
        if dim % self.num_heads:
            raise ValueError(
                "The size of the patches must be a multiple of `num_heads`. "
                f"Received: {dim} and {self.num_heads}"
            )
        seeds = [None] * 4
        if self.seed is not None:
            seeds = [4 * self.seed + place for place in range(4)]
        self.query = self.add_weight(
            shape=(self.num_heads, dim // self.num_heads),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02, seed=seeds[0]),
            name="query",
        )
        for name, seed in zip(("key", "value", "output"), seeds[1:], strict=True):
            dense = keras.layers.Dense(
                dim,
                kernel_initializer=keras.initializers.GlorotUniform(seed),
                dtype=self.dtype_policy,
                name=name,
            )
            dense.build((None, None, dim))
            setattr(self, f"{name}_projection", dense)

    def call(self, patches, is_real=None):
        query = ops.convert_to_tensor(self.query)
        heads, size = query.shape
        shape = (-1, ops.shape(patches)[1], heads, size)
        keys = ops.reshape(self.key_projection(patches), shape)
        values = ops.reshape(self.value_projection(patches), shape)
        scores = ops.sum(keys * ops.cast(query, keys.dtype), axis=-1)
        scores = ops.cast(scores, "float32") / size**0.5
        if is_real is not None:
            scores = ops.where(is_real[:, :, None], scores, -1e9)
        shares = ops.cast(ops.softmax(scores, axis=1), values.dtype)
        pooled = ops.sum(values * shares[..., None], axis=1)
        return self.output_projection(ops.reshape(pooled, (-1, heads * size)))

    def compute_output_shape(self, patches_shape):
        return (patches_shape[0], patches_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "seed": self.seed,
        }
