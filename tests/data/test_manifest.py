import csv
from pathlib import Path

import numpy as np
import pytest

from keras_bridle.data.layouts import AudioManifest


def touch(root, *names):
    """Manifests look at names only, so the files may be empty."""
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def relative(manifest, root):
    return [Path(file).relative_to(root).as_posix() for file in manifest.files]


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


# Folders


def test_folder_lists_audio_files_sorted_and_nothing_else(tmp_path):
    touch(
        tmp_path, "b/2.flac", "b/10.OGG", "a.Wav", "c/d/e.mp3", "z.txt", "b/cover.jpg"
    )
    touch(tmp_path, ".hidden/x.wav", "b/._2.flac", "noext", "b.wav.part")
    manifest = AudioManifest.from_folder(tmp_path)
    assert relative(manifest, tmp_path) == [
        "a.Wav",
        "b/10.OGG",
        "b/2.flac",
        "c/d/e.mp3",
    ]
    assert manifest.labels is None and not manifest.multi_label
    assert len(manifest) == 4


def test_folder_follows_links_but_not_in_circles(tmp_path):
    touch(tmp_path, "elsewhere/x.wav", "data/y.wav")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    manifest = AudioManifest.from_folder(tmp_path / "data")
    assert relative(manifest, tmp_path / "data") == ["link/x.wav", "y.wav"]


def test_class_folders_give_labels(tmp_path):
    touch(tmp_path, "dog/1.wav", "cat/x/2.wav", "dog/3.wav", "cat/1.wav")
    manifest = AudioManifest.from_folder(tmp_path, class_folders=True)
    assert manifest.class_names == ("cat", "dog")
    names = [manifest.class_names[label] for label in manifest.labels]
    assert names == [name.split("/")[0] for name in relative(manifest, tmp_path)]
    assert manifest.label_array(0).dtype == np.int32


def test_class_folders_reject_files_without_a_class(tmp_path):
    touch(tmp_path, "dog/1.wav", "stray.wav")
    with pytest.raises(ValueError, match=r"class's folder. Received: 1 .*'stray.wav'"):
        AudioManifest.from_folder(tmp_path, class_folders=True)


def test_empty_folder_says_what_was_looked_for(tmp_path):
    touch(tmp_path, "a.txt", "b.txt", "sub/c.jpg", "README")
    message = (
        rf"No audio file in '{tmp_path}' or its subfolders. Looked for .wav, .flac, "
        r".ogg, .mp3 \(any letter case\); other files seen: 4 \(2 .txt"
    )
    with pytest.raises(ValueError, match=message):
        AudioManifest.from_folder(tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Expected a folder.*does not exist"):
        AudioManifest.from_folder(tmp_path / "none")
    touch(tmp_path, "file.wav")
    with pytest.raises(FileNotFoundError, match=r"file.wav' is a file"):
        AudioManifest.from_folder(tmp_path / "file.wav")


# Tables


def test_csv_with_columns_of_any_name(tmp_path):
    touch(tmp_path, "sound/a.wav", "sound/b.wav", "sound/c.wav")
    table = write_csv(
        tmp_path / "lists" / "t.csv",
        [
            ["n", "path", "kind", "from", "to", "part"],
            ["1", "a.wav", "x", "", "2.5", "one"],
            ["2", "b.wav", "z", "1", "", "two"],
            ["3", "c.wav", "y", "0.5", "1", "one"],
        ],
    )
    manifest = AudioManifest.from_csv(
        table,
        root=tmp_path / "sound",
        file_column="path",
        label_column="kind",
        start_column="from",
        end_column="to",
        split_column="part",
        split="one",
    )
    assert relative(manifest, tmp_path / "sound") == ["a.wav", "c.wav"]
    # Numbered as in the whole table, so that all splits agree.
    assert manifest.class_names == ("x", "y", "z") and manifest.labels == [0, 1]
    assert manifest.segments == [(0.0, 2.5), (0.5, 1.0)]
    both = AudioManifest.from_csv(
        table,
        root=tmp_path / "sound",
        file_column="path",
        split_column="part",
        split=["one", "two"],
    )
    assert len(both) == 3 and both.labels is None and both.segments is None


def test_csv_files_are_relative_to_it_or_absolute(tmp_path):
    touch(tmp_path, "in/a.wav", "out/b.wav")
    table = write_csv(
        tmp_path / "in" / "t.csv", [["file"], ["a.wav"], [tmp_path / "out/b.wav"]]
    )
    manifest = AudioManifest.from_csv(table)
    assert relative(manifest, tmp_path) == ["in/a.wav", "out/b.wav"]


def test_csv_with_several_labels(tmp_path):
    touch(tmp_path, "a.wav", "b.wav", "c.wav")
    table = write_csv(
        tmp_path / "t.csv",
        [["file", "labels"], ["a.wav", "wind; rain"], ["b.wav", ""], ["c.wav", "sun"]],
    )
    manifest = AudioManifest.from_csv(table, label_column="labels", label_separator=";")
    assert manifest.multi_label and manifest.class_names == ("rain", "sun", "wind")
    hot = np.stack([manifest.label_array(i) for i in range(3)])
    assert hot.dtype == np.float32
    np.testing.assert_array_equal(hot, [[1, 0, 1], [0, 0, 0], [0, 1, 0]])


def test_csv_without_a_class(tmp_path):
    touch(tmp_path, "000.wav")
    table = tmp_path / "t.csv"
    table.write_text("file,c,split\n000.wav, x,a\n001.wav,x ,a \n002.wav, ,b\n")
    # Another split's rows need none.
    manifest = AudioManifest.from_csv(table, label_column="c", split="a")
    assert manifest.class_names == ("x",) and manifest.labels == [0, 0]
    with pytest.raises(ValueError, match="row 4: no class in the column 'c'; 1 rows"):
        AudioManifest.from_csv(table, label_column="c")


@pytest.mark.parametrize(
    "content", ["file\nmür.wav".encode("latin-1"), b"RIFF\xd0\xff"]
)
def test_what_is_no_table(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.csv' is no CSV file in UTF-8"):
        AudioManifest.from_csv(path)


def test_csv_with_given_class_names(tmp_path):
    touch(tmp_path, "a.wav")
    table = write_csv(tmp_path / "t.csv", [["file", "c"], ["a.wav", "x"]])
    manifest = AudioManifest.from_csv(
        table, label_column="c", class_names=["w", "x", "y"]
    )
    assert manifest.labels == [1]
    with pytest.raises(ValueError, match=r"lacks 1 classes that occur: \['x'\]"):
        AudioManifest.from_csv(table, label_column="c", class_names=["w"])


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        ([["name"], ["a"]], {}, ValueError, r"no column \['file'\].*\['name'\]"),
        ([["file"]], {}, ValueError, "has a header but no rows"),
        ([], {}, ValueError, r"no column \['file'\]"),
        ([["file"], ["x.wav"]], {}, FileNotFoundError, "None of the 1 files.*x.wav"),
        (
            [["file", "split"], ["a.wav", "train"]],
            {"split": "test"},
            ValueError,
            r"asks for \['test'\].*has \['train'\]",
        ),
        (
            [["file", "s"], ["a.wav", "soon"]],
            {"start_column": "s"},
            ValueError,
            "column 's' must hold seconds. Received: 'soon'",
        ),
        (
            [["file", "s", "e"], ["a.wav", "3", "2"]],
            {"start_column": "s", "end_column": "e"},
            ValueError,
            r"Received: 3.0 s to 2.0 s for '.*a.wav'",
        ),
        (
            [["file", "c"], ["a.wav"]],
            {"label_column": "c"},
            ValueError,
            "row 2: too few",
        ),
    ],
)
def test_csv_errors(tmp_path, rows, options, error, message):
    touch(tmp_path, "a.wav")
    table = write_csv(tmp_path / "t.csv", rows)
    with pytest.raises(error, match=message):
        AudioManifest.from_csv(table, **options)


def test_missing_csv(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Expected a file, but .*does not exist"
    ):
        AudioManifest.from_csv(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        AudioManifest.from_csv(tmp_path)


# AudioSet

AUDIOSET = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=4, num_segs=4, num_unique_labels=3, num_positive_labels=6
# YTID, start_seconds, end_seconds, positive_labels
--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
Ya_b-c_d0e1, 0.000, 10.000, "/m/09x0r"
-_aJQ6b_Y4c, 21.000, 31.000, "/m/0dgw9r,/m/09x0r"
zzzzzzzzzzz, 5.000, 15.000, "/t/dd00088"
"""
CLASSES = """\
index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/0dgw9r,"Human sounds, other"
2,/t/dd00088,"Gush"
"""


def audioset(tmp_path):
    (tmp_path / "balanced_train_segments.csv").write_text(AUDIOSET)
    (tmp_path / "class_labels_indices.csv").write_text(CLASSES)
    return tmp_path / "balanced_train_segments.csv"


def test_audioset(tmp_path):
    table = audioset(tmp_path)
    folder = tmp_path / "clips"
    touch(folder, "x/--PJHxphWEs_30.000_40.000.flac", "Ya_b-c_d0e1.wav")
    touch(folder, "Y-_aJQ6b_Y4c.WAV", "other_video.wav", "unlisted_id.wav")
    manifest = AudioManifest.from_audioset(table, folder)
    assert relative(manifest, folder) == [
        "x/--PJHxphWEs_30.000_40.000.flac",
        "Ya_b-c_d0e1.wav",
        "Y-_aJQ6b_Y4c.WAV",
    ]
    assert manifest.class_names == ["Speech", "Human sounds, other", "Gush"]
    hot = [manifest.label_array(i).tolist() for i in range(3)]
    assert hot == [[1, 0, 1], [1, 0, 0], [1, 1, 0]]
    assert list(manifest.missing) == ["zzzzzzzzzzz"]
    assert manifest.segments is None
    whole = AudioManifest.from_audioset(table, folder, whole_videos=True)
    assert whole.segments == [(30.0, 40.0), (0.0, 10.0), (21.0, 31.0)]


def test_audioset_ids_may_look_like_names_with_something_around(tmp_path):
    """`Yabcdefghij_` is the clip of one video here, not of `abcdefghij_`."""
    (tmp_path / "class_labels_indices.csv").write_text(CLASSES)
    table = tmp_path / "segments.csv"
    table.write_text(
        'Yabcdefghij, 0.0, 10.0, "/m/09x0r"\nabcdefghij_, 0.0, 10.0, "/m/0dgw9r"\n'
    )
    touch(tmp_path / "clips", "Yabcdefghij_.wav")
    manifest = AudioManifest.from_audioset(table, tmp_path / "clips")
    assert manifest.labels == [(0,)] and manifest.missing == ["abcdefghij_"]


def test_audioset_errors(tmp_path):
    table = audioset(tmp_path)
    touch(tmp_path, "clips/some.wav")
    with pytest.raises(ValueError, match=r"no recording of the 4 .*'--PJHxphWEs.wav'"):
        AudioManifest.from_audioset(table, tmp_path / "clips")
    table.write_text(AUDIOSET.replace("/m/0dgw9r,", "/m/unknown,"))
    with pytest.raises(ValueError, match=r"names an unknown class.*m/unknown"):
        AudioManifest.from_audioset(table, tmp_path / "clips")
    table.write_text("a,b\nc,d\n")
    with pytest.raises(ValueError, match="is not AudioSet's"):
        AudioManifest.from_audioset(table, tmp_path / "clips")
    table.write_text("# nothing\n")
    with pytest.raises(ValueError, match="lists no segments"):
        AudioManifest.from_audioset(table, tmp_path / "clips")
    (tmp_path / "class_labels_indices.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"class_labels_indices.csv"):
        AudioManifest.from_audioset(table, tmp_path / "clips")


# ESC-50


def esc50(tmp_path):
    rows = [
        "filename,fold,target,category,esc10,src_file,take",
        "1-100032-A-0.wav,1,0,dog,True,100032,A",
        "2-100210-A-36.wav,2,36,vacuum_cleaner,False,100210,A",
        "1-101296-A-19.wav,1,19,thunderstorm,False,101296,A",
        "5-9032-A-0.wav,5,0,dog,True,9032,A",
    ]
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/esc50.csv").write_text("\n".join(rows) + "\n")
    touch(tmp_path / "audio", *(row.split(",")[0] for row in rows[1:]))
    return tmp_path


def test_esc50(tmp_path):
    root = esc50(tmp_path)
    everything = AudioManifest.from_esc50(root)
    assert len(everything) == 4
    # In the order of the targets, not of the alphabet.
    assert everything.class_names == ("dog", "thunderstorm", "vacuum_cleaner")
    train = AudioManifest.from_esc50(root, folds=(1, 5))
    assert relative(train, root / "audio") == [
        "1-100032-A-0.wav",
        "1-101296-A-19.wav",
        "5-9032-A-0.wav",
    ]
    assert train.labels == [0, 1, 0] and train.class_names == everything.class_names


def test_esc50_errors(tmp_path):
    root = esc50(tmp_path)
    with pytest.raises(ValueError, match=r"asks for \['1', '6'\]"):
        AudioManifest.from_esc50(root, folds=(1, 6))
    with pytest.raises(FileNotFoundError, match=r"esc50.csv' does not exist"):
        AudioManifest.from_esc50(root / "audio")


# Speech Commands


def speech_commands(tmp_path):
    touch(
        tmp_path,
        "right/a69b9b3e_nohash_0.wav",
        "right/0ab3b47d_nohash_0.wav",
        "eight/0ab3b47d_nohash_0.wav",
        "eight/a69b9b3e_nohash_0.wav",
        "eight/ffffffff_nohash_1.wav",
        "_background_noise_/pink_noise.wav",
        "README.md",
    )
    (tmp_path / "validation_list.txt").write_text("right/a69b9b3e_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text(
        "eight/0ab3b47d_nohash_0.wav\neight/ffffffff_nohash_1.wav\n"
    )
    return tmp_path


def test_speech_commands_splits_share_nothing_and_lose_nothing(tmp_path):
    root = speech_commands(tmp_path)
    splits = {
        split: AudioManifest.from_speech_commands(root, split=split)
        for split in ("train", "validation", "test")
    }
    assert relative(splits["train"], root) == [
        "eight/a69b9b3e_nohash_0.wav",
        "right/0ab3b47d_nohash_0.wav",
    ]
    assert relative(splits["validation"], root) == ["right/a69b9b3e_nohash_0.wav"]
    assert len(splits["test"]) == 2
    for manifest in splits.values():
        assert manifest.class_names == ("eight", "right")
        names = [manifest.class_names[label] for label in manifest.labels]
        assert names == [name.split("/")[0] for name in relative(manifest, root)]


def test_speech_commands_errors(tmp_path):
    root = speech_commands(tmp_path)
    with pytest.raises(ValueError, match=r"'train', 'validation' or 'test'.*'valid'"):
        AudioManifest.from_speech_commands(root, split="valid")
    (root / "validation_list.txt").write_text("right/other.wav\n")
    with pytest.raises(
        ValueError, match="holds no validation file: 5 files in 2 class"
    ):
        AudioManifest.from_speech_commands(root, split="validation")
    (root / "testing_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"testing_list.txt"):
        AudioManifest.from_speech_commands(root, split="train")


# The list itself


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": []}, "at least one file"),
        ({"files": ["a", "b"], "labels": [0]}, "`labels` must have one entry.*1 for 2"),
        ({"files": ["a"], "segments": []}, "`segments` must have one entry.*0 for 1"),
        ({"files": ["a"], "labels": [0]}, "must number the 0 `class_names`"),
        (
            {"files": ["a"], "labels": [(0, 2)], "class_names": ["x", "y"]},
            "must number the 2 `class_names`. Received: numbers from 0 to 2",
        ),
        ({"files": ["a"], "segments": [(-1.0, None)]}, "must start at 0 s or later"),
    ],
)
def test_lists_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        AudioManifest(**arguments)


def test_labels_of_an_unlabeled_list():
    with pytest.raises(ValueError, match="no labels"):
        AudioManifest(["a.wav"]).label_array(0)
