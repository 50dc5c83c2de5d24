"""What the recipes' tests share: short runs, and what every run must leave behind."""

import json
from pathlib import Path

import keras
import numpy as np
import programs

import keras_bridle as kb

RECIPES = Path(__file__).parents[1] / "recipes"
SHORT = [
    "--quiet",
    "--rounds=1",
    "--cold-start-epochs=1",
    "--tokenizer-epochs=1",
    "--encoder-epochs=1",
    "--batch-size=8",
    "--num-levels=2",
    "--codebook-size=8",
    "--set=code_dim=8",
    "--preset=tiny",
]
PHASES = ["0_cold_start", "1_tokenizer", "2_encoder"]


def load_recipe(name):
    return programs.load(f"recipes/{name}.py")


# By modality: the encoders of the recipes' tests, of one layer, which compile fast.
ENCODERS = {
    "audio": {"patch_size": (8, 32), "input_dims": (None,)},
    "image": {"patch_size": 7, "input_dims": (28, 28, 1)},
    "video": {
        "patch_size": (2, 8, 8),
        "input_dims": (4, 16, 16, 3),
        "use_class_token": False,
        "position_layout": "sequence",
    },
}


def save_encoder(folder, modality, **settings):
    """Saves a preset of a small encoder; gives its folder."""
    is_audio = modality == "audio"
    front_end = kb.LogMelSpectrogram() if is_audio else kb.PixelNormalization()
    kb.BridleBackbone(
        hidden_dim=16,
        num_layers=1,
        num_heads=2,
        mlp_dim=32,
        front_end=front_end,
        **{**ENCODERS[modality], **settings},
    ).save_to_preset(str(folder))
    return folder


def write_preset_config(folder, input_dims, **settings):
    """Writes the part of a preset that flags are compared with."""
    folder.mkdir(exist_ok=True)
    config = {"input_dims": input_dims, **settings}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    return f"--preset={folder}"


def check_run(directory, inputs):
    """A run has all phases, pictures, and an encoder that takes raw input."""
    state = json.loads((directory / "state.json").read_text())
    assert state["phases_done"] == PHASES
    for picture in ("history", "code_usage", "codes", "code_patches"):
        path = directory / "results" / f"{picture}.png"
        assert path.read_bytes().startswith(b"\x89PNG")
    check_features(directory, inputs)


def check_features(directory, inputs):
    """The encoder that a run saved takes raw input."""
    preset = kb.BridleBackbone.from_preset(str(directory / "preset"))
    features = keras.ops.convert_to_numpy(preset.pooled_features(inputs))
    assert np.isfinite(features).all()
    assert np.abs(features).max() > 0


def check_resume(recipe, arguments, directory):
    """A run that is done has nothing left to do, and finds its results again."""
    before = (directory / "results" / "report.json").read_text()
    recipe.main([*arguments, "--resume"])
    assert (directory / "results" / "report.json").read_text() == before


def check_table(directory, names, metrics):
    """The table of probes has these lines and columns, and accuracies in them."""
    report = json.loads((directory / "results" / "report.json").read_text())
    assert [row.pop("name") for row in report["rows"]] == names
    for row in report["rows"]:
        assert set(row) == set(metrics)
        values = np.concatenate([np.atleast_1d(value) for value in row.values()])
        assert ((values >= 0) & (values <= 1)).all()
    return report["rows"]


def fails_in_one_line(recipe, arguments, message, capsys):
    """The program ends with code 2 and one line that says what is wrong."""
    capsys.readouterr()
    try:
        recipe.main(arguments)
    except SystemExit as stop:
        assert stop.code == 2
    else:
        raise AssertionError("the recipe did not stop")
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error:" in x]
    assert message in line
