"""The recipe for features, really run, on few files of each kind."""

import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
from recipe_runs import fails_in_one_line, load_recipe
from tiny_pretraining import backbone as tiny_backbone

import keras_bridle as kb
from keras_bridle.data.samples import extract_samples
from keras_bridle.evaluation.features import load_file_features
from keras_bridle.training.run import run_lock


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("extract_features")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype("uint8")
    for index, picture in enumerate(pixels):
        path = folder / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(picture).save(path)
    (folder / "a" / "broken.png").write_text("no picture")
    rows = [f"{'ab'[i % 2]}/{i}.png,{'ab'[i % 2]}" for i in range(6)]
    (folder / "list.csv").write_text("\n".join(["file,kind", *rows]))
    return folder


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


def test_pictures_and_codes_of_a_run(recipe, pictures, run, tmp_path, capsys):
    arguments = [f"--from={run}", f"--data={pictures}", "--set=part_size=4", "--quiet"]
    arguments += [f"--directory={tmp_path / 'out'}", "--class-folders"]
    recipe.main(arguments)
    found = load_file_features(tmp_path / "out")
    assert found.features.shape == (6, 16) and found.codes.shape == (6, 4, 2)
    assert found.labels.tolist() == ["a"] * 3 + ["b"] * 3
    assert "broken.png" in (tmp_path / "out" / "skipped_files.csv").read_text()
    assert (tmp_path / "out" / "map.png").read_bytes().startswith(b"\x89PNG")
    shown = " ".join(capsys.readouterr().out.split())
    assert "6 rows of 16 numbers, codes (4, 2)" in shown
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


def test_a_table_and_patches(recipe, pictures, run, tmp_path):
    recipe.main(
        [
            f"--from={run}",
            f"--data={pictures / 'list.csv'}",
            "--label-column=kind",
            "--per=patch",
            "--no-codes",
            "--picture=none",
            "--quiet",
            f"--directory={tmp_path}",
        ]
    )
    found = load_file_features(tmp_path)
    assert found.features.shape == (24, 16) and found.codes is None
    assert found.labels[:8].tolist() == ["a"] * 4 + ["b"] * 4
    assert not (tmp_path / "map.png").exists()


def test_parquet_and_umap(recipe, pictures, run, tmp_path, monkeypatch):
    class Umap:
        def __init__(self, random_state, n_jobs):
            pass

        def fit_transform(self, features):
            return features[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    flags = ["--format=parquet", "--picture=umap", "--set=part_size=4", "--quiet"]
    source = [f"--from={run}", f"--data={pictures / 'a'}"]
    recipe.main([*source, *flags, f"--directory={tmp_path}"])
    found = load_file_features(tmp_path)
    assert found.files.tolist() == ["0.png", "2.png", "4.png"]
    assert found.features.shape == (3, 16) and found.codes.shape == (3, 4, 2)
    assert (tmp_path / "parts" / "part-000000.parquet").exists()
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_could_read_nothing_is_in_nobodys_way(
    recipe, pictures, run, tmp_path, capsys
):
    (tmp_path / "data").mkdir()
    shutil.copy(pictures / "a" / "broken.png", tmp_path / "data")
    arguments = [f"--from={run}", f"--directory={tmp_path / 'out'}", "--quiet"]
    wrong = [*arguments, f"--data={tmp_path / 'data'}"]
    fails_in_one_line(recipe, wrong, "can be read", capsys)
    recipe.main([*arguments, f"--data={pictures / 'a'}", "--picture=none"])
    assert len(load_file_features(tmp_path / "out").files) == 3


def test_umap_is_missed_before_files_are_encoded(
    recipe, pictures, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "umap", None)
    arguments = [f"--from={run}", f"--data={pictures}", "--picture=umap"]
    arguments.append(f"--directory={tmp_path / 'never'}")
    fails_in_one_line(recipe, arguments, "umap", capsys)
    assert not (tmp_path / "never").exists()
    (tmp_path / "never").write_text("")
    fails_in_one_line(recipe, arguments, "is none", capsys)


def test_the_lines_of_the_readme(pictures, run, tmp_path, monkeypatch, capsys):
    readme = Path(__file__).parents[2] / "recipes" / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    (block,) = [text for text in blocks if "extract.write" in text]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run)
    (tmp_path / "my_images").symlink_to(pictures / "b")
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert "1.png (3, 16) (3, 4, 2)" in capsys.readouterr().out


def test_recordings_and_videos(recipe, tmp_path):
    (tmp_path / "sounds").mkdir()
    for index in range(3):
        tone = np.sin(np.arange(8000) * (0.1 + index))
        soundfile.write(tmp_path / "sounds" / f"{index}.wav", tone, 16000)
    extract_samples(tmp_path / "samples")
    small = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}
    kb.BridleBackbone(
        patch_size=(8, 64),
        input_dims=(None,),
        front_end=kb.LogMelSpectrogram(),
        **small,
    ).save_to_preset(str(tmp_path / "audio"))
    kb.BridleBackbone(
        patch_size=(2, 8, 8),
        input_dims=(4, 16, 16, 3),
        front_end=kb.PixelNormalization(),
        position_layout="sequence",
        **small,
    ).save_to_preset(str(tmp_path / "video"))
    for kind, data, flags, dim in (
        ("audio", "sounds", ["--seconds=0.4", "--segment-means=3"], 48),
        ("video", "samples/video", ["--set=sampling_rate=1"], 16),
    ):
        out = tmp_path / f"{kind} features"
        recipe.main(
            [
                f"--from={tmp_path / kind}",
                f"--data={tmp_path / data}",
                f"--directory={out}",
                "--quiet",
                *flags,
            ]
        )
        features = load_file_features(out).features
        assert features.shape[1] == dim and np.ptp(features, axis=0).min() > 0


def test_wrong_flags_are_one_line(recipe, pictures, run, tmp_path, capsys):
    def fails(message, *arguments):
        given = [f"--data={pictures}", f"--from={run}", "--quiet", *arguments]
        given.append(f"--directory={tmp_path / 'never'}")
        fails_in_one_line(recipe, given, message, capsys)

    fails("bridle_audio_enormous", "--from=bridle_audio_enormous")
    fails("--from must be the directory of a run", "--from=no/run")
    fails("--seconds must be given", "--from=bridle_audio_tiny", f"--data={tmp_path}")
    fails("--seconds is not for image", "--seconds=3")
    fails("--data must be", "--data=nowhere")
    table = pictures / "list.csv"
    fails("class", f"--data={table}", "--label-column=class")
    fails("--label-column must be", "--label-column=kind")
    fails("--class-folders must be", "--class-folders", f"--data={table}")
    fails("--batch-size must be", "--batch-size=0")
    fails("--segment-means must be at most 2", "--segment-means=1000")
    fails("--segment-means must be 1", "--segment-means=2", "--per=patch")
    fails("--per must be", "--per=clip")
    assert not (tmp_path / "never").exists()
