"""A run of several processes loses one, goes on, and ends like a run of one."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest

FOLDER = Path(__file__).parent
PHASES = ["0_cold_start", "1_tokenizer", "2_encoder"]
BACKEND = keras.backend.backend()
pytestmark = [
    pytest.mark.skipif(BACKEND == "tensorflow", reason="has one process"),
    # Torch's processes start fastest.
    *([] if BACKEND == "torch" else [pytest.mark.slow]),
]


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one_process():
    """What one process comes to."""
    return load("whole_run").run(None)


def test_lost_process_ends_the_run_which_goes_on(tmp_path, one_process):
    several, directory = load("several_processes"), tmp_path / "run"
    started = several.start(
        "whole_run.py", str(directory), "TokenizerPretrainer", "die", processes=2
    )
    codes, printed = several.finish(started)
    assert codes[1] == 3, printed[1]
    assert codes[0] not in (0, 3), printed[0]
    if BACKEND != "jax":
        # JAX ends the process by itself, with a message of its own.
        assert "Another process of this run has died" in printed[0]
    state = json.loads((directory / "state.json").read_text())
    assert state["phases_done"] == PHASES[:1]
    assert (directory / "phases" / "1_tokenizer" / "checkpoint.npz").exists()

    several.run("whole_run.py", str(directory), processes=2)
    check_end(directory, one_process)
    # The other process left nothing here.
    assert {path.name for path in directory.iterdir()} == {
        "found.npz",
        "log.txt",
        "phases",
        "run.lock",
        "settings.json",
        "state.json",
    }


def test_sigterm_to_one_process_stops_all_of_them(tmp_path, one_process):
    several, directory = load("several_processes"), tmp_path / "run"
    started = several.start(
        "whole_run.py", str(directory), "TokenizerPretrainer", "terminate", processes=2
    )
    codes, printed = several.finish(started)
    assert codes == [143, 143], "\n\n".join(printed)
    log = (directory / "log.txt").read_text()
    assert log.splitlines()[-1].endswith("Stopped by Preempted")
    with np.load(directory / "phases" / "1_tokenizer" / "checkpoint.npz") as state:
        header = json.loads(str(state["header"]))
    # After the step in which the signal came.
    assert (header["epoch"], header["step"]) == (1, 1)
    several.run("whole_run.py", str(directory), processes=2)
    check_end(directory, one_process)


def check_end(directory, expected):
    state = json.loads((directory / "state.json").read_text())
    assert state["phases_done"] == PHASES
    found = np.load(directory / "found.npz")
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, 1e-5, 1e-5, err_msg=name)
