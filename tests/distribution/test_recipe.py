"""A recipe with `--distribute` on recordings comes to the losses of one device."""

import csv
import json

import numpy as np
import programs
import pytest
from programs import BACKEND
from recipe_runs import PHASES, SHORT, load_recipe, save_encoder
from sound_files import noise, write

RECIPE = "recipes/pretrain_audio.py"


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """The recipe's flags for a short run on a folder of recordings."""
    folder = tmp_path_factory.mktemp("recordings")
    for index in range(16):
        # Of all lengths, so that they are cropped at random.
        sound = noise(0.25 + 0.02 * index, seed=index)
        write(folder / "wav" / f"{index:02}.wav", sound, subtype="FLOAT")
    preset = f"--preset={save_encoder(folder / 'small', 'audio')}"
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


WAYS = {
    "torch": [{"processes": 2}],
    "jax": [{"devices": 2}, {"processes": 2}],
    "tensorflow": [{"devices": 2}],
}
if BACKEND != "torch":
    # Torch's processes start fastest.
    pytestmark = pytest.mark.slow


@pytest.mark.parametrize("way", WAYS[BACKEND])
def test_several_devices_learn_what_one_does(way, flags, expected, tmp_path):
    directory = tmp_path / "run"
    arguments = [*flags, "--directory", directory, "--distribute"]
    programs.run(RECIPE, *arguments, **way)
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
