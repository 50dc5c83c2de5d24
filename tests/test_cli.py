"""The command line that is made from options, and how programs end."""

import dataclasses
import errno
import json
from pathlib import Path

import numpy as np
import pytest
from image_files import write_gray
from recipe_runs import write_preset_config

from keras_bridle.cli import Setup
from keras_bridle.config import (
    ArgumentError,
    AudioReading,
    Existing,
    RunOptions,
    VideoReading,
    flag,
    option,
)
from keras_bridle.modalities import MODALITIES
from keras_bridle.workflows import Pretraining, PretrainingOptions


@dataclasses.dataclass(kw_only=True)
class Options(RunOptions):
    """Options of these tests."""

    hidden = ("dtype_policy",)

    source: tuple[str, ...] = flag((), "several", name="--from")
    file: Existing | None = option(None, "a file")
    rate: float = flag(0.5, "a number")
    codes: bool = flag(True, "without codes")
    sides: tuple[int, int] | None = option(None, "two ints")
    more: dict = option(dict, "a dict")
    seed: int = option(0, "a seed")


class Recipe(Setup):
    """A recipe that has a default of its own."""

    def defaults(self, given):
        return {"directory": "never", "rate": 0.25}


def parse(*arguments):
    return Recipe(Options, "A recipe.", arguments).options


def fails(capsys, *arguments, recipe=parse):
    with pytest.raises(SystemExit) as stop:
        recipe(*arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


pytestmark = pytest.mark.one_backend


def test_flags_and_set():
    options = parse("--from", "a", "b c", "--no-codes", "--set", "sides=1,2")
    assert options.source == ("a", "b c")
    assert not options.codes and options.sides == (1, 2)
    options = parse("--set=more={top_k: 2}", "--set=dtype_policy=x")
    assert options.more == {"top_k": 2} and options.dtype_policy == "x"


def test_the_command_line_is_above_a_file_above_the_recipe(tmp_path):
    assert (parse().rate, Options().rate) == (0.25, 0.5)
    path = tmp_path / "run.yaml"
    path.write_text("rate: 1e-3\nsides: [3, 4]\nmore: {a: 1}\n")
    options = parse(f"--settings={path}")
    assert (options.rate, options.sides, options.more) == (1e-3, (3, 4), {"a": 1})
    assert parse(f"--settings={path}", "--rate=2").rate == 2
    assert parse(f"--settings={path}", "--set=rate=3").rate == 3


def test_settings_of_a_run(tmp_path):
    path = tmp_path / "settings.json"
    settings = {"rate": 1e-5, "backbone": {}, "plan": []}
    path.write_text(json.dumps({"settings": settings, "about": {}}))
    assert parse(f"--settings={path}").rate == 1e-5
    recipe = {"rate": 2e-5, "sides": None}
    path.write_text(json.dumps({"settings": settings, "recipe": recipe}))
    assert parse(f"--settings={path}").rate == 2e-5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rate=x"], "--rate must be a number. Received: x"),
        (["--set=rate=x"], "--rate must be"),
        (["--set=sides=1"], "--set sides must be"),
        (["--sides=1,2"], "use --set sides="),
        (["--no-quiet"], "use --set quiet=false"),
        (["--dtype-policy", "x"], "use --set dtype_policy="),
        (["--nonsense=1"], "--nonsense"),
        (["word"], "word"),
        (["--set=nonsense=1"], "--set nonsense=1"),
        (["--set=rate"], "--set rate"),
        (["--set=file=no/where"], "--set file must be"),
        (["--settings=no/where.yaml"], "no/where.yaml"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, expected, capsys):
    assert expected in fails(capsys, *arguments)


@pytest.mark.parametrize("text", ["rate: [", "nonsense: 1", "- 1", "rate: x"])
def test_wrong_files_of_settings_are_one_line(tmp_path, text, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    fails(capsys, f"--settings={path}")


def test_directories(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "--directory" in fails(capsys, f"--directory={tmp_path / 'file' / 'run'}")
    (tmp_path / "settings.json").touch()
    assert "--resume" in fails(capsys, f"--directory={tmp_path}")
    assert parse(f"--directory={tmp_path}", "--resume").resume


def test_help(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    for text in ("--from", "--no-codes", "--set", "--settings", "sides", "A recipe."):
        assert text in shown
    assert "--seed" not in shown and "--dtype-policy" not in shown


FULL = "No space left on device"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, FULL, "results/codes.png"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        # As HDF5 and TensorFlow tell it.
        RuntimeError(f"Can't write\ndata (errno = 28, error message = '{FULL}')"),
    ],
    ids=["file", "quota", "words"],
)
@pytest.mark.parametrize("is_over", [False, True])
def test_a_full_disk_is_a_line(error, is_over):
    setup = Recipe(Options, "A recipe.", [])
    with pytest.raises(SystemExit) as stop, setup:
        setup.is_over = is_over
        try:
            raise error
        finally:
            # What closes a file may fail as well, and hide the reason.
            raise ValueError("Unable to close the file")
    message = str(stop.value.code)
    assert " ".join(str(error).split()) in message and "--resume" in message
    assert len(message.splitlines()) == 1


def test_faults_keep_their_traceback_and_errors_before_do_not(capsys):
    def run(is_over, error):
        with Recipe(Options, "A recipe.", []) as setup:
            setup.is_over = is_over
            raise error

    with pytest.raises(PermissionError):
        run(True, PermissionError(errno.EACCES, "Permission denied"))
    line = fails(capsys, False, ArgumentError("rate", "low", 3), recipe=run)
    assert "--rate must be low. Received: 3" in line
    assert "no such" in fails(capsys, False, OSError("no such\nfile"), recipe=run)


def pretraining(modality, *arguments, settings=None):
    sizes = {"seconds": 50, "image_size": 50, "num_frames": 50}
    settings = {"directory": "never", "preset": "tiny"} | sizes | (settings or {})

    @dataclasses.dataclass(kw_only=True)
    class Everything(PretrainingOptions, AudioReading, VideoReading):
        """All options."""

    modality = MODALITIES[modality]
    return Pretraining(modality, Everything, "A.", settings, settings, arguments)


@pytest.mark.parametrize(
    ("modality", "dims", "expected"),
    [
        ("audio", (4000,), {"seconds": 0.5}),
        ("audio", (None,), {"seconds": 50}),
        ("image", (28, 28, 1), {"image_size": 28}),
        ("image", (None, None, 3), {"image_size": 50}),
        ("video", (6, 28, 28, 3), {"num_frames": 6, "image_size": 28, "seconds": 50}),
    ],
)
def test_sizes_that_nothing_gives_are_the_presets(
    tmp_path, modality, dims, expected, capsys
):
    front_end = {"config": {"sample_rate": 8000}}
    preset = write_preset_config(tmp_path, dims, front_end=front_end)
    options = pretraining(modality, preset).options
    assert {name: getattr(options, name) for name in expected} == expected
    name = next(iter(expected))
    given = pretraining(modality, preset, f"--{name.replace('_', '-')}=7").options
    assert getattr(given, name) == 7
    other = "image" if modality == "audio" else "audio"
    assert "--preset" in fails(capsys, other, preset, recipe=pretraining)
    wrong = ["image", "--data=missing"]
    assert "missing" in fails(capsys, *wrong, recipe=pretraining)


def read_examples(folder, *arguments):
    arguments = [f"--data={folder}", "--batch-size=2", "--image-size=16", *arguments]
    recipe = pretraining("image", *arguments)
    recipe.load(None)
    return recipe.examples


def test_examples_are_of_all_classes(tmp_path):
    """In order, the first files are all of one class."""
    for name, shift in (("dark", 0), ("light", 20)):
        (tmp_path / name).mkdir()
        for file in write_gray(tmp_path / name, 20 + shift)[:shift]:
            Path(file).unlink()
    examples = read_examples(tmp_path)
    grays = examples.reshape(len(examples), -1).mean(axis=1)
    assert examples.shape == (8, 18, 18, 3)
    assert (grays < 40).any() and (grays >= 40).any()
    # A resumed run normalizes by the same.
    np.testing.assert_array_equal(read_examples(tmp_path), examples)
    assert (read_examples(tmp_path, "--seed=1") != examples).any()
    plain = read_examples(tmp_path, "--set=augmentation=false")
    assert plain.shape == (8, 16, 16, 3)


@pytest.mark.parametrize("flags", [[], ["--distribute"], ["--distribute", "4"]])
def test_distribute_has_an_optional_number(flags):
    options = pretraining("audio", *flags).options
    assert options.distribute == {0: 0, 1: 1, 2: 4}[len(flags)]
