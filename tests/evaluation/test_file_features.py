import json

import keras
import numpy as np
import PIL.Image
import pytest
from tiny_pretraining import backbone as tiny_backbone

import keras_bridle as kb
from keras_bridle.data.files import ReadReport
from keras_bridle.data.layouts import ImageManifest
from keras_bridle.evaluation import features as file_features
from keras_bridle.evaluation.features import (
    extract_features,
    extract_file_features,
    extract_patches,
    load_file_features,
    write_file_features,
)
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone(input_dims=(16, 24, 3), front_end=kb.PixelNormalization())


@pytest.fixture(scope="module")
def tokenizer():
    quantizer = ResidualQuantizer(2, 8, dim=4, seed=0)
    tokenizer = kb.RandomProjectionTokenizer(8, 16, quantizer)
    quantizer.adapt(np.random.default_rng(5).normal(size=(64, 4)).astype("float32"))
    return tokenizer


def _pictures():
    return np.random.default_rng(0).integers(0, 256, (11, 16, 24, 3)).astype("uint8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index, picture in enumerate(_pictures()):
        path = folder / f"class {index % 2}" / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(picture).save(path)
    (folder / "class 0" / "05 broken.png").write_text("no picture")
    return folder


# As they are sorted: the even ones first.
ORDER = [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9]
NAMES = [f"class {i % 2}/{i:02d}.png" for i in ORDER]


@pytest.fixture(scope="module")
def expected(backbone, tokenizer):
    """Features, patches and codes of the pictures, not by way of files."""
    pictures = _pictures()[ORDER]
    features, padding_mask = backbone.features(pictures)
    codes = tokenizer(features, padding_mask).codes
    return {
        "file": extract_features(backbone, pictures),
        "patch": extract_patches(backbone, pictures).patches.reshape(66, 16),
        "codes": keras.ops.convert_to_numpy(codes),
    }


def _check(found, expected, per="file"):
    assert found.grid == (2, 3)
    codes = expected["codes"]
    if per == "file":
        assert found.files.tolist() == NAMES
        assert found.places is None
    else:
        assert found.files.tolist() == np.repeat(NAMES, 6).tolist()
        assert found.places.tolist() == 11 * list(range(6))
        codes = codes.reshape(66, 2)
    # Patches are in half precision.
    tolerance = 1e-5 if per == "file" else 3e-3
    np.testing.assert_allclose(found.features, expected[per], rtol=1e-3, atol=tolerance)
    assert found.features.dtype == np.float32
    np.testing.assert_array_equal(found.codes, codes)


@pytest.mark.parametrize("per", ["file", "patch"])
def test_in_memory(backbone, tokenizer, folder, expected, per):
    report = ReadReport()
    found = extract_file_features(
        backbone, folder, tokenizer, per=per, batch_size=4, report=report
    )
    _check(found, expected, per)
    assert found.labels is None
    assert "broken" in report.skipped[0].path


def test_labels_and_segments(backbone, folder):
    manifest = ImageManifest.from_folder(folder, class_folders=True).take([1, 7, 8])
    found = extract_file_features(backbone, manifest, segments=2)
    assert found.labels.tolist() == ["class 0", "class 1", "class 1"]
    assert found.codes is None
    expected = extract_features(backbone, _pictures()[[2, 1, 3]], segments=2)
    np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-5)
    hot = ImageManifest(manifest.files, [(0, 1), (), (1,)], manifest.class_names)
    labels = extract_file_features(backbone, hot).labels
    assert labels.tolist() == ["class 0; class 1", "", "class 1"]


@pytest.mark.parametrize("format", ["npz", "parquet"])
@pytest.mark.parametrize("per", ["file", "patch"])
def test_parts(backbone, tokenizer, folder, expected, tmp_path, format, per):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    report = write_file_features(
        tmp_path,
        backbone,
        folder,
        tokenizer,
        per=per,
        batch_size=4,
        format=format,
        part_size=5,
        progress=False,
    )
    _check(load_file_features(tmp_path), expected, per)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        f"part-00000{i}.{ending}" for i in range(3) for ending in ("json", format)
    ]
    (skipped,) = report.skipped
    assert "05 broken.png" in skipped.path
    assert "05 broken.png" in (tmp_path / "skipped_files.csv").read_text()


def test_parquet_is_plain_columns(backbone, tokenizer, folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_file_features(
        tmp_path, backbone, folder, tokenizer, format="parquet", progress=False
    )
    table = parquet.read_table(tmp_path / "parts" / "part-000000.parquet")
    rows = table.to_pylist()
    assert rows[0]["files"] == NAMES[0]
    assert len(rows[0]["features"]) == 16 and len(rows[0]["codes"]) == 12


class _Stop(Exception):
    pass


# Before the first part is written, between its rows and its note, and later.
@pytest.mark.parametrize(("point", "calls"), [("save", 0), ("note", 0), ("save", 2)])
def test_a_stopped_run_goes_on_without_loss_or_duplicates(
    backbone, tokenizer, folder, expected, tmp_path, monkeypatch, point, calls
):
    arguments = (tmp_path, backbone, folder, tokenizer)
    options = {"batch_size": 3, "part_size": 2, "progress": False}
    save, write = file_features.save_part, file_features.run_batches
    done = []

    def stopping_save(stem, columns, about, format):
        if stem is not None and point == "save" and len(done) == calls:
            raise _Stop
        save(stem, columns, about, format)
        if stem is not None:
            done.append(stem)
        if stem is not None and point == "note" and len(done) > calls:
            raise _Stop

    monkeypatch.setattr(file_features, "save_part", stopping_save)
    with pytest.raises(_Stop):
        write_file_features(*arguments, **options)
    monkeypatch.setattr(file_features, "save_part", save)
    if done:
        with pytest.raises(FileExistsError, match="resume=True"):
            write_file_features(*arguments, **options)

    seen = []

    def counting(network, dataset, batch_size):
        for outputs, others in write(network, dataset, batch_size):
            seen.append(len(others[0]))
            yield outputs, others

    monkeypatch.setattr(file_features, "run_batches", counting)
    report = write_file_features(*arguments, **options, resume=True)
    _check(load_file_features(tmp_path), expected)
    assert [x.path.endswith("05 broken.png") for x in report.skipped] == [True]
    # What was done is not done again: of the first two parts, three files were read.
    assert sum(seen) == (8 if calls else 11)
    seen.clear()
    report = write_file_features(*arguments, **options, resume=True)
    assert not seen and len(report.skipped) == 1


def test_another_encoder_or_other_files_are_no_resumption(backbone, folder, tmp_path):
    write_file_features(tmp_path, backbone, folder, progress=False)
    other = tiny_backbone(input_dims=(16, 24, 3), front_end=kb.PixelNormalization())
    other.set_weights([weight + 1 for weight in backbone.get_weights()])
    with pytest.raises(ValueError, match=r"other settings.*encoder"):
        write_file_features(tmp_path, other, folder, resume=True, progress=False)
    with pytest.raises(ValueError, match=r"other settings.*files: .12 files"):
        write_file_features(
            tmp_path, backbone, folder / "class 0", resume=True, progress=False
        )


def test_parts_of_nothing_but_broken_files(backbone, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.png").write_text("no picture")
    options = {"part_size": 2, "progress": False}
    with pytest.raises(ValueError, match="None of the 6 image files can be read"):
        write_file_features(tmp_path / "none", backbone, folder, **options)
    PIL.Image.fromarray(_pictures()[0]).save(folder / "0.png")
    # Nothing was written: other settings do.
    other = {**options, "part_size": 3}
    report = write_file_features(tmp_path / "none", backbone, folder, **other)
    assert len(report.skipped) == 5
    report = write_file_features(tmp_path / "one", backbone, folder, **options)
    assert len(report.skipped) == 5
    assert load_file_features(tmp_path / "one").files.tolist() == ["0.png"]
    # What is left after a stop may be broken as a whole.
    for note in (tmp_path / "one" / "parts").glob("part-00000[12].json"):
        note.unlink()
    report = write_file_features(
        tmp_path / "one", backbone, folder, **options, resume=True
    )
    assert len(report.skipped) == 5
    note = json.loads((tmp_path / "one/parts/part-000002.json").read_text())
    assert note["rows"] == 0 and len(note["skipped"]) == 2


def test_refusals(backbone, folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='per must be "file" or "patch"'):
        extract_file_features(backbone, folder, per="clip")
    with pytest.raises(ValueError, match='segments need per="file"'):
        extract_file_features(backbone, folder, per="patch", segments=2)
    with pytest.raises(ValueError, match="segments must be at least 1; received 0"):
        write_file_features(tmp_path / "x", backbone, folder, segments=0)
    with pytest.raises(ValueError, match="format must be one of"):
        write_file_features(tmp_path / "x", backbone, folder, format="csv")
    with pytest.raises(ValueError, match="part_size must be at least 1"):
        write_file_features(tmp_path / "x", backbone, folder, part_size=0)
    with pytest.raises(FileNotFoundError, match="There are no features"):
        load_file_features(tmp_path)
    waveforms = kb.BridleBackbone.from_preset("bridle_audio_tiny", load_weights=False)
    with pytest.raises(ValueError, match="No audio file"):
        extract_file_features(waveforms, folder, seconds=1)
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="say how many `seconds`"):
        extract_file_features(waveforms, tmp_path)
    clips = tiny_backbone(
        input_dims=(None, 16, 16, 3),
        patch_size=(2, 8, 8),
        front_end=kb.PixelNormalization(),
        position_layout="sequence",
    )
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="say how many `num_frames`"):
        extract_file_features(clips, tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match="Parquet files need pyarrow"):
        write_file_features(tmp_path / "x", backbone, folder, format="parquet")
    assert not (tmp_path / "x").exists()
