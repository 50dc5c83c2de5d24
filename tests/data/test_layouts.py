import numpy as np
import pytest
from file_lists import read, relative, touch

from keras_bridle.data.files import FileList
from keras_bridle.data.layouts import list_files, splits_of

pytestmark = pytest.mark.one_backend


def test_a_folders_files_are_sorted_and_nothing_else(tmp_path):
    touch(tmp_path, "b/2.flac", "b/10.OGG", "a.Wav", "c/d/e.mp3", "b/cover.jpg")
    touch(tmp_path, ".hidden/x.wav", "b/._2.flac", "noext", "b.wav.part", "v.mp4")
    files = list_files("audio", tmp_path)
    assert relative(files, tmp_path) == ["a.Wav", "b/10.OGG", "b/2.flac", "c/d/e.mp3"]
    assert files.labels is None and files.splits is None and len(files) == 4
    assert relative(list_files("image", tmp_path), tmp_path) == ["b/cover.jpg"]
    assert relative(list_files("video", tmp_path), tmp_path) == ["v.mp4"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "elsewhere/x.wav", "data/y.wav")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    files = list_files("audio", tmp_path / "data")
    assert relative(files, tmp_path / "data") == ["link/x.wav", "y.wav"]


def test_what_is_wrong_with_a_folder(tmp_path):
    touch(tmp_path, "a.txt", "dog/1.wav", "stray.wav", "one/x/1.png", "one/x/2.png")
    with pytest.raises(ValueError):
        list_files("video", tmp_path)
    with pytest.raises(ValueError, match="stray"):
        list_files("audio", tmp_path, labels=True)
    for labels in (False, True):
        with pytest.raises(FileNotFoundError):
            list_files("audio", tmp_path / "none", labels=labels)
    with pytest.raises(ValueError):
        splits_of(list_files("image", tmp_path / "one", labels=True))
    with pytest.raises(ValueError):
        splits_of(list_files("image", tmp_path))


def test_other_sources(tmp_path):
    files = list_files("image", ["b.png", tmp_path / "a.png"])
    assert files.files == ["b.png", str(tmp_path / "a.png")]
    assert list_files("image", files) is files
    for kind, data, layout in (
        ("audio", files, "folder"),
        ("image", tmp_path, "esc50"),
        ("smell", tmp_path, "folder"),
    ):
        with pytest.raises(ValueError):
            list_files(kind, data, layout)


def test_options_of_other_layouts_are_refused(tmp_path):
    touch(tmp_path, "x/1.png", "y/2.png")
    for kind, layout, option in (
        ("image", "folder", "root"),
        ("image", "imagenet", "test_split"),
        ("audio", "esc50", "segments"),
    ):
        with pytest.raises(ValueError, match=f"`{option}`"):
            list_files(kind, tmp_path, layout, **{option: "x"})
    assert len(list_files("image", tmp_path, root=None, meta=None)) == 2


def test_class_folders_are_dealt_to_folds(tmp_path):
    names = [f"{c}/{c}{i}.wav" for c, n in (("x", 9), ("y", 6)) for i in range(n)]
    touch(tmp_path, *names)
    files = list_files("audio", tmp_path, labels=True)
    assert files.class_names == ("x", "y")
    splits, validation = splits_of(files, folds=3, seed=1)
    assert len(splits) == 3 and validation is None
    tested = []
    for train, test in splits:
        assert sorted([*train, *test]) == list(range(15))
        assert sorted(files.take(test).classes()) == ["x"] * 3 + ["y"] * 2
        tested += test.tolist()
    assert sorted(tested) == list(range(15))
    ((_, second),), _ = splits_of(files, folds=3, fold=2, seed=1)
    np.testing.assert_array_equal(second, splits[1][1])
    other, _ = splits_of(files, folds=3, seed=2)
    assert any((a[1] != b[1]).any() for a, b in zip(splits, other, strict=True))
    assert len(splits_of(files)[0]) == 5
    for options in ({"folds": 3, "fold": 4}, {"folds": 16}, {"test_split": "test"}):
        with pytest.raises(ValueError):
            splits_of(files, **options)
    with pytest.raises(ValueError):
        list_files("audio", tmp_path, labels=True, test_split="test")
    # Of several labels, the first counts.
    labels = [(0, 1)] * 6 + [()] * 4 + [(2,)] * 5
    files = FileList("audio", [*"abcdefghijklmno"], labels, class_names="xyz")
    ((_, first), (_, second)), _ = splits_of(files, folds=2)
    assert (len(first), len(second)) == (8, 7) and (first < 6).sum() == 3


def test_folder_of_splits(tmp_path):
    touch(tmp_path, "train/x/1.png", "train/z/2.png", "val/z/3.png", "val/y/4.png")
    touch(tmp_path, "other/q/9.png")
    train, val = {"1.png": "x", "2.png": "z"}, {"3.png": "z", "4.png": "y"}
    assert read("image", tmp_path) == [train, val]
    touch(tmp_path, "test/x/5.png")
    assert read("image", tmp_path) == [train, {"5.png": "x"}, val]
    assert read("image", tmp_path, test_split="val") == [train, val]
    assert len(list_files("image", tmp_path)) == 6
    with pytest.raises(ValueError, match="`fold`"):
        read("image", tmp_path, more={"fold": 1})


@pytest.mark.parametrize("train", ["train", "training"])
@pytest.mark.parametrize("name", ["testing", "valid", "dev", "eval"])
def test_other_names_of_splits(tmp_path, train, name):
    touch(tmp_path, f"{train}/x/1.png", f"{train}/y/2.png", f"{name}/x/3.png")
    assert read("image", tmp_path)[1] == {"3.png": "x"}
    table = tmp_path / "t.csv"
    rows = [f"{train}/x/1.png,x,{train}", f"{train}/y/2.png,y,{train}"]
    table.write_text("\n".join(["file,label,split", *rows, f"{name}/x/3.png,x,{name}"]))
    assert read("image", table)[1] == {"3.png": "x"}


@pytest.mark.parametrize("names", [("Train", "Test"), ("dev", "eval"), ("train",)])
def test_splits_that_cannot_be_told_are_no_classes(tmp_path, names):
    for name in names:
        touch(tmp_path, f"{name}/x/1.png", f"{name}/y/2.png")
    with pytest.raises(ValueError):
        list_files("image", tmp_path, labels=True)
    touch(tmp_path, "train/x/1.png", "train/y/2.png", "holdout/x/3.png")
    assert read("image", tmp_path, test_split="holdout")[1] == {"3.png": "x"}


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, "train/1.png", "train/2.png", "ship/3.png", "ship/tug/5.png")
    files = list_files("image", tmp_path, labels=True)
    assert files.class_names == ("ship", "train") and files.splits is None


def test_splits_in_two_places(tmp_path):
    touch(tmp_path, "a/x/1.png", "a/y/2.png", "b/y/3.png")
    found = read("image", tmp_path / "a", test_data=tmp_path / "b")
    assert found == [{"1.png": "x", "2.png": "y"}, {"3.png": "y"}]
    for name, row in (("train", "1.wav,b"), ("test", "2.wav,a;c;b")):
        (tmp_path / f"{name}.csv").write_text(f"file,label\n{row}\n")
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    found = read("audio", train, test_data=test, label_separator=";")
    assert found == [{"1.wav": ("b",)}, {"2.wav": ("a", "c", "b")}]


def test_splits_of_a_table(tmp_path):
    table = tmp_path / "t.csv"
    rows = ["1.wav,x ,train ,1", "2.wav,y,val,2", "3.wav,x,test,1", "4.wav,x,train,3"]
    table.write_text("\n".join(["file,label,split,fold", *rows]))
    train = {"1.wav": "x", "4.wav": "x"}
    assert read("audio", table) == [train, {"3.wav": "x"}, {"2.wav": "y"}]
    files = list_files("audio", table, labels=True)
    assert splits_of(files, "val")[1] is None
    # Without its validation split, the others stay.
    rest = files.take([0, 2, 3])
    assert splits_of(rest)[0][0][1].tolist() == [1]
    folds = list_files("audio", table, labels=True, split_column="fold")
    ((trained, tested),), _ = splits_of(folds, "1")
    assert trained.tolist() == [1, 3] and tested.tolist() == [0, 2]
    # Numbers are folds, each tested in turn.
    splits, _ = splits_of(folds)
    assert [test.tolist() for _, test in splits] == [[0, 2], [1], [3]]
    assert splits_of(folds, fold=3)[0][0][1].tolist() == [3]
    with pytest.raises(ValueError):
        splits_of(files, "dev")
    table.write_text("file,label,split\n1.wav,x,dev\n2.wav,y,eval\n")
    with pytest.raises(ValueError):
        splits_of(list_files("audio", table, labels=True))
