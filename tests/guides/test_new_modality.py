"""The guide to a new modality, really run."""

import importlib.util
from pathlib import Path

import keras
import numpy as np

GUIDE = Path(__file__).parents[2] / "guides" / "new_modality.py"


def load_guide():
    spec = importlib.util.spec_from_file_location("new_modality", GUIDE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_guide_runs_and_its_model_is_saved(capsys, tmp_path):
    guide = load_guide()
    untrained, pretrained = guide.main(epochs=1, verbose=0)
    assert 0.2 < untrained < 1 and 0.2 < pretrained < 1
    assert "pretrained, 25.0% by chance" in capsys.readouterr().out
    readings, _ = guide.machines(4, seed=2)
    backbone = guide.make_backbone(readings)
    backbone.save_to_preset(str(tmp_path / "preset"))
    loaded = guide.kb.BridleBackbone.from_preset(str(tmp_path / "preset"))
    expected = keras.ops.convert_to_numpy(backbone.pooled_features(readings))
    found = keras.ops.convert_to_numpy(loaded.pooled_features(readings))
    np.testing.assert_allclose(found, expected, 1e-5, 1e-5)


def test_a_state_is_a_speed_and_shows_in_no_single_reading():
    readings, states = load_guide().machines(400, seed=0)
    assert readings.shape == (400, 64, 6)
    assert np.bincount(states).min() > 70
    by_state = [readings[states == state] for state in range(4)]
    spreads = [of_state[..., 3].std() for of_state in by_state]
    np.testing.assert_allclose(spreads, np.mean(spreads), 0.05)
    power = [np.abs(np.fft.rfft(x, axis=1))[:, 1:].mean(axis=(0, 2)) for x in by_state]
    assert [1 + spectrum.argmax() for spectrum in power] == [3, 4, 5, 6]
