"""The recipe that fine-tunes, really run, on what a pretraining run left behind."""

import json

import keras
import numpy as np
import pytest
import soundfile
from PIL import Image
from recipe_runs import fails_in_one_line, load_recipe, save_encoder
from video_files import scene, write_video

import keras_bridle as kb
from keras_bridle import modalities
from keras_bridle.data import samples
from keras_bridle.data.samples import load_syllables
from keras_bridle.training.run import run_lock

SHORT = ["--quiet", "--epochs=1", "--set=warmup_epochs=0", "--batch-size=4"]

recipe = load_recipe("fine_tune")


@pytest.fixture(scope="module")
def audio_run(tmp_path_factory):
    """The directory of a run, as far as fine-tuning looks at it."""
    folder = tmp_path_factory.mktemp("audio_run")
    save_encoder(folder / "preset", "audio")
    (folder / "settings.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Two classes of six recordings, of which one is broken."""
    folder = tmp_path_factory.mktemp("recordings")
    waveforms, _, _ = load_syllables("train", num_samples=3200)
    for index, waveform in enumerate(waveforms[:12]):
        path = folder / "ab"[index % 2] / f"{index:02d}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, waveform * (index % 2 + 0.1), 16000)
    (folder / "a" / "broken.wav").write_text("no sound at all")
    return folder


def check_results(directory, metrics=("accuracy",)):
    folder = directory / "results"
    (row,) = json.loads((folder / "metrics.json").read_text())
    assert all(0 <= row[name] <= 1 for name in metrics)
    for picture in ("history", "confusion"):
        if picture == "history" or "accuracy" in metrics:
            content = (folder / f"{picture}.png").read_bytes()
            assert content.startswith(b"\x89PNG")
    assert (folder / "per_class.csv").exists()
    return row


def test_folds_of_own_recordings_with_everything(
    audio_run, recordings, tmp_path, capsys
):
    directory = tmp_path / "run"
    arguments = [*SHORT, f"--from={audio_run}", f"--data={recordings}"]
    arguments += [f"--directory={directory}", "--seconds=0.2", "--validation-share=0.2"]
    options = "folds=2 token_drop=0.3,0.3 hide_frames=4 mix_rate=1 drop_path=0.1 "
    options += "label_smoothing=0.1 ema_momentum=0.9 repeats=2 balanced=true"
    arguments += [f"--set={x}" for x in [*options.split(), "epoch_length=8"]]
    recipe.main(arguments)
    rows = [check_results(directory / f"fold_{fold}") for fold in (1, 2)]
    (summary,) = json.loads((directory / "results" / "folds.json").read_text())
    assert summary["accuracy"] == [row["accuracy"] for row in rows]
    assert "broken.wav" in (directory / "skipped_files.csv").read_text()
    shown = capsys.readouterr().out
    assert "all folds" in shown and "Best epoch" in shown
    # The classifier takes raw recordings and names classes.
    preset = str(directory / "fold_2" / "preset")
    classifier = kb.BridleAudioClassifier.from_preset(preset)
    ((best,),) = classifier.predict_classes([np.ones(3200, "float32")])
    assert best.name in ("a", "b")
    assert isinstance(classifier.token_mask, kb.TimeFrequencyMask)
    # A run that is done has nothing left to train.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "fit", None)
        recipe.main([*arguments, "--resume"])
    for fold, row in enumerate(rows, start=1):
        again = check_results(directory / f"fold_{fold}")
        assert again["accuracy"] == row["accuracy"]
    fails_in_one_line(recipe, [*arguments], "--resume", capsys)
    with run_lock(directory):
        fails_in_one_line(recipe, [*arguments, "--resume"], str(directory), capsys)
    arguments.append("--learning-rate=0.5")
    fails_in_one_line(recipe, [*arguments, "--resume"], "other settings", capsys)


def write_tones(folder, count, pitches):
    """Class folders of tones in noise, longer than what is trained on."""
    random = np.random.default_rng(count)
    time = np.arange(5001) / 16000
    for name, pitch in pitches.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            tone = np.sin(2 * np.pi * (pitch * time + random.random()))
            tone = 0.1 * tone + 0.05 * random.normal(size=time.shape)
            soundfile.write(folder / name / f"{number}.wav", tone, 16000)


def test_tones_are_learned_and_the_saved_classifier_hears_them_alike(
    audio_run, tmp_path
):
    for part, count in (("train", 16), ("test", 6)):
        write_tones(tmp_path / "data" / part, count, {"high": 2000, "low": 500})
    directory = tmp_path / "run"
    arguments = "--quiet --epochs=8 --batch-size=8 --seconds=0.2 --learning-rate=0.01"
    options = "layer_decay=1 mix_rate=0 token_drop=0,0 hide_bins=0 hide_frames=0"
    options += " warmup_epochs=0 drop_path=0"
    arguments = [*arguments.split(), *(f"--set={x}" for x in options.split())]
    arguments += [f"--from={audio_run}", f"--data={tmp_path / 'data'}"]
    recipe.main([*arguments, f"--directory={directory}"])
    assert check_results(directory)["accuracy"] > 0.9
    with np.load(directory / "results" / "predictions.npz") as saved:
        expected = saved["scores"]
    files = sorted((tmp_path / "data" / "test").glob("*/*.wav"))
    sounds = np.stack([soundfile.read(file, dtype="float32")[0] for file in files])
    preset = str(directory / "preset")
    classifier = kb.BridleAudioClassifier.from_preset(preset)
    scores = keras.ops.softmax(classifier.predict(sounds, verbose=0))
    scores = keras.ops.convert_to_numpy(scores)
    np.testing.assert_allclose(scores, expected, 1e-3, 1e-4)


def test_a_loss_that_is_not_finite_is_one_line(audio_run, recordings, tmp_path):
    """And nothing of it is taken for the best epoch."""
    arguments = [*SHORT, "--epochs=4", "--learning-rate=1e30", "--seconds=0.2"]
    arguments += ["--fold=1", "--set=folds=2", "--validation-share=0.2"]
    arguments += [f"--from={audio_run}", f"--data={recordings}"]
    with pytest.raises(SystemExit) as stop:
        recipe.main([*arguments, f"--directory={tmp_path / 'run'}"])
    assert "infinite" in str(stop.value.code)
    assert not (tmp_path / "run" / "preset").exists()


@pytest.mark.parametrize(
    ("loader", "flags"),
    [
        ("load_syllables", ["--scratch", "--labels-per-class=1"]),
        ("load_fashion", ["--labels-per-class=2"]),
    ],
)
def test_sample_data(audio_run, tmp_path, monkeypatch, loader, flags):
    load, counts = getattr(samples, loader), {"train": 150, "test": 30}

    def load_few(split, *args):
        inputs, labels, names = load(split, *args)
        return inputs[: counts[split]], labels[: counts[split]], names

    monkeypatch.setattr(samples, loader, load_few)
    source = f"--from={audio_run}"
    if loader == "load_fashion":
        encoder = save_encoder(tmp_path / "preset", "image", input_dims=(28, 28, 3))
        source = f"--from={encoder}"
    directory = tmp_path / "run"
    recipe.main([*SHORT, source, *flags, f"--directory={directory}"])
    assert set(check_results(directory)) >= {"accuracy", "mAP", "AUC", "d'"}
    settings = json.loads((directory / "settings.json").read_text())["settings"]
    assert settings["labels_per_class"] == int(flags[-1][-1])


def test_table_of_images_with_several_labels(encoders, tmp_path, capsys):
    lines = ["file,label,split"]
    for number in range(12):
        labels = ["", "a", "b", "a;b"][number % 4]
        part = "test" if number < 4 else "train"
        lines.append(f"{number}.png,{labels},{part}")
        Image.new("L", (20, 20), 20 * number).save(tmp_path / f"{number}.png")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    source = f"--from={encoders['image']}"
    options = "label_separator=; loss=binary gradient_accumulation_steps=2 clip_norm=1"
    arguments = [*SHORT, source, f"--data={tmp_path / 'table.csv'}"]
    arguments += [f"--set={x}" for x in options.split()]
    directory = tmp_path / "run"
    recipe.main([*arguments, "--validation-share=0", f"--directory={directory}"])
    assert "accuracy" not in check_results(directory, ("mAP", "AUC"))
    arguments.append("--directory=never")
    for flag in ("--set=loss=categorical", "--labels-per-class=2"):
        name = flag.strip("-").removeprefix("set=").split("=")[0]
        fails_in_one_line(recipe, [*arguments, flag], name, capsys)
    classifier = kb.BridleImageClassifier.from_preset(str(directory / "preset"))
    assert classifier.multi_label and classifier.class_names == ["a", "b"]


def test_sample_pans_from_several_views(encoders, tmp_path, monkeypatch):
    def small(reading):
        random = np.random.default_rng(0)
        clips = random.integers(0, 256, (8, 4, 16, 16, 3), "uint8")
        # Longer and wider than what the model takes.
        test = random.integers(0, 256, (4, 6, 16, 20, 3), "uint8")
        names = ["left", "right"]
        return (clips, np.arange(8) % 2), (test, np.arange(4) % 2), names

    monkeypatch.setattr(modalities.VIDEO, "sample", small)
    directory = tmp_path / "run"
    arguments = [*SHORT, f"--from={encoders['video']}", "--labels-per-class=4"]
    options = "view_segments=2 view_crops=3 mix_rate=1 cutmix=1 random_erasing=0.5"
    arguments += [f"--set={x}" for x in options.split()]
    arguments += ["--image-size=16", "--num-frames=4", f"--directory={directory}"]
    recipe.main(arguments)
    check_results(directory)


def test_video_files_in_the_layout_of_kinetics(encoders, tmp_path):
    """With the recipe's own augmentation, tested at several times and crops."""
    frames = scene(12, 24, 32)
    lines = {"train": [], "test": []}
    for number in range(8):
        part = "test" if number < 2 else "train"
        moving = frames[::-1] if number % 2 else frames
        # No two alike.
        moving = np.roll(moving, number, axis=2)
        write_video(tmp_path / f"{number}.mp4", "mpeg4", moving, gop=4)
        lines[part].append(f"{number}.mp4 {number % 2}")
    for part, found in lines.items():
        (tmp_path / f"{part}.txt").write_text("\n".join(found) + "\n")
    directory = tmp_path / "run"
    arguments = [*SHORT, f"--from={encoders['video']}", "--layout=kinetics"]
    arguments += [f"--data={tmp_path}/train.txt", f"--test-data={tmp_path}/test.txt"]
    # Read larger than the views are, in the same compiled function.
    arguments += ["--sampling-rate=2", "--validation-share=0.4"]
    arguments += ["--set=view_segments=2", "--set=view_crops=2"]
    recipe.main([*arguments, f"--directory={directory}"])
    check_results(directory)
    classifier = kb.BridleVideoClassifier.from_preset(str(directory / "preset"))
    assert len(classifier.class_names) == 2
    converter = classifier.preprocessor.video_converter
    assert (converter.num_frames, converter.sampling_rate) == (4, 2)
    assert converter.image_size == (16, 16)


def make_images(folder, parts):
    """Class folders of images, no two alike; of some parts none can be read."""
    for place, (name, number, is_readable) in enumerate(parts):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            path = folder / name / f"{index}.png"
            path.write_text(f"no image {path}")
            if is_readable:
                Image.new("L", (28, 28), 20 * index + place).save(path)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_split_that_cannot_be_read_leaves_nothing(encoders, tmp_path, part, capsys):
    encoder = f"--from={encoders['image']}"
    names = [f"{x}/{y}" for x in ("train", "val", "test") for y in ("a", "b")]
    make_images(tmp_path / "data", [(x, 4, not x.startswith(part)) for x in names])
    directory = tmp_path / "run"
    arguments = [encoder, f"--data={tmp_path / 'data'}", f"--directory={directory}"]
    fails_in_one_line(recipe, [*SHORT, *arguments], "None of the 8 image", capsys)
    assert not directory.exists()
    (tmp_path / f"data/{part}/a/0.png").write_text("no image")
    path = str(tmp_path / "data" / part)
    fails_in_one_line(recipe, [*SHORT, *arguments, "--strict"], path, capsys)


def test_classes_without_examples_are_named(encoders, tmp_path, capsys):
    encoder = f"--from={encoders['image']}"
    parts = [("train/a", 6, True), ("train/b", 6, True), ("train/c", 4, True)]
    parts += [("test/a", 4, True), ("test/b", 4, True), ("test/d", 4, True)]
    make_images(tmp_path / "data", parts)
    arguments = [*SHORT, encoder, f"--data={tmp_path / 'data'}", "--validation-share=0"]
    arguments += ["--set=rand_augment=0", f"--directory={tmp_path / 'run'}"]
    recipe.main(arguments)
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 of 4 classes have no example to train on: d" in shown
    assert "1 of 4 classes have no example to test: c" in shown
