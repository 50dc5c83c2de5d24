"""The video recipe, really run, on few clips."""

import numpy as np
import pytest
import recipe_runs
from recipe_runs import (
    SHORT,
    check_resume,
    check_run,
    check_table,
    fails_in_one_line,
    load_recipe,
    save_small_encoder,
    write_preset_config,
)

import keras_bridle as kb
from keras_bridle.data.samples import extract_samples, synthetic_pans

SHORT = [*SHORT, "--image-size=16", "--num-frames=4"]


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("pretrain_video")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    extract_samples(folder)
    (folder / "video" / "broken.mp4").write_text("no video at all")
    return folder / "video"


def test_own_videos_chain_all_phases_and_resume(recipe, videos, tmp_path):
    directory = tmp_path / "run"
    arguments = [*SHORT, "--data", str(videos), "--directory", str(directory)]
    arguments += ["--batch-size=2", "--no-flip"]
    arguments.append(
        save_small_encoder(
            tmp_path / "small",
            patch_size=(2, 8, 8),
            input_dims=(4, 16, 16, 3),
            front_end=kb.PixelNormalization(),
            use_class_token=False,
            position_layout="sequence",
        )
    )
    recipe.main(arguments)
    check_run(directory, np.full((1, 6, 16, 24, 3), 9, "uint8"))
    assert "broken.mp4" in (directory / "skipped_files.csv").read_text()
    check_resume(recipe, arguments, directory)


@pytest.mark.parametrize(
    ("flags", "size"), [([], 18), (["--no-augmentation"], 16)], ids=["crops", "none"]
)
def test_clips_are_read_larger_for_crops(recipe, videos, flags, size):
    arguments = [*SHORT, "--data", str(videos), "--batch-size=2", *flags]
    examples = recipe.own_videos(recipe.parse_arguments(arguments)).examples
    assert examples.shape == (2, 4, size, size, 3)


def test_clips_are_read_as_the_preset_expects(recipe, videos, tmp_path, capsys):
    preset = write_preset_config(tmp_path, (6, 28, 28, 1))
    arguments = [*recipe_runs.SHORT, preset, "--batch-size=2"]
    args = recipe.parse_arguments([*arguments, "--data", str(videos)])
    assert recipe.own_videos(args).examples.shape == (2, 6, 32, 32, 1)
    arguments.append("--directory=never")
    fails_in_one_line(recipe, arguments, "sample videos are in color", capsys)


def test_sample_run_ends_with_a_table_of_probes(recipe, tmp_path, monkeypatch, capsys):
    def few_pans(split, num_clips, **options):
        return synthetic_pans(split, num_clips=32, **options)

    def few_clips(split, sampling_rate, **options):
        return synthetic_pans(split, num_clips=8, **options)[0]

    monkeypatch.setattr(recipe, "synthetic_pans", few_pans)
    monkeypatch.setattr(recipe, "load_clips", few_clips)
    arguments = [*SHORT, "--directory", str(tmp_path / "run")]
    recipe.main(arguments)
    check_run(tmp_path / "run", np.full((1, 4, 16, 16, 3), 9, "uint8"))
    check_table(
        tmp_path / "run",
        ["pixels, linear", "pixels, RBF SVM", "untrained", "0_cold_start", "2_encoder"],
        ["synthetic pan"],
    )
    shown = capsys.readouterr().out
    assert "synthetic" in shown and "Code usage" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/folder"], "does not exist"),
        (["--preset", "enormous"], "no such preset"),
        (["--mask-ratio", "1.5"], "--mask-ratio: expected"),
        (["--num-frames", "0"], "--num-frames: expected"),
        (["--sampling-rate", "0"], "--sampling-rate: expected"),
    ],
)
def test_wrong_flags_are_one_line(recipe, tmp_path, arguments, message, capsys):
    directory = tmp_path / "run"
    arguments = [*SHORT, *arguments, "--directory", str(directory)]
    fails_in_one_line(recipe, arguments, message, capsys)
    assert not directory.exists()


def test_wrong_files_are_one_line(recipe, tmp_path, capsys):
    arguments = [*SHORT, "--data", str(tmp_path), "--directory", "never"]
    fails_in_one_line(recipe, arguments, "mp4", capsys)
    (tmp_path / "list.txt").write_text("")
    arguments[-3] = str(tmp_path / "list.txt")
    fails_in_one_line(recipe, [*arguments, "--layout=kinetics"], "list.txt", capsys)
