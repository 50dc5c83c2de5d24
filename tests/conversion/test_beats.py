"""BEATs and OpenBEATs in their own files, against `openbeats` or what it computed.

`python tests/conversion/test_beats.py` writes `tests/fixtures/beats.*` anew.
"""

import random
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import run, to_numpy
from programs import load
from sound_files import write

import keras_bridle as kb
from keras_bridle.models.teachers import as_teacher, features_on_grid

try:
    import torch
    from openbeats.beats_encoder import BeatsEncoder, beats_frontend
except (ImportError, OSError):  # OSError: of torchaudio, for another PyTorch
    BeatsEncoder = None

FIXTURES = Path(__file__).parents[1] / "fixtures"
SAVED = FIXTURES / "beats.pt"
SIZES = {
    "embed_dim": 20,
    "encoder_embed_dim": 24,
    "encoder_layers": 3,
    "encoder_attention_heads": 3,
    "encoder_ffn_embed_dim": 40,
    "conv_pos": 10,
    "conv_pos_groups": 4,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "num_buckets": 32,
    "max_distance": 40,
}
# Everything that the published sizes leave as it is.
OTHERS = {
    "embed_dim": 24,
    "conv_bias": True,
    "conv_pos": 9,
    "deep_norm": False,
    "num_buckets": 320,
    "max_distance": 1280,
    "fbank_mean": 15.2,
    "fbank_std": 5.1,
}
LENGTHS = {"short": 4321, "long": 23456}


def waveforms(samples, seed=1):
    return np.random.default_rng(seed).normal(0, 0.1, (2, samples)).astype("float32")


def reference(**settings):
    """An encoder of `openbeats` with random weights, and the content of its file."""
    if BeatsEncoder is None:
        pytest.skip("openbeats, or a torchaudio that it can use, is not installed")
    cfg = {**SIZES, **settings}
    statistics = {
        name: cfg[name] for name in ("fbank_mean", "fbank_std") if name in cfg
    }
    model = BeatsEncoder(0, beats_config=cfg, **statistics).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_pad" not in name:
                is_scale = weight.ndim == 1 or "weight_g" in name
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(0.3 * noise + is_scale)
    return model, {"cfg": cfg, "model": model.state_dict()}


def tokens(model, inputs, lengths=None):
    lengths = lengths or [inputs.shape[1]] * len(inputs)
    with torch.no_grad():
        return model(torch.tensor(inputs), torch.tensor(lengths))[0].numpy()


def outputs(backbone, inputs):
    return run(lambda: backbone(inputs), backbone)


def check(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.every_backend
def test_tokens_and_log_mel_are_those_of_the_reference(tmp_path, capsys):
    backbone = kb.BridleBackbone.from_preset(SAVED)
    assert isinstance(backbone, kb.BeatsBackbone)
    assert "predictor" in capsys.readouterr().out
    with np.load(FIXTURES / "beats.npz") as expected:
        for name, samples in LENGTHS.items():
            check(outputs(backbone, waveforms(samples)), expected[name])
        maps, _ = backbone.maps(waveforms(LENGTHS["short"]))
        log_mel = to_numpy(maps)[..., 0]
        # The frames of a patch that is not whole are left out.
        right = expected["log_mel"][:, : log_mel.shape[1]]
        np.testing.assert_allclose(log_mel, right, atol=1e-4)
        assert log_mel.shape == (2, 16, 128)
        # What was loaded is saved as any encoder.
        backbone.save_to_preset(str(tmp_path))
        again = kb.BridleBackbone.from_preset(str(tmp_path))
        check(outputs(again, waveforms(LENGTHS["long"])), expected["long"])
    assert again.get_config() == backbone.get_config()
    assert isinstance(kb.BeatsBackbone.from_preset(str(tmp_path)), kb.BeatsBackbone)


def test_no_weights_are_drawn_where_others_follow(monkeypatch):
    backbone = kb.BeatsBackbone.from_preset(SAVED)
    keras.utils.set_random_seed(1)
    kb.BeatsBackbone.from_config(backbone.get_config())
    expected = random.random()
    for kind in (keras.initializers.GlorotUniform, keras.initializers.RandomNormal):
        monkeypatch.setattr(kind, "__call__", None)
    keras.utils.set_random_seed(1)
    kb.BeatsBackbone.from_preset(SAVED)
    # Later draws are the same as after weights that were drawn.
    assert random.random() == expected


@pytest.mark.parametrize("settings", [{}, OTHERS])
def test_random_encoders(tmp_path, settings):
    model, content = reference(**settings)
    torch.save(content, tmp_path / "beats.pt")
    backbone = kb.BeatsBackbone.from_preset(tmp_path / "beats.pt")
    for samples in (16000, 40321, 160000):
        inputs = waveforms(samples)
        check(outputs(backbone, inputs), tokens(model, inputs))
    # Padding is what follows the whole patches of a clip.
    inputs[1, 90000:] = 0.0
    found = outputs(backbone, inputs)
    is_real = to_numpy(backbone.patch_padding_mask(*backbone.maps(inputs)))
    assert is_real.sum(axis=1).tolist() == [62 * 8, 35 * 8]
    check(found[is_real], tokens(model, inputs, [160000, 90000])[is_real])


def test_front_end_of_quiet_and_loud_clips():
    _, _ = reference()
    backbone = kb.BeatsBackbone.from_preset(SAVED)
    for scale in (1e-6, 1e-3, 5.0):
        inputs = scale * waveforms(16000)
        expected = beats_frontend(torch.tensor(inputs), 15.41663, 6.55582).numpy()
        found = to_numpy(backbone.maps(inputs)[0])[..., 0]
        np.testing.assert_allclose(found, expected[:, :96], atol=2e-4)


@pytest.mark.full_matrix
def test_files_of_espnet(tmp_path):
    """The encoder is one part, and the settings are elsewhere: those published."""
    torch = pytest.importorskip("torch")
    state = torch.load(SAVED, weights_only=True)["model"]
    del state["predictor.weight"]
    state = {f"encoder.{name}": array for name, array in state.items()}
    state["decoder.linear_out.weight"] = torch.zeros(3, 24)
    (tmp_path / "exp").mkdir()
    (tmp_path / "config.yaml").write_text("encoder: beats\n")
    inputs = waveforms(8000)
    expected = outputs(kb.BeatsBackbone.from_preset(SAVED), inputs)
    for newer in (False, True):
        if newer:
            # The names that weights of a convolution have in newer versions of PyTorch.
            stem = "encoder.encoder.pos_conv.0."
            for number, name in enumerate(("weight_g", "weight_v")):
                key = f"{stem}parametrizations.weight.original{number}"
                state[key] = state.pop(stem + name)
        torch.save(state, tmp_path / "exp" / "valid.acc.best.pth")
        backbone = kb.BridleBackbone.from_preset(tmp_path, max_distance=40)
        check(outputs(backbone, inputs), expected)
    assert kb.BridleBackbone.from_preset(tmp_path).max_distance == 800
    torch.save(state, tmp_path / "exp" / "other.pth")
    with pytest.raises(ValueError, match="several files"):
        kb.BridleBackbone.from_preset(tmp_path)


@pytest.mark.full_matrix
def test_visible_patches():
    """They see each other where they are, and nothing of the rest."""
    backbone = kb.BeatsBackbone.from_preset(SAVED)
    maps, padding_mask = backbone.maps(waveforms(8000))
    maps = to_numpy(maps)
    assert maps.shape == (2, 48, 128, 1)

    def encoded(visible, maps=maps):
        visible = np.int32([visible, visible])
        return run(lambda: backbone.encode(maps, padding_mask, visible), backbone)

    everything = run(lambda: backbone.encode(maps, padding_mask), backbone)
    check(encoded(range(24)), everything)
    visible = [0, 3, 7, 11, 12, 20]
    expected = encoded(visible)
    patches = maps.reshape(2, 3, 16, 8, 16).copy()
    for patch in set(range(24)) - set(visible):
        patches[:, patch // 8, :, patch % 8] = 3.0
    check(encoded(visible, patches.reshape(maps.shape)), expected)
    # In another order, and with other places.
    check(encoded(visible[::-1])[:, ::-1], expected)
    assert np.abs(encoded(range(6)) - expected).max() > 0.1


@pytest.mark.full_matrix
def test_teachers_and_students_cut_frames_alike():
    """145 frames are nine whole patches, or ten of which one is filled up."""
    beats = kb.BeatsBackbone.from_preset(SAVED)
    front_end = kb.LogMelSpectrogram(name="log_mel")
    other = kb.BridleBackbone(16, 16, 1, 2, 32, (None,), front_end)
    inputs = waveforms(LENGTHS["long"])
    for teacher, student, rows in ((beats, other, 10), (other, beats, 9)):
        found = as_teacher(teacher, student)
        maps, _ = student.maps(inputs)
        assert student.grid(maps) == found.grid(found.maps(inputs)[0]) == (rows, 8)
        features = features_on_grid(found, inputs, (rows, 8))
        assert features.shape == (2, rows * 8, teacher.hidden_dim)
        for copied, weight in zip(found.weights, teacher.weights, strict=True):
            assert (to_numpy(copied == weight)).all()
    assert as_teacher(beats, beats) is beats
    pretraining = kb.InterleavedPretraining(
        other, teacher=str(SAVED), num_levels=1, codebook_size=4, code_dim=4
    )
    pretraining.fit(inputs, rounds=1, tokenizer_epochs=1, encoder_epochs=1, verbose=0)
    with pytest.raises(ValueError, match="images or clips"):
        kb.to_transformers(beats, "folder")


def test_bad_files(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "bad.pt"

    def fails(match, old="", new="", kind=kb.BridleBackbone, path=path, **cfg):
        if old or cfg:
            content = torch.load(SAVED, weights_only=True)
            state = {k.replace(old, new): v for k, v in content["model"].items()}
            torch.save({"cfg": content["cfg"] | cfg, "model": state}, path)
        with pytest.raises(ValueError, match=match):
            kind.from_preset(str(path))

    fails("a folder, file or address")
    path.write_bytes(SAVED.read_bytes()[:50000])
    fails("damaged")
    fails("layer_norm_first", layer_norm_first=True)
    fails("blocks.1.fc1.bias", "layers.1.fc1.bias", "layers.1.fc9.bias")
    fails("not a complete BEATs", "encoder.layer_norm.weight", "encoder.layer.weight")
    fails("predictar", "predictor.weight", "predictar.weight")
    kb.BridleBackbone(16, 16, 1, 2, 32, (32, 32, 1)).save_to_preset(str(tmp_path / "x"))
    fails("BridleBackbone", kind=kb.BeatsBackbone, path=tmp_path / "x")


@pytest.mark.full_matrix
def test_recipes_start_from_beats(tmp_path):
    for number in range(8):
        path = tmp_path / "clips" / "ab"[number % 2] / f"{number}.wav"
        write(path, waveforms(16000, number)[0])
    options = [f"--data={tmp_path}/clips", "--quiet", "--seconds=1"]
    arguments = [*options, f"--preset={SAVED}", f"--directory={tmp_path}/run"]
    arguments += ["--rounds=0", "--cold-start-epochs=1", "--batch-size=4"]
    arguments += ["--num-levels=1", "--codebook-size=4", "--set=code_dim=4"]
    load("recipes/pretrain_audio.py").main(arguments)
    trained = kb.BridleBackbone.from_preset(str(tmp_path / "run"))
    assert isinstance(trained, kb.BeatsBackbone)
    arguments = [*options, f"--from={SAVED}", f"--directory={tmp_path}/tuned"]
    arguments += ["--epochs=1", "--batch-size=4", "--set=warmup_epochs=0", "--fold=1"]
    load("recipes/fine_tune.py").main(arguments)
    tuned = kb.BridleAudioClassifier.from_preset(str(tmp_path / "tuned"))
    assert isinstance(tuned.backbone, kb.BeatsBackbone)


if __name__ == "__main__":
    model, content = reference()
    content["model"]["predictor.weight"] = torch.zeros(3, 24)
    torch.save(content, SAVED)
    arrays = {name: tokens(model, waveforms(x)) for name, x in LENGTHS.items()}
    short = torch.tensor(waveforms(LENGTHS["short"]))
    arrays["log_mel"] = beats_frontend(short, 15.41663, 6.55582).numpy()
    np.savez_compressed(FIXTURES / "beats.npz", **arrays)
