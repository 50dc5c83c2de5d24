import csv
import threading

from keras_bridle.data.files import ReadReport


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


def test_nothing_skipped_writes_the_header_alone(tmp_path):
    assert ReadReport().write(tmp_path).read_text("utf-8") == "file,reason\n"


def test_incomplete_files_have_a_table_of_their_own(tmp_path):
    report = ReadReport()
    report.write(tmp_path)
    assert not (tmp_path / "incomplete_files.csv").exists()
    report.add_incomplete("b.mp4", "short")
    report.add_incomplete("a.mp4", "broken")
    report.add_incomplete("b.mp4", "later")
    assert report.incomplete == [("a.mp4", "broken"), ("b.mp4", "short")]
    assert not report.skipped
    assert report.write(tmp_path).name == "skipped_files.csv"
    text = (tmp_path / "incomplete_files.csv").read_text("utf-8")
    assert text.split() == ["file,reason", "a.mp4,broken", "b.mp4,short"]
