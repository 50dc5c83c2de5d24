"""The recipe for probes, really run, on few examples of each kind."""

import csv
import json
import shutil

import numpy as np
import pytest
from recipe_runs import ENCODERS, fails_in_one_line, load_recipe
from sound_files import write as write_sound
from video_files import scene, write_video

from keras_bridle.workflows import probing

recipe = load_recipe("probe")


def run(source, directory, *flags):
    """Runs the recipe; gives the rows of its table, by name."""
    recipe.main([f"--from={source}", f"--directory={directory}", "--quiet", *flags])
    rows = json.loads((directory / "probes.json").read_text())
    return {row["name"]: row for row in rows}


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("modality", ENCODERS)
def test_sample_data(encoders, few_samples, tmp_path, modality, capsys):
    plain = "log-mel" if modality == "audio" else "pixels"
    source = str(encoders[modality])
    rows = run(source, tmp_path, "--probe", "linear", "knn")
    assert list(rows) == [plain, "untrained", source]
    values = np.array(
        [[row[kind][0] for kind in ("linear", "knn")] for row in rows.values()]
    )
    assert ((values >= 0) & (values <= 1)).all()
    # Few classes that log-mel and pixels tell; of pans only noise.
    assert values[0].max() > 0.6 or modality == "video"
    shown = capsys.readouterr().out
    assert plain in shown and "accuracy of probes" in shown


def test_own_pictures_all_probes_and_folds(encoders, pictures, tmp_path, capsys):
    source = str(encoders["image"])
    flags = "--probe=all --epochs=2 --learning-rate=0.01 --probe-batch-size=4"
    flags += " --set=folds=2 --set=weight_decay=0.01 --set=per_class=4"
    rows = run(source, tmp_path, f"--data={pictures}", *flags.split())
    for kind in ("linear", "dense", "knn", "attentive"):
        assert len(rows[source][kind]) == 2
        assert (kind in rows["pixels"]) == (kind != "attentive")
    # Brightness is easy to see.
    assert np.mean(rows["pixels"]["linear"]) == 1
    assert np.mean(rows[source]["linear"]) > 0.8
    assert "broken.png" in (tmp_path / "skipped_files.csv").read_text()
    classes = table(tmp_path / "pixels_linear_classes.csv")
    found = [(row["name"], row["examples"]) for row in classes]
    assert found == [("bright", "10"), ("dark", "10")]
    assert (tmp_path / "untrained_knn_confusion.png").exists()
    metrics = table(tmp_path / "metrics.csv")
    assert {row["split"] for row in metrics} == {"1", "2"}
    assert {"accuracy", "mAP", "AUC", "d'"} < metrics[0].keys()
    assert "2 folds" in capsys.readouterr().out


def write_tones(folder):
    """Low and high tones, 8 recordings of each."""
    for index in range(16):
        tone = np.sin(np.arange(6400) * (0.1, 0.9)[index % 2]) * (0.2 + index / 40)
        write_sound(folder / ("low", "high")[index % 2] / f"{index}.wav", tone)
    return "--seconds=0.4"


def write_clips(folder):
    """Dark and bright clips, 8 of each."""
    for index in range(16):
        path = folder / ("dark", "bright")[index % 2] / f"{index}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = scene(6, 16, 16) // 4 + (0, 150)[index % 2] + index
        write_video(path, "libx264", frames.astype("uint8"))
    return "--set=sampling_rate=1"


@pytest.mark.parametrize(
    ("modality", "write"), [("audio", write_tones), ("video", write_clips)]
)
def test_own_recordings_and_clips_all_probes(encoders, tmp_path, modality, write):
    source, flag = str(encoders[modality]), write(tmp_path / "data")
    flags = "--probe=all --set=folds=2 --set=fold=1 --epochs=1 --no-baselines"
    flags = [f"--data={tmp_path / 'data'}", flag, *flags.split()]
    (row,) = run(source, tmp_path / "out", *flags).values()
    assert set(row) == {"name", "linear", "dense", "knn", "attentive"}
    # Pitch and brightness are easy to tell.
    assert row["linear"][0] > 0.8 and row["knn"][0] > 0.8


def test_settings_reach_the_probes(encoders, few_samples, monkeypatch, tmp_path):
    class Reached(Exception):
        pass

    def probe_encoder(*args, options, **others):
        raise Reached(options)

    monkeypatch.setattr(probing, "probe_encoder", probe_encoder)
    flags = "--probe=dense --no-baselines --epochs=250 --learning-rate=4e-3"
    flags += " --set=weight_decay=0.1 --probe-batch-size=256"
    with pytest.raises(Reached) as found:
        run(encoders["image"], tmp_path, *flags.split())
    (options,) = found.value.args
    assert options["dense"] == options["attentive"]
    expected = {"epochs": 250, "learning_rate": 4e-3, "weight_decay": 0.1}
    assert options["dense"] == {**expected, "batch_size": 256}


def test_recordings_are_as_long_as_their_layout_has_them():
    def reading(*flags, source="bridle_audio_tiny"):
        found = recipe.Probing(recipe.Options, "", [f"--from={source}", *flags])
        found.modality = probing.AUDIO
        return found.reading(probing.load_encoder(source).backbone)["seconds"]

    assert reading() == 0.36
    assert reading("--data=.") == reading("--data=.", "--layout=audioset") == 10.24
    assert reading("--data=.", "--layout=esc50") == 5
    assert reading("--data=.", "--layout=speech_commands") == 1
    assert reading("--data=.", "--layout=esc50", "--seconds=2") == 2


def test_several_labels_for_each_picture(encoders, pictures, tmp_path, capsys):
    rows = [
        f"{pictures}/{name}/{i}.png,{label},{'test' if i > 13 else 'train'}"
        for i in range(20)
        for name, label in [(("bright", "sun;light"), ("dark", "night"))[i % 2]]
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,split", *rows]))
    flags = [f"--data={tmp_path / 'labels.csv'}", "--set=label_separator=;"]
    flags.append("--no-baselines")
    given = (encoders["image"], tmp_path / "out", *flags)
    (row,) = run(*given, "--probe", "linear", "knn").values()
    assert set(row) == {"name", "knn"} and row["knn"][0] > 0.8
    shown = " ".join(capsys.readouterr().out.split())
    assert "Without the linear probe" in shown and "mAP of probes" in shown
    flags += [f"--from={encoders['image']}", f"--directory={tmp_path / 'out'}"]
    fails_in_one_line(recipe, flags, "--directory must be", capsys)
    flags += ["--overwrite", "--probe=linear"]
    fails_in_one_line(recipe, flags, "--probe must be dense", capsys)


def test_an_unreadable_test_part_is_one_line(encoders, pictures, tmp_path, capsys):
    for part in ("train", "test"):
        for name, source in (("a", "bright/0.png"), ("b", "dark/1.png")):
            path = tmp_path / part / name / "0.png"
            path.parent.mkdir(parents=True)
            shutil.copy(pictures / source, path)
            if part == "test":
                path.write_text("no picture")
    flags = [f"--from={encoders['image']}", f"--data={tmp_path}", "--quiet"]
    flags.append(f"--directory={tmp_path / 'out'}")
    fails_in_one_line(recipe, flags, "No test example can be read", capsys)
    (tmp_path / "out").write_text("")
    fails_in_one_line(recipe, flags, "--directory must be a folder", capsys)
