from pathlib import Path

import pytest

from keras_bridle.data.layouts import VideoManifest


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b c.webm", "deep/d.AVI", "e.mpg", "notes.txt"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "videos"


def names(manifest, folder):
    return [Path(file).relative_to(folder).as_posix() for file in manifest.files]


def write(folder, text):
    path = folder.parent / "list.csv"
    path.write_text(text, "utf-8")
    return path


def test_folder(folder):
    manifest = VideoManifest.from_folder(folder)
    assert names(manifest, folder) == ["a.mp4", "b c.webm", "deep/d.AVI", "e.mpg"]


def test_kinetics_list_with_spaces(folder):
    path = write(folder, "e.mpg 3\n\nb c.webm 0\ndeep/d.AVI\t1\n")
    manifest = VideoManifest.from_kinetics(path, root=folder)
    assert names(manifest, folder) == ["e.mpg", "b c.webm", "deep/d.AVI"]
    assert manifest.labels == [3, 0, 1]
    assert manifest.class_names == ("0", "1", "2", "3")
    assert manifest.label_array(0) == 3


def test_kinetics_list_with_commas_and_names(folder):
    path = write(folder, "a.mp4,zumba\ne.mpg, archery\nb c.webm,zumba")
    manifest = VideoManifest.from_kinetics(path, root=folder)
    assert manifest.class_names == ("archery", "zumba")
    assert manifest.labels == [1, 0, 1]
    named = VideoManifest.from_kinetics(
        path, root=folder, class_names=["zumba", "archery"]
    )
    assert named.labels == [0, 1, 0]


def test_kinetics_numbers_index_given_names(folder):
    path = write(folder, "a.mp4 1\n")
    manifest = VideoManifest.from_kinetics(
        path, root=folder, class_names=["archery", "zumba"]
    )
    assert manifest.class_names == ("archery", "zumba") and manifest.labels == [1]
    with pytest.raises(ValueError, match="must number the 1 `class_names`"):
        VideoManifest.from_kinetics(path, root=folder, class_names=["archery"])


def test_relative_paths_start_from_the_list(folder):
    manifest = VideoManifest.from_kinetics(write(folder, "videos/a.mp4 0\n"))
    assert manifest.files == [str(folder / "a.mp4")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no videos"),
        ("a.mp4 0\ne.mpg\n", "every line must be 'path label'.*Received: 'e.mpg'"),
        ("a.mp4,0\ne.mpg,\n", "every line must be.*Received: 'e.mpg,'"),
    ],
)
def test_bad_lists(folder, text, message):
    with pytest.raises(ValueError, match=message):
        VideoManifest.from_kinetics(write(folder, text), root=folder)


def test_wrong_root(folder):
    path = write(folder, "a.mp4 0\n")
    with pytest.raises(FileNotFoundError, match=r"None of the 1 files .*`root` right"):
        VideoManifest.from_kinetics(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        VideoManifest.from_kinetics(folder / "none.csv")


def test_table_with_a_header(folder):
    path = write(folder, "file,label\na.mp4,x\ne.mpg,y\n")
    manifest = VideoManifest.from_csv(path, root=folder, label_column="label")
    assert manifest.labels == [0, 1]


# Kinetics' own tables


KINETICS = """\
label,youtube_id,time_start,time_end,split,is_cc
testifying,---QUuC4vJs,84,94,train,0
"eating, drinking",--3ouPhoy2A,20,30,train,0
dribbling basketball,--4-0ihtnBU,58,68,train,0
dribbling basketball,-gone_video,0,10,train,0
"""


def kinetics(tmp_path):
    for name in (
        "train/---QUuC4vJs_000084_000094.mp4",
        "train/eating, drinking/--3ouPhoy2A_000020_000030.mkv",
        "--4-0ihtnBU.mp4",
        "train/--4-0ihtnBU_000000_000010.mp4",
    ):
        path = tmp_path / "k400" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "train.csv").write_text(KINETICS)
    return tmp_path / "k400"


def test_kinetics_table(tmp_path):
    root = kinetics(tmp_path)
    manifest = VideoManifest.from_kinetics(tmp_path / "train.csv", root=root)
    assert names(manifest, root) == [
        "train/---QUuC4vJs_000084_000094.mp4",
        "train/eating, drinking/--3ouPhoy2A_000020_000030.mkv",
        "--4-0ihtnBU.mp4",
    ]
    assert manifest.class_names == (
        "dribbling basketball",
        "eating, drinking",
        "testifying",
    )
    assert manifest.labels == [2, 1, 0]
    assert manifest.missing == ["-gone_video_000000_000010"]


def test_kinetics_table_without_labels(tmp_path):
    root = kinetics(tmp_path)
    (tmp_path / "test.csv").write_text(
        "youtube_id,time_start,time_end,split\n---QUuC4vJs,84,94,test\n"
    )
    manifest = VideoManifest.from_kinetics(tmp_path / "test.csv", root=root)
    assert manifest.labels is None and len(manifest) == 1


def test_kinetics_table_errors(tmp_path):
    root = kinetics(tmp_path)
    table = tmp_path / "train.csv"
    with pytest.raises(ValueError, match="lacks 3 classes"):
        VideoManifest.from_kinetics(table, root=root, class_names=["y"])
    table.write_text(KINETICS.replace("58,68", "58.5,68"))
    with pytest.raises(ValueError, match=r"whole seconds\. Received: '58.5' to '68'"):
        VideoManifest.from_kinetics(table, root=root)
    table.write_text("label,youtube_id,time_start,time_end,split\nx,abc,1,11,val\n")
    with pytest.raises(FileNotFoundError, match=r"none of the 1 .*abc_000001_000011"):
        VideoManifest.from_kinetics(table, root=root)
    table.write_text("label,youtube_id\nx,abc\n")
    with pytest.raises(ValueError, match=r"no column \['time_start', 'time_end'\]"):
        VideoManifest.from_kinetics(table, root=root)
