"""The encoder of BEATs."""

import keras
from keras import ops

from keras_bridle.layers.base import check
from keras_bridle.layers.beats import (
    BucketedPositionBias,
    ConvolutionalPositionEncoding,
    GatedTransformerBlock,
)
from keras_bridle.layers.masks import gather_patches
from keras_bridle.layers.patches import PatchEmbedding
from keras_bridle.models.backbone import PatchBackbone, rising_rates


@keras.saving.register_keras_serializable(package="keras_bridle")
class BeatsBackbone(PatchBackbone):
    """The audio encoder of BEATs and OpenBEATs, used like a `BridleBackbone`.

    `BridleBackbone.from_preset()` loads one from a published file. Its blocks are
    post-norm. Positions come from a convolution over the sequence of patches, and from
    gated attention biases by distance. There is no class token and no last norm.

    With `visible` patches, `encode()` convolves the whole sequence with zeros for other
    patches and padding, and distances are those in the whole sequence. OpenBEATs' own
    pretraining treats visible patches as neighbors instead.

    Args:
        patch_size: int or tuple of 2 ints, `(frames, mel bins)` of a patch.
        hidden_dim, num_layers, num_heads, mlp_dim, input_dims: as in `BridleBackbone`,
            like arguments that are not listed here.
        front_end: optional Keras layer that turns raw inputs into maps, such as a
            `LogMelSpectrogram` with `multiple_of`, as only whole patches are published.
        embedding_dim: int, size of a patch's vector before the projection to
            `hidden_dim`.
        kernel_size: int, width of the convolution in patches.
        groups: int, groups of its channels.
        num_buckets: int, number of ranges of distances with their own bias.
        max_distance: int, the distance from which on all share a bias.
        deep_norm: bool, whether tokens are multiplied by `(2 * num_layers) ** 0.25`
            before each branch is added.
        **kwargs: keyword arguments of `keras_hub.models.Backbone`.

    Returns:
        Tensor of shape `(batch, num_patches, hidden_dim)`, patches frame by frame.

    Raises:
        ValueError: for sizes that do not divide as needed, or are out of range.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.log_mel import LogMelSpectrogram
    from keras_bridle.models.beats_backbone import BeatsBackbone

    backbone = BeatsBackbone(
        patch_size=16, hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=64,
        input_dims=(None,), front_end=LogMelSpectrogram(multiple_of=16),
        embedding_dim=24, kernel_size=8, groups=4,
    )
    print(backbone(np.ones((2, 16000), "float32")).shape)  # (2, 48, 32)
    ```

    Reference:
        - [Chen et al., 2022](https://arxiv.org/abs/2212.09058), BEATs
        - [Bharadwaj et al., 2025](https://arxiv.org/abs/2507.14129), OpenBEATs
        - [Wang et al., 2022](https://arxiv.org/abs/2203.00555), DeepNorm
    """

    # As in the corresponding `BridleBackbone`.
    use_class_token = use_final_norm = False
    position_layout = "convolution"
    layer_scale = None

    def __init__(
        self,
        patch_size,
        hidden_dim,
        num_layers,
        num_heads,
        mlp_dim,
        input_dims,
        front_end=None,
        embedding_dim=512,
        kernel_size=128,
        groups=16,
        num_buckets=320,
        max_distance=800,
        deep_norm=True,
        layer_norm_epsilon=1e-5,
        drop_path_rate=0.0,
        dtype=None,
        **kwargs,
    ):
        self._take_arguments(locals())
        norm = {"epsilon": layer_norm_epsilon, "dtype": dtype}
        self.patch_embedding = PatchEmbedding(
            embedding_dim, patch_size, dtype=dtype, name="patch_embedding"
        )
        self.patch_size = self.patch_embedding.patch_size
        expected = "2 sides, of frames and mel bins"
        check(len(self.patch_size) == 2, "patch_size", expected, patch_size)
        self.flatten_grid = keras.layers.Reshape(
            (-1, embedding_dim), dtype=dtype, name="flatten_grid"
        )
        self.patch_norm = keras.layers.LayerNormalization(name="patch_norm", **norm)
        self.patch_projection = None
        if embedding_dim != hidden_dim:
            self.patch_projection = keras.layers.Dense(
                hidden_dim, dtype=dtype, name="patch_projection"
            )
        self.position_encoding = ConvolutionalPositionEncoding(
            kernel_size, groups, dtype=dtype, name="position_encoding"
        )
        self.position_norm = keras.layers.LayerNormalization(
            name="position_norm", **norm
        )
        self.position_bias = BucketedPositionBias(
            num_heads, num_buckets, max_distance, dtype=dtype, name="position_bias"
        )
        self.blocks = [
            GatedTransformerBlock(
                num_heads,
                mlp_dim,
                layer_norm_epsilon,
                rate,
                (2 * num_layers) ** 0.25 if deep_norm else 1.0,
                dtype=dtype,
                name=f"transformer_block_{index}",
            )
            for index, rate in enumerate(rising_rates(drop_path_rate, num_layers))
        ]
        super().__init__(dtype=dtype, **kwargs)

    def _tokens_and_biases(self, maps, visible=None, is_real=None):
        tokens = self.patch_norm(self.flatten_grid(self.patch_embedding(maps)))
        if self.patch_projection is not None:
            tokens = self.patch_projection(tokens)
        if visible is not None:
            places = ops.arange(ops.shape(tokens)[1], dtype="int32")
            is_visible = ops.any(visible[:, :, None] == places, axis=1)
            is_real = is_visible if is_real is None else is_visible & is_real
        tokens = self.position_norm(self.position_encoding(tokens, is_real=is_real))
        if visible is not None:
            tokens = gather_patches(tokens, visible)
        return tokens, [self.position_bias(tokens, visible=visible)]
