"""The pretraining recipes, really run, on few files and few sample data."""

import json
import os
import signal
import subprocess
import sys

import h5py
import keras
import numpy as np
import PIL.Image
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
from keras_bridle import modalities
from keras_bridle.data import samples
from keras_bridle.data.samples import (
    extract_samples,
    load_fashion,
    load_sonic_pi,
    load_syllables,
    synthetic_pans,
)
from keras_bridle.training import interleaved
from keras_bridle.training.run import cached_codes

MODALITIES = ("audio", "image", "video")
recipes = {name: load_recipe(f"pretrain_{name}") for name in MODALITIES}
SIZES = {
    "audio": ["--seconds=0.3"],
    "image": [],
    "video": ["--image-size=16", "--num-frames=4"],
}
ENCODERS = {
    "audio": {"patch_size": (8, 32), "input_dims": (None,)},
    "image": {"patch_size": 4, "input_dims": (16, 16, 3)},
    "video": {
        "patch_size": (2, 8, 8),
        "input_dims": (4, 16, 16, 3),
        "use_class_token": False,
        "position_layout": "sequence",
    },
}
RAW = {
    "audio": np.ones((1, 8000), "float32"),
    "image": np.full((1, 24, 16, 3), 9, "uint8"),
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


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """The flags for small encoders."""
    root = tmp_path_factory.mktemp("encoders")
    front_ends = {"audio": kb.LogMelSpectrogram(), "image": kb.PixelNormalization()}
    return {
        name: save_small_encoder(
            root / name,
            front_end=front_ends.get(name, kb.PixelNormalization()),
            **ENCODERS[name],
        )
        for name in MODALITIES
    }


@pytest.fixture
def few_samples(monkeypatch):
    def few_syllables(split, field="initial", num_samples=8000):
        waveforms, labels, names = load_syllables(split, field, num_samples)
        some = np.flatnonzero(load_syllables(split, "initial")[1] < 4)[:40]
        return waveforms[some], labels[some], names

    def few_images(split):
        images, labels, names = load_fashion(split)
        some = np.flatnonzero(labels < 4)[:120]
        return images[some], labels[some], names

    def few_pans(split, num_clips, **options):
        return synthetic_pans(split, num_clips=32, **options)

    few = {
        "load_syllables": few_syllables,
        "load_sonic_pi": lambda *args, **kwargs: load_sonic_pi(*args, **kwargs)[:24],
        "load_fashion": few_images,
        "synthetic_pans": few_pans,
        "load_clips": lambda *_, sampling_rate, **size: few_pans("train", 8, **size)[0],
    }
    for name, function in few.items():
        monkeypatch.setattr(samples, name, function)
    monkeypatch.setattr(recipes["image"], "DRAWS", {5: 2, 20: 1})


MORE = {
    "audio": [],
    "image": ["--mask=block"],
    "video": ["--batch-size=2", "--set=flip=false"],
}


@pytest.mark.parametrize(
    "name",
    [pytest.param("audio", marks=pytest.mark.every_backend), "image", "video"],
)
def test_own_files_chain_all_phases_and_resume(name, files, encoders, tmp_path):
    recipe, directory = recipes[name], tmp_path / "run"
    arguments = [*SHORT, *SIZES[name], *MORE[name], encoders[name]]
    arguments += [f"--data={files / name}", f"--directory={directory}"]
    recipe.main(arguments)
    check_run(directory, RAW[name])
    assert "broken" in (directory / "skipped_files.csv").read_text()
    check_resume(recipe, arguments, directory)
    # The run's settings make the same run.
    again = [f"--settings={directory / 'settings.json'}", "--directory=never"]
    modality = getattr(modalities, name.upper())
    options = recipe.Pretraining(
        modality, recipe.Options, "", recipe.SAMPLE, recipe.PUBLISHED, again
    ).options
    saved = json.loads((directory / "settings.json").read_text())["recipe"]
    assert json.loads(json.dumps(options.settings())) == saved


PROBES = {
    "audio": ("log-mel", ["initial", "final", "initial, mean", "final, mean"]),
    "image": ("pixels", ["linear 5", "k-NN 5", "linear 20", "k-NN 20", "in place 20"]),
    "video": ("pixels, linear", ["synthetic pan"]),
}


@pytest.mark.parametrize("name", MODALITIES)
def test_sample_run_ends_with_a_table_of_probes(name, few_samples, tmp_path, capsys):
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


@pytest.mark.parametrize(
    ("name", "dims", "expected"),
    [
        ("audio", (None,), (16, 2400)),
        ("image", (28, 28, 1), (16, 32, 32, 1)),
        ("video", (6, 28, 28, 1), (2, 6, 32, 32, 1)),
    ],
)
def test_files_are_read_as_the_preset_expects(name, dims, expected, files, tmp_path):
    front_end = {"config": {"sample_rate": 8000}} if name == "audio" else None
    settings = {"front_end": front_end, "patch_size": [4, 4]}
    preset = write_preset_config(tmp_path, dims, **settings)
    arguments = [*SHORT, preset, f"--data={files / name}"]
    arguments += SIZES["audio"] if name == "audio" else []
    arguments += ["--batch-size=2"] if name == "video" else []
    loaded = []

    class Stop(Exception):
        pass

    def train(recipe, *args, **kwargs):
        loaded.append(recipe.examples)
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr("keras_bridle.workflows.Pretraining.backbone", train)
        recipes[name].main(arguments)
    assert loaded[0].shape == expected


def test_codes_computed_once(
    files, encoders, few_samples, tmp_path, monkeypatch, capsys
):
    found = []

    def compute(*args):
        found.append(cached_codes(*args))
        return found[-1]

    monkeypatch.setattr(interleaved, "cached_codes", compute)
    recipe, directory = recipes["audio"], tmp_path / "run"
    arguments = [*SHORT, *SIZES["audio"], encoders["audio"], "--rounds=0"]
    arguments += ["--set=cache_codes=true", f"--directory={directory}"]
    fails_in_one_line(recipe, arguments, "augmentation", capsys)
    arguments.append("--set=augmentation=false")
    of_files = [*arguments, f"--data={files / 'audio'}"]
    fails_in_one_line(recipe, of_files, "array", capsys)
    assert not directory.exists()
    recipe.main(arguments)
    assert [codes.shape[0] for codes in found] == [64]


@pytest.mark.slow
def test_every_option_of_long_runs(encoders, few_samples, tmp_path, monkeypatch):
    """One recording is no number, in the last step of each epoch."""
    good = load_syllables("train", num_samples=4800)[0][:18]
    bad = np.copy(good)
    bad[np.random.default_rng([0, 0]).permutation(18)[-1]] = np.nan
    recipe, directory = recipes["audio"], tmp_path / "run"
    monkeypatch.setattr(recipe, "sample_recordings", lambda *args: (bad, good))
    arguments = [*SHORT, *SIZES["audio"], "--joint", "--dtype-policy=mixed_bfloat16"]
    arguments += ["--batch-size=1", encoders["audio"], f"--directory={directory}"]
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
def test_a_killed_run_resumes_to_the_same_end(files, encoders, tmp_path):
    recipe = recipes["audio"]
    arguments = [*SHORT, *SIZES["audio"], f"--data={files / 'audio'}", "--batch-size=4"]
    arguments += ["--set=checkpoint_every_steps=1", encoders["audio"]]
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
    ("name", "arguments", "message"),
    [
        ("audio", ["--data=no/such/folder"], "--data must be"),
        ("audio", ["--preset=enormous"], "enormous"),
        ("audio", ["--mask-ratio=1.5"], "--mask-ratio must be"),
        ("audio", ["--set=warmup=2"], "--set warmup must be"),
        ("audio", ["--seconds=-1"], "--seconds must be"),
        ("audio", ["--dtype-policy=float17"], "float17"),
        ("audio", ["--data=FILES", "--layout=audioset"], "--segments"),
        ("audio", ["--data=FILES", "--batch-size=32"], "--batch-size"),
        ("audio", ["--data=BROKEN", "--batch-size=1", "--strict"], "broken.wav"),
        ("image", ["--mask=tube"], "--mask must be"),
        ("image", ["--image-size=32"], "--image-size must be 28"),
        ("image", ["--preset=.", "--set=patch_size=4,4"], "--set patch_size"),
        ("image", ["--data=EMPTY"], "image"),
        ("video", ["--num-frames=0"], "--num-frames must be"),
        ("video", ["--data=TABLE", "--layout=kinetics"], "video"),
    ],
)
def test_what_is_wrong_is_one_line(name, arguments, message, files, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "broken.wav").write_text("nothing")
    (tmp_path / "table.csv").write_text("")
    paths = {"FILES": files / "audio", "BROKEN": tmp_path / "only"}
    paths |= {"EMPTY": tmp_path / "empty", "TABLE": tmp_path / "table.csv"}
    for word, path in paths.items():
        arguments = [text.replace(word, str(path)) for text in arguments]
    directory = tmp_path / "run"
    arguments = [*SHORT, *SIZES[name], *arguments, f"--directory={directory}"]
    fails_in_one_line(recipes[name], arguments, message, capsys)
    assert not directory.exists()


def test_a_run_is_not_resumed_with_other_settings(few_samples, tmp_path, capsys):
    (tmp_path / "settings.json").write_text('{"settings": {"num_levels": 7}}')
    arguments = [*SHORT, *SIZES["audio"], f"--directory={tmp_path}", "--resume"]
    fails_in_one_line(recipes["audio"], arguments, "other settings", capsys)
    # Nothing was probed before that was known.
    assert not (tmp_path / "results").exists()


def test_a_fault_in_training_keeps_its_traceback(few_samples, tmp_path, monkeypatch):
    class Fault(ValueError):
        pass

    def fail(*args, **kwargs):
        raise Fault

    monkeypatch.setattr(keras.Model, "fit", fail)
    monkeypatch.setattr(interleaved.InterleavedPretraining, "codes", fail)
    with pytest.raises(Fault):
        recipes["audio"].main(
            [*SHORT, *SIZES["audio"], f"--directory={tmp_path / 'run'}"]
        )
