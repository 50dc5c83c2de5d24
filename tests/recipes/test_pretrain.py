"""The pretraining recipes, really run, on few files and few sample data."""

import json

import numpy as np
import PIL.Image
import pytest
import soundfile
from recipe_runs import (
    ENCODERS,
    SHORT,
    check_features,
    check_resume,
    check_run,
    check_table,
    fails_in_one_line,
    load_recipe,
)

import keras_bridle as kb
from keras_bridle import modalities
from keras_bridle.data.samples import (
    extract_samples,
    load_fashion,
    load_syllables,
)

recipes = {name: load_recipe(f"pretrain_{name}") for name in ENCODERS}
SIZES = {
    "audio": ["--seconds=0.3"],
    "image": [],
    "video": ["--image-size=16", "--num-frames=4"],
}
RAW = {
    "audio": np.ones((1, 8000), "float32"),
    "image": np.full((1, 24, 16, 1), 9, "uint8"),
    "video": np.full((1, 6, 16, 24, 3), 9, "uint8"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of files of each modality, one of which is broken."""
    root = tmp_path_factory.mktemp("files")
    extract_samples(root)
    for name, broken in (("audio", "wav"), ("image", "png"), ("video", "mp4")):
        (root / name).mkdir(exist_ok=True)
        (root / name / f"broken.{broken}").write_text("nothing")
    waveforms, _, _ = load_syllables("train", num_samples=4800)
    images, _, _ = load_fashion("train")
    for index in range(17):
        soundfile.write(root / f"audio/{index:02}.wav", waveforms[index], 16000)
        # Of several sizes, gray and in color.
        image = PIL.Image.fromarray(images[index, ..., 0]).resize((40 + index, 36))
        image.convert("RGB" if index % 2 else "L").save(root / f"image/{index:02}.png")
    return root


MORE = {
    "audio": [],
    "image": ["--mask=block"],
    "video": ["--batch-size=2", "--set=flip=false"],
}


@pytest.mark.parametrize(
    "name",
    [pytest.param("audio", marks=pytest.mark.every_backend), "image", "video"],
)
def test_own_files_chain_all_phases_and_resume(name, files, encoders, tmp_path, capsys):
    recipe, directory = recipes[name], tmp_path / "run"
    arguments = [*SHORT, *SIZES[name], *MORE[name]]
    arguments += [f"--preset={encoders[name]}", f"--data={files / name}"]
    arguments.append(f"--directory={directory}")
    recipe.main(arguments)
    check_run(directory, RAW[name])
    assert "broken" in (directory / "skipped_files.csv").read_text()
    check_resume(recipe, arguments, directory)
    # Files that are no longer those of the run.
    min((files / name).iterdir()).touch()
    arguments.append("--resume")
    fails_in_one_line(recipe, arguments, "have changed", capsys)
    recipe.main([*arguments, "--set=accept_changed_data=true"])
    # The run's settings make the same run.
    again = [f"--settings={directory / 'settings.json'}", "--directory=never"]
    modality = getattr(modalities, name.upper())
    options = recipe.Pretraining(
        modality, recipe.Options, "", recipe.SAMPLE, recipe.OWN, again
    ).options
    saved = json.loads((directory / "settings.json").read_text())["recipe"]
    assert json.loads(json.dumps(options.settings())) == saved


PROBES = {
    "audio": ("log-mel", ["initial, in order", "initial, mean"]),
    "image": ("pixels", ["linear 5", "k-NN 5", "linear 20", "k-NN 20", "in place 20"]),
    "video": ("pixels, linear", ["synthetic pan"]),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_sample_run_ends_with_a_table_of_probes(
    name, few_samples, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(recipes["image"], "DRAWS", {5: 2, 20: 1})
    recipe, directory = recipes[name], tmp_path / "run"
    recipe.main([*SHORT, *SIZES[name], f"--directory={directory}"])
    raw = {"image": (1, 28, 28, 1), "video": (1, 4, 16, 16, 3)}.get(name, (1, 8000))
    check_features(directory, np.full(raw, 9, "float32"))
    baseline, probes = PROBES[name]
    more = ["pixels, RBF SVM"] if name == "video" else []
    rows = [baseline, *more, "untrained", "0_cold_start", "2_encoder"]
    found = check_table(directory, rows, probes)
    if name == "image":
        assert len(found[0]["linear 5"]) == 2 and np.mean(found[0]["linear 20"]) > 0.5
    shown = capsys.readouterr().out
    assert baseline in shown and "Code usage" in shown


@pytest.mark.slow
def test_every_option_of_long_runs(encoders, few_samples, tmp_path, monkeypatch):
    """One recording is no number, in the last step of each epoch."""
    good = load_syllables("train", num_samples=4800)[0][:18]
    bad = np.copy(good)
    bad[np.random.default_rng([0, 0]).permutation(18)[-1]] = np.nan
    recipe, directory = recipes["audio"], tmp_path / "run"
    monkeypatch.setattr(recipe, "sample_recordings", lambda *args: (bad, good))
    arguments = [
        *SHORT,
        *SIZES["audio"],
        "--set=joint=true",
        "--dtype-policy=mixed_bfloat16",
    ]
    arguments += ["--batch-size=1", f"--preset={encoders['audio']}"]
    arguments.append(f"--directory={directory}")
    options = "profile=true max_nonfinite_steps=1 checkpoint_every_steps=5"
    arguments += [f"--set={x}" for x in (options + " ema_momentum=0.5").split()]
    recipe.main(arguments)

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
    check_features(directory, RAW["audio"])


def test_a_run_is_not_resumed_with_other_settings(few_samples, tmp_path, capsys):
    (tmp_path / "settings.json").write_text('{"settings": {"num_levels": 7}}')
    arguments = [*SHORT, *SIZES["audio"], f"--directory={tmp_path}", "--resume"]
    fails_in_one_line(recipes["audio"], arguments, "other settings", capsys)
    # Nothing was probed before that was known.
    assert not (tmp_path / "results").exists()


def test_a_teacher_in_place_of_the_cold_start(files, encoders, tmp_path, capsys):
    recipe, directory = recipes["image"], tmp_path / "run"
    teacher = kb.BridleBackbone.from_preset("bridle_image_tiny", load_weights=False)
    teacher.save_to_preset(str(tmp_path / "teacher"))
    arguments = [*SHORT, f"--preset={encoders['image']}", f"--data={files / 'image'}"]
    arguments.append(f"--directory={directory}")
    none = f"--teacher={tmp_path / 'none'}"
    fails_in_one_line(recipe, [*arguments, none], "none", capsys)
    assert not directory.exists()
    arguments.append(f"--teacher={tmp_path / 'teacher'}")
    recipe.main(arguments)
    state = json.loads((directory / "state.json").read_text())
    assert state["phases_done"] == ["0_tokenizer", "1_encoder"]
    check_features(directory, RAW["image"])
    check_resume(recipe, arguments, directory)
