"""The folder of a run: never overwritten, and clear about what differs."""

import json

import keras
import pytest

import keras_bridle
from keras_bridle.training.run import RunDirectory

SETTINGS = {"rounds": 2, "plan": [("0_cold_start", 3)], "mask": {"ratio": 0.8}}


def test_settings_are_written(tmp_path):
    RunDirectory(tmp_path / "a" / "b", SETTINGS)
    written = json.loads((tmp_path / "a" / "b" / "settings.json").read_text())
    assert written["settings"] == {**SETTINGS, "plan": [["0_cold_start", 3]]}
    assert written["about"]["keras_bridle"] == keras_bridle.__version__
    assert written["about"]["backend"] == keras.config.backend()


def test_done_phases_are_remembered(tmp_path):
    run = RunDirectory(tmp_path, SETTINGS)
    assert not run.is_done("0_cold_start")
    run.mark_done("0_cold_start")
    again = RunDirectory(str(tmp_path), SETTINGS, resume=True)
    assert again.is_done("0_cold_start")
    assert not again.is_done("1_tokenizer")
    assert again.phase_path("1_tokenizer").is_dir()


def test_a_run_is_not_overwritten(tmp_path):
    RunDirectory(tmp_path, SETTINGS)
    before = (tmp_path / "settings.json").read_text()
    with pytest.raises(FileExistsError, match="resume=True"):
        RunDirectory(tmp_path, SETTINGS)
    assert (tmp_path / "settings.json").read_text() == before


def test_other_files_do_not_matter(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory(tmp_path, SETTINGS)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resuming_what_is_not_there_starts_it(tmp_path):
    RunDirectory(tmp_path / "new", SETTINGS, resume=True)
    assert (tmp_path / "new" / "settings.json").exists()


def test_other_settings_are_named(tmp_path):
    RunDirectory(tmp_path, SETTINGS)
    other = {"rounds": 3, "plan": SETTINGS["plan"], "mask": {"ratio": 0.7}, "seed": 1}
    with pytest.raises(ValueError, match="cannot be resumed") as caught:
        RunDirectory(tmp_path, other, resume=True)
    message = str(caught.value)
    assert "rounds: 2 then, 3 now" in message
    assert "mask: {'ratio': 0.8} then, {'ratio': 0.7} now" in message
    assert "seed: None then, 1 now" in message
    assert "plan" not in message


@pytest.mark.parametrize("name", ["settings.json", "state.json"])
def test_damaged_files_are_named(tmp_path, name):
    RunDirectory(tmp_path, SETTINGS).mark_done("0_cold_start")
    (tmp_path / name).write_text('{"settings": ')
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        RunDirectory(tmp_path, SETTINGS, resume=True)


def test_interrupted_write_leaves_the_old_state(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path, SETTINGS)
    run.mark_done("0_cold_start")

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tmp_path), "write_text", fail)
    with pytest.raises(KeyboardInterrupt):
        run.mark_done("1_tokenizer")
    monkeypatch.undo()
    again = RunDirectory(tmp_path, SETTINGS, resume=True)
    assert again.is_done("0_cold_start")
    assert not again.is_done("1_tokenizer")
