"""The audio recipe, really run, on few recordings."""

import keras
import numpy as np
import pytest
import soundfile
from recipe_runs import (
    SHORT,
    check_resume,
    check_run,
    check_table,
    fails_in_one_line,
    load_recipe,
    save_small_encoder,
)

import keras_bridle as kb
from keras_bridle.data import load_sonic_pi, load_syllables

SHORT = [*SHORT, "--seconds=0.3"]


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("pretrain_audio")


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
    arguments.append(
        save_small_encoder(
            tmp_path / "small",
            patch_size=(8, 32),
            input_dims=(None,),
            front_end=kb.LogMelSpectrogram(),
        )
    )
    recipe.main(arguments)
    check_run(directory, np.ones((1, 8000), "float32"))
    assert "broken.wav" in (directory / "skipped_files.csv").read_text()
    check_resume(recipe, arguments, directory)


def test_sample_run_ends_with_a_table_of_probes(recipe, tmp_path, monkeypatch, capsys):
    def few_syllables(split, field="initial", num_samples=8000):
        waveforms, labels, names = load_syllables(split, field, num_samples)
        some = np.flatnonzero(load_syllables(split, "initial")[1] < 4)[:40]
        return waveforms[some], labels[some], names

    monkeypatch.setattr(recipe, "load_syllables", few_syllables)

    def few_sounds(seconds, per_sound):
        assert per_sound == 1
        return load_sonic_pi(seconds, per_sound)[:24]

    monkeypatch.setattr(recipe, "load_sonic_pi", few_sounds)
    arguments = [*SHORT, "--sounds=1", "--directory", str(tmp_path / "run")]
    recipe.main(arguments)

    names = ["log-mel", "untrained", "0_cold_start", "2_encoder"]
    probes = ["initial", "final", "initial, mean", "final, mean"]
    check_table(tmp_path / "run", names, probes)
    shown = capsys.readouterr().out
    assert "log-mel" in shown and "Code usage" in shown

    # A resumed run has its first rows already.
    def never(*args, **kwargs):
        raise AssertionError("probed again")

    monkeypatch.setattr(recipe, "linear_probe", never)
    check_resume(recipe, arguments, tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/folder"], "does not exist"),
        (["--preset", "enormous"], "no such preset"),
        (["--mask-ratio", "1.5"], "mask_ratio=1.5"),
        (["--warmup", "2"], "warmup=2.0"),
        (["--seconds", "-1"], "num_samples"),
        (["--dtype-policy", "float17"], "float17"),
        (["--rounds", "two"], "--rounds"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_wrong_flags_are_one_line(recipe, tmp_path, arguments, message, capsys):
    directory = tmp_path / "run"
    arguments = [*SHORT, *arguments, "--directory", str(directory)]
    fails_in_one_line(recipe, arguments, message, capsys)
    assert not directory.exists()


def test_wrong_files_are_one_line(recipe, tmp_path, recordings, capsys):
    def fails(data, message, *arguments):
        arguments = [*SHORT, "--data", str(data), "--directory", "never", *arguments]
        fails_in_one_line(recipe, arguments, message, capsys)

    fails(tmp_path, "wav")
    fails(tmp_path, "--segments", "--layout=audioset")
    fails(tmp_path, "no.csv", "--layout=audioset", "--segments=no.csv")
    fails(recordings, "18 files, too few for a batch of", "--batch-size=32")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "broken.wav").write_text("no sound at all")
    fails(tmp_path / "only", "broken.wav", "--batch-size=1", "--strict")


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings(
    recipe, tmp_path, capsys
):
    (tmp_path / "settings.json").write_text('{"settings": {}}')
    arguments = [*SHORT, "--directory", str(tmp_path)]
    fails_in_one_line(recipe, arguments, "--resume", capsys)
    arguments.append("--resume")
    fails_in_one_line(recipe, arguments, "other settings", capsys)
    # Nothing was probed before that was known.
    assert not (tmp_path / "results").exists()


def test_a_fault_in_training_keeps_its_traceback(recipe, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("a fault of the program")

    monkeypatch.setattr(keras.Model, "fit", fail)
    monkeypatch.setattr(recipe, "syllable_probes", lambda *args: None)
    with pytest.raises(ValueError, match="a fault of the program"):
        recipe.main([*SHORT, "--directory", str(tmp_path / "run")])
