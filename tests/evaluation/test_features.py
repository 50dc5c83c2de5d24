import json
import sys

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from harness import to_numpy
from tiny_pretraining import PaddedMap
from tiny_pretraining import backbone as tiny_backbone

import keras_bridle as kb
from keras_bridle.evaluation import features as features_module
from keras_bridle.evaluation.features import (
    FeatureExtractor,
    InputFeatures,
    load_file_features,
    write_file_features,
)

# As the files are sorted: the even ones first.
ORDER = [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9]
NAMES = [f"class {i % 2}/{i:02d}.png" for i in ORDER]
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 16, 24, 3)).astype("uint8")
SORTED = IMAGES[ORDER]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def _backbone():
    return tiny_backbone(input_dims=(16, 24, 3), front_end=kb.PixelNormalization())


@pytest.fixture(scope="module")
def backbone():
    return _backbone()


@pytest.fixture(scope="module")
def tokenizer():
    quantizer = kb.ResidualQuantizer(2, 8, dim=4, seed=0)
    tokenizer = kb.RandomProjectionTokenizer(8, 16, quantizer)
    quantizer.adapt(np.random.default_rng(5).normal(size=(64, 4)).astype("float32"))
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, image in zip(NAMES, SORTED, strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(image).save(folder / name)
    (folder / "class 0" / "05 broken.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def expected(backbone, tokenizer):
    """Features, patches and codes of the images, computed directly."""
    maps, padding_mask = backbone.features(SORTED)
    tokens = backbone.encode(maps, padding_mask)
    return {
        "file": to_numpy(backbone.pooled_features(SORTED)),
        "patch": to_numpy(backbone.drop_class_token(tokens)),
        "codes": to_numpy(tokenizer(maps, padding_mask).codes),
    }


def test_arrays(backbone, tokenizer, expected):
    for batch_size in (4, 100):
        features, codes = FeatureExtractor(backbone, tokenizer)(SORTED, batch_size)
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, expected["file"], **CLOSE)
        np.testing.assert_array_equal(codes, expected["codes"])
    found = FeatureExtractor(backbone, per="patch")(SORTED, 4)
    np.testing.assert_allclose(found.patches, expected["patch"], **CLOSE)
    assert found.is_real.shape == (11, 6) and found.is_real.all()
    np.testing.assert_allclose(found.mean(), expected["file"], **CLOSE)
    assert len(found[[3, 5]].patches) == 2


def test_datasets_and_an_encoder_that_learns_in_between():
    encoder = _backbone()
    extract = FeatureExtractor(encoder)
    dataset = tf.data.Dataset.from_tensor_slices((SORTED, np.arange(11))).batch(4)
    before = extract(dataset)
    np.testing.assert_array_equal(before, extract(iter(np.split(SORTED, [4, 8]))))
    encoder.set_weights([weight + 0.1 for weight in encoder.get_weights()])
    assert np.abs(extract(SORTED) - before).max() > 0.01
    with pytest.raises(ValueError):
        extract(SORTED[:0])


def test_padding_counts_neither_in_means_nor_rows():
    encoder = tiny_backbone(front_end=PaddedMap())
    maps = np.random.default_rng(0).normal(size=(3, 32, 16, 1)).astype("float32")
    maps[1, 16:] = -100
    found = FeatureExtractor(encoder, per="patch")(maps)
    assert found.is_real.sum(axis=1).tolist() == [8, 4, 8]
    np.testing.assert_allclose(FeatureExtractor(encoder)(maps), found.mean(), **CLOSE)
    halves = FeatureExtractor(encoder, segments=2)(maps).reshape(3, 2, 16)
    np.testing.assert_allclose(halves.mean(axis=1), found.mean(), **CLOSE)


def test_log_mel_features_leave_out_padding():
    backbone = tiny_backbone(input_dims=(None,), front_end=kb.LogMelSpectrogram())
    waveforms = np.random.default_rng(0).normal(size=(2, 8000)).astype("float32")
    waveforms[1, 4000:] = 0
    features = InputFeatures(backbone, segments=2)(waveforms)
    resized = InputFeatures(backbone, shape=(4, 8))(waveforms)
    maps, mask = to_numpy(backbone.features(waveforms))
    assert mask[1].sum() < mask[0].sum() == maps.shape[1]
    for row in range(2):
        real = maps[row, mask[row], :, 0]
        halves = np.array_split(real, 2)
        expected = np.concatenate([[x.mean(0), x.std(0)] for x in halves]).reshape(-1)
        np.testing.assert_allclose(features[row], expected, rtol=1e-3, atol=1e-3)
        # Of a linear resize the mean over bins and frames stays nearly the same.
        assert abs(resized[row].mean() - real.mean()) < 0.2


def test_small_gray_pixels():
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    options = {"antialias": True, "data_format": "channels_last"}
    gray = images.mean(axis=-1, keepdims=True)
    expected = to_numpy(keras.ops.image.resize(gray, (4, 4), **options))
    found = InputFeatures(tiny_backbone(input_dims=(8, 8, 3)), shape=(4, 4))(images)
    np.testing.assert_allclose(found, expected.reshape(2, -1), 1e-3, 0.1)


def _check(found, expected, per="file"):
    codes, features = expected["codes"], expected[per]
    if per == "file":
        assert found.files.tolist() == NAMES and found.patch is None
    else:
        assert found.files.tolist() == np.repeat(NAMES, 6).tolist()
        assert found.patch.tolist() == 11 * list(range(6))
        codes, features = codes.reshape(66, 2), features.reshape(66, 16)
    np.testing.assert_allclose(found.features, features, **CLOSE)
    assert found.features.dtype == np.float32 and found.grid == (2, 3)
    np.testing.assert_array_equal(found.codes, codes)


def test_files_in_memory_and_their_labels(backbone, folder):
    files = kb.list_files("image", folder, labels=True).take([1, 7, 8])
    extract = FeatureExtractor(backbone, segments=2)
    report = kb.ReadReport()
    assert extract.files(folder, report=report).labels is None
    assert "broken" in report.skipped[0].path
    found = extract.files(files)
    assert found.labels.tolist() == ["class 0", "class 1", "class 1"]
    assert found.codes is None
    np.testing.assert_allclose(found.features, extract(IMAGES[[2, 1, 3]]), **CLOSE)
    hot = kb.FileList("image", files.files, [(0, 1), (), (1,)], files.class_names)
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
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {
        f"part-00000{i}.{ending}" for i in range(3) for ending in ("json", format)
    }
    (skipped,) = report.skipped
    assert "05 broken.png" in skipped.path
    if format == "parquet":
        rows = parquet.read_table(tmp_path / "parts/part-000000.parquet").to_pylist()
        assert rows[0]["files"] == NAMES[0] and len(rows[0]["features"]) == 16


# Before the first part is written, between its rows and its note, and later.
@pytest.mark.parametrize(("parts", "before"), [(0, True), (0, False), (2, True)])
def test_a_stopped_run_resumes_without_loss_or_duplicates(
    backbone, tokenizer, folder, expected, tmp_path, monkeypatch, parts, before
):
    extract = FeatureExtractor(backbone, tokenizer)
    options = {"batch_size": 3, "part_size": 2, "progress": False}
    save, saved = features_module.save_columns, []

    def stopping_save(path, columns):
        stops = len(saved) == parts
        if not (stops and before):
            save(path, columns)
            saved.append(path)
        if stops:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features_module, "save_columns", stopping_save)
        extract.write(tmp_path, folder, **options)
    with pytest.raises(FileExistsError):
        extract.write(tmp_path, folder, **options)
    finished = {x: x.stat().st_mtime_ns for x in (tmp_path / "parts").glob("*.json")}
    report = extract.write(tmp_path, folder, **options, resume=True)
    _check(load_file_features(tmp_path), expected)
    assert [x.path.endswith("05 broken.png") for x in report.skipped] == [True]
    # What was done is not done again.
    assert len(finished) == parts
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())


def test_another_encoder_or_other_files_cannot_resume(backbone, folder, tmp_path):
    write_file_features(tmp_path, backbone, folder, progress=False)
    other = _backbone()
    other.set_weights([weight + 0.1 for weight in backbone.get_weights()])
    for encoder, source in ((other, folder), (backbone, folder / "class 0")):
        with pytest.raises(ValueError):
            write_file_features(tmp_path, encoder, source, resume=True)


def test_wrong_values(backbone, folder, tmp_path, monkeypatch):
    for wrong in ({"per": "clip"}, {"per": "patch", "segments": 2}, {"segments": 0}):
        with pytest.raises(ValueError):
            FeatureExtractor(backbone, **wrong)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError):
        FeatureExtractor(backbone).write(tmp_path / "y", folder, format="parquet")
    assert not (tmp_path / "y").exists()


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
