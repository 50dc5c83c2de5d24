"""The base of all encoders, and the encoder that BRIDLE pretrains."""

import itertools
import math
from pathlib import Path
from typing import Any

import keras
import keras_hub
from keras import ops

from keras_bridle.config import ArgumentError
from keras_bridle.export import Exportable
from keras_bridle.layers.base import check
from keras_bridle.layers.masks import gather_patches
from keras_bridle.layers.patches import ClassToken, PatchEmbedding
from keras_bridle.layers.positions import (
    LAYOUTS,
    LearnedPositionEncoding,
    RelativePositionBias,
    SineCosinePositionEncoding,
    check_layout,
)
from keras_bridle.layers.transformer import TransformerBlock
from keras_bridle.models.arguments import Functional
from keras_bridle.models.inputs import check_shape, open_sides
from keras_bridle.models.presets import backbone_preset, preset_folder
from keras_bridle.replicas import SumsItself


class PatchBackbone(SumsItself, Exportable, Functional, keras_hub.models.Backbone):
    """Base of the encoders: subclasses create layers, then call this constructor."""

    patch_embedding: Any
    blocks: Any
    hidden_dim: int
    # Not every encoder has these.
    class_token: Any = None
    norm: Any = None
    position_encoding: Any = None

    def __init__(self, **kwargs):
        # Only the number of channels is the same for all inputs.
        inputs = keras.Input(open_sides(self.input_dims), name="inputs")
        maps, padding_mask = self.maps(inputs)
        # `None` means the mode that the model is called with.
        outputs = self.encode(maps, padding_mask, training=None)
        self.maps_shape = self.features_shape = tuple(maps.shape)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

    def _take_arguments(self, values):
        """Keeps the arguments of a subclass' constructor."""
        self.keep_arguments(values)
        self.input_dims = tuple(self.input_dims)
        self.front_end_padding_mask = None
        if hasattr(self.front_end, "padding_mask"):
            self.front_end_padding_mask = _FrontEndPaddingMask(self.front_end)

    def maps(self, inputs):
        """Converts raw inputs to the maps that are cut into patches.

        Returns:
            Tuple `(maps, padding_mask)`: a tensor of shape `(batch, *sides, channels)`,
            and a bool tensor of shape `(batch, rows)`, `True` at real rows, or `None`
            where no row can be padding.
        """
        check_shape(inputs.shape, open_sides(self.input_dims))
        maps, padding_mask = inputs, None
        if self.front_end is not None:
            maps = self.front_end(inputs)
        if self.front_end_padding_mask is not None:
            padding_mask = self.front_end_padding_mask(inputs)
        return maps, padding_mask

    features = maps

    def encode(
        self, maps, padding_mask=None, visible=None, normalize=True, training=False
    ):
        """Encodes the patches of maps, or only some of them.

        Args:
            maps: tensor of shape `(batch, *sides, channels)`, from `maps()`.
            padding_mask: optional bool tensor of shape `(batch, rows)`, from `maps()`.
            visible: optional int32 tensor of shape `(batch, num_visible)`, the indices
                of the patches to encode.
            normalize: bool, whether to apply the last norm, if there is one.
            training: bool, whether examples skip blocks at random.

        Returns:
            Tensor of shape `(batch, num_tokens, hidden_dim)`, the class token first.
        """
        mask = self.patch_padding_mask(maps, padding_mask)
        tokens, biases = self._tokens_and_biases(maps, visible, mask)
        if visible is not None and mask is not None:
            mask = gather_patches(mask, visible)
        if self.class_token is not None:
            tokens = self.class_token(tokens)
            mask = with_class_token(mask)
        # Keras 3.16 would keep a `None` that is a part of the model's graph.
        mode = {} if training is None else {"training": training}
        # All blocks share a single bias.
        biases = itertools.cycle(biases or [None])
        for block, bias in zip(self.blocks, biases, strict=False):
            tokens = block(tokens, padding_mask=mask, bias=bias, **mode)
        return self.norm(tokens) if normalize and self.norm is not None else tokens

    def patch_tokens(self, maps, visible=None):
        """Embeds all or the visible patches of maps, and adds their positions."""
        return self._tokens_and_biases(maps, visible)[0]

    def _tokens_and_biases(self, maps, visible=None, is_real=None):
        """Returns tokens with positions, and a list of attention biases."""
        raise NotImplementedError

    def patch_padding_mask(self, maps, padding_mask):
        """Converts a padding mask of rows to one of patches, or `None`."""
        return self.patch_embedding.patch_padding_mask(maps, padding_mask)

    def grid(self, maps):
        """Returns the number of patches along each side of maps."""
        return self.patch_embedding.grid(tuple(maps.shape[1:-1]))

    def grid_of_inputs(self):
        """Returns the grid of inputs of `input_dims`, `None` for unknown sides."""
        shape = (None, *self.input_dims)
        if self.front_end is not None:
            shape = self.front_end.compute_output_shape(shape)
        return self.patch_embedding.grid(shape[1:-1])

    def pooled_features(self, inputs, segments=1):
        """Computes one vector for each input: the mean of its real patches.

        Args:
            inputs: tensor of shape `(batch, *input_dims)`.
            segments: int, equal segments of the real length of the first side (the time
                of a clip, the height of an image), whose means are concatenated. Use
                several where the order in time matters, as in a spoken word.

        Returns:
            Tensor of shape `(batch, segments * hidden_dim)`.
        """
        check(segments >= 1, "segments", "1 or more", segments)
        maps, padding_mask = self.maps(inputs)
        patches = self.drop_class_token(self.encode(maps, padding_mask))
        is_real = self.patch_padding_mask(maps, padding_mask)
        return self.pooled(patches, maps, is_real, segments)

    def pooled(self, patches, maps, is_real=None, segments=1):
        """Pools encoded patches, see `pooled_features()`."""
        rows, *columns = self.patch_embedding.grid(ops.shape(maps)[1:-1])
        columns = math.prod(columns)
        patches = ops.reshape(patches, (-1, rows, columns, self.hidden_dim))
        # Padding fills whole rows.
        real_rows = ops.ones_like(patches[:, :, 0, 0])
        if is_real is not None:
            real_rows = ops.reshape(is_real, (-1, rows, columns))[:, :, 0]
        lengths = ops.sum(ops.cast(real_rows, "float32"), axis=1)
        shares = ops.cast(_segment_shares(lengths, rows, segments), patches.dtype)
        means = ops.matmul(shares, ops.mean(patches, axis=2))
        return ops.reshape(means, (-1, segments * self.hidden_dim))

    def drop_class_token(self, tokens):
        """Keeps only the patches."""
        return tokens if self.class_token is None else tokens[:, 1:]

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """Builds an encoder from files, see `BridleBackbone.from_preset()`."""
        from keras_bridle.conversion import checkpoints

        if "://" not in str(preset) and not Path(preset).exists():
            raise ArgumentError("preset", "a folder, file or address", str(preset))
        preset = preset_folder(checkpoints.fetched(preset))
        if checkpoints.is_checkpoint(preset):
            return checkpoints.load_checkpoint(cls, preset, load_weights, **kwargs)
        return super().from_preset(preset, load_weights=load_weights, **kwargs)


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleBackbone(PatchBackbone):
    """The encoder that BRIDLE pretrains: a pre-norm ViT over patches.

    In pretraining, `encode()` runs on the visible patches only.

    Args:
        patch_size: int or tuple of ints, the sides of a patch: `(frames, mel bins)`,
            `(rows, columns)` or `(frames, rows, columns)`.
        hidden_dim: int, size of the tokens.
        num_layers: int, number of transformer blocks.
        num_heads: int, attention heads of each block.
        mlp_dim: int, width of the blocks' hidden layer.
        input_dims: tuple of ints, the shape of one input: `(None,)` for waveforms of
            any length, `(rows, columns, channels)` for images. Other sizes work too.
        front_end: optional Keras layer that turns raw inputs into the maps that are cut
            into patches, such as `LogMelSpectrogram`. Its method
            `padding_mask(inputs)`, if any, says which rows of the maps are real.
        use_class_token: bool, whether a learned token precedes the patches.
        position_layout: string, the `layout` of `SineCosinePositionEncoding`;
            `"learned"` for a table of weights; or `"relative"` for a
            `RelativePositionBias` in each block, `"shared_relative"` for one in all.
        trained_grid: optional tuple of ints, the grid of patches to which positions of
            other grids are stretched, `None` for sides that are not: there a shorter
            input has the first positions of a longer one. `"input"` is the grid of
            `input_dims`, with `None` for a clip's time. For learned positions, their
            grid, by default that of `input_dims`.
        layer_norm_epsilon: float, added to the variance in the norms.
        drop_path_rate: float in [0, 1), the probability in training that an example
            skips a branch of the last block; it rises linearly from 0 at the first.
        layer_scale: optional float, initial value of the blocks' learned scales.
        use_final_norm: bool, whether a norm follows the last block.
        dtype: optional string or `keras.DTypePolicy`.
        **kwargs: keyword arguments of `keras_hub.models.Backbone`.

    Call arguments:
        inputs: tensor of shape `(batch, *input_dims)`.

    Returns:
        Tensor of shape `(batch, num_tokens, hidden_dim)`: the class token, if there is
        one, then the patches row by row.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.backbone import BridleBackbone

    backbone = BridleBackbone(
        patch_size=16, hidden_dim=32, num_layers=2, num_heads=2, mlp_dim=64,
        input_dims=(64, 128, 1),
    )
    print(backbone(np.zeros((2, 64, 128, 1), "float32")).shape)  # (2, 33, 32)

    backbone = BridleBackbone.from_preset("bridle_audio_tiny", load_weights=False)
    print(backbone.pooled_features(np.ones((2, 16000), "float32")).shape)  # (2, 128)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
        - [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929)
    """

    def __init__(
        self,
        patch_size,
        hidden_dim,
        num_layers,
        num_heads,
        mlp_dim,
        input_dims,
        front_end=None,
        use_class_token=True,
        position_layout="grid",
        trained_grid=None,
        layer_norm_epsilon=1e-6,
        drop_path_rate=0.0,
        layer_scale=None,
        use_final_norm=True,
        dtype=None,
        **kwargs,
    ):
        self._take_arguments(locals())
        layouts = (*LAYOUTS, "learned", "relative", "shared_relative")
        is_right = position_layout in layouts
        check(is_right, "position_layout", f"one of {layouts}", position_layout)
        check_layout(position_layout, patch_size)
        self.patch_embedding = PatchEmbedding(
            hidden_dim, patch_size, dtype=dtype, name="patch_embedding"
        )
        self.patch_size = self.patch_embedding.patch_size
        self.trained_grid = self._trained_grid(position_layout, trained_grid)
        grid = self.trained_grid
        settings = {"dtype": dtype, "name": "position_encoding"}
        if position_layout in LAYOUTS:
            self.position_encoding = SineCosinePositionEncoding(
                position_layout, grid, **settings
            )
        elif position_layout == "learned":
            self.position_encoding = LearnedPositionEncoding(grid, **settings)
        self.flatten_grid = keras.layers.Reshape(
            (-1, hidden_dim), dtype=dtype, name="flatten_grid"
        )
        if use_class_token:
            self.class_token = ClassToken(dtype=dtype, name="class_token")
        bias_names = []
        if position_layout == "relative":
            bias_names = [f"position_bias_{index}" for index in range(num_layers)]
        elif position_layout == "shared_relative":
            bias_names = ["position_bias"]
        self.position_biases, self.blocks = [], []
        drop_path_rates = rising_rates(drop_path_rate, num_layers)
        # In this order, weights are ordered as in Keras' graph on every backend.
        for index in range(num_layers):
            if index < len(bias_names):
                sizes = num_heads, grid, use_class_token
                bias = RelativePositionBias(*sizes, dtype=dtype, name=bias_names[index])
                self.position_biases.append(bias)
            block = TransformerBlock(
                num_heads,
                mlp_dim,
                layer_norm_epsilon,
                drop_path_rates[index],
                layer_scale,
                dtype=dtype,
                name=f"transformer_block_{index}",
            )
            self.blocks.append(block)
        if use_final_norm:
            self.norm = keras.layers.LayerNormalization(
                epsilon=layer_norm_epsilon, dtype=dtype, name="norm"
            )
        super().__init__(dtype=dtype, **kwargs)

    def _tokens_and_biases(self, maps, visible=None, is_real=None):
        where = {}
        if visible is not None:
            grid = self.patch_embedding.grid(ops.shape(maps)[1:-1])
            where = {"grid": grid, "visible": visible}
        patches = self.patch_embedding(maps, visible=visible)
        biases = [bias(patches, **where) for bias in self.position_biases]
        if self.position_encoding is not None:
            patches = self.position_encoding(patches, **where)
        return self.flatten_grid(patches) if visible is None else patches, biases

    def _trained_grid(self, layout, grid):
        """Returns the grid of the positions, or `None` if they need none."""
        has_table = layout not in LAYOUTS
        if grid != "input" and not (has_table and grid is None):
            return None if grid is None else tuple(grid)
        grid = self.grid_of_inputs()
        if not has_table:  # positions in time are not stretched
            grid = (*[None] * (len(grid) - 2), *grid[-2:])
        if None in (grid if has_table else grid[-2:]):
            raise ValueError(
                f'`trained_grid="input"` and `position_layout={layout!r}` need known '
                f"sides. Received: input_dims={self.input_dims}"
            )
        return grid

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """Builds a backbone from a preset.

        Args:
            preset: string, a folder or address of a saved preset, the directory of a
                run that saved one, or the name of a size that comes with the library,
                such as `"bridle_audio_base"`. Or a public encoder of MAE, VideoMAE,
                AudioMAE, BEiT, data2vec or BEATs: an address such as
                `"hf://facebook/vit-mae-base"`, or a folder or file in the layout of
                transformers, timm or the original code.
            load_weights: bool. Sizes that come with the library need `False`.
            **kwargs: arguments of the constructor that replace those of the preset.

        Returns:
            A `BridleBackbone`; of BEATs, a `BeatsBackbone`.

        Raises:
            ValueError: for an unknown name, or a size with `load_weights=True`.
            FileNotFoundError: if the directory of a run has no preset yet.
        """
        config = backbone_preset(preset)
        if config is None:
            # This class loads any encoder, a subclass only its own.
            if cls is BridleBackbone:
                return PatchBackbone.from_preset(preset, load_weights, **kwargs)
            return super().from_preset(preset, load_weights, **kwargs)
        if load_weights:
            raise ValueError(
                f"The preset {preset!r} is a size without weights: pass "
                "`load_weights=False`"
            )
        return cls(**{**config, "name": preset, **kwargs})


def rising_rates(rate, num_layers):
    """Returns rates of stochastic depth, from 0 in the first block to `rate`."""
    return [rate * index / max(1, num_layers - 1) for index in range(num_layers)]


def with_class_token(mask):
    """Extends a padding mask by the class token, which is always real."""
    if mask is None:
        return None
    return ops.concatenate([ops.ones_like(mask[:, :1]), mask], axis=1)


def _segment_shares(lengths, rows, segments):
    """Returns the weights of rows in segments, `(batch, segments, rows)`."""
    edges = lengths[:, None] * ops.arange(segments + 1, dtype="float32") / segments
    starts, ends = edges[:, :-1, None], edges[:, 1:, None]
    row = ops.arange(rows, dtype="float32")
    overlap = ops.minimum(ends, row + 1.0) - ops.maximum(starts, row)
    return ops.maximum(overlap, 0.0) / (ends - starts)


class _FrontEndPaddingMask(keras.layers.Layer):
    """A front end's `padding_mask()` as a layer, as functional models need it."""

    def __init__(self, front_end):
        super().__init__(dtype="float32", name="front_end_padding_mask")
        self.front_end = front_end

    def call(self, inputs):
        return self.front_end.padding_mask(inputs)

    def compute_output_spec(self, inputs):
        batch, rows = self.front_end.compute_output_shape(inputs.shape)[:2]
        return keras.KerasTensor((batch, rows), dtype="bool")
