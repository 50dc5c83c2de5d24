"""The audio recipe, really run, on few recordings."""

import json
import os
import signal
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import soundfile
from recipe_runs import (
    RECIPES,
    SHORT,
    check_features,
    check_resume,
    check_run,
    check_table,
    fails_in_one_line,
    load_recipe,
    save_small_encoder,
    write_preset_config,
)

import keras_bridle as kb
from keras_bridle import cli as command_line
from keras_bridle.data.samples import load_sonic_pi, load_syllables

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
    arguments.append(small_sound_encoder(tmp_path / "small"))
    recipe.main(arguments)
    check_run(directory, np.ones((1, 8000), "float32"))
    assert "broken.wav" in (directory / "skipped_files.csv").read_text()
    check_resume(recipe, arguments, directory)


def test_sounds_are_read_as_the_preset_expects(recipe, recordings, tmp_path, capsys):
    front_end = {"class_name": "any", "config": {"sample_rate": 8000}}
    preset = write_preset_config(tmp_path, (None,), front_end=front_end)
    args = recipe.parse_arguments([*SHORT, preset, "--data", str(recordings)])
    assert recipe.own_recordings(args).examples.shape == (16, 2400)
    arguments = [*SHORT, preset, "--directory=never"]
    fails_in_one_line(recipe, arguments, "it is for 8000 samples a second", capsys)


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


def small_sound_encoder(folder):
    return save_small_encoder(
        folder,
        patch_size=(8, 32),
        input_dims=(None,),
        front_end=kb.LogMelSpectrogram(),
    )


@pytest.mark.slow
def test_every_flag_of_long_runs(recipe, tmp_path, monkeypatch):
    """One recording is no number, in the last step of each epoch."""
    good = load_syllables("train", num_samples=4800)[0][:18]
    bad = np.copy(good)
    bad[np.random.default_rng([0, 0]).permutation(18)[-1]] = np.nan
    data = command_line.RecipeData(bad, good)
    monkeypatch.setattr(recipe, "sample_recordings", lambda args: data)
    monkeypatch.setattr(recipe, "syllable_probes", lambda *args: None)
    directory = tmp_path / "run"
    flags = "--profile --joint --max-nonfinite-steps=1 --checkpoint-every-steps=5"
    flags += " --ema-momentum=0.5 --dtype-policy=mixed_bfloat16 --batch-size=1"
    arguments = [*SHORT, *flags.split(), "--directory", str(directory)]
    recipe.main([*arguments, small_sound_encoder(tmp_path / "small")])

    settings = json.loads((directory / "settings.json").read_text())["settings"]
    assert settings["ema_momentum"] == 0.5
    assert settings["dtype_policy"] == "mixed_bfloat16"
    state = json.loads((directory / "state.json").read_text())
    assert state["phases_done"] == ["0_cold_start", "1_joint"]
    for phase in state["phases_done"]:
        folder = directory / "phases" / phase
        assert any(path.stat().st_size for path in (folder / "profile").rglob("*.*"))
        (file,) = (folder / "nonfinite").iterdir()
        assert file.name == "epoch_0_step_17.npz"
        with np.load(file) as batch:
            assert np.isnan(batch["inputs"]).all()
        history = json.loads((folder / "history.json").read_text())
        assert history["skipped_steps"] == [1.0]
        assert np.isfinite(history["loss"]).all()
    check_features(directory, np.ones((1, 8000), "float32"))


KILLED = """
import os, signal, sys
import keras
from recipe_runs import load_recipe
from keras_bridle import InterleavedPretraining

class Kill(keras.callbacks.Callback):
    batches = 0
    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == 11:
            os.kill(os.getpid(), signal.SIGKILL)

fit = InterleavedPretraining.fit
def fit_and_kill(self, *args, **kwargs):
    return fit(self, *args, callbacks=[Kill()], **kwargs)

InterleavedPretraining.fit = fit_and_kill
load_recipe("pretrain_audio").main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(recipe, recordings, tmp_path):
    arguments = [*SHORT, "--data", str(recordings), "--batch-size=4"]
    arguments += ["--checkpoint-every-steps=1", small_sound_encoder(tmp_path / "small")]
    recipe.main([*arguments, "--directory", str(tmp_path / "unbroken")])
    arguments += ["--directory", str(tmp_path / "killed")]
    paths = os.pathsep.join([str(RECIPES.parent / "tests"), *filter(None, sys.path)])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    phase = tmp_path / "killed" / "phases" / "2_encoder"
    assert (phase / "checkpoint.npz").exists()
    recipe.main([*arguments, "--resume"])
    assert "2_encoder is resumed after" in (tmp_path / "killed" / "log.txt").read_text()
    for name in ("backbone", "decoder", "tokenizer"):
        path = f"phases/2_encoder/{name}.weights.h5"
        found, expected = (
            weights_in(tmp_path / run / path) for run in ("killed", "unbroken")
        )
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)


def weights_in(path):
    """All arrays of an HDF5 file, by name."""
    found = {}
    with h5py.File(path) as file:

        def add(name, item):
            if isinstance(item, h5py.Dataset):
                found[name] = item[()]

        file.visititems(add)
    assert found
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/folder"], "does not exist"),
        (["--preset", "enormous"], "no such preset"),
        (["--mask-ratio", "1.5"], "--mask-ratio: expected a number from 0 to below 1"),
        (["--warmup", "2"], "--warmup: expected"),
        (["--seconds", "-1"], "--seconds: expected a number above 0"),
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
