"""What all encoders have: raw inputs, maps, patches, and one vector for an input."""

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
from keras_bridle.models.arguments import Configured
from keras_bridle.models.inputs import check_shape, open_sides
from keras_bridle.models.presets import preset_folder
from keras_bridle.replicas import SumsItself


class PatchBackbone(SumsItself, Exportable, Configured, keras_hub.models.Backbone):
    """Base of the encoders, which cut maps into patches and give one token for each.

    A subclass makes its layers, after `_take_inputs()`, and then calls the constructor.
    It has the attributes `patch_embedding`, `hidden_dim` and `blocks`, and says in
    `_tokens_and_biases()` what goes into the blocks.
    """

    patch_embedding: Any
    blocks: Any
    hidden_dim: int
    # What not every encoder has.
    class_token: Any = None
    norm: Any = None

    def __init__(self, **kwargs):
        # Sides differ from input to input; the channels of a map do not.
        inputs = keras.Input(open_sides(self.input_dims), name="inputs")
        maps, padding_mask = self.maps(inputs)
        # `None`: the mode that the model is called in.
        outputs = self.encode(maps, padding_mask, training=None)
        self.maps_shape = self.features_shape = tuple(maps.shape)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

    def _take_inputs(self, front_end, input_dims):
        self.front_end = front_end
        self.front_end_padding_mask = None
        if hasattr(front_end, "padding_mask"):
            self.front_end_padding_mask = _FrontEndPaddingMask(front_end)
        self.input_dims = tuple(input_dims)

    def maps(self, inputs):
        """Turns raw inputs into the maps that are cut into patches.

        Returns:
            Tuple `(maps, padding_mask)`: a tensor of shape `(batch, *sides, channels)`,
            and a bool tensor of shape `(batch, rows)`, `True` at real rows, or `None`
            where no row can be padding.
        """
        check_shape(inputs.shape, open_sides(self.input_dims))
        front_end, padding_mask = self.front_end, self.front_end_padding_mask
        return (
            inputs if front_end is None else front_end(inputs),
            None if padding_mask is None else padding_mask(inputs),
        )

    features = maps

    def encode(
        self, maps, padding_mask=None, visible=None, normalize=True, training=False
    ):
        """Encodes the patches of maps, or only some of them.

        Args:
            maps: tensor of shape `(batch, *sides, channels)`, from `maps()`.
            padding_mask: optional bool tensor of shape `(batch, rows)`, from there too.
            visible: optional int32 tensor of shape `(batch, num_visible)`, the indices
                of the patches to encode.
            normalize: bool, whether to apply the last norm, if there is one.
            training: bool, whether examples skip blocks at random. A layer's `call()`
                has to pass its own on.

        Returns:
            Tensor of shape `(batch, num_tokens, hidden_dim)`, the class token first.
        """
        mask = self.patch_padding_mask(maps, padding_mask)
        tokens, biases = self._tokens_and_biases(maps, visible, mask)
        if visible is not None:
            mask = None if mask is None else gather_patches(mask, visible)
        if self.class_token is not None:
            tokens = self.class_token(tokens)
            mask = with_class_token(mask)
        # Keras 3.16 would hold to a `None` that the graph of the model is made with.
        mode = {} if training is None else {"training": training}
        # All blocks share a single bias.
        biases = itertools.cycle(biases or [None])
        for block, bias in zip(self.blocks, biases, strict=False):
            tokens = block(tokens, padding_mask=mask, bias=bias, **mode)
        if self.norm is None or not normalize:
            return tokens
        return self.norm(tokens)

    def patch_tokens(self, maps, visible=None):
        """Embeds all or the visible patches of maps, and adds their positions."""
        return self._tokens_and_biases(maps, visible)[0]

    def _tokens_and_biases(self, maps, visible=None, is_real=None):
        """Embeds all or the visible patches of maps, of which some are real.

        Returns:
            Tuple of tokens with positions, and a list of biases of attention: one for
            each block, one for all, or none.
        """
        raise NotImplementedError

    def patch_padding_mask(self, maps, padding_mask):
        """From the padding mask of rows, that of patches, or `None`."""
        return self.patch_embedding.patch_padding_mask(maps, padding_mask)

    def grid(self, maps):
        """The number of patches along each side of maps, a tuple of ints."""
        return self.patch_embedding.grid(tuple(maps.shape[1:-1]))

    def grid_of_inputs(self):
        """The grid of an input of `input_dims`, with `None` for unknown sides."""
        shape = (None, *self.input_dims)
        if self.front_end is not None:
            shape = self.front_end.compute_output_shape(shape)
        return self.patch_embedding.grid(shape[1:-1])

    def pooled_features(self, inputs, segments=1):
        """Computes one vector for each input: the mean of its real patches.

        Where the order in time matters, as in a spoken word, use several `segments`.

        Args:
            inputs: tensor of shape `(batch, *input_dims)`.
            segments: int, equal segments of the real length of the first side (the time
                of a clip, the height of an image). Their means are concatenated.

        Returns:
            Tensor of shape `(batch, segments * hidden_dim)`.
        """
        check(segments >= 1, "segments", "1 or more", segments)
        maps, padding_mask = self.maps(inputs)
        patches = self.drop_class_token(self.encode(maps, padding_mask))
        is_real = self.patch_padding_mask(maps, padding_mask)
        return self.pooled(patches, maps, is_real, segments)

    def pooled(self, patches, maps, is_real=None, segments=1):
        """As `pooled_features()`, from the patches of maps and which of them count."""
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
        # Here, as it builds on this module.
        from keras_bridle.conversion import checkpoints

        if "://" not in str(preset) and not Path(preset).exists():
            raise ArgumentError("preset", "a folder, file or address", str(preset))
        preset = checkpoints.fetched(preset)
        if load_weights and checkpoints.is_checkpoint(preset):
            return checkpoints.load_checkpoint(cls, preset, **kwargs)
        preset = preset_folder(preset)
        return super().from_preset(preset, load_weights=load_weights, **kwargs)


def with_class_token(mask):
    """Extends a padding mask of patches by the class token, which is always real."""
    if mask is None:
        return None
    return ops.concatenate([ops.ones_like(mask[:, :1]), mask], axis=1)


def _segment_shares(lengths, rows, segments):
    """Weighs rows by how much of a segment they fill, `(batch, segments, rows)`."""
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
