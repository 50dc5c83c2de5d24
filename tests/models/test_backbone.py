import numpy as np
import pytest
from harness import perturb, run, to_numpy

from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.layers.positions import SineCosinePositionEncoding
from keras_bridle.models.backbone import BridleBackbone

SIZES = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}
RELATIVE = {"position_layout": "relative", "trained_grid": (5, 2), "layer_scale": 0.7}
SHARED = {**RELATIVE, "position_layout": "shared_relative"}
WAVEFORMS = {"input_dims": (None,), "front_end": LogMelSpectrogram(num_mel_bins=16)}
CLIPS = {
    "patch_size": (2, 4, 4),
    "input_dims": (8, 8, 12, 2),
    "use_class_token": False,
    "position_layout": "sequence",
    "trained_grid": "input",
}


def made(**settings):
    settings = {"patch_size": (4, 8), "input_dims": (None, 16, 1), **settings}
    backbone = BridleBackbone(**{**SIZES, **settings})
    perturb(backbone.weights)
    return backbone


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def maps(rows):
    return normal(1, rows, 16, 1)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, tolerance, tolerance)


def reloaded(backbone, folder, **changes):
    backbone.save_to_preset(str(folder))
    return BridleBackbone.from_preset(str(folder), **changes)


@pytest.mark.parametrize("settings", [{}, RELATIVE, SHARED])
def test_visible_patches_keep_their_positions(settings):
    backbone, x = made(**settings), maps(12)
    order = np.int32([[5, 0, 3, 1, 4, 2]])
    everything = run(lambda: backbone.encode(x), backbone)
    shuffled = run(lambda: backbone.encode(x, visible=order), backbone)
    close(shuffled, everything[:, [0, *(1 + order[0])]])


@pytest.mark.parametrize("settings", [{}, {"position_layout": "sequence"}, RELATIVE])
def test_padded_map_has_the_features_it_has_alone(settings):
    backbone, long = made(**settings), maps(20)
    rows = np.arange(20)[None] < 12
    padded = run(lambda: backbone.encode(long, padding_mask=rows), backbone)
    close(padded[:, :7], run(lambda: backbone.encode(long[:, :12]), backbone))
    visible = np.int32([[4, 8, 1, 2]])  # patch 8 is padding
    padded = run(lambda: backbone.encode(long, rows, visible), backbone)
    real = visible[:, [0, 2, 3]]
    alone = run(lambda: backbone.encode(long[:, :12], None, real), backbone)
    close(padded[:, [0, 1, 3, 4]], alone)


def test_clips_of_other_lengths():
    backbone, x = made(**CLIPS), normal(2, 12, 8, 12, 2)
    short = x[:, :8]
    alone = run(lambda: backbone(short[:, :4]), backbone)
    assert alone.shape == (2, 12, 16)
    frames = np.arange(8)[None] < [[4], [4]]
    padded = run(lambda: backbone.encode(short, padding_mask=frames), backbone)
    close(padded[:, :12], alone)
    # Without a mask the other frames are seen.
    assert np.abs(run(lambda: backbone(short), backbone)[:, :12] - alone).max() > 1e-3
    # Positions go on where those of `input_dims` end.
    longer = made(**{**CLIPS, "input_dims": (12, 8, 12, 2)})
    found, expected = run(lambda: (backbone(x), longer(x)), backbone, longer)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("layout", ["grid", "sequence"])
def test_other_image_size_has_the_positions_stretched(layout, tmp_path):
    settings = {"patch_size": 4, "input_dims": (8, 16, 2), "position_layout": layout}
    backbone, x = made(**settings, trained_grid="input"), normal(2, 12, 10, 2)
    assert (backbone.trained_grid, backbone.grid(x)) == ((2, 4), (3, 3))
    table = SineCosinePositionEncoding(layout, (2, 4)).table((3, 3), 16)
    patches = to_numpy(backbone.patch_embedding(x)).reshape(2, -1, 16)
    close(run(lambda: backbone.patch_tokens(x), backbone), patches + to_numpy(table))
    outputs = run(lambda: backbone(x), backbone)
    close(backbone.predict(x, verbose=0), outputs)
    # The grid stays when it is loaded for another size.
    loaded = reloaded(backbone, tmp_path, input_dims=(16, 16, 2))
    assert loaded.trained_grid == (2, 4)
    close(run(lambda: loaded(x), loaded), outputs, 1e-6)


@pytest.mark.parametrize("segments", [1, 3])
def test_pooled_features_of_segments(segments):
    backbone = made(**WAVEFORMS)
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
        close(features, expected.reshape(-1), 2e-5)


def test_named_sizes():
    size = "bridle_audio_tiny"
    backbone = BridleBackbone.from_preset(size, load_weights=False, num_layers=1)
    assert isinstance(backbone.front_end, LogMelSpectrogram)
    assert (backbone.num_layers, backbone.hidden_dim) == (1, 128)
    with pytest.raises(ValueError, match="load_weights"):
        BridleBackbone.from_preset(size)


def test_drop_path_rises_from_block_to_block(tmp_path):
    # Files fit an encoder that drops nothing and one that does.
    plain, x = made(num_layers=4), maps(12)
    loaded = reloaded(plain, tmp_path, drop_path_rate=0.3)
    rates = [block.drop_path_rate for block in loaded.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    expected = run(lambda: plain(x), plain)
    close(run(lambda: loaded(x), loaded), expected, 1e-6)
    drawn = [to_numpy(loaded(x, training=True)) for _ in range(5)]
    assert max(np.abs(outputs - expected).max() for outputs in drawn) > 0.1
    loaded.save_weights(tmp_path / "dropping.weights.h5")
    plain.load_weights(tmp_path / "dropping.weights.h5")


def test_tokens_before_the_last_norm():
    backbone, x = made(), maps(12)
    tokens = run(lambda: backbone.encode(x, normalize=False), backbone)
    normed = run(lambda: backbone.norm(tokens), backbone)
    close(normed, run(lambda: backbone(x), backbone))


@pytest.mark.parametrize(
    ("layout", "number"), [("learned", 0), ("relative", 2), ("shared_relative", 1)]
)
def test_tables_of_positions(layout, number, tmp_path):
    settings = {"input_dims": (12, 16, 1), "use_final_norm": False, "layer_scale": 0.1}
    backbone, x = made(position_layout=layout, **settings), maps(12)
    assert backbone.trained_grid == (3, 2) and backbone.norm is None
    assert len(backbone.position_biases) == number
    loaded = reloaded(backbone, tmp_path)
    np.testing.assert_array_equal(to_numpy(loaded(x)), to_numpy(backbone(x)))
    with pytest.raises(ValueError):
        backbone(maps(16))
    for wrong in ({"position_layout": layout}, {"trained_grid": "input"}):
        with pytest.raises(ValueError, match="input_dims"):
            made(**wrong)
