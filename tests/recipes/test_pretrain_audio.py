"""The audio recipe, really run, on few recordings."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import soundfile

import keras_bridle as kb
from keras_bridle.data import load_sonic_pi, load_syllables

RECIPE = Path(__file__).parents[2] / "recipes" / "pretrain_audio.py"
SHORT = [
    "--quiet",
    "--rounds=1",
    "--cold-start-epochs=1",
    "--tokenizer-epochs=1",
    "--encoder-epochs=1",
    "--batch-size=8",
    "--num-levels=2",
    "--codebook-size=8",
    "--code-dim=8",
    "--preset=tiny",
    "--seconds=0.3",
]
PNG_START = b"\x89PNG"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("pretrain_audio", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    waveforms, _, _ = load_syllables("train", num_samples=4800)
    for index, waveform in enumerate(waveforms[:17]):
        soundfile.write(folder / f"{index:02d}.wav", waveform, 16000)
    (folder / "broken.wav").write_text("no sound at all")
    return folder


def test_own_recordings_chain_all_phases_and_resume(recipe, recordings, tmp_path):
    directory = tmp_path / "run"
    arguments = [*SHORT, "--data", str(recordings), "--directory", str(directory)]
    recipe.main(arguments)

    state = json.loads((directory / "state.json").read_text())
    assert state["phases_done"] == ["0_cold_start", "1_tokenizer", "2_encoder"]
    for picture in ("history", "code_usage", "codes"):
        path = directory / "results" / f"{picture}.png"
        assert path.read_bytes().startswith(PNG_START)
    assert "broken.wav" in (directory / "skipped_files.csv").read_text()

    preset = kb.BridleBackbone.from_preset(str(directory / "preset"))
    features = preset.pooled_features(np.ones((1, 8000), "float32"))
    assert np.isfinite(keras.ops.convert_to_numpy(features)).all()

    # A run that is done has nothing left to do, and finds its results again.
    before = (directory / "results" / "report.json").read_text()
    recipe.main([*arguments, "--resume"])
    assert (directory / "results" / "report.json").read_text() == before


def test_sample_run_ends_with_a_table_of_probes(recipe, tmp_path, monkeypatch, capsys):
    def few_syllables(split, field="initial", num_samples=8000):
        waveforms, labels, names = load_syllables(split, field, num_samples)
        some = np.flatnonzero(load_syllables(split, "initial")[1] < 4)[:40]
        return waveforms[some], labels[some], names

    monkeypatch.setattr(recipe, "load_syllables", few_syllables)
    monkeypatch.setattr(
        recipe, "load_sonic_pi", lambda seconds: load_sonic_pi(seconds)[:24]
    )
    recipe.main([*SHORT, "--with-sounds", "--directory", str(tmp_path / "run")])

    report = json.loads((tmp_path / "run" / "results" / "report.json").read_text())
    names = [row["name"] for row in report["rows"]]
    assert names == ["log-mel", "untrained", "0_cold_start", "2_encoder"]
    for row in report["rows"]:
        assert 0 <= row["initial"] <= 1 and 0 <= row["final"] <= 1
    shown = capsys.readouterr().out
    assert "log-mel" in shown and "Code usage" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/folder"], "does not exist"),
        (["--preset", "enormous"], "no such preset"),
        (["--mask-ratio", "1.5"], "mask_ratio"),
    ],
)
def test_wrong_flags_are_errors_before_any_training(
    recipe, tmp_path, arguments, message, capsys
):
    directory = tmp_path / "run"
    with pytest.raises((SystemExit, ValueError)) as error:
        recipe.main([*SHORT, *arguments, "--directory", str(directory)])
    assert message in str(error.value) + capsys.readouterr().err
    assert not directory.exists()


def test_an_empty_folder_says_what_was_looked_for(recipe, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="wav"):
        recipe.main([*SHORT, "--data", str(tmp_path), "--directory", "never"])


def test_a_run_is_not_overwritten(recipe, tmp_path, capsys):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(SystemExit):
        recipe.main([*SHORT, "--directory", str(tmp_path)])
    assert "--resume" in capsys.readouterr().err
