import contextlib

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import average_precision_score
from tiny_pretraining import backbone as tiny_backbone

from keras_bridle.evaluation.features import FeatureExtractor, PatchFeatures
from keras_bridle.evaluation.probes import (
    ProbeData,
    knn_probe,
    linear_probe,
    probe,
    probe_encoder,
)


def _blobs(rows, seed, classes=4, dim=12):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(classes, dim))
    labels = rng.integers(0, classes, rows)
    # Offsets and scales that only a normalization evens out.
    scale = np.geomspace(0.01, 10, dim)
    features = (centers[labels] + rng.normal(size=(rows, dim))) * scale + 5 * scale
    return features.astype("float32"), labels


TRAIN, TEST = _blobs(300, 0), _blobs(200, 1)


def _patches(rows, seed):
    """One patch in nine tells the class; padding holds what would mislead."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rows)
    features = rng.normal(size=(rows, 9, 8))
    signs = np.concatenate([6 * np.ones((rows, 1)), 4 * np.eye(3, 7)[labels]], axis=1)
    features[np.arange(rows), rng.integers(0, 5, rows)] = signs
    is_real = np.arange(9) < rng.integers(5, 10, rows)[:, None]
    features[~is_real] = [6, 0, 0, 0, 4, 4, 4, 4]
    return PatchFeatures(features.astype("float16"), is_real), labels


@pytest.mark.one_backend
def test_linear_and_knn_are_the_functions():
    options = {"regularizations": [0.1, 1.0], "folds": 2}
    expected = linear_probe(*TRAIN, *TEST, **options)
    found = probe("linear", *TRAIN, *TEST, **options)
    assert found.accuracy == expected.accuracy
    precision = average_precision_score(np.eye(4)[TEST[1]], expected.scores)
    assert found.mean_average_precision == pytest.approx(precision, rel=1e-12)
    for options in ({}, {"neighbors": 3, "temperature": None}):
        accuracy = knn_probe(*TRAIN, *TEST, **options)
        assert probe("knn", *TRAIN, *TEST, **options).accuracy == accuracy
    # Of few rows all vote.
    probe("knn", TRAIN[0][:4], TRAIN[1][:4], *TEST)
    with pytest.raises(ValueError):
        probe("svm", *TRAIN, *TEST)


def test_dense_agrees_with_logistic_regression():
    expected = linear_probe(*TRAIN, *TEST, regularizations=[1.0])
    found = probe("dense", *TRAIN, *TEST, epochs=12, learning_rate=0.05)
    assert 0.6 < expected.accuracy < 0.95
    assert abs(found.accuracy - expected.accuracy) < 0.04
    short = [probe("dense", *TRAIN, *TEST, epochs=1, seed=5) for _ in range(2)]
    assert short[0].summary() == short[1].summary() != found.summary()


def test_attentive_finds_what_the_mean_hides_and_leaves_out_padding():
    train, test = _patches(300, 0), _patches(200, 1)
    options = {"epochs": 12, "learning_rate": 0.01}
    found = probe("attentive", *train, *test, **options)
    assert found.accuracy > 0.9
    means = (train[0].mean(), train[1], test[0].mean(), test[1])
    mean = probe("linear", *means, regularizations=[1.0])
    assert mean.accuracy < found.accuracy - 0.03
    is_real = test[0].is_real
    patches = np.where(is_real[..., None], test[0].patches, np.float16(-9))
    other = PatchFeatures(patches, is_real)
    np.testing.assert_allclose(test[0].mean(), other.mean(), rtol=1e-6, atol=1e-6)
    again = probe("attentive", *train, other, test[1], **options)
    assert again.summary() == found.summary()


def test_multi_label():
    train, test = (np.eye(4)[labels] for _, labels in (TRAIN, TEST))
    for hot in (train, test):
        # The second class comes with the first.
        hot[:, 1] += hot[:, 0]
    for kind, options in (("knn", {}), ("dense", {"epochs": 8, "learning_rate": 0.05})):
        found = probe(kind, TRAIN[0], train, TEST[0], test, **options)
        assert found.accuracy is None and found.mean_average_precision > 0.6
    with pytest.raises(ValueError):
        probe("linear", TRAIN[0], train, TEST[0], test)


@pytest.mark.one_backend
def test_a_class_that_training_lacks():
    known = TRAIN[1] != 2
    for kind, options in (("linear", {"regularizations": [1.0]}), ("knn", {})):
        found = probe(kind, TRAIN[0][known], TRAIN[1][known], *TEST, **options)
        assert [row["accuracy"] == 0 for row in found.per_class] == [0, 0, 1, 0]


SPLITS = [(np.arange(25), np.arange(25, 40))]
BACKBONE = tiny_backbone()
LABELS = np.arange(40) % 3
MAPS = np.random.default_rng(0).normal(size=(43, 32, 16, 1)).astype("float32")
MAPS = MAPS[3:] + 2 * MAPS[LABELS]


def test_arrays_and_splits():
    order = np.random.default_rng(1).permutation(40)
    splits = [(order[:25], order[25:]), (order[15:], order[:15])]
    data = ProbeData(lambda backbone: MAPS, LABELS, list("abc"), splits)
    found = probe_encoder(BACKBONE, data, ["knn"], batch_size=16)
    features = FeatureExtractor(BACKBONE)(MAPS)
    for metrics, (train, test) in zip(found["knn"], splits, strict=True):
        expected = knn_probe(
            features[train], LABELS[train], features[test], LABELS[test]
        )
        assert metrics.accuracy == expected
    plain = probe_encoder(BACKBONE, data, ["knn", "attentive"], plain=True)
    assert list(plain) == ["knn"]
    assert np.mean([metrics.accuracy for metrics in plain["knn"]]) > 0.9


def test_rows_that_were_not_read_are_left_out():
    read = np.array([i for i in range(40) if i not in (3, 30)])
    dataset = tf.data.Dataset.from_tensor_slices((MAPS[read], read)).batch(7)
    data = ProbeData(lambda backbone: dataset, LABELS, list("abc"), SPLITS)
    (metrics,) = probe_encoder(BACKBONE, data, ["knn"])["knn"]
    features = FeatureExtractor(BACKBONE)(MAPS)
    train, test = read[read < 25], read[read >= 25]
    expected = probe(
        "knn", features[train], LABELS[train], features[test], LABELS[test]
    )
    np.testing.assert_array_equal(metrics.confusion, expected.confusion)
    none_left = data._replace(splits=[(np.array([3]), np.arange(25, 40))])
    with pytest.raises(ValueError):
        probe_encoder(BACKBONE, none_left, ["knn"])


def test_patches_that_would_take_too_much_memory():
    data = ProbeData(lambda backbone: MAPS, LABELS, list("abc"), SPLITS)
    options = {"attentive": {"epochs": 1}}
    # 40 examples of 8 patches of 16 numbers at 2 bytes.
    for limit, fails in ((10_239e-9, True), (10_241e-9, False)):
        with pytest.raises(ValueError) if fails else contextlib.nullcontext():
            probe_encoder(
                BACKBONE, data, ["attentive"], options=options, most_gigabytes=limit
            )
