import json

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from tiny_pretraining import PaddedMap
from tiny_pretraining import backbone as tiny_backbone

import keras_bridle as kb
from keras_bridle.data.files import FileList, ReadReport
from keras_bridle.data.layouts import list_files
from keras_bridle.evaluation import features as features_module
from keras_bridle.evaluation.features import (
    FeatureExtractor,
    InputFeatures,
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


def _numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def _images():
    return np.random.default_rng(0).integers(0, 256, (11, 16, 24, 3)).astype("uint8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(_images()):
        path = folder / f"class {index % 2}" / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(image).save(path)
    (folder / "class 0" / "05 broken.png").write_text("no image")
    return folder


# As they are sorted: the even ones first.
ORDER = [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9]
NAMES = [f"class {i % 2}/{i:02d}.png" for i in ORDER]


@pytest.fixture(scope="module")
def expected(backbone, tokenizer):
    """Features, patches and codes of the images, computed directly."""
    images = _images()[ORDER]
    maps, padding_mask = backbone.features(images)
    tokens = backbone.encode(maps, padding_mask)
    return {
        "file": _numpy(backbone.pooled_features(images)),
        "patch": _numpy(backbone.drop_class_token(tokens)).reshape(66, 16),
        "codes": _numpy(tokenizer(maps, padding_mask).codes),
    }


@pytest.mark.parametrize("batch_size", [4, 100])
def test_arrays(backbone, tokenizer, expected, batch_size):
    images = _images()[ORDER]
    close = {"rtol": 1e-4, "atol": 1e-5}
    features, codes = FeatureExtractor(backbone, tokenizer)(images, batch_size)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected["file"], **close)
    np.testing.assert_array_equal(codes, expected["codes"])
    found = FeatureExtractor(backbone, per="patch")(images, batch_size)
    np.testing.assert_allclose(
        found.patches.reshape(66, 16), expected["patch"], **close
    )
    assert found.is_real.shape == (11, 6) and found.is_real.all()
    (outputs, _), *_ = FeatureExtractor(backbone, per="patch").batches(images)
    assert list(outputs) == ["patches", "is_real"]
    np.testing.assert_allclose(found.mean(), expected["file"], **close)
    assert len(found[[3, 5]].patches) == 2


def test_datasets(backbone, expected):
    images = _images()[ORDER]
    extract = FeatureExtractor(backbone)
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(11))).batch(4)
    for inputs in (dataset, iter([images[:4], images[4:9], images[9:]])):
        np.testing.assert_allclose(extract(inputs), expected["file"], 1e-4, 1e-5)
    with pytest.raises(ValueError):
        extract(images[:0])
    # The encoder may learn in between.
    other = tiny_backbone(input_dims=(16, 24, 3), front_end=kb.PixelNormalization())
    extract = FeatureExtractor(other)
    before = extract(images)
    other.set_weights([weight + 0.1 for weight in other.get_weights()])
    assert np.abs(extract(images) - before).max() > 0.01


def test_padding_counts_neither_in_means_nor_rows():
    encoder = tiny_backbone(front_end=PaddedMap())
    maps = np.random.default_rng(0).normal(size=(3, 32, 16, 1)).astype("float32")
    maps[1, 16:] = -100
    found = FeatureExtractor(encoder, per="patch")(maps)
    assert found.is_real.sum(axis=1).tolist() == [8, 4, 8]
    segments = FeatureExtractor(encoder, segments=2)(maps)
    np.testing.assert_allclose(
        FeatureExtractor(encoder)(maps), found.mean(), rtol=1e-4, atol=1e-5
    )
    halves = segments.reshape(3, 2, 16).mean(axis=1)
    np.testing.assert_allclose(halves, found.mean(), rtol=1e-4, atol=1e-5)


def test_log_mel_features_leave_out_padding():
    backbone = tiny_backbone(input_dims=(None,), front_end=kb.LogMelSpectrogram())
    waveforms = np.random.default_rng(0).normal(size=(2, 8000)).astype("float32")
    waveforms[1, 4000:] = 0
    features = InputFeatures(backbone, segments=2)(waveforms)
    resized = InputFeatures(backbone, shape=(4, 8))(waveforms)
    maps, mask = (_numpy(x) for x in backbone.features(waveforms))
    assert mask[1].sum() < mask[0].sum() == maps.shape[1]
    for row in range(2):
        real = maps[row, mask[row], :, 0]
        halves = np.array_split(real, 2)
        expected = np.concatenate([[x.mean(0), x.std(0)] for x in halves]).reshape(-1)
        np.testing.assert_allclose(features[row], expected, rtol=1e-3, atol=1e-3)
        # Of a linear resize the mean over bins and frames stays nearly the same.
        assert abs(resized[row].mean() - real.mean()) < 0.2
        bins = real.mean(axis=0).reshape(8, -1).mean(axis=1)
        found = resized[row].reshape(4, 8).mean(axis=0)
        assert np.corrcoef(found, bins)[0, 1] > 0.9


def test_small_gray_pixels():
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    encoder = tiny_backbone(input_dims=(8, 8, 3))
    cells = images.mean(axis=-1).reshape(2, 4, 2, 4, 2).mean(axis=(2, 4))
    found = InputFeatures(encoder, shape=(4, 4))(images).reshape(2, 4, 4)
    # Antialiasing reaches a little beyond a cell.
    assert np.corrcoef(found.ravel(), cells.ravel())[0, 1] > 0.8
    by_keras = keras.ops.image.resize(
        images.mean(axis=-1, keepdims=True),
        (4, 4),
        antialias=True,
        data_format="channels_last",
    )
    np.testing.assert_allclose(found, _numpy(by_keras)[..., 0], rtol=1e-3, atol=0.1)
    same = InputFeatures(encoder, shape=(8, 8))(images).reshape(2, 8, 8)
    np.testing.assert_allclose(same, images.mean(axis=-1), rtol=1e-4)


def _check(found, expected, per="file"):
    assert found.grid == (2, 3)
    codes = expected["codes"]
    if per == "file":
        assert found.files.tolist() == NAMES
        assert found.patch is None
    else:
        assert found.files.tolist() == np.repeat(NAMES, 6).tolist()
        assert found.patch.tolist() == 11 * list(range(6))
        codes = codes.reshape(66, 2)
    np.testing.assert_allclose(found.features, expected[per], rtol=1e-4, atol=1e-5)
    assert found.features.dtype == np.float32
    np.testing.assert_array_equal(found.codes, codes)


@pytest.mark.parametrize("per", ["file", "patch"])
def test_files_in_memory(backbone, tokenizer, folder, expected, per):
    report = ReadReport()
    extract = FeatureExtractor(backbone, tokenizer, per)
    found = extract.files(folder, batch_size=4, report=report)
    _check(found, expected, per)
    assert found.labels is None
    assert "broken" in report.skipped[0].path


def test_labels(backbone, folder):
    files = list_files("image", folder, labels=True).take([1, 7, 8])
    extract = FeatureExtractor(backbone, segments=2)
    found = extract.files(files)
    assert found.labels.tolist() == ["class 0", "class 1", "class 1"]
    assert found.codes is None
    expected = extract(_images()[[2, 1, 3]])
    np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-5)
    hot = FileList("image", files.files, [(0, 1), (), (1,)], files.class_names)
    assert extract.files(hot).labels.tolist() == ["class 0; class 1", "", "class 1"]


@pytest.mark.parametrize("format", ["npz", "parquet"])
@pytest.mark.parametrize("per", ["file", "patch"])
def test_parts(backbone, tokenizer, folder, expected, tmp_path, format, per):
    if format == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    extract = FeatureExtractor(backbone, tokenizer, per)
    options = {"format": format, "part_size": 5, "progress": False}
    report = extract.write(tmp_path, folder, batch_size=4, **options)
    _check(load_file_features(tmp_path), expected, per)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        f"part-00000{i}.{ending}" for i in range(3) for ending in ("json", format)
    ]
    (skipped,) = report.skipped
    assert "05 broken.png" in skipped.path
    assert "05 broken.png" in (tmp_path / "skipped_files.csv").read_text()
    if format == "parquet":
        rows = parquet.read_table(tmp_path / "parts/part-000000.parquet").to_pylist()
        assert rows[0]["files"] == NAMES[0] and len(rows[0]["features"]) == 16


class _Stop(Exception):
    pass


# Before the first part is written, between its rows and its note, and later.
@pytest.mark.parametrize(("point", "calls"), [("save", 0), ("note", 0), ("save", 2)])
def test_a_stopped_run_resumes_without_loss_or_duplicates(
    backbone, tokenizer, folder, expected, tmp_path, monkeypatch, point, calls
):
    extract = FeatureExtractor(backbone, tokenizer)
    options = {"batch_size": 3, "part_size": 2, "progress": False}
    save, done = features_module.save_columns, []

    def stopping_save(path, columns):
        if point == "save" and len(done) == calls:
            raise _Stop
        save(path, columns)
        done.append(path)
        if point == "note":
            raise _Stop

    monkeypatch.setattr(features_module, "save_columns", stopping_save)
    with pytest.raises(_Stop):
        extract.write(tmp_path, folder, **options)
    monkeypatch.setattr(features_module, "save_columns", save)
    if done:
        with pytest.raises(FileExistsError):
            extract.write(tmp_path, folder, **options)
    finished = {x: x.stat().st_mtime_ns for x in (tmp_path / "parts").glob("*.json")}
    report = extract.write(tmp_path, folder, **options, resume=True)
    _check(load_file_features(tmp_path), expected)
    assert [x.path.endswith("05 broken.png") for x in report.skipped] == [True]
    # What was done is not done again.
    assert len(finished) == (calls if point == "save" else 0)
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())


def test_another_encoder_or_other_files_cannot_resume(backbone, folder, tmp_path):
    write_file_features(tmp_path, backbone, folder, progress=False)
    other = tiny_backbone(input_dims=(16, 24, 3), front_end=kb.PixelNormalization())
    other.set_weights([weight + 1 for weight in backbone.get_weights()])
    for encoder, source in ((other, folder), (backbone, folder / "class 0")):
        with pytest.raises(ValueError):
            write_file_features(tmp_path, encoder, source, resume=True, progress=False)


def test_parts_of_nothing_but_broken_files(backbone, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.png").write_text("no image")
    extract = FeatureExtractor(backbone)
    with pytest.raises(ValueError, match="None of the 6 files can be read"):
        extract.write(tmp_path / "out", folder, part_size=2, progress=False)
    PIL.Image.fromarray(_images()[0]).save(folder / "0.png")
    # Nothing was written: other settings do.
    for options in ({}, {"resume": True}):
        report = extract.write(
            tmp_path / "out", folder, part_size=3, progress=False, **options
        )
        assert len(report.skipped) == 5
    assert load_file_features(tmp_path / "out").files.tolist() == ["0.png"]
    note = json.loads((tmp_path / "out/parts/part-000001.json").read_text())
    assert note["rows"] == 0 and len(note["skipped"]) == 3


@pytest.mark.one_backend
def test_directories_of_the_first_version_load(tmp_path):
    parts = tmp_path / "parts"
    parts.mkdir()
    about = {"files": 2, "rows": 3, "grid": [2, 3], "skipped": [], "incomplete": []}
    columns = {
        "index": np.arange(3),
        "files": np.array(["a.png", "a.png", "b.png"]),
        "features": np.ones((3, 4), "float32"),
        "places": np.int32([0, 1, 0]),
    }
    np.savez(parts / "part-000000.npz", about=np.array(json.dumps(about)), **columns)
    (parts / "part-000000.json").write_text(json.dumps(about))
    found = load_file_features(tmp_path)
    assert found.files.tolist() == ["a.png", "a.png", "b.png"]
    assert found.patch.tolist() == [0, 1, 0] and found.grid == (2, 3)
    with pytest.raises(FileNotFoundError):
        load_file_features(tmp_path / "other")


def test_wrong_values(backbone, folder, tmp_path, monkeypatch):
    for wrong in ({"per": "clip"}, {"per": "patch", "segments": 2}, {"segments": 0}):
        with pytest.raises(ValueError):
            FeatureExtractor(backbone, **wrong)
    extract = FeatureExtractor(backbone)
    for wrong in ({"format": "csv"}, {"part_size": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError):
            extract.write(tmp_path / "x", folder, **wrong, progress=False)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError):
        extract.write(tmp_path / "y", folder, format="parquet")
    assert not (tmp_path / "y").exists()
    waveforms = tiny_backbone(input_dims=(None,), front_end=kb.LogMelSpectrogram())
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="seconds"):
        FeatureExtractor(waveforms).files(tmp_path)
