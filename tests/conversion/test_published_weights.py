import keras
import numpy as np
import pytest
from harness import to_numpy

from keras_bridle.conversion.published_weights import (
    load_published_backbone,
    load_published_decoder,
    load_published_estimator,
    load_published_random_projection,
    load_published_tokenizer,
    published_block_weights,
    published_weights,
)
from keras_bridle.layers.transformer import TransformerBlock, WindowTransformerBlock
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer

SIZES = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}


def backbone():
    return BridleBackbone(patch_size=(4, 2), input_dims=(8, 8, 3), **SIZES)


def decoder():
    made = CodeDecoder(2, 8, **SIZES, attention="window")
    made.build((None, None, 12))
    return made


def estimator():
    made = FeatureEstimator(12, **SIZES)
    made.build((None, None, 6))
    return made


def quantizer():
    return ResidualQuantizer(2, 8, dim=6)


def tokenizer():
    return BridleTokenizer(backbone(), quantizer())


def random_projection():
    made = RandomProjectionTokenizer((4, 2), 16, quantizer(), position_layout="grid")
    made.build((None, 8, 8, 3))
    return made


LOADERS = {
    "backbone": (backbone, load_published_backbone),
    "decoder": (decoder, load_published_decoder),
    "estimator": (estimator, load_published_estimator),
    "tokenizer": (tokenizer, load_published_tokenizer),
    "random_projection": (random_projection, load_published_random_projection),
}
each_part = pytest.mark.parametrize(("make", "load"), LOADERS.values(), ids=LOADERS)


def state_of(part, prefix=""):
    """A published state for a part, random numbers all of them."""
    rng = np.random.default_rng(0)
    state = {}
    for name, weight in published_weights(part).items():
        array = rng.normal(size=weight.variable.shape).astype("float32")
        array = weight.to_published(array)
        if name.endswith("tau"):
            array = array.reshape(1, -1, 1, 1)
        state[prefix + name] = array
    if hasattr(part, "quantizer"):
        for level in range(2):
            stem = f"{prefix}quantizer.codebooks.{level}."
            state[f"{stem}weight"] = rng.normal(size=(9, 6)).astype("float32")
            state[f"{stem}cluster_size_ema"] = rng.uniform(size=8).astype("float32")
    return state


@each_part
def test_loads_every_weight(make, load):
    part = make()
    state = state_of(part, "model.")
    extra = {"model.pos_embed": np.zeros(3), "other.blocks.9.norm1.bias": np.zeros(2)}
    names = load(part, state | extra, "model.")
    assert names == set(state)
    for name, weight in published_weights(part).items():
        array = state[f"model.{name}"]
        found = weight.to_published(to_numpy(weight.variable)).reshape(array.shape)
        np.testing.assert_array_equal(found, array)
    covered = {id(weight.variable) for weight in published_weights(part).values()}
    left = [w.name for w in part.trainable_variables if id(w) not in covered]
    assert not left


def test_layouts():
    part = backbone()
    state = state_of(part)
    load_published_backbone(part, state)
    dense = part.blocks[1].mlp_hidden
    np.testing.assert_array_equal(
        to_numpy(dense.kernel), state["blocks.1.mlp.fc1.weight"].T
    )
    kernel = to_numpy(part.patch_embedding.projection.kernel).reshape(4, 2, 3, 16)
    published = state["patch_embed.proj.weight"]
    assert published.shape == (16, 3, 4, 2)
    assert kernel[3, 1, 2, 7] == published[7, 2, 3, 1]


@each_part
def test_missing_weight_is_named_and_nothing_changes(make, load):
    part = make()
    state = state_of(part)
    gone = sorted(published_weights(part))[-1]
    del state[gone]
    before = [to_numpy(weight) for weight in part.weights]
    with pytest.raises(ValueError, match=f"lacks 1 weights.*{gone}"):
        load(part, state)
    for old, weight in zip(before, part.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(weight))


@each_part
def test_wrong_shape_is_named(make, load):
    part = make()
    state = state_of(part)
    name = next(name for name in state if name.endswith("weight"))
    state[name] = np.zeros((3, 5), "float32")
    with pytest.raises(ValueError, match=rf"'{name}' in `state` .*\(3, 5\)"):
        load(part, state)


def test_deeper_network():
    part = backbone()
    state = state_of(part) | {"blocks.2.norm1.bias": np.zeros(16)}
    with pytest.raises(ValueError, match=r"blocks that .* lacks: .*blocks\.2\.norm1"):
        load_published_backbone(part, state)


def test_wrong_part():
    with pytest.raises(ValueError, match=r"Expected a CodeDecoder. Received: BridleB"):
        load_published_decoder(backbone(), {})
    with pytest.raises(ValueError, match=r"`part` must be one of .*Received: Dense"):
        published_weights(keras.layers.Dense(3))
    with pytest.raises(ValueError, match=r"`part` must be built first"):
        published_weights(CodeDecoder(2, 8, **SIZES))


@pytest.mark.parametrize("kind", [TransformerBlock, WindowTransformerBlock])
def test_block_weights_are_all_of_them(kind):
    block = kind(2, 8)
    block.build((None, None, 12))
    weights = published_block_weights(block)
    ours = {id(weight.variable) for weight in weights.values()}
    assert ours == {id(weight) for weight in block.weights}
