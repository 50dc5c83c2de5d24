"""How flags become data and settings, without training."""

from keras_bridle.fine_tuning import command_line
from keras_bridle.fine_tuning.modalities import Audio


def parsed(*arguments):
    parser = command_line.fine_tuning_parser("")
    return parser.parse_args(["--from=x", *map(str, arguments)])


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
