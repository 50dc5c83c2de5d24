import keras
import numpy as np
import pytest
from harness import perturb, run, to_numpy
from keras import ops

from keras_bridle.layers import LogMelSpectrogram
from keras_bridle.models import BridleBackbone

SIZES = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}


def made(**settings):
    settings = {"patch_size": (4, 8), "input_dims": (None, 16, 1), **settings}
    backbone = BridleBackbone(**SIZES, **settings)
    perturb(backbone.weights)
    return backbone


def maps(rows, batch=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, rows, 16, 1)).astype("float32")


def test_call_is_encoding_step_by_step():
    backbone, x = made(), maps(12, batch=2)
    tokens = backbone.position_encoding(backbone.patch_embedding(x))
    tokens = ops.reshape(tokens, (2, 6, 16))
    tokens = backbone.class_token(tokens)
    for block in backbone.blocks:
        tokens = block(tokens)
    expected = to_numpy(backbone.norm(tokens))
    np.testing.assert_allclose(to_numpy(backbone(x)), expected, 1e-5, 1e-5)
    assert backbone.grid(x) == (3, 2)
    assert to_numpy(backbone.drop_class_token(expected)).shape == (2, 6, 16)


def test_without_class_token():
    backbone, x = made(use_class_token=False), maps(8)
    assert to_numpy(backbone(x)).shape == (1, 4, 16)
    assert to_numpy(backbone.drop_class_token(x)).shape == x.shape


def test_visible_patches_keep_their_positions():
    backbone, x = made(), maps(12)
    order = np.int32([[5, 0, 3, 1, 4, 2]])
    everything = run(lambda: backbone.encode(x), backbone)
    shuffled = run(lambda: backbone.encode(x, visible=order), backbone)
    expected = np.concatenate([everything[:, :1], everything[:, 1:][:, order[0]]], 1)
    np.testing.assert_allclose(shuffled, expected, 1e-5, 1e-5)


def test_hidden_patches_do_not_matter():
    backbone, x = made(), maps(12)
    other = x.copy()
    other[:, 4:8] += 1.0  # the second row of patches: 2 and 3
    visible = np.int32([[0, 5, 1]])
    first = run(lambda: backbone.encode(x, visible=visible), backbone)
    second = run(lambda: backbone.encode(other, visible=visible), backbone)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("layout", ["grid", "sequence"])
def test_padded_map_has_the_features_it_has_alone(layout):
    backbone, long = made(position_layout=layout), maps(20)
    rows = np.arange(20)[None] < 12
    padded = run(lambda: backbone.encode(long, padding_mask=rows), backbone)
    alone = run(lambda: backbone.encode(long[:, :12]), backbone)
    np.testing.assert_allclose(padded[:, :7], alone, 1e-5, 1e-5)
    visible = np.int32([[4, 8, 1, 2]])  # patch 8 is padding
    padded = run(lambda: backbone.encode(long, rows, visible), backbone)
    alone = run(
        lambda: backbone.encode(long[:, :12], None, visible[:, [0, 2, 3]]), backbone
    )
    np.testing.assert_allclose(padded[:, [0, 1, 3, 4]], alone, 1e-5, 1e-5)


def test_padded_clip_has_the_features_it_has_alone():
    front_end = LogMelSpectrogram(num_mel_bins=16)
    backbone = made(input_dims=(None,), front_end=front_end)
    clip = np.random.default_rng(0).uniform(-1, 1, (1, 5360)).astype("float32")
    # 32 frames, of which the first 12 are real: 3 rows of patches.
    samples = 400 + 11 * 160
    padded = clip.copy()
    padded[:, samples:] = 0.0
    outputs = run(lambda: backbone(padded), backbone)
    alone = run(lambda: backbone(clip[:, :samples]), backbone)
    np.testing.assert_allclose(outputs[:, : alone.shape[1]], alone, 2e-5, 2e-5)
    pooled = run(lambda: backbone.pooled_features(padded), backbone)
    np.testing.assert_allclose(pooled, alone[:, 1:].mean(1), 2e-5, 2e-5)


def test_pooled_features_without_padding():
    backbone, x = made(), maps(8, batch=2)
    expected = to_numpy(backbone(x))[:, 1:].mean(axis=1)
    np.testing.assert_allclose(
        to_numpy(backbone.pooled_features(x)), expected, 1e-5, 1e-5
    )


def test_preset(tmp_path):
    backbone = made()
    backbone.save_to_preset(str(tmp_path))
    loaded = BridleBackbone.from_preset(str(tmp_path))
    np.testing.assert_array_equal(
        to_numpy(loaded(maps(12))), to_numpy(backbone(maps(12)))
    )
    fresh = BridleBackbone.from_preset(str(tmp_path), load_weights=False)
    assert np.abs(to_numpy(fresh(maps(12))) - to_numpy(backbone(maps(12)))).max() > 0.1


def test_named_sizes():
    backbone = BridleBackbone.from_preset(
        "bridle_audio_tiny", load_weights=False, num_layers=1
    )
    assert isinstance(backbone.front_end, LogMelSpectrogram)
    assert backbone.num_layers == 1
    with pytest.raises(ValueError, match=r"without weights.*load_weights=True"):
        BridleBackbone.from_preset("bridle_audio_tiny")
    with pytest.raises(ValueError, match=r"no such preset.*'bridle_audio_tony'"):
        BridleBackbone.from_preset("bridle_audio_tony", load_weights=False)


def test_dtype_policy_reaches_every_layer():
    backbone = made(dtype="mixed_bfloat16")
    assert {layer.compute_dtype for layer in backbone.blocks} == {"bfloat16"}
    assert all(
        keras.backend.standardize_dtype(w.dtype) == "float32" for w in backbone.weights
    )
