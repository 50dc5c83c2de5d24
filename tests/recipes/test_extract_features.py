"""The recipe for features, really run, on few files of each kind."""

import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from recipe_runs import fails_in_one_line, load_recipe
from sound_files import write as write_sound
from tiny_pretraining import backbone as tiny_backbone

import keras_bridle as kb
from keras_bridle.data.samples import extract_samples
from keras_bridle.evaluation.features import load_file_features
from keras_bridle.training.run import run_lock

recipe = load_recipe("extract_features")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on random pictures, which has a tokenizer."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    encoder = tiny_backbone(input_dims=(16, 16, 3), front_end=kb.PixelNormalization())
    pretraining = kb.InterleavedPretraining(
        encoder, num_levels=2, codebook_size=8, code_dim=4
    )
    pretraining.fit(
        np.random.default_rng(0).uniform(0, 255, (8, 16, 16, 3)).astype("float32"),
        rounds=0,
        cold_start_epochs=1,
        batch_size=4,
        verbose=0,
        directory=directory,
        tensorboard=False,
    )
    return directory


def test_pictures_and_codes_of_a_run(pictures, run, tmp_path, capsys):
    arguments = [f"--from={run}", f"--data={pictures}", "--set=part_size=7", "--quiet"]
    arguments += [f"--directory={tmp_path / 'out'}", "--class-folders"]
    recipe.main(arguments)
    found = load_file_features(tmp_path / "out")
    assert found.features.shape == (20, 16) and found.codes.shape == (20, 4, 2)
    assert found.labels.tolist() == ["bright"] * 10 + ["dark"] * 10
    assert "broken.png" in (tmp_path / "out" / "skipped_files.csv").read_text()
    assert (tmp_path / "out" / "map.png").read_bytes().startswith(b"\x89PNG")
    shown = " ".join(capsys.readouterr().out.split())
    assert "20 rows of 16 numbers, codes (4, 2)" in shown
    assert "1 file could not be read" in shown

    fails_in_one_line(recipe, arguments, "--resume", capsys)
    with run_lock(tmp_path / "out"):
        fails_in_one_line(recipe, [*arguments, "--resume"], "cannot share", capsys)
    (tmp_path / "out" / "parts" / "part-000001.json").unlink()
    recipe.main([*arguments, "--resume"])
    again = load_file_features(tmp_path / "out")
    np.testing.assert_array_equal(again.files, found.files)
    np.testing.assert_array_equal(again.codes, found.codes)
    arguments[2] = "--set=part_size=5"
    fails_in_one_line(recipe, [*arguments, "--resume"], "part_size", capsys)


def test_a_table_and_patches(pictures, run, tmp_path):
    recipe.main(
        [
            f"--from={run}",
            f"--data={pictures / 'table.csv'}",
            "--label-column=kind",
            "--per=patch",
            "--no-codes",
            "--picture=none",
            "--quiet",
            f"--directory={tmp_path}",
        ]
    )
    found = load_file_features(tmp_path)
    assert found.features.shape == (80, 16) and found.codes is None
    assert found.labels[:8].tolist() == ["bright"] * 4 + ["dark"] * 4
    assert not (tmp_path / "map.png").exists()


def test_parquet_and_umap(pictures, run, tmp_path, monkeypatch):
    class Umap:
        def __init__(self, random_state, n_jobs):
            pass

        def fit_transform(self, features):
            return features[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    flags = ["--format=parquet", "--picture=umap", "--set=part_size=4", "--quiet"]
    source = [f"--from={run}", f"--data={pictures / 'bright'}"]
    recipe.main([*source, *flags, f"--directory={tmp_path}"])
    found = load_file_features(tmp_path)
    assert sorted(found.files) == sorted(f"{i}.png" for i in range(0, 20, 2))
    assert found.features.shape == (10, 16) and found.codes.shape == (10, 4, 2)
    assert (tmp_path / "parts" / "part-000000.parquet").exists()
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_could_read_nothing_is_in_nobodys_way(
    pictures, run, tmp_path, capsys
):
    (tmp_path / "data").mkdir()
    shutil.copy(pictures / "dark" / "broken.png", tmp_path / "data")
    arguments = [f"--from={run}", f"--directory={tmp_path / 'out'}", "--quiet"]
    wrong = [*arguments, f"--data={tmp_path / 'data'}"]
    fails_in_one_line(recipe, wrong, "can be read", capsys)
    recipe.main([*arguments, f"--data={pictures / 'bright'}", "--picture=none"])
    assert len(load_file_features(tmp_path / "out").files) == 10


def test_umap_is_missed_before_files_are_encoded(
    pictures, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "umap", None)
    arguments = [f"--from={run}", f"--data={pictures}", "--picture=umap"]
    arguments.append(f"--directory={tmp_path / 'never'}")
    fails_in_one_line(recipe, arguments, "umap", capsys)
    assert not (tmp_path / "never").exists()
    (tmp_path / "never").write_text("")
    fails_in_one_line(recipe, arguments, "is a file", capsys)


def test_the_lines_of_the_readme(pictures, run, tmp_path, monkeypatch, capsys):
    readme = Path(__file__).parents[2] / "recipes" / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    (block,) = [text for text in blocks if "extract.write" in text]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run)
    (tmp_path / "my_images").symlink_to(pictures / "bright")
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert "0.png (10, 16) (10, 4, 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "flags", "dim"),
    [
        ("audio", ["--seconds=0.4", "--segment-means=3"], 48),
        ("video", ["--set=sampling_rate=1"], 16),
    ],
)
def test_recordings_and_videos(encoders, tmp_path, kind, flags, dim):
    extract_samples(tmp_path)
    for index in range(3):
        tone = np.sin(np.arange(8000) * (0.1 + index))
        write_sound(tmp_path / "audio" / f"{index}.wav", tone)
    source, out = [f"--from={encoders[kind]}", f"--data={tmp_path / kind}"], "out"
    recipe.main([*source, f"--directory={tmp_path / out}", "--quiet", *flags])
    features = load_file_features(tmp_path / "out").features
    assert features.shape[1] == dim and np.ptp(features, axis=0).min() > 0
