"""The image recipe, really run, on few pictures."""

import numpy as np
import PIL.Image
import pytest
from recipe_runs import (
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
from keras_bridle.data.samples import load_fashion
from keras_bridle.training import interleaved
from keras_bridle.training.run import cached_codes


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("pretrain_image")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    images, _, _ = load_fashion("train")
    for index, image in enumerate(images[:17]):
        # Of several sizes, gray and in color.
        picture = PIL.Image.fromarray(image[..., 0]).resize((40 + index, 36))
        picture.convert("RGB" if index % 2 else "L").save(folder / f"{index:02d}.png")
    (folder / "broken.png").write_text("no picture at all")
    return folder


def test_own_pictures_chain_all_phases_and_resume(recipe, pictures, tmp_path):
    directory = tmp_path / "run"
    arguments = [*SHORT, "--data", str(pictures), "--directory", str(directory)]
    arguments += ["--mask=block"]
    arguments.append(
        save_small_encoder(
            tmp_path / "small",
            patch_size=4,
            input_dims=(16, 16, 3),
            front_end=kb.PixelNormalization(),
        )
    )
    recipe.main(arguments)
    check_run(directory, np.full((1, 24, 16, 3), 9, "uint8"))
    assert "broken.png" in (directory / "skipped_files.csv").read_text()
    check_resume(recipe, arguments, directory)


@pytest.mark.parametrize(
    ("flags", "size"), [([], 32), (["--no-augmentation"], 28)], ids=["crops", "none"]
)
def test_pictures_are_read_larger_for_crops(recipe, pictures, flags, size):
    arguments = [*SHORT, "--data", str(pictures), "--image-size=28", *flags]
    examples = recipe.own_pictures(recipe.parse_arguments(arguments)).examples
    assert examples.shape == (16, size, size, 3)


def test_pictures_are_read_as_the_preset_expects(recipe, pictures, tmp_path, capsys):
    preset = write_preset_config(tmp_path, (28, 28, 1))
    arguments = [*SHORT, preset, "--data", str(pictures)]
    examples = recipe.own_pictures(recipe.parse_arguments(arguments)).examples
    assert examples.shape == (16, 32, 32, 1)
    preset = write_preset_config(tmp_path, (28, 28, 3))
    arguments = [*SHORT, preset, "--directory=never"]
    fails_in_one_line(recipe, arguments, "sample pictures are gray", capsys)


def test_sample_run_ends_with_a_table_of_probes(recipe, tmp_path, monkeypatch, capsys):
    def few_pictures(split):
        images, labels, names = load_fashion(split)
        some = np.flatnonzero(labels < 4)[:120]
        return images[some], labels[some], names

    monkeypatch.setattr(recipe, "load_fashion", few_pictures)
    monkeypatch.setattr(recipe.ClothesProbe, "draws", {5: 2, 20: 1})
    arguments = [*SHORT, "--batch-size=40", "--directory", str(tmp_path / "run")]
    recipe.main(arguments)
    check_run(tmp_path / "run", np.full((1, 28, 28, 1), 9, "uint8"))
    rows = check_table(
        tmp_path / "run",
        ["pixels", "untrained", "0_cold_start", "2_encoder"],
        ["linear 5", "k-NN 5", "linear 20", "k-NN 20", "in place 20"],
    )
    assert len(rows[0]["linear 5"]) == 2
    assert np.mean(rows[0]["linear 20"]) > 0.5
    shown = capsys.readouterr().out
    assert "pixels" in shown and "Code usage" in shown


def test_codes_computed_once(recipe, pictures, tmp_path, monkeypatch, capsys):
    found = []

    def compute(*args):
        found.append(cached_codes(*args))
        return found[-1]

    monkeypatch.setattr(interleaved, "cached_codes", compute)
    images, labels, names = load_fashion("train")
    few = images[:40], labels[:40], names
    monkeypatch.setattr(recipe, "load_fashion", lambda split: few)
    monkeypatch.setattr(recipe, "clothes_probes", lambda: None)
    size = {"patch_size": 7, "input_dims": (28, 28, 1)}
    front_end = kb.PixelNormalization()
    small = save_small_encoder(tmp_path / "small", front_end=front_end, **size)
    directory = tmp_path / "run"
    arguments = [*SHORT, small, "--rounds=0", "--cache-codes"]
    arguments += ["--directory", str(directory)]
    fails_in_one_line(recipe, arguments, "augmentation", capsys)
    arguments.append("--no-augmentation")
    of_files = [*arguments, "--data", str(pictures)]
    fails_in_one_line(recipe, of_files, "files are read at another place", capsys)
    assert not directory.exists()
    recipe.main(arguments)
    check_features(directory, images[:1])
    assert [codes.shape for codes in found] == [(40, 16, 2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/folder"], "does not exist"),
        (["--preset", "enormous"], "no such preset"),
        (["--mask-ratio", "1.5"], "--mask-ratio: expected"),
        (["--mask", "tube"], "--mask"),
        (["--image-size", "32"], "--image-size 32 needs --data"),
        (["--smallest-crop", "2"], "--smallest-crop: expected"),
        (["--preset", ".", "--patch-size", "4", "4"], "--patch-size"),
    ],
)
def test_wrong_flags_are_one_line(recipe, tmp_path, arguments, message, capsys):
    directory = tmp_path / "run"
    arguments = [*SHORT, *arguments, "--directory", str(directory)]
    fails_in_one_line(recipe, arguments, message, capsys)
    assert not directory.exists()


def test_wrong_files_are_one_line(recipe, tmp_path, capsys):
    arguments = [*SHORT, "--data", str(tmp_path), "--directory", "never"]
    fails_in_one_line(recipe, arguments, "png", capsys)
    (tmp_path / "list.csv").write_text("nothing\nhere\n")
    arguments[-3] = str(tmp_path / "list.csv")
    fails_in_one_line(recipe, arguments, "file", capsys)
