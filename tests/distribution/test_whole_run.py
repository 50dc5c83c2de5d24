"""A run of several processes loses one, resumes, and ends like a run of one."""

import json

import numpy as np
import programs
import pytest
from programs import BACKEND

SCRIPT = "tests/distribution/whole_run.py"
PHASES = ["0_cold_start", "1_tokenizer", "2_encoder"]
pytestmark = [
    pytest.mark.skipif(BACKEND == "tensorflow", reason="has one process"),
    # Torch's processes start fastest.
    *([] if BACKEND == "torch" else [pytest.mark.slow]),
]


@pytest.fixture(scope="module")
def one_process():
    """What one process comes to."""
    return programs.load(SCRIPT).run(None)


def run_with(event, directory):
    """Runs two processes of which something happens to one; returns codes, output."""
    arguments = (directory, "TokenizerPretrainer", event)
    return programs.finish(programs.start(SCRIPT, *arguments, processes=2))


def test_a_run_that_loses_a_process_resumes(tmp_path, one_process):
    directory = tmp_path / "run"
    codes, printed = run_with("die", directory)
    assert codes[1] == 3, printed[1]
    assert codes[0] not in (0, 3), printed[0]
    if BACKEND != "jax":
        # JAX ends the process by itself, with a message of its own.
        assert "Another process of this run has died" in printed[0]
    state = json.loads((directory / "state.json").read_text())
    assert state["phases_done"] == PHASES[:1]
    assert (directory / "phases" / "1_tokenizer" / "checkpoint.npz").exists()

    programs.run(SCRIPT, directory, processes=2)
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
    directory = tmp_path / "run"
    codes, printed = run_with("terminate", directory)
    assert codes == [143, 143], "\n\n".join(printed)
    log = (directory / "log.txt").read_text()
    assert log.splitlines()[-1].endswith("Stopped by Preempted")
    with np.load(directory / "phases" / "1_tokenizer" / "checkpoint.npz") as state:
        header = json.loads(str(state["header"]))
    # After the step in which the signal came.
    assert (header["epoch"], header["step"]) == (1, 1)
    programs.run(SCRIPT, directory, processes=2)
    check_end(directory, one_process)


def check_end(directory, expected):
    state = json.loads((directory / "state.json").read_text())
    assert state["phases_done"] == PHASES
    found = np.load(directory / "found.npz")
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, 1e-5, 1e-5, err_msg=name)
