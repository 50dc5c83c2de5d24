"""A run that was stopped on one backend is ended on another one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("stopped_run.py")
HERE = keras.backend.backend()
# The one that starts fastest.
ELSEWHERE = "jax" if HERE == "torch" else "torch"

specification = importlib.util.spec_from_file_location("stopped_run", SCRIPT)
stopped_run = importlib.util.module_from_spec(specification)
specification.loader.exec_module(stopped_run)


@pytest.mark.skipif(
    importlib.util.find_spec(ELSEWHERE) is None, reason=f"no {ELSEWHERE}"
)
def test_the_end_is_the_same_but_for_rounding(tmp_path):
    environment = os.environ | {
        "KERAS_BACKEND": ELSEWHERE,
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), *filter(None, sys.path)]),
    }
    # Imported, not run: the settings of a run name the module of its mask.
    program = f"import stopped_run; stopped_run.main({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    pretraining = stopped_run.train(tmp_path / "stopped")
    log = (tmp_path / "stopped" / "log.txt").read_text()
    assert f"Started on {ELSEWHERE}, resumed on {HERE}" in log
    assert "0_cold_start is resumed after 1 epochs and 2 steps" in log
    folder = tmp_path / "unbroken" / "phases" / "0_cold_start"
    expected = json.loads((folder / "history.json").read_text())
    found = pretraining.history["0_cold_start"]
    assert expected.keys() == found.keys()
    assert found["loss"][0] == expected["loss"][0]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, 1e-3, 1e-5, err_msg=name)
    for name in ("backbone", "decoder", "tokenizer"):
        part = getattr(pretraining, name)
        ended_here = part.get_weights()
        part.load_weights(folder / f"{name}.weights.h5")
        for ours, theirs in zip(ended_here, part.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, 1e-3, 1e-4)
