"""Lists and tables as people have them, and what is said of what they lose."""

import os
import unicodedata

import numpy as np
import pytest
from file_lists import relative, touch
from PIL import Image
from sound_files import noise, write

from keras_bridle.data.files import ReadReport, copies, csv_table, digest_of
from keras_bridle.data.layouts import list_files, splits_of
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.readers import AudioReader, ImageReader
from keras_bridle.evaluation.features import FeatureExtractor, load_file_features
from keras_bridle.evaluation.plots import plot_confusion_matrix, plot_embedding
from keras_bridle.evaluation.report import write_results
from keras_bridle.models.backbone import BridleBackbone

pytestmark = pytest.mark.one_backend
CAFE = os.fsdecode(b"caf\xe9")
NAMES = ["Ba$$in", "$5_notes$^", "a|b", "_x", CAFE, "a\nb", 'q"u,', "100 %"]


@pytest.mark.parametrize("kind", ["audio", "image"])
def test_names_that_are_not_utf8(tmp_path, kind):
    ending, reader = "wav", AudioReader(seconds=0.05)
    write(tmp_path / "0.wav", noise(0.1))
    if kind == "image":
        ending, reader = "png", ImageReader(8)
        Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / f"0.{ending}").rename(tmp_path / f"{CAFE}.{ending}")
    (tmp_path / f"broken{CAFE}.{ending}").write_bytes(b"nothing")
    report = ReadReport()
    files = list_files(kind, tmp_path)
    dataset = file_dataset(files, reader, batch_size=2, report=report)
    assert sum(len(batch) for batch in dataset) == 1
    text = report.write(tmp_path).read_text("utf-8", "surrogateescape")
    assert f"broken{CAFE}" in text


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_features_of_names_that_are_not_utf8(tmp_path, format):
    if format == "parquet":
        pytest.importorskip("pyarrow.parquet")
    Image.new("RGB", (8, 8)).save(tmp_path / f"{CAFE}.png")
    backbone = BridleBackbone.from_preset("bridle_image_tiny", load_weights=False)
    extract = FeatureExtractor(backbone)
    extract.write(tmp_path / "out", tmp_path, format=format, progress=False)
    assert len(load_file_features(tmp_path / "out").features) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "text",
    [
        "file,label\r\n{0},x\r\n\r\n{1},x\r\n",
        "label, file\nx, {0}\nx, {1}\n",
        "file ,label\n{0} ,x\n {1}, x\n",
        "file;label\n{0};x\n{1};x\n",
        "file\tlabel\n{0}\tx\n{1}\tx\n",
        "File,LABEL,,\n{0},x,,\n{1},x,,\n",
        "file,label\nsub\\0.png,x\nsub\\1.png,x\n",
        "file,label\n{2}/{0},x\n{2}/{1},x\n",
    ],
)
def test_tables_of_spreadsheets(tmp_path, text, encoding):
    touch(tmp_path, "sub/0.png", "sub/1.png")
    path = tmp_path / ("list.CSV" if encoding == "utf-8" else "list.txt")
    content = text.format("sub/0.png", "sub/1.png", tmp_path)
    path.write_bytes(content.encode(encoding))
    files = list_files("image", path, labels=True)
    assert relative(files, tmp_path) == ["sub/0.png", "sub/1.png"]
    assert files.class_names == ("x",)


def test_home_and_names_with_backslashes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "a.png", "b\\c.png")
    (tmp_path / "t.csv").write_text("file\n~/a.png\nb\\c.png\n")
    files = csv_table("image", tmp_path / "t.csv")
    assert relative(files, tmp_path) == ["a.png", "b\\c.png"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_tables_name_files_in_either_form(tmp_path, form):
    names = [unicodedata.normalize(x, f"{x}/café.png") for x in ("NFC", "NFD")]
    touch(tmp_path, *names)
    rows = ["file", *(unicodedata.normalize(form, name) for name in names)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    assert relative(csv_table("image", tmp_path / "t.csv"), tmp_path) == names


def test_two_forms_of_a_name_are_one_class(tmp_path):
    for form in ("NFC", "NFD"):
        touch(tmp_path, f"{unicodedata.normalize(form, 'café')}/{form}.png")
    touch(tmp_path, "tea/1.png")
    files = list_files("image", tmp_path, labels=True)
    assert files.class_names == (unicodedata.normalize("NFC", "café"), "tea")
    assert len(files) == 3


def test_hidden_folders_are_no_classes(tmp_path):
    for split in ("train", "val"):
        touch(tmp_path, *(f"{split}/{x}/1.png" for x in ("n1", "n2", ".checkpoints")))
    for layout in ("folder", "imagenet"):
        names = list_files("image", tmp_path, layout, labels=True).class_names
        assert names == ("n1", "n2")


def test_class_names_in_results(tmp_path):
    plot_confusion_matrix(np.eye(8, dtype=int), tmp_path / "c.png", NAMES, "a$_b")
    features = np.random.default_rng(0).normal(size=(16, 4))
    labels = np.array(NAMES)[np.arange(16) % 8]
    plot_embedding(features, tmp_path / "m.png", labels, title=f"$a_$_{CAFE}")
    write_results(tmp_path / "t", [{"name": name, "accuracy": 0.5} for name in NAMES])
    for ending in ("json", "csv", "md"):
        text = (tmp_path / f"t.{ending}").read_text("utf-8", "surrogateescape")
        assert "Ba$$in" in text
    lines = text.splitlines()
    assert len(lines) == 2 + len(NAMES)
    assert {line.replace("\\|", "").count("|") for line in lines} == {3}


def test_what_folders_lose_is_said(tmp_path):
    touch(tmp_path, "ant/1.png", "ant/a.txt", "bee/1.bmp", "bee/x.psd", "bee/y.x")
    touch(tmp_path, "walrus/1.psd", "walrus/2.psd", "yak/.hidden.png")
    note = "other files in the folder, not read as image: 3 .psd, 1 .x"
    assert list_files("image", tmp_path).notes == [note]
    files = list_files("image", tmp_path, labels=True)
    lost = "the class 'walrus' has no image file, only others: 2 .psd"
    empty = "the class 'yak' has no image file"
    assert files.notes == [note, lost, empty] and files.class_names == ("ant", "bee")
    report = ReadReport()
    for _ in range(2):
        report.add_missing(files)
    report.write(tmp_path)
    lines = (tmp_path / "other_files.csv").read_text().splitlines()
    assert lines == ["file,reason", f',"{note}"', f',"{lost}"', f",{empty}"]


def write_numbers(folder, count):
    """Files of one size; the first two are equal."""
    for number in range(count):
        (folder / f"{number}.png").write_bytes(bytes([max(number, 1)] * 9))


def test_copies(tmp_path):
    write_numbers(tmp_path, 4)
    touch(tmp_path, "empty.png", "empty2.png")
    (tmp_path / "longer.png").write_bytes(bytes(20))
    files = list_files("image", tmp_path)
    numbers = dict(zip(relative(files, tmp_path), copies(files), strict=True))
    assert numbers["0.png"] == numbers["1.png"]
    assert len(set(numbers.values())) == 6
    assert len(set(copies(list_files("image", ["none.png", "no.png"])))) == 2


@pytest.mark.parametrize("is_split", [False, True])
def test_what_is_tested_is_not_trained_on(tmp_path, is_split):
    write_numbers(tmp_path, 12)
    rows = [f"{i}.png,{'ab'[i % 2]}" for i in range(12)]
    lines = ["file,label", *rows, *rows]
    if is_split:
        train = [f"{row},train" for row in rows]
        lines = ["file,label,split", *train, *(f"{row},test" for row in rows[:4])]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    files = list_files("image", tmp_path / "t.csv", labels=True)
    report, same = ReadReport(), copies(files)
    pairs, _ = splits_of(files, report=report)
    for train, test in pairs:
        assert len(train) and len(test)
        assert not set(same[train]) & set(same[test])
    assert len(report.notes) == 1
    with pytest.warns(UserWarning, match="tested, not trained on"):
        splits_of(files)


def test_what_is_tested_validates_no_training(tmp_path):
    write_numbers(tmp_path, 16)
    numbers = {"train": range(12), "validation": range(2, 8), "test": range(4, 10)}
    lines = ["file,label,split"]
    for split, found in numbers.items():
        for i in found:
            name = f"{split}_{i}.png"
            (tmp_path / name).write_bytes((tmp_path / f"{i}.png").read_bytes())
            lines.append(f"{name},{'ab'[i // 2 % 2]},{split}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    files = list_files("image", tmp_path / "t.csv", labels=True)
    report, same = ReadReport(), copies(files)
    ((train, test),), validation = splits_of(files, report=report)
    content = [set(same[rows]) for rows in (train, validation, test)]
    assert all(content) and not content[2] & (content[0] | content[1])
    assert not content[0] & content[1] and len(test) == 6
    assert len(train) == 4 and len(validation) == 2
    assert [note[:9] for note in report.notes] == ["12 files "]


def test_the_digest_tells_that_files_have_changed(tmp_path):
    write_numbers(tmp_path, 3)
    before = digest_of(list_files("image", tmp_path))
    assert digest_of(list_files("image", tmp_path)) == before
    (tmp_path / "0.png").rename(tmp_path / "z.png")
    renamed = digest_of(list_files("image", tmp_path))
    assert renamed != before and renamed["files"] == 3
    (tmp_path / "1.png").write_bytes(bytes(9))
    assert digest_of(list_files("image", tmp_path)) not in (before, renamed)


def test_clipped_recordings_are_listed(tmp_path):
    report, reader = ReadReport(), AudioReader(seconds=0.1)
    loud = [
        write(tmp_path / f"{name}.wav", np.sign(noise(0.2)), subtype=name)
        for name in ("ALAW", "FLOAT", "PCM_16", "PCM_U8", "ULAW")
    ]
    for path in loud:
        reader(path, report=report)
    reader(write(tmp_path / "fine.wav", noise(0.2)), report=report)
    assert [item.path for item in report.incomplete] == loud
