import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_pretraining import PaddedMap
from tiny_pretraining import backbone as tiny_backbone

import keras_bridle as kb
from keras_bridle.evaluation.features import InputFeatures, extract_features
from keras_bridle.evaluation.metrics import classification_metrics
from keras_bridle.evaluation.probes import (
    ProbeData,
    mean_per_class,
    probe,
    probe_encoder,
    probe_inputs,
)


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


def _maps(rows=40):
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % 3
    patterns = 2 * rng.normal(size=(3, 32, 16, 1))
    maps = rng.normal(size=(rows, 32, 16, 1)) + patterns[labels]
    return maps.astype("float32"), labels


def _numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_arrays_and_splits(backbone):
    maps, labels = _maps()
    order = np.random.default_rng(1).permutation(40)
    splits = [(order[:25], order[25:]), (order[15:], order[:15])]
    data = ProbeData(lambda backbone: maps, labels, list("abc"), splits)
    found = probe_encoder(backbone, data, ["knn"], batch_size=16)
    features = extract_features(backbone, maps)
    for metrics, (train, test) in zip(found["knn"], splits, strict=True):
        expected = probe(
            "knn", features[train], labels[train], features[test], labels[test]
        )
        assert metrics.accuracy == expected.accuracy
    plain = probe_inputs(backbone, data, ["knn", "attentive"])
    assert list(plain) == ["knn"]
    assert np.mean([metrics.accuracy for metrics in plain["knn"]]) > 0.9
    assert probe_inputs(backbone, data, ["attentive"]) == {}


def test_rows_that_were_not_read_are_left_out(backbone):
    maps, labels = _maps()
    read = np.array([i for i in range(40) if i not in (3, 30)])
    dataset = tf.data.Dataset.from_tensor_slices((maps[read], read)).batch(7)
    splits = [(np.arange(25), np.arange(25, 40))]
    data = ProbeData(lambda backbone: dataset, labels, list("abc"), splits)
    (metrics,) = probe_encoder(backbone, data, ["knn"])["knn"]
    features = extract_features(backbone, maps)
    train, test = read[read < 25], read[read >= 25]
    expected = probe(
        "knn", features[train], labels[train], features[test], labels[test]
    )
    assert metrics.confusion.sum() == 14
    np.testing.assert_array_equal(metrics.confusion, expected.confusion)
    none_left = data._replace(splits=[(np.array([3]), np.arange(25, 40))])
    with pytest.raises(ValueError, match="No training example can be read"):
        probe_encoder(backbone, none_left, ["knn"])


def test_patches_that_would_take_too_much_memory(backbone):
    maps, labels = _maps()
    data = ProbeData(
        lambda backbone: maps, labels, list("abc"), [(np.arange(20), np.arange(20, 40))]
    )
    # 40 examples of 8 patches of 16 numbers at 2 bytes.
    with pytest.raises(ValueError, match=r"40 examples would take 0\.0 GB of memory"):
        probe_encoder(backbone, data, ["attentive"], most_gigabytes=10_239e-9)
    options = {"attentive": {"epochs": 1}}
    found = probe_encoder(
        backbone, data, ["attentive"], options=options, most_gigabytes=10_241e-9
    )
    assert found["attentive"][0].confusion.sum() == 20


def test_statistics_of_spectrograms_leave_out_padding():
    backbone = kb.BridleBackbone(
        patch_size=8,
        hidden_dim=8,
        num_layers=1,
        num_heads=2,
        mlp_dim=8,
        input_dims=(None,),
        front_end=kb.LogMelSpectrogram(),
    )
    waveforms = np.random.default_rng(0).normal(size=(2, 8000)).astype("float32")
    waveforms[1, 4000:] = 0
    features = _numpy(InputFeatures(backbone, segments=2)(waveforms))
    maps, mask = (_numpy(x) for x in backbone.features(waveforms))
    for row in range(2):
        real = maps[row, mask[row], :, 0]
        halves = np.array_split(real, 2)
        expected = np.concatenate([[x.mean(0), x.std(0)] for x in halves]).reshape(-1)
        np.testing.assert_allclose(features[row], expected, rtol=1e-3, atol=1e-3)
    assert mask[1].sum() < mask[0].sum() == maps.shape[1]


def test_small_gray_pixels():
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    network = InputFeatures(tiny_backbone(input_dims=(8, 8, 3)), size=4)
    cells = images.mean(axis=-1).reshape(2, 4, 2, 4, 2).mean(axis=(2, 4))
    found = _numpy(network(images)).reshape(2, 4, 4)
    # Antialiasing reaches a little beyond a cell.
    assert np.abs(found - cells).mean() < 0.1 * cells.std() + 12
    assert np.corrcoef(found.ravel(), cells.ravel())[0, 1] > 0.8
    small = InputFeatures(tiny_backbone(input_dims=(8, 8, 3)), size=16)
    padded = _numpy(small(images)).reshape(2, 16, 16)
    np.testing.assert_allclose(padded[:, :8, :8], images.mean(axis=-1), rtol=1e-4)
    assert not padded[:, 8:].any()


def test_padded_maps_are_of_no_known_kind():
    # A front end with a mask, but two-dimensional input: its pixels count as they are.
    network = InputFeatures(tiny_backbone(front_end=PaddedMap()), size=32)
    assert network(_maps(2)[0]).shape == (2, 1024)


def test_mean_per_class():
    several = [
        classification_metrics([0, 0, 1], np.eye(3)[[0, 1, 1]]),
        classification_metrics([0, 2], np.eye(3)[[0, 2]]),
    ]
    rows = mean_per_class(several)
    assert [row["name"] for row in rows] == ["0", "1", "2"]
    assert [row["examples"] for row in rows] == [3, 1, 1]
    assert [row["accuracy"] for row in rows] == [0.75, 1.0, 1.0]
    lonely = mean_per_class([classification_metrics([0, 1], np.eye(3)[:2])])
    assert lonely[2]["AUC"] is None
