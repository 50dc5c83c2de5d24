"""What the pretraining recipes share before and after training."""

import errno
import types
from pathlib import Path

import numpy as np
import pytest
from image_files import write_gray
from recipe_runs import write_preset_config

from keras_bridle import cli as command_line
from keras_bridle.data.layouts import ImageManifest
from keras_bridle.data.pipeline import image_dataset
from keras_bridle.layers.log_mel import LogMelSpectrogram


def reading(**kwargs):
    """Flags that matter where files are read."""
    flags = {"data": "my/files", "batch_size": 2, "seed": 0, "strict": False}
    return types.SimpleNamespace(**{**flags, **kwargs})


def read_examples(folder, **kwargs):
    def make_dataset(manifest, **options):
        return image_dataset(manifest, image_size=8, **options)

    args = reading(**kwargs)
    manifest = ImageManifest.from_folder(folder)
    return command_line.data_from_files(args, manifest, make_dataset).examples


def test_examples_are_of_all_classes(tmp_path):
    """In order, the first files are all of one class."""
    for name, shift in (("dark", 0), ("light", 20)):
        (tmp_path / name).mkdir()
        for file in write_gray(tmp_path / name, 20 + shift)[:shift]:
            Path(file).unlink()
    examples = read_examples(tmp_path)
    grays = examples.reshape(len(examples), -1).mean(axis=1)
    assert len(grays) == 8
    assert (grays < 40).any() and (grays >= 40).any()
    # A resumed run normalizes by the same.
    np.testing.assert_array_equal(read_examples(tmp_path), examples)
    assert (read_examples(tmp_path, seed=1) != examples).any()


@pytest.mark.parametrize(
    "examples",
    [
        np.zeros((4, 1600), "float32"),
        np.linspace(0, 1, 4)[:, None] * np.ones((4, 1600)),
        np.random.default_rng(0).integers(0, 9, (4, 8, 8, 3)) * [1, 1, 0] + 5,
    ],
    ids=["silence", "offsets", "an empty channel"],
)
def test_constant_examples(examples):
    args = reading(preset="tiny", patch_size=None)
    with pytest.raises(ValueError, match=r"--data my/files .* the 4 files .* silent"):
        command_line.make_backbone(args, "audio", examples, LogMelSpectrogram.for_data)


def parse(modality, *flags):
    names = ("seconds", "image_size", "num_frames")
    settings = dict.fromkeys(names, 50) | {"directory": "never", "preset": "tiny"}
    parser = command_line.pretraining_parser("A recipe.", settings, settings)
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float)
    return command_line.parse_pretraining_arguments(parser, modality, flags)


@pytest.mark.parametrize(
    ("modality", "dims", "expected"),
    [
        ("audio", (4000,), {"seconds": 0.5, "sample_rate": 8000}),
        ("audio", (None,), {"seconds": 50, "sample_rate": 8000}),
        ("image", (28, 28, 1), {"image_size": 28, "channels": 1}),
        ("image", (None, None, 3), {"image_size": 50, "channels": 3}),
        (
            "video",
            (6, 28, 28, 3),
            {"num_frames": 6, "image_size": 28, "channels": 3, "seconds": 50},
        ),
    ],
)
def test_sizes_that_no_flag_gives_are_the_presets(
    tmp_path, modality, dims, expected, capsys
):
    front_end = {"config": {"sample_rate": 8000}}
    preset = write_preset_config(tmp_path, dims, front_end=front_end)
    args = vars(parse(modality, preset))
    assert expected.items() <= args.items()
    name = next(iter(expected))
    given = vars(parse(modality, preset, f"--{name.replace('_', '-')}=7"))
    assert given[name] == 7
    with pytest.raises(SystemExit):
        parse("image" if modality == "audio" else "audio", preset)
    assert f"is an encoder for {modality}" in capsys.readouterr().err


def test_a_folder_without_a_preset_is_a_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse("image", f"--preset={tmp_path}")
    assert "There is no preset in this folder" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, -8])
def test_batches_have_examples(size, capsys):
    with pytest.raises(SystemExit):
        parse("image", f"--batch-size={size}")
    line = f"--batch-size: expected a whole number, 1 or more, received {size}"
    assert line in capsys.readouterr().err


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
    setup = command_line.Setup(parse("image"))
    with pytest.raises(SystemExit) as stop, setup:
        setup.is_over = is_over
        try:
            raise error
        finally:
            # What closes a file may fail as well, and hide the reason.
            raise ValueError("Unable to close the file")
    message = str(stop.value.code)
    assert message.startswith("The disk is full: ")
    assert " ".join(str(error).split()) in message
    assert "go on with --resume" in message
    assert len(message.splitlines()) == 1


def test_other_errors_of_files_keep_their_traceback():
    setup = command_line.Setup(parse("image"))
    with pytest.raises(PermissionError), setup:
        setup.is_over = True
        raise PermissionError(errno.EACCES, "Permission denied")
