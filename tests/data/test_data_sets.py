import numpy as np
import pytest
from file_lists import read, relative, touch
from scipy.io import savemat

from keras_bridle.data.layouts import list_files, splits_of

pytestmark = pytest.mark.one_backend

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


@pytest.fixture
def audioset(tmp_path):
    (tmp_path / "train.csv").write_text(AUDIOSET)
    (tmp_path / "class_labels_indices.csv").write_text(CLASSES)
    return tmp_path / "train.csv"


def test_audioset(tmp_path, audioset):
    folder = tmp_path / "clips"
    touch(folder, "x/--PJHxphWEs_30.000_40.000.flac", "Ya_b-c_d0e1.wav")
    touch(folder, "Y-_aJQ6b_Y4c.WAV", "other_video.wav", "unlisted_id.wav")
    files = list_files("audio", folder, "audioset", segments=audioset)
    assert relative(files, folder) == [
        "x/--PJHxphWEs_30.000_40.000.flac",
        "Ya_b-c_d0e1.wav",
        "Y-_aJQ6b_Y4c.WAV",
    ]
    assert files.class_names == ("Speech", "Human sounds, other", "Gush")
    assert files.all_labels().tolist() == [[1, 0, 1], [1, 0, 0], [1, 1, 0]]
    assert files.missing == ["zzzzzzzzzzz"] and set(files.splits) == {"train"}
    with pytest.raises(ValueError):
        splits_of(files)
    test = tmp_path / "eval.csv"
    test.write_text(
        'other_video, 0.0, 10.0, "/m/0dgw9r"\nccccccccccc, 0.0, 10.0, "/m/09x0r"\n'
    )
    tables = {"segments": audioset, "test_segments": test, "test_data": folder}
    both = list_files("audio", folder, "audioset", **tables)
    ((train, test),), _ = splits_of(both)
    assert both.take(train).labels == files.labels
    assert both.take(test).labels == [(1,)]
    assert both.missing == ["zzzzzzzzzzz", "ccccccccccc"]

    # `Yabcdefghij_` is the clip of one video here, not of `abcdefghij_`.
    audioset.write_text(
        'Yabcdefghij, 0.0, 10.0, "/m/09x0r"\nabcdefghij_, 0.0, 10.0, "/m/0dgw9r"\n'
    )
    touch(folder, "Yabcdefghij_.wav")
    files = list_files("audio", folder, "audioset", segments=audioset)
    assert files.labels == [(0,)] and files.missing == ["abcdefghij_"]


def test_audioset_errors(tmp_path, audioset):
    touch(tmp_path, "clips/some.wav")
    for text in (AUDIOSET, AUDIOSET.replace("w9r,", "x,"), "a,b\nc,d\n", "# nothing\n"):
        audioset.write_text(text)
        with pytest.raises(ValueError):
            list_files("audio", tmp_path / "clips", "audioset", segments=audioset)
    with pytest.raises(ValueError, match="`segments`"):
        list_files("audio", tmp_path / "clips", "audioset")
    (tmp_path / "class_labels_indices.csv").unlink()
    with pytest.raises(FileNotFoundError):
        list_files("audio", tmp_path / "clips", "audioset", segments=audioset)


def test_esc50_has_its_own_folds(tmp_path):
    names = [f"{fold}-{i}-A-{i}.wav" for fold in range(1, 6) for i in range(2)]
    touch(tmp_path / "audio", *names)
    (tmp_path / "meta").mkdir()
    rows = [
        f"{name},{name[0]},{9 * (i % 2)},{('dog', 'cat')[i % 2]}"
        for i, name in enumerate(names)
    ]
    (tmp_path / "meta" / "esc50.csv").write_text(
        "\n".join(["filename,fold,target,category", *rows])
    )
    files = list_files("audio", tmp_path, "esc50")
    # In the order of the targets, not of the alphabet.
    assert files.class_names == ("dog", "cat") and files.labels == [0, 1] * 5
    assert relative(files, tmp_path / "audio") == names
    splits, _ = splits_of(files)
    for fold, (_, test) in enumerate(splits, start=1):
        assert [names[i][0] for i in test] == [str(fold)] * 2
    with pytest.raises(ValueError):
        splits_of(files, fold=6)
    with pytest.raises(FileNotFoundError):
        list_files("audio", tmp_path / "audio", "esc50")


def test_speech_commands(tmp_path):
    touch(tmp_path, "yes/a.wav", "yes/b.wav", "no/c.wav", "no/d.wav", "no/e.wav")
    touch(tmp_path, "_background_noise_/white_noise.wav", "README.md")
    (tmp_path / "validation_list.txt").write_text("no/c.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/b.wav\nno/d.wav\n")
    train, test = {"a.wav": "yes", "e.wav": "no"}, {"b.wav": "yes", "d.wav": "no"}
    found = read("audio", tmp_path, "speech_commands")
    assert found == [train, test, {"c.wav": "no"}]
    files = list_files("audio", tmp_path, "speech_commands", split="train")
    assert relative(files, tmp_path) == ["no/e.wav", "yes/a.wav"]
    assert files.class_names == ("no", "yes")
    everything = list_files("audio", tmp_path, "speech_commands")
    ((_, tested),), validation = splits_of(everything, "validation")
    assert relative(everything.take(tested), tmp_path) == ["no/c.wav"]
    assert validation is None
    (tmp_path / "testing_list.txt").unlink()
    with pytest.raises(FileNotFoundError):
        list_files("audio", tmp_path, "speech_commands")


def imagenet(tmp_path, *val):
    touch(tmp_path / "train", *(f"n0{i}/n0{i}_{i}{i}.JPEG" for i in (3, 1, 2)))
    touch(tmp_path / "val", *val)
    return tmp_path


FLAT = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3)]


def test_imagenet_with_folders(tmp_path):
    root = imagenet(tmp_path, "n02/ILSVRC2012_val_00000009.JPEG", "n03/x.JPEG")
    files = list_files("image", root, "imagenet")
    assert relative(files, root) == [
        "train/n01/n01_11.JPEG",
        "train/n02/n02_22.JPEG",
        "train/n03/n03_33.JPEG",
        "val/n02/ILSVRC2012_val_00000009.JPEG",
        "val/n03/x.JPEG",
    ]
    assert files.class_names == ("n01", "n02", "n03")
    assert files.labels == [0, 1, 2, 1, 2]
    assert splits_of(files)[0][0][1].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\n"
            "ILSVRC2012_val_00000003,n02 85 1 499 272 \n"
            "ILSVRC2012_val_00000001,n03 1 2 3 4 n03 5 6 7 8 \n"
            "ILSVRC2012_val_00000002,n01 131 0 499 254 \n",
        ),
        ("val.txt", f"{FLAT[1]} 0\n{FLAT[0]} 2\n\n{FLAT[2]} 1\n"),
        ("synsets.txt", f"{FLAT[0]} n03\n{FLAT[1]} n01\n{FLAT[2]} n02\n"),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n3\n2\n"),
    ],
)
def test_imagenet_with_flat_validation(tmp_path, name, text):
    root = imagenet(tmp_path, *FLAT)
    (tmp_path / name).write_text(text)
    # The development kit has an order of its own, and inner nodes behind the classes.
    columns = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    kit = np.array(
        [
            (1, "n03", "owl", "", 0),
            (2, "n02", "dog", "", 0),
            (3, "n01", "cat", "", 0),
            (4, "n00", "animal", "", 3),
        ],
        dtype=[(column, "O") for column in columns],
    )
    savemat(tmp_path / "meta.mat", {"synsets": kit[:, None]})
    options = {"ground_truth": tmp_path / name, "meta": tmp_path / "meta.mat"}
    files = list_files("image", root, "imagenet", split="val", **options)
    assert relative(files, root / "val") == FLAT
    assert files.classes() == ["n03", "n01", "n02"]
    assert files.class_names == ("n01", "n02", "n03")


def test_imagenet_errors(tmp_path):
    root = imagenet(tmp_path, *FLAT)
    table = tmp_path / "list.txt"
    texts = ["1\n2\n3\n", f"{FLAT[1]} 0\n", f"{FLAT[1]} 7\n"]
    texts.append("".join(f"{x} n09\n" for x in FLAT))
    for text in texts:
        table.write_text(text)
        with pytest.raises(ValueError):
            list_files("image", root, "imagenet", ground_truth=table)
    with pytest.raises(ValueError):
        list_files("image", root, "imagenet")


KINETICS = """\
label,youtube_id,time_start,time_end,split,is_cc
testifying,---QUuC4vJs,84,94,train,0
"eating, drinking",--3ouPhoy2A,20,30,train,0
dribbling basketball,--4-0ihtnBU,58,68,train,0
dribbling basketball,-gone_video,0,10,train,0
"""


def test_kinetics_table(tmp_path):
    names = [
        "train/---QUuC4vJs_000084_000094.mp4",
        "train/eating, drinking/--3ouPhoy2A_000020_000030.mkv",
        "--4-0ihtnBU.mp4",
    ]
    touch(tmp_path / "k400", *names, "train/--4-0ihtnBU_000000_000010.mp4")
    table = tmp_path / "train.csv"
    table.write_text(KINETICS)
    files = list_files("video", table, "kinetics", root=tmp_path / "k400")
    assert relative(files, tmp_path / "k400") == names
    assert files.labels == [2, 1, 0] and files.splits is None
    assert files.class_names[2] == "testifying"
    assert files.missing == ["-gone_video_000000_000010"]
    test = tmp_path / "test.csv"
    test.write_text("youtube_id,time_start,time_end\n---QUuC4vJs,84,94\n")
    unlabeled = list_files("video", test, "kinetics", root=tmp_path / "k400")
    assert unlabeled.labels is None and len(unlabeled) == 1
    with pytest.raises(ValueError):
        list_files("video", test, "kinetics", root=tmp_path / "k400", labels=True)
    test.write_text(KINETICS.replace("58,68", "58.5,68"))
    with pytest.raises(ValueError):
        list_files("video", test, "kinetics", root=tmp_path / "k400")
    test.write_text("label,youtube_id,time_start,time_end\nx,abc,1,11\n")
    with pytest.raises(FileNotFoundError, match="abc_000001_000011"):
        list_files("video", test, "kinetics", root=tmp_path / "k400")


@pytest.mark.parametrize(
    ("text", "labels", "class_names"),
    [
        ("e.mpg 3\n\nb c.webm 0\nd.AVI\t1\n", [3, 0, 1], ["0", "1", "2", "3"]),
        ("e.mpg,z\nb c.webm, a\nd.AVI,z", [1, 0, 1], ("a", "z")),
    ],
)
def test_kinetics_list(tmp_path, text, labels, class_names):
    path = tmp_path / "list.csv"
    path.write_text(text)
    files = list_files("video", path, "kinetics")
    assert relative(files, tmp_path) == ["e.mpg", "b c.webm", "d.AVI"]
    assert files.labels == labels and files.class_names == class_names
    for bad in ("", "a.mp4 0\ne.mpg\n", "a.mp4,0\ne.mpg,\n"):
        path.write_text(bad)
        with pytest.raises(ValueError):
            list_files("video", path, "kinetics")
