"""Copies the weights of the published PyTorch code into ours."""

import math
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bridle.conversion.published_quantizer import load_published_quantizer
from keras_bridle.layers.transformer import WindowTransformerBlock
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import BridleClassifier
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer

# Positions differ by less only by rounding.
_SAME_POSITION = 1e-4


class PublishedWeight(NamedTuple):
    """One of our weights and how the published code keeps it.

    Attributes:
        variable: `keras.Variable`.
        axes: tuple of ints, the axes of the published array in the order of ours, or
            `None` where ours is the flattened published array.
        shape: tuple of ints, what the published array must be in that order, where ours
            has some of its axes in one; else `None`.
    """

    variable: Any
    axes: tuple[int, ...] | None
    shape: tuple[int, ...] | None = None

    def from_published(self, array):
        """Brings a published array to the shape of ours.

        Args:
            array: NumPy array of the published shape.

        Returns:
            NumPy array.
        """
        if self.axes is None:
            return array.reshape(-1)
        if array.ndim != len(self.axes):
            return array
        array = array.transpose(self.axes)
        # Of another shape it stays as it is, to be told so.
        return (
            array.reshape(self.variable.shape) if array.shape == self.shape else array
        )

    def to_published(self, array):
        """Brings an array of our shape, such as a gradient, to the published order.

        Args:
            array: NumPy array of the variable's shape.

        Returns:
            NumPy array; flat where the published array has axes of size 1 that ours
            lacks.
        """
        if self.axes is None:
            return array
        array = array.reshape(self.shape or array.shape)
        return array.transpose(np.argsort(self.axes))


def published_weights(part):
    """Lists a part's weights under their published names.

    Codebooks are not among them: `load_published_quantizer` reads those.

    Args:
        part: a built `BridleBackbone`, `CodeDecoder`, `BridleTokenizer`,
            `RandomProjectionTokenizer` or `FeatureEstimator`, or a classifier.

    Returns:
        Dict of `PublishedWeight` by name, such as `"blocks.0.attn.qkv.weight"`.

    Raises:
        ValueError: for a part of another kind, or one that is not built.

    Example:
    ```python
    from keras_bridle.conversion.published_weights import published_weights
    from keras_bridle.models.backbone import BridleBackbone

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    print(sorted(published_weights(backbone))[:3])
    ```
    """
    kinds: Any = tuple(_LISTS)
    if not isinstance(part, kinds):
        raise ValueError(
            f"`part` must be one of {[kind.__name__ for kind in _LISTS]}. "
            f"Received: {type(part).__name__}"
        )
    if not part.built:
        raise ValueError(
            f"`part` must be built first. Received: {part.name!r}, which is not"
        )
    list_weights = next(
        function for kind, function in _LISTS.items() if isinstance(part, kind)
    )
    return list_weights(part)


def load_published_backbone(backbone, state, prefix=""):
    """Copies a published encoder into a `BridleBackbone`.

    Fixed positions are not read. The published audio encoders were trained with those
    of `position_layout="transposed_grid"`; others go into `"learned"` ones.

    Args:
        backbone: `BridleBackbone` of the same sizes.
        state: dict of NumPy arrays by name, a published state dict.
        prefix: string in front of the names, such as `"encoder_decoder."`; of the
            tokenizer's own encoder it is `"tokenizer."`.

    Returns:
        Set of the names that were read.

    Raises:
        ValueError: if a name is missing or a shape does not fit.

    Example:
    ```python
    import numpy as np
    from keras_bridle.conversion.published_weights import (
        load_published_backbone, published_weights,
    )
    from keras_bridle.models.backbone import BridleBackbone

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    state = {
        name: np.array(weight.to_published(np.ones(weight.variable.shape)))
        for name, weight in published_weights(backbone).items()
    }
    print(len(load_published_backbone(backbone, state)))  # 17
    ```
    """
    return _load(backbone, state, prefix, BridleBackbone)


def load_published_decoder(decoder, state, prefix=""):
    """Copies a published decoder into a `CodeDecoder`.

    Args:
        decoder: built `CodeDecoder` of the same sizes and kind of attention.
        state: dict of NumPy arrays by name.
        prefix: string in front of the names, such as `"encoder_decoder."`.

    Returns:
        Set of the names that were read.

    Raises:
        ValueError: if a name is missing or a shape does not fit.

    Example:
    ```python
    import numpy as np
    from keras_bridle.conversion.published_weights import (
        load_published_decoder, published_weights,
    )
    from keras_bridle.models.heads import CodeDecoder

    decoder = CodeDecoder(4, 16, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64)
    decoder.build((None, None, 48))
    state = {
        name: np.array(weight.to_published(np.ones(weight.variable.shape)))
        for name, weight in published_weights(decoder).items()
    }
    print(len(load_published_decoder(decoder, state)))  # 19
    ```
    """
    return _load(decoder, state, prefix, CodeDecoder)


def load_published_tokenizer(tokenizer, state, prefix=""):
    """Copies a published tokenizer, with its codebooks, into a `BridleTokenizer`.

    Args:
        tokenizer: `BridleTokenizer` of the same sizes.
        state: dict of NumPy arrays by name.
        prefix: string in front of the names, such as `"tokenizer."`.

    Returns:
        Set of the names that were read.

    Raises:
        ValueError: if a name is missing or a shape does not fit.

    Example:
    ```python
    import numpy as np
    from keras_bridle.conversion.published_weights import (
        load_published_tokenizer, published_weights,
    )
    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
    from keras_bridle.models.backbone import BridleBackbone
    from keras_bridle.models.tokenizers import BridleTokenizer

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    tokenizer = BridleTokenizer(backbone, ResidualQuantizer(1, 16, dim=8))
    state = {
        name: np.array(weight.to_published(np.ones(weight.variable.shape)))
        for name, weight in published_weights(tokenizer).items()
    }
    state["quantizer.codebooks.0.weight"] = np.random.normal(size=(17, 8))
    state["quantizer.codebooks.0.cluster_size_ema"] = np.ones(16)
    print(len(load_published_tokenizer(tokenizer, state)))  # 23
    ```
    """
    names = _load(tokenizer, state, prefix, BridleTokenizer)
    return names | _load_codebooks(tokenizer.quantizer, state, prefix)


def load_published_random_projection(tokenizer, state, prefix=""):
    """Copies the published tokenizer's cold start into a `RandomProjectionTokenizer`.

    Its `position_layout` must not be `None`: the published one adds positions.

    Args:
        tokenizer: built `RandomProjectionTokenizer` of the same sizes.
        state: dict of NumPy arrays by name.
        prefix: string in front of the names, such as `"tokenizer."`.

    Returns:
        Set of the names that were read.

    Raises:
        ValueError: if a name is missing or a shape does not fit.

    Example:
    ```python
    import numpy as np
    from keras_bridle.conversion.published_weights import (
        load_published_random_projection, published_weights,
    )
    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
    from keras_bridle.models.tokenizers import RandomProjectionTokenizer

    tokenizer = RandomProjectionTokenizer(
        8, 32, ResidualQuantizer(1, 16, dim=8), position_layout="transposed_grid"
    )
    tokenizer.build((None, 64, 32, 1))
    state = {
        name: np.array(weight.to_published(np.ones(weight.variable.shape)))
        for name, weight in published_weights(tokenizer).items()
    }
    state["quantizer.codebooks.0.weight"] = np.random.normal(size=(17, 8))
    state["quantizer.codebooks.0.cluster_size_ema"] = np.ones(16)
    print(len(load_published_random_projection(tokenizer, state)))  # 5
    ```
    """
    names = _load(tokenizer, state, prefix, RandomProjectionTokenizer)
    return names | _load_codebooks(tokenizer.quantizer, state, prefix)


def load_published_estimator(estimator, state, prefix=""):
    """Copies a published estimator into a `FeatureEstimator`.

    Args:
        estimator: built `FeatureEstimator` of the same sizes and kind of attention.
        state: dict of NumPy arrays by name.
        prefix: string in front of the names, such as `"tokenizer."`.

    Returns:
        Set of the names that were read.

    Raises:
        ValueError: if a name is missing or a shape does not fit.

    Example:
    ```python
    import numpy as np
    from keras_bridle.conversion.published_weights import (
        load_published_estimator, published_weights,
    )
    from keras_bridle.models.heads import FeatureEstimator

    estimator = FeatureEstimator(48, 32, num_layers=1, num_heads=2, mlp_dim=64)
    estimator.build((None, None, 8))
    state = {
        name: np.array(weight.to_published(np.ones(weight.variable.shape)))
        for name, weight in published_weights(estimator).items()
    }
    print(len(load_published_estimator(estimator, state)))  # 18
    ```
    """
    return _load(estimator, state, prefix, FeatureEstimator)


def load_published_classifier(classifier, state, prefix=""):
    """Copies a published fine-tuned network into a classifier.

    Fixed positions are not read, but must be the published ones: those of audio are of
    `position_layout="transposed_grid"`. Others go into `"learned"` ones. Published
    classifiers of clips come through `from_published_video()`; some of them have
    `pooling="first"`.

    Args:
        classifier: `BridleAudioClassifier`, `BridleImageClassifier` or
            `BridleVideoClassifier` of the same sizes and `pooling`.
        state: dict of NumPy arrays by name.
        prefix: string in front of the names.

    Returns:
        Set of the names that were read.

    Raises:
        ValueError: if a name is missing, a shape does not fit, or the published
            positions are others than the encoder's.

    Example:
    ```python
    import numpy as np
    from keras_bridle.conversion.published_weights import (
        load_published_classifier, published_weights,
    )
    from keras_bridle.models.backbone import BridleBackbone
    from keras_bridle.models.classifier import BridleImageClassifier

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    classifier = BridleImageClassifier(backbone, num_classes=5)
    state = {
        name: np.array(weight.to_published(np.ones(weight.variable.shape)))
        for name, weight in published_weights(classifier).items()
    }
    print(len(load_published_classifier(classifier, state)))  # 19
    ```
    """
    if isinstance(classifier, BridleClassifier):
        _check_positions(classifier.backbone, state, prefix)
    return _load(classifier, state, prefix, BridleClassifier)


def _load(part, state, prefix, kind):
    if not isinstance(part, kind):
        raise ValueError(f"Expected a {kind.__name__}. Received: {type(part).__name__}")
    weights = {
        prefix + name: weight for name, weight in published_weights(part).items()
    }
    missing = sorted(set(weights) - set(state))
    if missing:
        raise ValueError(
            f"`state` lacks {len(missing)} weights of {part.name!r}: {missing[:8]}. "
            f"Received: prefix={prefix!r} and a state with {sorted(state)[:8]}..."
        )
    _check_depth(part, state, prefix, weights)
    if f"{prefix}pos_embed" in weights:
        state = _with_class_token(state, prefix)
    arrays = {}
    for name, weight in weights.items():
        arrays[name] = weight.from_published(np.asarray(state[name]))
        if arrays[name].shape != tuple(weight.variable.shape):
            raise ValueError(
                f"{name!r} in `state` does not fit {weight.variable.path!r} of shape "
                f"{tuple(weight.variable.shape)}. "
                f"Received: shape {np.shape(state[name])}"
            )
    # Only now, so that an error leaves the part as it was.
    for name, weight in weights.items():
        weight.variable.assign(arrays[name])
    return set(weights)


def _with_class_token(state, prefix):
    """Adds the first row of learned positions to the class token, which it is for.

    Ours has no position of its own. Fixed positions have zeros there.
    """
    token, positions = f"{prefix}cls_token", f"{prefix}pos_embed"
    if token not in state:
        return state
    table = np.asarray(state[positions])
    return {
        **state,
        token: np.asarray(state[token]) + table[:, :1],
        positions: table[:, 1:],
    }


def _check_positions(backbone, state, prefix):
    """Other positions than those it was trained with would ruin a network silently."""
    positions = state.get(f"{prefix}pos_embed")
    if positions is None or backbone.position_layout == "learned":
        return
    table = np.asarray(positions)
    if backbone.use_class_token:
        table = table[:, 1:]
    table = table.reshape(-1, table.shape[-1])
    rows, *columns = backbone.grid_of_inputs()
    if None in columns:
        return
    # Encoders of sounds take any number of rows.
    rows = len(table) // math.prod(columns) if rows is None else rows
    ours = backbone.position_encoding.table((rows, *columns), table.shape[1])
    ours = keras.ops.convert_to_numpy(ours)
    if ours.shape != table.shape or np.abs(ours - table).max() > _SAME_POSITION:
        raise ValueError(
            f"The positions in `state` are not those of {backbone.name!r}: they have "
            "another layout, are of another grid, or were trained, and then need "
            '`position_layout="learned"`. '
            f"Received: position_layout={backbone.position_layout!r}, "
            f"{len(table)} positions"
        )


def _check_depth(part, state, prefix, weights):
    """A deeper published network would load into a shallower one without a word."""
    stems = {name.partition("blocks.")[0] for name in weights if "blocks." in name}
    further = [
        name
        for name in state
        if name not in weights
        and any(name.startswith(f"{stem}blocks.") for stem in stems)
    ]
    if further:
        raise ValueError(
            f"`state` has weights of blocks that {part.name!r} lacks: {further[:4]}. "
            f"Received: prefix={prefix!r}"
        )


def _load_codebooks(quantizer, state, prefix):
    prefix = f"{prefix}quantizer."
    load_published_quantizer(quantizer, state, prefix)
    return {name for name in state if name.startswith(prefix)}


def _backbone(backbone):
    weights = {
        **_projection(backbone.patch_embedding),
        **_blocks("blocks", backbone.blocks),
        **_norm("norm", backbone.norm),
    }
    if backbone.position_layout == "learned":
        positions = backbone.position_encoding.positions
        weights["pos_embed"] = PublishedWeight(positions, (0, 1, 2))
    if backbone.class_token is not None:
        token = backbone.class_token.class_token
        weights["cls_token"] = PublishedWeight(token, (0, 1, 2))
    return weights


def _classifier(classifier):
    weights = {**_backbone(classifier.backbone), **_dense("head", classifier.head)}
    if classifier.fc_norm is None:
        return weights
    # Published without the encoder's norm, which has no part in it.
    weights = {name: w for name, w in weights.items() if not name.startswith("norm.")}
    return weights | _norm("fc_norm", classifier.fc_norm)


def _decoder(decoder):
    return {
        "mask_token": PublishedWeight(decoder.mask_token, (0, 1, 2)),
        **_dense("decoder_embed", decoder.embedding),
        **_blocks("decoder_blocks", decoder.blocks),
        **_norm("decoder_norm", decoder.norm),
        **_dense("decoder_pred", decoder.head),
    }


def _estimator(estimator):
    return {
        **_dense("estimator_embed", estimator.embedding),
        **_blocks("estimator_blocks", estimator.blocks),
        **_norm("estimator_norm", estimator.norm),
        **_dense("estimator_pred", estimator.head),
    }


def _tokenizer(tokenizer):
    return {
        **_backbone(tokenizer.backbone),
        **_dense("quantize_layer.0", tokenizer.hidden),
        **_dense("quantize_layer.2", tokenizer.projection),
    }


def _random_projection(tokenizer):
    return {
        **_projection(tokenizer.patch_embedding),
        **_dense("cold_start_encoder", tokenizer.projection),
    }


_LISTS: dict[type, Any] = {
    BridleBackbone: _backbone,
    BridleClassifier: _classifier,
    CodeDecoder: _decoder,
    BridleTokenizer: _tokenizer,
    RandomProjectionTokenizer: _random_projection,
    FeatureEstimator: _estimator,
}

_BLOCK = {
    "norm1": "attention_norm",
    "attn.qkv": "qkv",
    "attn.proj": "attention_output",
    "norm2": "mlp_norm",
    "mlp.fc1": "mlp_hidden",
    "mlp.fc2": "mlp_output",
}
_WINDOW_BLOCK = {
    "norm1": "attention_norm",
    "attn.qkv": "qkv",
    "attn.proj": "attention_output",
    "attn.meta_mlp.model.0": "bias_hidden",
    "attn.meta_mlp.model.3": "bias_output",
    "norm2": "mlp_norm",
    "mlp.model.0": "mlp_hidden",
    "mlp.model.2": "mlp_output",
}


def published_block_weights(block):
    """Lists the weights of a transformer block under their published names.

    Args:
        block: built `TransformerBlock` or `WindowTransformerBlock`.

    Returns:
        Dict of `PublishedWeight` by name, such as `"attn.qkv.weight"`.

    Example:
    ```python
    from keras_bridle.conversion.published_weights import published_block_weights
    from keras_bridle.layers.transformer import TransformerBlock

    block = TransformerBlock(num_heads=2, mlp_dim=64)
    block.build((None, None, 32))
    print(sorted(published_block_weights(block))[:2])
    ```
    """
    weights = {}
    is_window = isinstance(block, WindowTransformerBlock)
    if is_window:
        weights["attn.tau"] = PublishedWeight(block.temperature, None)
    for name, attribute in (_WINDOW_BLOCK if is_window else _BLOCK).items():
        layer = getattr(block, attribute)
        is_norm = isinstance(layer, keras.layers.LayerNormalization)
        weights.update((_norm if is_norm else _dense)(name, layer))
    return weights


def _blocks(stem, blocks):
    return {
        f"{stem}.{index}.{name}": weight
        for index, block in enumerate(blocks)
        for name, weight in published_block_weights(block).items()
    }


def _dense(name, layer):
    weights = {f"{name}.weight": PublishedWeight(layer.kernel, (1, 0))}
    if layer.bias is not None:
        weights[f"{name}.bias"] = PublishedWeight(layer.bias, (0,))
    return weights


def _norm(name, layer):
    return {
        f"{name}.weight": PublishedWeight(layer.gamma, (0,)),
        f"{name}.bias": PublishedWeight(layer.beta, (0,)),
    }


def _projection(patch_embedding):
    """The patch's map, there a convolution: channels move to the end of the patch."""
    projection, patch = patch_embedding.projection, patch_embedding.patch_size
    numbers, hidden_dim = projection.kernel.shape
    kernel = PublishedWeight(
        projection.kernel,
        (*range(2, 2 + len(patch)), 1, 0),
        (*patch, numbers // math.prod(patch), hidden_dim),
    )
    return {
        "patch_embed.proj.weight": kernel,
        "patch_embed.proj.bias": PublishedWeight(projection.bias, (0,)),
    }
