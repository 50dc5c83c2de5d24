import csv

import numpy as np
import pytest
from file_lists import relative

from keras_bridle.data.files import FileList, ReadReport, UnreadableFileError
from keras_bridle.data.layouts import list_files

pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize(
    "arguments",
    [
        {"files": []},
        {"files": ["a", "b"], "labels": [0], "class_names": ["x"]},
        {"files": ["a"], "segments": []},
        {"files": ["a"], "splits": ["train", "test"]},
        {"files": ["a"], "labels": [0]},
        {"files": ["a"], "labels": [-1], "class_names": ["x"]},
        {"files": ["a"], "labels": [(0, 2)], "class_names": ["x", "y"]},
    ],
)
def test_lists_are_checked(arguments):
    with pytest.raises(ValueError):
        FileList("audio", **arguments)


def test_some_of_the_files():
    files = FileList(
        "audio",
        ["a.wav", "b.wav", "c.wav"],
        labels=[1, 0, 1],
        class_names=["x", "y"],
        segments=[(0, 1), (2, None), (3, 4)],
        splits=["train", "train", "test"],
        missing=["d"],
    )
    taken = files.take(np.array([2, 1]))
    assert taken.files == ["c.wav", "b.wav"] and taken.classes() == ["y", "x"]
    assert taken.segments == [(3, 4), (2, None)] and taken.missing == ["d"]
    assert taken.splits == ["test", "train"]
    plain = FileList("image", ["a.png", "b.png"]).take([1])
    assert plain.labels is None and plain.splits is None
    numbered = files.numbered()
    assert numbered.all_labels().tolist() == [0, 1, 2]
    assert numbered.segments == files.segments


def test_labels():
    files = FileList("audio", ["x", "y"], [1, 0], ["a", "b"])
    assert files.label_array(0) == 1 and files.label_array(0).dtype == np.int32
    assert files.all_labels().dtype == np.int32 and not files.multi_label
    several = FileList("audio", ["x", "y"], [(0, 2), ()], ["a", "b", "c"])
    assert several.multi_label and several.classes() == [("a", "c"), ()]
    np.testing.assert_array_equal(several.label_array(0), [1, 0, 1])
    assert several.label_array(0).dtype == np.float32
    np.testing.assert_array_equal(several.all_labels(), [[1, 0, 1], [0, 0, 0]])


def test_columns_of_any_name(tmp_path):
    table = tmp_path / "lists" / "t.csv"
    table.parent.mkdir()
    absolute = tmp_path / "out" / "b.png"
    rows = "1,a.png,x, one\n2,{absolute},z,two\n3,c.png,y,one\n"
    table.write_text("n,path,kind,Part\n" + rows.format(absolute=absolute))
    columns = {"file_column": "path", "split_column": "part"}
    for root in (None, tmp_path):
        columns["root"] = root
        files = list_files("image", table, label_column="kind", split="one", **columns)
        assert relative(files, root or table.parent) == ["a.png", "c.png"]
    # Numbered as in the whole table, so that all splits agree.
    assert files.class_names == ("x", "y", "z") and files.labels == [0, 1]
    both = list_files("image", table, "csv", split=["one", "two"], **columns)
    assert relative(both, tmp_path) == ["a.png", "out/b.png", "c.png"]
    assert both.labels is None and both.splits == ["one", "two", "one"]
    with pytest.raises(ValueError):
        list_files("image", table, split="three", **columns)
    assert list_files("image", table, file_column="path").splits is None
    table.write_text("file,Split\na.png,x\n")
    for column in (None, "split", "Split"):
        assert list_files("image", table, split_column=column).splits == ["x"]
    table.write_text("file,label\na,wind; rain;wind\nb,\nc,sun\n")
    files = list_files("audio", table, labels=True, label_separator=";")
    assert files.multi_label and files.class_names == ("rain", "sun", "wind")
    assert files.classes() == [("wind", "rain"), (), ("sun",)]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("name\na\n", {}),
        ("file\n", {}),
        ("", {}),
        ("file,c\na,x\n", {"labels": True}),
        ("file,split\na,train\n", {"split": "test"}),
        ("file,split\na,train\n", {"split_column": "fold"}),
        ("file,c\na,x\nb\n", {"label_column": "c"}),
        ("file,c\n0.wav, x\n1.wav,x \n2.wav, \n", {"label_column": "c"}),
        ("RIFF\udcff", {}),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path, content, options):
    path = tmp_path / "t.csv"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError) as caught:
        list_files("audio", path, "csv", **options)
    assert "2.wav" not in content or "row 4" in str(caught.value)


def test_lists_of_a_report_are_tables_that_read_back(tmp_path):
    report = ReadReport()
    folder = tmp_path / "runs" / "first"
    assert report.write(folder).read_bytes().split() == [b"file,reason"]
    assert [path.name for path in folder.iterdir()] == ["skipped_files.csv"]
    for add in (report.add_skipped, report.add_incomplete):
        for name in ('quoted "x".mp3', "ㄅ, mā.wav"):
            # The first reason stays, and the lists are sorted.
            add(name, "bad\nheader")
            add(name, "later")
    expected = [('quoted "x".mp3', "bad\nheader"), ("ㄅ, mā.wav", "bad\nheader")]
    assert report.skipped == report.incomplete == expected
    assert report.skipped[0].reason == "bad\nheader"
    assert report.write(folder) == folder / "skipped_files.csv"
    assert repr(report) == "<ReadReport read=0 skipped=2>"
    for name in ("skipped", "incomplete"):
        path = folder / f"{name}_files.csv"
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [(row["file"], row["reason"]) for row in rows] == expected


def test_the_error_of_a_pipeline_is_raised_itself():
    report = ReadReport()
    with pytest.raises(KeyError), report.reraise():
        raise KeyError
    report.error = UnreadableFileError("audio", "a.wav", "broken")
    with pytest.raises(UnreadableFileError) as caught, report.reraise():
        raise RuntimeError("what TensorFlow makes of it")
    error = caught.value
    assert (error.kind, error.path, error.reason) == ("audio", "a.wav", "broken")
    assert isinstance(error.__cause__, RuntimeError)
