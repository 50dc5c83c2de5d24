import numpy as np
import pytest
from harness import perturb, run, to_numpy

from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.models.backbone import BridleBackbone

SIZES = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}


def made(**settings):
    settings = {"patch_size": (4, 8), "input_dims": (None, 16, 1), **settings}
    backbone = BridleBackbone(**{**SIZES, **settings})
    perturb(backbone.weights)
    return backbone


def maps(rows, batch=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, rows, 16, 1)).astype("float32")


RELATIVE = {"position_layout": "relative", "trained_grid": (5, 2), "layer_scale": 0.7}
SHARED = {**RELATIVE, "position_layout": "shared_relative"}


@pytest.mark.parametrize("settings", [{}, RELATIVE, SHARED])
def test_visible_patches_keep_their_positions(settings):
    backbone, x = made(**settings), maps(12)
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


@pytest.mark.parametrize("settings", [{}, {"position_layout": "sequence"}, RELATIVE])
def test_padded_map_has_the_features_it_has_alone(settings):
    backbone, long = made(**settings), maps(20)
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


@pytest.mark.parametrize("samples", [3000, 399])
def test_padded_clip_of_any_length(samples):
    # Also where the last patch is only partly real.
    front_end = LogMelSpectrogram(num_mel_bins=16)
    backbone = made(input_dims=(None,), front_end=front_end)
    clip = np.random.default_rng(0).uniform(-1, 1, (1, samples)).astype("float32")
    padded = np.pad(clip, [(0, 0), (0, 6000 - samples)])
    outputs = run(lambda: backbone(padded), backbone)
    alone = run(lambda: backbone(clip), backbone)
    assert outputs.shape[1] > alone.shape[1]
    np.testing.assert_allclose(outputs[:, : alone.shape[1]], alone, 2e-5, 2e-5)
    pooled = run(lambda: backbone.pooled_features(padded), backbone)
    expected = run(lambda: backbone.pooled_features(clip), backbone)
    np.testing.assert_allclose(pooled, expected, 2e-5, 2e-5)


CLIPS = {
    "patch_size": (2, 4, 4),
    "input_dims": (8, 8, 12, 2),
    "use_class_token": False,
    "position_layout": "sequence",
    "trained_grid": "input",
}


def clips(*sides):
    rng = np.random.default_rng(1)
    return rng.normal(size=(2, *sides, 2)).astype("float32")


def test_shorter_clip_has_the_features_of_the_padded_one():
    backbone, x = made(**CLIPS), clips(8, 8, 12)
    alone = run(lambda: backbone(x[:, :4]), backbone)
    assert alone.shape == (2, 12, 16)
    frames = np.arange(8)[None] < [[4], [4]]
    padded = run(lambda: backbone.encode(x, padding_mask=frames), backbone)
    np.testing.assert_allclose(padded[:, :12], alone, 1e-5, 1e-5)
    # Without a mask the other frames are seen.
    assert np.abs(run(lambda: backbone(x), backbone)[:, :12] - alone).max() > 1e-3


def test_longer_clip_goes_on_where_positions_end():
    backbone, x = made(**CLIPS), clips(12, 8, 12)
    longer = made(**{**CLIPS, "input_dims": (12, 8, 12, 2)})
    np.testing.assert_array_equal(
        run(lambda: backbone(x), backbone), run(lambda: longer(x), longer)
    )


@pytest.mark.parametrize("sides", [(16, 24), (12, 10)])
@pytest.mark.parametrize("layout", ["grid", "sequence"])
def test_other_image_size_has_the_positions_stretched(sides, layout):
    settings = {"patch_size": 4, "input_dims": (8, 16, 2), "position_layout": layout}
    backbone = made(**settings, trained_grid="input")
    assert backbone.trained_grid == (2, 4)
    x = clips(*sides)
    grid = backbone.grid(x)
    assert grid == (-(-sides[0] // 4), -(-sides[1] // 4))
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    row, column = row * 2 / grid[0], column * 4 / grid[1]
    if layout == "grid":
        places = [column[:, None], row[:, None]]
        angles = [place * 10000.0 ** (-np.arange(4) / 4) for place in places]
        table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    else:
        angles = (row * 4 + column)[:, None] * 10000.0 ** (-np.arange(8) / 8)
        table = np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(-1, 16)
    patches = to_numpy(backbone.patch_embedding(x)).reshape(2, -1, 16)
    found = run(lambda: backbone.patch_tokens(x), backbone)
    np.testing.assert_allclose(found, patches + table, 1e-5, 1e-5)
    outputs = run(lambda: backbone(x), backbone)
    assert outputs.shape == (2, 1 + len(table), 16)
    np.testing.assert_allclose(backbone.predict(x, verbose=0), outputs, 1e-5, 1e-5)


def test_trained_grid_stays_when_loaded_for_another_size(tmp_path):
    backbone = made(input_dims=(8, 16, 1), trained_grid="input")
    backbone.save_to_preset(str(tmp_path))
    loaded = BridleBackbone.from_preset(str(tmp_path), input_dims=(16, 16, 1))
    assert loaded.trained_grid == (2, 2)
    x = maps(16)
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(backbone(x)))


@pytest.mark.parametrize("segments", [1, 3])
def test_pooled_features_of_segments(segments):
    front_end = LogMelSpectrogram(num_mel_bins=16)
    backbone = made(input_dims=(None,), front_end=front_end)
    clips = np.random.default_rng(0).uniform(-1, 1, (3, 5360)).astype("float32")
    lengths = (32, 17, 4)
    for clip, frames in zip(clips, lengths, strict=True):
        clip[400 + (frames - 1) * 160 :] = 0.0
    patches = to_numpy(backbone(clips))[:, 1:].reshape(3, 8, 2, 16).mean(axis=2)
    pooled = to_numpy(backbone.pooled_features(clips, segments))
    for features, rows, frames in zip(pooled, patches, lengths, strict=True):
        # Each row as many equal pieces, dealt to segments without overlap.
        pieces = np.repeat(rows[: -(-frames // 4)], segments, axis=0)
        expected = pieces.reshape(segments, -1, 16).mean(axis=1)
        np.testing.assert_allclose(features, expected.reshape(-1), 2e-5, 2e-5)


def test_named_sizes():
    backbone = BridleBackbone.from_preset(
        "bridle_audio_tiny", load_weights=False, num_layers=1
    )
    assert isinstance(backbone.front_end, LogMelSpectrogram)
    assert backbone.num_layers == 1
    with pytest.raises(ValueError):
        BridleBackbone.from_preset("bridle_audio_tiny")
    with pytest.raises(ValueError, match="bridle_audio_tony"):
        BridleBackbone.from_preset("bridle_audio_tony", load_weights=False)


def test_drop_path_rises_from_block_to_block(tmp_path):
    backbone = made(num_layers=4, drop_path_rate=0.3)
    rates = [block.drop_path_rate for block in backbone.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    # Weights are those of an encoder that drops nothing, and files fit both ways.
    plain, x = made(num_layers=4), maps(12)
    assert [w.path for w in plain.weights] == [w.path for w in backbone.weights]
    perturb(plain.weights, seed=1)
    plain.save_to_preset(str(tmp_path))
    loaded = BridleBackbone.from_preset(str(tmp_path), drop_path_rate=0.3)
    expected = run(lambda: plain(x), plain)
    np.testing.assert_allclose(run(lambda: loaded(x), loaded), expected, 1e-6, 1e-6)
    drawn = [to_numpy(loaded(x, training=True)) for _ in range(5)]
    assert max(np.abs(outputs - expected).max() for outputs in drawn) > 0.1
    loaded.save_weights(tmp_path / "dropping.weights.h5")
    plain.load_weights(tmp_path / "dropping.weights.h5")


def test_learned_positions(tmp_path):
    backbone = made(input_dims=(12, 16, 1), position_layout="learned")
    assert backbone.trained_grid == (3, 2)
    positions = to_numpy(backbone.position_encoding.positions)[0]
    for rows in (12, 8):
        x = maps(rows)
        patches = to_numpy(backbone.patch_embedding(x)).reshape(1, -1, 16)
        found = run(lambda x=x: backbone.patch_tokens(x), backbone)
        right = patches + positions[: rows // 2]
        np.testing.assert_allclose(found, right, 1e-5, 1e-5)
    with pytest.raises(ValueError):
        backbone(maps(16))
    backbone.save_to_preset(str(tmp_path))
    loaded = BridleBackbone.from_preset(str(tmp_path))
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(backbone(x)))
    with pytest.raises(ValueError):
        made(position_layout="learned")
    with pytest.raises(ValueError):
        made(trained_grid="input")


@pytest.mark.parametrize("layout", ["relative", "shared_relative"])
def test_relative_positions(layout, tmp_path):
    settings = {"input_dims": (12, 16, 1), "use_final_norm": False, "layer_scale": 0.1}
    backbone, x = made(position_layout=layout, **settings), maps(12)
    assert backbone.trained_grid == (3, 2) and backbone.norm is None
    assert len(backbone.position_biases) == {"relative": 2}.get(layout, 1)
    # Moved, patches see each other as before; only the class token is in both.
    moved = run(lambda: backbone.encode(x, visible=np.int32([[2, 3, 4]])), backbone)
    up = maps(12)
    up[:, :8] = x[:, 4:]
    same = run(lambda: backbone.encode(up, visible=np.int32([[0, 1, 2]])), backbone)
    np.testing.assert_allclose(moved, same, 1e-5, 1e-5)
    assert np.abs(moved - to_numpy(backbone(x))[:, [0, 3, 4, 5]]).max() > 0.1
    with pytest.raises(ValueError, match="grid"):
        backbone(maps(16))
    backbone.save_to_preset(str(tmp_path))
    loaded = BridleBackbone.from_preset(str(tmp_path))
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(backbone(x)))
    with pytest.raises(ValueError, match="input_dims"):
        made(position_layout=layout)
    with pytest.raises(ValueError, match="position_layout"):
        made(position_layout="relativ")


def test_tokens_before_the_last_norm():
    backbone, x = made(), maps(12)
    tokens = run(lambda: backbone.encode(x, normalize=False), backbone)
    normed = run(lambda: backbone.norm(tokens), backbone)
    np.testing.assert_allclose(normed, run(lambda: backbone(x), backbone), 1e-5, 1e-5)
