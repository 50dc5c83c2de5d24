import numpy as np
import pytest
import torch
from harness import perturb, run, to_numpy

from keras_bridle.conversion.published_state import read_published_state
from keras_bridle.conversion.published_video import from_published_video
from keras_bridle.conversion.published_weights import load_published, published_weights
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.heads import CodeDecoder

SIZES = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}
CLIP = {"use_class_token": False, "position_layout": "sequence"}


def made(part):
    if part == "backbone":
        network = BridleBackbone((2, 4, 4), input_dims=(4, 8, 8, 3), **CLIP, **SIZES)
    else:
        network = CodeDecoder(2, 8, **CLIP, **SIZES)
        network.build((None, None, 12))
    perturb(network.weights)
    return network


NAMES = {
    "blocks.": "encoder_decoder.encoder.blocks.",
    "norm.": "encoder_decoder.encoder.norm.",
    "patch_embed.": "encoder_decoder.encoder.patch_embed.",
    "decoder_embed.": "encoder_decoder.encoder_to_decoder.",
    "decoder_blocks.": "encoder_decoder.decoder.blocks.",
    "decoder_norm.": "encoder_decoder.decoder.norm.",
    "decoder_pred.": "encoder_decoder.decoder.head.",
    "mask_token": "encoder_decoder.mask_token",
}


def video_state(part):
    """A published video state of a network, and the keys' biases that it drops."""
    state = {}
    for name, weight in published_weights(part).items():
        start = next(start for start in NAMES if name.startswith(start))
        array = weight.to_published(to_numpy(weight.variable))
        name = NAMES[start] + name.removeprefix(start)
        if name.endswith("qkv.bias"):
            stem = name.removesuffix("qkv.bias")
            state[f"{stem}q_bias"], _, state[f"{stem}v_bias"] = np.split(array, 3)
        elif name != "encoder_decoder.encoder_to_decoder.bias":
            state[name] = array
    return state


@pytest.mark.parametrize("part", ["backbone", "decoder"])
def test_loads_every_weight(part):
    original, loaded = made(part), made(part)
    perturb(loaded.weights, seed=1)
    state = from_published_video(video_state(original))
    names = load_published(loaded, state, "encoder_decoder.")
    assert names == set(state)
    right = published_weights(original)
    for name, ours in published_weights(loaded).items():
        expected = to_numpy(right[name].variable).copy()
        if name.endswith("qkv.bias"):
            expected[16:32] = 0.0
        if name == "decoder_embed.bias":
            expected[:] = 0.0
        np.testing.assert_array_equal(to_numpy(ours.variable), expected, name)
    if part == "backbone":  # attention does not depend on the biases of keys
        x = np.random.default_rng(0).normal(size=(2, 4, 8, 8, 3)).astype("float32")
        found = run(lambda: loaded(x), loaded)
        np.testing.assert_allclose(
            found, run(lambda: original(x), original), 1e-4, 1e-4
        )


@pytest.mark.parametrize("part", ["backbone", "decoder"])
def test_scales_of_channels(part, tmp_path):
    """Those of files with `init_values` above 0, multiplied into what they scale."""
    original, scaled = made(part), made(part)
    state = video_state(original)
    rng = np.random.default_rng(0)
    middle = {"backbone": "encoder", "decoder": "decoder"}[part]
    for index, block in enumerate(scaled.blocks):
        stem = f"encoder_decoder.{middle}.blocks.{index}."
        layers = {"gamma_1": block.attention_output, "gamma_2": block.mlp_output}
        for name, layer in layers.items():
            gamma = rng.normal(size=16).astype("float16")
            state[stem + name] = gamma
            for weight in layer.weights:
                weight.assign(to_numpy(weight) * gamma.astype("float32"))
    path = tmp_path / "checkpoint.pth"
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in state.items()}
    torch.save({"model": tensors, "epoch": 3}, path)
    state = from_published_video(read_published_state(path))
    load_published(original, state, "encoder_decoder.")
    for ours, expected in zip(original.blocks, scaled.blocks, strict=True):
        for layer in ("attention_output", "mlp_output"):
            weights = getattr(expected, layer).get_weights()
            for one, other in zip(
                getattr(ours, layer).get_weights(), weights, strict=True
            ):
                np.testing.assert_allclose(one, other, 1e-6)
    if part == "backbone":
        x = np.random.default_rng(0).normal(size=(1, 4, 8, 8, 3)).astype("float32")
        found, expected = (
            run(lambda net=net: net(x), net) for net in (original, scaled)
        )
        np.testing.assert_allclose(found, expected, 1e-4, 1e-4)


def test_tokenizer_and_classifier_names():
    names = {
        "tokenizer.encoder.quantize_layer.0.bias": "tokenizer.quantize_layer.0.bias",
        "tokenizer.encoder.cold_start_encoder.weight": (
            "tokenizer.cold_start_encoder.weight"
        ),
        "tokenizer.encoder.quantizer.codebooks.0.weight": (
            "tokenizer.quantizer.codebooks.0.weight"
        ),
        "tokenizer.decoder.head.bias": "tokenizer.estimator_pred.bias",
        "tokenizer.decoder.norm.bias": "tokenizer.estimator_norm.bias",
        "tokenizer.decoder.blocks.1.norm1.bias": (
            "tokenizer.estimator_blocks.1.norm1.bias"
        ),
        "blocks.0.mlp.fc1.bias": "blocks.0.mlp.fc1.bias",
        "fc_norm.weight": "fc_norm.weight",
    }
    state = {name: np.full(3, index) for index, name in enumerate(names)}
    found = from_published_video(state)
    assert set(found) == set(names.values())
    for old, new in names.items():
        np.testing.assert_array_equal(found[new], state[old])


def test_layers_without_bias():
    state = {
        "tokenizer.encoder_to_decoder.weight": np.ones((6, 4)),
        "blocks.0.attn.qkv.weight": np.ones((12, 4)),
    }
    found = from_published_video(state)
    assert not found["tokenizer.estimator_embed.bias"].any()
    assert found["tokenizer.estimator_embed.bias"].shape == (6,)
    assert found["blocks.0.attn.qkv.bias"].shape == (12,)
    assert set(state) == {
        "tokenizer.encoder_to_decoder.weight",
        "blocks.0.attn.qkv.weight",
    }
