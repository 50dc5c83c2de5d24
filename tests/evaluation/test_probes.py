import contextlib

import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
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
    features = 0.75 * centers[labels] + rng.normal(size=(rows, dim))
    # Offsets and scales that only a normalization evens out.
    return (features + 5.0) * np.geomspace(0.01, 10, dim), labels


TRAIN, TEST = _blobs(200, 0), _blobs(150, 1)


@pytest.mark.parametrize(("classes", "strength"), [(2, 0.3), (4, 0.3), (4, 1e-3)])
def test_fixed_regularization_against_sklearn(classes, strength):
    train, test = _blobs(200, 0, classes), _blobs(150, 1, classes)
    result = linear_probe(*train, *test, regularizations=[strength])
    reference = make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, max_iter=2000)
    ).fit(*train)
    np.testing.assert_array_equal(result.predictions, reference.predict(test[0]))
    probabilities = reference.predict_proba(test[0])
    np.testing.assert_allclose(np.exp(result.scores), probabilities, atol=2e-3)
    assert result.accuracy == reference.score(*test)
    assert 0.3 < result.accuracy < 0.99  # or the comparison proves nothing
    assert result.regularization == strength
    assert np.isnan(result.validation_accuracy)
    # Far away, probabilities are too small for floats; their logarithms are not.
    far = linear_probe(*train, 1e7 * test[0], test[1], regularizations=[strength])
    assert np.isfinite(far.scores).all() and far.scores.min() < -1000


def test_constant_columns_names_and_test_rows_change_nothing_of_the_fit():
    noise = 1e-7 * np.random.default_rng(0).normal(size=(350, 3))
    # Differences of the size of float32 rounding, and a jump in the test rows.
    wide_train = np.concatenate([TRAIN[0], 7 + noise[:200]], axis=1)
    wide_test = np.concatenate([TEST[0], 9 + noise[200:]], axis=1)
    # Names for classes change nothing, either.
    names = np.array(["ant", "bee", "cat", "dog"])
    labels = names[TEST[1]]
    result = linear_probe(wide_train, names[TRAIN[1]], wide_test, labels)
    expected = linear_probe(*TRAIN, *TEST)
    np.testing.assert_array_equal(result.predictions, names[expected.predictions])
    assert result.classes.tolist() == names.tolist()
    right = result.predictions == labels
    assert result.per_class == {x: right[labels == x].mean() for x in names.tolist()}
    # The folds' estimate is near what the test rows say, and does not know these.
    assert abs(result.validation_accuracy - right.mean()) < 0.12
    other = linear_probe(*TRAIN, 1e3 * TEST[0][:30], np.zeros(30, int))
    assert other.regularization == expected.regularization
    assert other.validation_accuracy == expected.validation_accuracy


def test_groups_guard_against_memorizing_them():
    # 40 groups, each with a fingerprint in many columns; the class does not show.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 8)
    features = 3 * rng.normal(size=(40, 60))[groups] + rng.normal(size=(320, 60))
    test = 3 * rng.normal(size=(160, 60)), np.repeat(np.arange(4), 40)
    plain = linear_probe(features, groups % 4, *test)
    grouped = linear_probe(features, groups % 4, *test, groups=groups)
    # The true accuracy on other groups is chance, a quarter.
    assert plain.validation_accuracy > 0.9
    assert grouped.validation_accuracy < 0.45
    assert grouped.regularization <= plain.regularization


def test_penalty_is_chosen_by_the_likelihood_of_held_out_groups():
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(4), 40)
    labels = rng.integers(0, 3, 160)
    features = rng.normal(size=(160, 30)) + 1.2 * np.eye(3, 30)[labels]
    strengths = [1e-4, 1e-2, 1.0, 1e2]
    rows = features, labels
    result = linear_probe(*rows, *rows, groups=groups, regularizations=strengths)
    inputs = StandardScaler().fit_transform(features)
    losses, accuracies = np.zeros(4), np.zeros(4)
    for index, strength in enumerate(strengths):
        for fold in range(4):
            test = groups == fold
            reference = LogisticRegression(C=strength, max_iter=2000)
            reference.fit(inputs[~test], labels[~test])
            logs = reference.predict_log_proba(inputs[test])
            losses[index] -= logs[np.arange(40), labels[test]].sum()
            accuracies[index] += reference.score(inputs[test], labels[test]) / 4
    weights = np.exp(losses.min() - losses)
    weights /= weights.sum()
    assert weights[1] > 0.9
    expected = np.exp(weights @ np.log(strengths))
    assert result.regularization == pytest.approx(expected, rel=0.02)
    assert result.validation_accuracy == pytest.approx(weights @ accuracies, abs=5e-3)


def test_rounding_of_the_features_changes_nothing():
    """The same features out of another backend must give the same row of a table."""
    train, test = _blobs(160, 2, dim=60), _blobs(200, 3, dim=60)
    rng = np.random.default_rng(0)
    noisy = [x * (1 + 1e-5 * rng.normal(size=x.shape)) for x in (train[0], test[0])]
    expected = linear_probe(*train, *test)
    result = linear_probe(noisy[0], train[1], noisy[1], test[1])
    np.testing.assert_array_equal(result.predictions, expected.predictions)
    assert result.regularization == pytest.approx(expected.regularization, rel=0.02)


def _directions(rows, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, rows)
    centers = np.random.default_rng(99).normal(size=(5, 8))
    # Lengths vary by a factor of 100: only the direction tells the class.
    lengths = np.exp(rng.uniform(-2.3, 2.3, (rows, 1)))
    return lengths * (centers[labels] + 1.2 * rng.normal(size=(rows, 8))), labels


@pytest.mark.parametrize(
    ("neighbors", "temperature"), [(1, 0.07), (20, 0.07), (20, None)]
)
def test_neighbors_against_sklearn(neighbors, temperature):
    train, test = _directions(300, 0), _directions(500, 1)

    def weights(distances):
        return np.exp((1 - distances) / temperature)

    weights = "uniform" if temperature is None else weights
    reference = KNeighborsClassifier(neighbors, weights=weights, metric="cosine")
    expected = reference.fit(*train).score(*test)
    assert 0.4 < expected < 0.95
    result = knn_probe(*train, *test, neighbors, temperature)
    assert result == pytest.approx(expected, abs=1e-12)


def test_wrong_values_and_extreme_ones():
    for change in (
        {"test_labels": [0]},
        {"train_labels": [1] * 200},
        {"groups": TRAIN[1]},
        {"folds": 1},
    ):
        names = ("train_features", "train_labels", "test_features", "test_labels")
        arguments = dict(zip(names, (*TRAIN, *TEST), strict=True))
        with pytest.raises(ValueError):
            linear_probe(**arguments | change)
    for change in ({"neighbors": 0}, {"neighbors": 301}, {"temperature": 0.0}):
        with pytest.raises(ValueError):
            knn_probe(*TRAIN, *TEST, **change)
    tiny = knn_probe(*TRAIN, *TEST, 9, temperature=1e-5)
    assert tiny == knn_probe(*TRAIN, *TEST, 1)
    # A class in one group alone does not hinder.
    groups = np.where(TRAIN[1] == 3, 50, np.arange(200) % 20)
    result = linear_probe(*TRAIN, *TEST, groups=groups)
    assert np.isfinite(result.regularization) and result.accuracy > 0.5


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
    found = probe("dense", *TRAIN, *TEST, epochs=20, learning_rate=0.05)
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
