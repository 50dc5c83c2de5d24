import csv
import threading
from pathlib import Path

import numpy as np
import pytest

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
    assert taken == FileList(
        "audio",
        ["c.wav", "b.wav"],
        [1, 0],
        ["x", "y"],
        [(3, 4), (2, None)],
        ["test", "train"],
        ["d"],
    )
    assert taken.classes() == ["y", "x"]
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


# Tables


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def relative(files, root):
    return [Path(file).relative_to(root).as_posix() for file in files.files]


def test_columns_of_any_name(tmp_path):
    table = write_csv(
        tmp_path / "lists" / "t.csv",
        [
            ["n", "path", "kind", "part"],
            ["1", "a.png", "x", " one"],
            ["2", "b.png", "z", "two"],
            ["3", "c.png", "y", "one"],
        ],
    )
    columns = {"root": tmp_path, "file_column": "path", "split_column": "part"}
    files = list_files("image", table, label_column="kind", split="one", **columns)
    assert relative(files, tmp_path) == ["a.png", "c.png"]
    # Numbered as in the whole table, so that all splits agree.
    assert files.class_names == ("x", "y", "z") and files.labels == [0, 1]
    both = list_files("image", table, "csv", split=["one", "two"], **columns)
    assert both.labels is None and both.splits == ["one", "two", "one"]
    with pytest.raises(ValueError):
        list_files("image", table, split="three", **columns)
    (tmp_path / "s.csv").write_text("file,Split\na.png,x\n")
    for column in (None, "split", "Split"):
        files = list_files("image", tmp_path / "s.csv", split_column=column)
        assert files.splits == ["x"]


def test_names_are_relative_to_the_table_or_absolute(tmp_path):
    other = tmp_path / "out" / "b.wav"
    table = write_csv(tmp_path / "in" / "t.csv", [["file"], ["a.wav"], [other]])
    files = list_files("audio", table)
    assert relative(files, tmp_path) == ["in/a.wav", "out/b.wav"]
    assert files.splits is None


def test_several_labels_of_a_row(tmp_path):
    rows = [["file", "label"], ["a", "wind; rain;wind"], ["b", ""], ["c", "sun"]]
    table = write_csv(tmp_path / "t.csv", rows)
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
        ("file,c\na, \n", {"label_column": "c"}),
        (b"RIFF\xd0\xff", {}),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path, content, options):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError):
        list_files("audio", path, "csv", **options)


def test_the_row_without_a_class_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file,c\n0.wav, x\n1.wav,x \n2.wav, \n")
    with pytest.raises(ValueError, match="row 4"):
        list_files("audio", path, label_column="c")


# Reports


def test_counts_from_many_threads():
    report = ReadReport()

    def work(number):
        for i in range(500):
            report.add_read()
            report.add_skipped(f"{i % 50}.wav", f"reason {number}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert report.read == 2000
    assert len(report.skipped) == 50
    assert repr(report) == "<ReadReport read=2000 skipped=50>"


def test_first_reason_stays_and_the_list_is_sorted():
    report = ReadReport()
    report.add_skipped("b.wav", "first")
    report.add_skipped("a.wav", "other")
    report.add_skipped("b.wav", "second")
    assert report.skipped == [("a.wav", "other"), ("b.wav", "first")]
    assert report.skipped[0].reason == "other"


def test_writes_a_table_that_reads_back(tmp_path):
    report = ReadReport()
    names = ["ㄅ, mā.wav", 'quoted "x".mp3']
    for name in names:
        report.add_skipped(name, "bad\nheader")
    path = report.write(tmp_path / "runs" / "first")
    assert path == tmp_path / "runs" / "first" / "skipped_files.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(names)
    assert {row["reason"] for row in rows} == {"bad\nheader"}


def test_incomplete_files_have_a_table_of_their_own(tmp_path):
    report = ReadReport()
    assert report.write(tmp_path).read_bytes().split() == [b"file,reason"]
    assert not (tmp_path / "incomplete_files.csv").exists()
    for path, reason in (("b.mp4", "short"), ("a.mp4", "broken"), ("b.mp4", "later")):
        report.add_incomplete(path, reason)
    assert report.incomplete == [("a.mp4", "broken"), ("b.mp4", "short")]
    assert report.write(tmp_path).name == "skipped_files.csv" and not report.skipped
    text = (tmp_path / "incomplete_files.csv").read_text("utf-8")
    assert text.split() == ["file,reason", "a.mp4,broken", "b.mp4,short"]


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
