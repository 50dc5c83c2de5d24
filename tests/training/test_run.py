"""The directory of a run: never overwritten, one process at a time, phases kept."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import keras_bridle
from keras_bridle.training.checkpoint import SaveError
from keras_bridle.training.run import RunDirectory, open_run, run_lock

SETTINGS = {
    "rounds": 2,
    "plan": [("0_cold_start", 3)],
    "mask": {"ratio": 0.8, "registered_name": "mask", "module": "before"},
}
PHASE = SimpleNamespace(name="0_cold_start")
OPTIONS = SimpleNamespace(
    checkpoint_every=1, checkpoint_every_steps=None, checkpoint_minutes=None
)


def test_settings_and_done_phases_are_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    # To resume what is not there starts it.
    run = RunDirectory(tmp_path / "a" / "b", SETTINGS, resume=True)
    written = json.loads((run.path / "settings.json").read_text())
    assert written["settings"] == {**SETTINGS, "plan": [["0_cold_start", 3]]}
    assert written["about"]["keras_bridle"] == keras_bridle.__version__
    assert written["about"]["backend"] == keras.config.backend()
    assert not run.is_done("0_cold_start")
    run.mark_done("0_cold_start")
    with pytest.raises(FileExistsError):
        RunDirectory(run.path, SETTINGS)
    again = RunDirectory(str(run.path), SETTINGS, resume=True)
    assert again.is_done("0_cold_start") and not again.is_done("1_tokenizer")
    RunDirectory(tmp_path, SETTINGS)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_other_settings_are_named(tmp_path):
    RunDirectory(tmp_path, SETTINGS)
    # What one version alone knows is no difference, nor is where a class is.
    known = {
        "mask": {"ratio": 0.8, "new": 1, "module": "moved", "registered_name": "mask"},
        "seed": 1,
    }
    RunDirectory(tmp_path, known, resume=True)
    other = {"rounds": 3, "plan": SETTINGS["plan"], "mask": {"ratio": 0.7}}
    with pytest.raises(ValueError) as caught:
        RunDirectory(tmp_path, other, resume=True)
    message = str(caught.value)
    assert "rounds: 2 then, 3 now" in message
    assert "mask: {'ratio': 0.8" in message
    assert "plan" not in message


@pytest.mark.parametrize("name", ["settings.json", "state.json"])
def test_damaged_files_are_named(tmp_path, name):
    RunDirectory(tmp_path, SETTINGS).mark_done("0_cold_start")
    (tmp_path / name).write_text('{"settings": ')
    with pytest.raises(ValueError, match=name):
        RunDirectory(tmp_path, SETTINGS, resume=True)


def test_a_killed_process_leaves_no_lock(tmp_path):
    program = (
        "import sys, time\n"
        "from keras_bridle.training.run import run_lock\n"
        "with run_lock(sys.argv[1]):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError), run_lock(tmp_path):
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    with run_lock(tmp_path), pytest.raises(BlockingIOError), run_lock(tmp_path):
        pass
    with run_lock(tmp_path):
        pass


def layer(value):
    made = keras.layers.Dense(2, kernel_initializer=keras.initializers.Constant(value))
    made.build((None, 3))
    return keras.Sequential([keras.Input((3,)), made])


def open_at(path, **kwargs):
    return open_run(path, lambda: {"rounds": 1}, OPTIONS, **kwargs)


def test_a_phase_is_read_as_it_was_written(tmp_path):
    saved, loaded = layer(1.5), layer(0.0)
    with open_at(tmp_path / "run") as files_of:
        files = files_of(PHASE)
        assert not files.is_done()
        files.save({"backbone": saved}, {"loss": [np.float32(2.5), 1]})
        files.mark_done()
        files.close()
    names = sorted(path.name for path in files.folder.iterdir())
    assert names == ["backbone.weights.h5", "history.json"]
    with open_at(tmp_path / "run", resume=True) as files_of:
        files = files_of(PHASE)
        assert files.is_done()
        assert files.load({"backbone": loaded}) == {"loss": [2.5, 1.0]}
    np.testing.assert_array_equal(loaded.get_weights()[0], saved.get_weights()[0])


def test_a_disk_that_is_full_at_the_end_of_a_phase(tmp_path, monkeypatch):
    def fail(path, *args, **kwargs):
        path.write_bytes(b"half")
        # As HDF5 tells it.
        raise RuntimeError("Can't write data (error message = 'No space left')")

    model = layer(1.0)
    monkeypatch.setattr(model, "save_weights", fail)
    with open_at(tmp_path / "run") as files_of:
        files = files_of(PHASE)
        with pytest.raises(SaveError) as caught:
            files.save({"backbone": model}, {"loss": [1.0]})
        assert caught.value.path == files.folder / "backbone.weights.h5"
        assert not files.is_done()
    assert not list(files.folder.iterdir())
