import keras
import numpy as np
import pytest
from harness import perturb, run, to_numpy

import keras_bridle as kb
from keras_bridle.conversion.published_state import read_published_state
from keras_bridle.conversion.published_video import from_published_video
from keras_bridle.conversion.published_weights import load_published, published_weights

SIZES = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}


def backbone():
    return kb.BridleBackbone(patch_size=(4, 2), input_dims=(8, 8, 3), **SIZES)


def built(part, *shape):
    part.build((None, *shape))
    return part


def state_of(part):
    """A published state for a part, random numbers all of them."""
    rng = np.random.default_rng(0)
    state = {}
    for name, weight in published_weights(part).items():
        array = rng.normal(size=weight.variable.shape).astype("float32")
        array = weight.to_published(array)
        if name.endswith("tau"):
            array = array.reshape(1, -1, 1, 1)
        state[name] = array
    if hasattr(part, "quantizer"):
        for level in range(2):
            stem = f"quantizer.codebooks.{level}."
            state[f"{stem}weight"] = rng.normal(size=(9, 6)).astype("float32")
            state[f"{stem}cluster_size_ema"] = rng.uniform(size=8).astype("float32")
    return state


@pytest.mark.parametrize(
    "make",
    [
        backbone,
        lambda: built(kb.CodeDecoder(2, 8, **SIZES, attention="window"), None, 12),
        lambda: kb.BridleTokenizer(backbone(), kb.ResidualQuantizer(2, 8, dim=6)),
    ],
    ids=["backbone", "decoder", "tokenizer"],
)
def test_wrong_states_are_named_and_change_nothing(make):
    part = make()
    state = state_of(part)
    before = to_numpy(part.weights)
    gone = sorted(published_weights(part))[-1]
    without = {name: array for name, array in state.items() if name != gone}
    with pytest.raises(ValueError, match=f"lacks 1 weights.*{gone}"):
        load_published(part, without)
    name = next(name for name in state if name.endswith("weight"))
    with pytest.raises(ValueError, match=rf"'{name}' in `state` .*\(3, 5\)"):
        load_published(part, state | {name: np.zeros((3, 5), "float32")})
    for old, weight in zip(before, part.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(weight))


def test_deeper_networks_and_wrong_parts():
    part = backbone()
    deeper = state_of(part) | {"blocks.2.norm1.bias": np.zeros(16)}
    with pytest.raises(ValueError, match=r"blocks\.2\.norm1"):
        load_published(part, deeper)
    for wrong in (keras.layers.Dense(3), kb.CodeDecoder(2, 8, **SIZES)):
        with pytest.raises(ValueError, match="`part` must be"):
            published_weights(wrong)


def weights_of(made):
    return {
        name: np.array(weight.to_published(to_numpy(weight.variable)))
        for name, weight in published_weights(made).items()
    }


@pytest.mark.parametrize(
    ("theirs", "prefix"), [("", ""), ("encoder_decoder.encoder.", "encoder_decoder.")]
)
def test_scales_of_channels(tmp_path, theirs, prefix):
    """The video code's `init_values`, multiplied into what they scale."""
    torch = pytest.importorskip("torch")
    settings = {**SIZES, "input_dims": (8, 12, 1)}
    original = kb.BridleBackbone(4, **settings, layer_scale=0.1)
    perturb(original.weights)
    state = {
        f"{theirs}{name}": torch.tensor(array)
        for name, array in weights_of(original).items()
    }
    assert f"{theirs}blocks.1.gamma_2" in state
    torch.save({"model": state}, tmp_path / "a.pth")
    state = from_published_video(read_published_state(tmp_path / "a.pth", "model"))
    assert not any("gamma" in name for name in state)
    loaded = kb.BridleBackbone(4, **settings)
    load_published(loaded, state, prefix)
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 1)).astype("float32")
    found, expected = (run(lambda net=net: net(x), net) for net in (loaded, original))
    np.testing.assert_allclose(found, expected, 1e-5, 1e-5)


def classifier(rows=8, **settings):
    encoder = kb.BridleBackbone(4, input_dims=(rows, 12, 1), **SIZES, **settings)
    return kb.BridleAudioClassifier(encoder, 3, compile=False)


@pytest.mark.parametrize(
    "layout, rows", [("transposed_grid", 8), ("grid", 12), ("sequence", 8)]
)
def test_other_positions_are_an_error(layout, rows):
    loaded = classifier()
    other = classifier(rows=rows, position_layout=layout).backbone
    table = to_numpy(other.position_encoding.table((rows // 4, 3), 16))
    table = np.concatenate([np.zeros((1, 16)), table])
    state = weights_of(loaded) | {"pos_embed": table[None]}
    with pytest.raises(ValueError, match="positions in `state` are not"):
        load_published(loaded, state)


def test_windows_that_were_not_shifted():
    """`no_shift`: every block sees the same windows; tables beside weights are none."""
    options = {**SIZES, "attention": "window", "window_size": (2, 2)}
    unshifted, shifted = (
        built(kb.CodeDecoder(2, 8, **options, window_shift=shift), None, 12)
        for shift in ((0, 0), (1, 1))
    )
    state = state_of(unshifted)
    names, table = set(state), np.zeros((16, 2), "float32")
    for index in range(len(unshifted.blocks)):
        state[f"decoder_blocks.{index}.attn.relative_coordinates_log"] = table
    assert load_published(unshifted, state) == load_published(shifted, state) == names
    assert {block.shift for block in unshifted.blocks} == {(0, 0)}
    assert {block.shift for block in shifted.blocks} == {(0, 0), (1, 1)}
