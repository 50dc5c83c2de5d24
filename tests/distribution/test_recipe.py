"""A recipe with `--distribute` on recordings comes to the losses of one device."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from recipe_runs import PHASES, RECIPES, SHORT, load_recipe, save_small_encoder
from sound_files import noise, write

import keras_bridle as kb

BACKEND = keras.backend.backend()
FOLDER = Path(__file__).parent
RECIPE = str(RECIPES / "pretrain_audio.py")


def several_processes():
    spec = importlib.util.spec_from_file_location(
        "several_processes", FOLDER / "several_processes.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The recipe's flags for a short run on a folder of recordings."""
    folder = tmp_path_factory.mktemp("recordings")
    for index in range(16):
        # Of all lengths, so that they are cropped at random.
        sound = noise(0.25 + 0.02 * index, seed=index)
        write(folder / "wav" / f"{index:02}.wav", sound, subtype="FLOAT")
    preset = save_small_encoder(
        folder / "small",
        patch_size=(8, 32),
        input_dims=(None,),
        front_end=kb.LogMelSpectrogram(),
    )
    return [*SHORT, "--seconds=0.3", "--data", str(folder / "wav"), preset]


@pytest.fixture(scope="module")
def expected(flags, tmp_path_factory):
    """The losses of one device."""
    directory = tmp_path_factory.mktemp("one") / "run"
    load_recipe("pretrain_audio").main([*flags, "--directory", str(directory)])
    return losses(directory)


def losses(directory):
    """The loss of each epoch of each phase."""
    found = {}
    for name in PHASES:
        with (directory / "phases" / name / "history.csv").open() as file:
            found[name] = [float(row["loss"]) for row in csv.DictReader(file)]
    return found


def run_with_torchrun(*arguments):
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    root = str(FOLDER.parents[1])
    done = subprocess.run(
        [sys.executable, "-m", *command, RECIPE, *arguments],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def run_on_devices(*arguments):
    several_processes().run("on_virtual_devices.py", RECIPE, *arguments, devices=2)


def run_in_processes(*arguments):
    several_processes().run(RECIPE, *arguments, processes=2)


WAYS = [run_with_torchrun]
if BACKEND != "torch":
    # Torch's processes start fastest.
    WAYS = [run_on_devices, *([run_in_processes] if BACKEND == "jax" else [])]
    pytestmark = pytest.mark.slow


@pytest.mark.parametrize("run", WAYS)
def test_several_devices_learn_what_one_does(run, flags, expected, tmp_path):
    directory = tmp_path / "run"
    run(*flags, "--directory", str(directory), "--distribute")
    found = losses(directory)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, 1e-5, err_msg=name)
    state = json.loads((directory / "state.json").read_text())
    assert state["phases_done"] == PHASES
    # One process reports and saves, once.
    assert (directory / "preset" / "model.weights.h5").exists()
    assert (directory / "results" / "code_usage.csv").exists()
    assert (directory / "log.txt").read_text().count("All phases are done") == 1
