"""How flags become data and settings, without training."""

from pathlib import Path

import pytest

from keras_bridle import BridleBackbone, LogMelSpectrogram
from keras_bridle import cli as command_line
from keras_bridle.modalities import Audio


def parsed(*arguments):
    parser = command_line.fine_tuning_parser("")
    return parser.parse_args(["--from=x", "--modality=audio", *arguments])


def test_missing_files_are_reported(tmp_path):
    for name in ("Yaaaaaaaaaaa.wav", "Ybbbbbbbbbbb.wav"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "class_labels_indices.csv").write_text(
        "index,mid,display_name\n0,/m/1,Speech\n1,/m/2,Music\n"
    )
    train, test = tmp_path / "train.csv", tmp_path / "eval.csv"
    train.write_text('aaaaaaaaaaa, 0.0, 10.0, "/m/1,/m/2"\n')
    test.write_text('bbbbbbbbbbb, 0.0, 10.0, "/m/2"\nccccccccccc, 0.0, 9.0, "/m/2"\n')
    args = parsed(
        f"--data={tmp_path}",
        "--layout=audioset",
        f"--segments={train}",
        f"--test-segments={test}",
    )
    found = command_line._read_data(args, Audio(args))
    assert [file.path for file in found.read_report.skipped] == ["ccccccccccc"]


def test_sounds_are_read_at_the_rate_of_the_encoder():
    backbone = BridleBackbone(
        patch_size=(8, 32),
        input_dims=(None,),
        front_end=LogMelSpectrogram(sample_rate=8000),
        hidden_dim=16,
        num_layers=1,
        num_heads=2,
        mlp_dim=32,
    )
    audio = Audio(parsed("--seconds=1"))
    assert audio.reader().keywords["sample_rate"] == 16000
    audio.fit_sizes(backbone.get_config())
    assert audio.reader().keywords["sample_rate"] == 8000
    with pytest.raises(ValueError, match="sounds at 8000 Hz, which need --data"):
        audio.sample()


@pytest.mark.parametrize(("share", "held_out"), [(0.5, ["2.wav"]), (0.0, None)])
def test_a_validation_part_finds_the_best_epoch(tmp_path, share, held_out):
    lines = ["file,label,split"]
    for number, part in enumerate(["train", "train", "val", "test"]):
        (tmp_path / f"{number}.wav").write_bytes(b"")
        lines.append(f"{number}.wav,{'ab'[number % 2]},{part}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    args = parsed(f"--data={tmp_path / 't.csv'}", f"--validation-share={share}")
    data = command_line._read_data(args, Audio(args))
    ((train, _),) = data.splits
    train, validation = command_line._few_and_held_out(args, train, data.validation)
    assert len(train) == 2
    found = validation and [Path(file).name for file in validation.manifest.files]
    assert found == held_out
