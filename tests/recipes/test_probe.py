"""The recipe for probes, really run, on few examples of each kind."""

import csv
import json
import shutil

import numpy as np
import PIL.Image
import pytest
from recipe_runs import fails_in_one_line, load_recipe
from sound_files import write as write_sound
from video_files import scene, write_video

import keras_bridle as kb
from keras_bridle.data import samples
from keras_bridle.data.samples import load_fashion, load_syllables, synthetic_pans

SMALL = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("probe")


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Folders of small encoders, by modality."""
    folder = tmp_path_factory.mktemp("presets")
    kb.BridleBackbone(
        patch_size=(8, 64),
        input_dims=(None,),
        front_end=kb.LogMelSpectrogram(),
        **SMALL,
    ).save_to_preset(str(folder / "audio"))
    kb.BridleBackbone(
        patch_size=14,
        input_dims=(28, 28, 1),
        front_end=kb.PixelNormalization(),
        **SMALL,
    ).save_to_preset(str(folder / "image"))
    kb.BridleBackbone(
        patch_size=(2, 8, 8),
        input_dims=(4, 16, 16, 3),
        front_end=kb.PixelNormalization(),
        position_layout="sequence",
        **SMALL,
    ).save_to_preset(str(folder / "video"))
    return folder


@pytest.fixture
def few_samples(monkeypatch):
    def few_syllables(split, field, num_samples=5760):
        waveforms, labels, names = load_syllables(split, field, num_samples)
        initials = load_syllables(split, "initial")[1]
        common = np.argsort(np.bincount(load_syllables("test", "initial")[1]))[-2:]
        some = [np.flatnonzero(initials == name)[:20] for name in common]
        some = np.concatenate(some)
        return waveforms[some], labels[some], names

    def few_pictures(split):
        images, labels, names = load_fashion(split)
        some = np.flatnonzero(labels < 3)[:60]
        return images[some], labels[some], names

    def few_pans(split, num_clips, **options):
        return synthetic_pans(split, num_clips=24, **options)

    monkeypatch.setattr(samples, "load_syllables", few_syllables)
    monkeypatch.setattr(samples, "load_fashion", few_pictures)
    monkeypatch.setattr(samples, "synthetic_pans", few_pans)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Dark and bright pictures in class folders, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(20):
        name = ("bright", "dark")[index % 2]
        low = (150, 0)[index % 2]
        path = folder / name / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(low, low + 100, (28, 28, 3))
        PIL.Image.fromarray(pixels.astype("uint8")).save(path)
    (folder / "dark" / "broken.png").write_text("no picture")
    return folder


def _rows(directory):
    return {
        row["name"]: row for row in json.loads((directory / "probes.json").read_text())
    }


@pytest.mark.parametrize(
    ("modality", "plain"),
    [("audio", "log-mel"), ("image", "pixels"), ("video", "pixels")],
)
def test_sample_data(recipe, presets, few_samples, tmp_path, modality, plain, capsys):
    source = str(presets / modality)
    recipe.main(
        [f"--from={source}", f"--directory={tmp_path}", "--probe", "linear", "knn"]
    )
    rows = _rows(tmp_path)
    assert list(rows) == [plain, "untrained", source]
    values = np.array(
        [[rows[name][kind][0] for kind in ("linear", "knn")] for name in rows]
    )
    assert ((values >= 0) & (values <= 1)).all()
    # Two or three classes that log-mel and pixels tell; of pans only noise.
    assert values[0].max() > 0.6 or modality == "video"
    shown = capsys.readouterr().out
    assert plain in shown and "accuracy of probes" in shown


def test_own_pictures_all_probes_and_folds(recipe, presets, pictures, tmp_path, capsys):
    source = str(presets / "image")
    recipe.main(
        [
            f"--from={source}",
            f"--data={pictures}",
            "--probe=all",
            "--set=folds=2",
            "--epochs=2",
            "--learning-rate=0.01",
            "--set=weight_decay=0.01",
            "--probe-batch-size=4",
            "--set=per_class=4",
            f"--directory={tmp_path}",
            "--quiet",
        ]
    )
    rows = _rows(tmp_path)
    for kind in ("linear", "dense", "knn", "attentive"):
        assert len(rows[source][kind]) == 2
        assert (kind in rows["pixels"]) == (kind != "attentive")
    # Brightness is easy to see.
    assert np.mean(rows["pixels"]["linear"]) == 1
    assert np.mean(rows[source]["linear"]) > 0.8
    assert "broken.png" in (tmp_path / "skipped_files.csv").read_text()
    with (tmp_path / "pixels_linear_classes.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert [(row["name"], row["examples"]) for row in classes] == [
        ("bright", "10"),
        ("dark", "10"),
    ]
    assert (tmp_path / "untrained_knn_confusion.png").exists()
    with (tmp_path / "metrics.csv").open() as file:
        metrics = list(csv.DictReader(file))
    assert {row["split"] for row in metrics} == {"1", "2"}
    assert {"accuracy", "mAP", "AUC", "d'"} < metrics[0].keys()
    assert "2 folds" in capsys.readouterr().out


def write_tones(folder):
    """Low and high tones, 8 recordings of each."""
    for index in range(16):
        tone = np.sin(np.arange(6400) * (0.1, 0.9)[index % 2]) * (0.2 + index / 40)
        write_sound(folder / ("low", "high")[index % 2] / f"{index}.wav", tone)
    return ["--seconds=0.4"]


def write_clips(folder):
    """Dark and bright clips, 8 of each."""
    for index in range(16):
        path = folder / ("dark", "bright")[index % 2] / f"{index}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = scene(6, 16, 16) // 4 + (0, 150)[index % 2] + index
        write_video(path, "libx264", frames.astype("uint8"))
    return ["--set=sampling_rate=1"]


@pytest.mark.parametrize(
    ("modality", "write"), [("audio", write_tones), ("video", write_clips)]
)
def test_own_recordings_and_clips_all_probes(
    recipe, presets, tmp_path, modality, write
):
    flags = write(tmp_path / "data")
    source = str(presets / modality)
    recipe.main(
        [
            f"--from={source}",
            f"--data={tmp_path / 'data'}",
            "--probe=all",
            "--set=folds=2",
            "--set=fold=1",
            "--epochs=1",
            "--no-baselines",
            f"--directory={tmp_path / 'out'}",
            "--quiet",
            *flags,
        ]
    )
    row = _rows(tmp_path / "out")[source]
    assert set(row) == {"name", "linear", "dense", "knn", "attentive"}
    # Pitch and brightness are easy to tell.
    assert row["linear"][0] > 0.8 and row["knn"][0] > 0.8


def test_settings_reach_the_probes(recipe, presets, few_samples, monkeypatch):
    class Reached(Exception):
        pass

    def probe_encoder(*args, options, **others):
        raise Reached(options)

    monkeypatch.setattr(recipe, "probe_encoder", probe_encoder)
    arguments = [f"--from={presets / 'image'}", "--probe=dense", "--no-baselines"]
    arguments += ["--directory=never", "--epochs=250", "--learning-rate=4e-3"]
    with pytest.raises(Reached) as found:
        recipe.main([*arguments, "--set=weight_decay=0.1", "--probe-batch-size=256"])
    (options,) = found.value.args
    assert options["dense"] == options["attentive"]
    assert options["dense"] == {
        "epochs": 250,
        "learning_rate": 4e-3,
        "weight_decay": 0.1,
        "batch_size": 256,
    }


def test_recordings_are_as_long_as_their_layout_has_them(recipe, presets):
    def reading(*flags, source="bridle_audio_tiny"):
        probing = recipe.Probing(recipe.Options, "", [f"--from={source}", *flags])
        encoder = recipe.load_encoder(source)
        probing.modality = recipe.AUDIO
        return probing.reading(encoder.backbone)["seconds"]

    assert reading() == 0.36
    assert reading("--data=.") == reading("--data=.", "--layout=audioset") == 10.24
    assert reading("--data=.", "--layout=esc50") == 5
    assert reading("--data=.", "--layout=speech_commands") == 1
    assert reading("--data=.", "--layout=esc50", "--seconds=2") == 2


def test_several_labels_for_each_picture(recipe, presets, pictures, tmp_path, capsys):
    rows = [
        f"{name}/{i}.png,{label},{'test' if i > 13 else 'train'}"
        for i in range(20)
        for name, label in [(("bright", "sun;light"), ("dark", "night"))[i % 2]]
    ]
    table = pictures / "labels.csv"
    table.write_text("\n".join(["file,label,split", *rows]))
    arguments = [f"--from={presets / 'image'}", f"--data={table}", "--quiet"]
    arguments += [
        "--set=label_separator=;",
        f"--directory={tmp_path}",
        "--no-baselines",
    ]
    recipe.main([*arguments, "--probe", "linear", "knn"])
    (row,) = _rows(tmp_path).values()
    assert set(row) == {"name", "knn"} and row["knn"][0] > 0.8
    shown = " ".join(capsys.readouterr().out.split())
    assert "Without the linear probe" in shown and "mAP of probes" in shown
    fails_in_one_line(recipe, arguments, "--directory must be", capsys)
    arguments += ["--overwrite", "--probe=linear"]
    fails_in_one_line(recipe, arguments, "--probe must be dense", capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "AUDIO", "IMAGE"], "--from must be encoders of one modality"),
        (["--data=FILES", "--layout=esc50"], "layout"),
        (["--data=nowhere.csv"], "--data must be"),
        (["--data=FILES", "--test-data=x"], "--test-data must be"),
        (["--data=TABLE"], "label"),
        (["--data=TABLE", "--label-column=kind", "--set=split_column=part"], "part"),
        (["--data=FILES", "--set=fold=9"], "fold"),
        (
            ["--data=FILES", "--probe=attentive", "--set=most_gigabytes=1e-9"],
            "GB of memory",
        ),
        (["--probe=svm"], "--probe must be"),
        (["--set=per_class=0"], "--set per_class must be"),
        (["--label-column=kind"], "--label-column needs --data"),
        (["--set=reader=soundfile", "--from=AUDIO"], "--set reader needs --data"),
        (["--seconds=1"], "--seconds is not for image"),
        (["--set=image_size=14"], "--set image_size must be 28"),
        (["--set=segment_means=3"], "--set segment_means must be at most 2"),
        (["--data=FILES", "--set=segment_means=3"], "--set segment_means must be"),
        (["--from=bridle_smell_tiny"], "bridle_smell_tiny"),
        (["--from=no/run"], "--from must be the directory of a run"),
        (["--from=FOLDER"], "There is no preset"),
    ],
)
def test_what_is_wrong_is_one_line(
    recipe, presets, pictures, tmp_path, arguments, message, capsys
):
    table = tmp_path / "table.csv"
    table.write_text(f"file,kind\n{pictures}/dark/1.png,dark\n")
    paths = {"AUDIO": presets / "audio", "IMAGE": presets / "image", "TABLE": table}
    paths |= {"FILES": pictures, "FOLDER": tmp_path}
    for word, path in paths.items():
        arguments = [text.replace(word, str(path)) for text in arguments]
    given = [f"--from={presets / 'image'}", "--quiet", "--no-baselines", *arguments]
    given.append(f"--directory={tmp_path / 'never'}")
    fails_in_one_line(recipe, given, message, capsys)
    assert not (tmp_path / "never").exists()


def test_an_unreadable_test_part_is_one_line(
    recipe, presets, pictures, tmp_path, capsys
):
    for part in ("train", "test"):
        for name, source in (("a", "bright/0.png"), ("b", "dark/1.png")):
            path = tmp_path / part / name / "0.png"
            path.parent.mkdir(parents=True)
            shutil.copy(pictures / source, path)
            if part == "test":
                path.write_text("no picture")
    out = tmp_path / "out"
    arguments = [f"--from={presets / 'image'}", f"--data={tmp_path}", "--quiet"]
    arguments.append(f"--directory={out}")
    message = "No test example can be read"
    fails_in_one_line(recipe, arguments, message, capsys)
    out.write_text("")
    message = "--directory must be a folder"
    fails_in_one_line(recipe, arguments, message, capsys)
