import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keras_bridle.evaluation.probes import knn_probe, linear_probe

pytestmark = pytest.mark.one_backend


def _blobs(rows, classes=4, dim=12, distance=1.5, seed=0):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(classes, dim))
    labels = rng.integers(0, classes, rows)
    features = distance * centers[labels] / 2 + rng.normal(size=(rows, dim))
    return 3.0 * features + 5.0, labels


def test_fixed_regularization_against_sklearn():
    train, test = _blobs(200), _blobs(150, seed=1)
    for strength in (1e-3, 0.3):
        result = linear_probe(*train, *test, regularizations=[strength])
        reference = make_pipeline(
            StandardScaler(), LogisticRegression(C=strength, max_iter=2000)
        ).fit(*train)
        predictions = reference.predict(test[0])
        np.testing.assert_array_equal(result.predictions, predictions)
        assert result.accuracy == reference.score(*test)
        assert result.regularization == strength
        assert np.isnan(result.validation_accuracy)
        assert 0.3 < result.accuracy < 0.99  # or the comparison proves nothing


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_are_logarithms_of_probabilities(classes):
    train, test = _blobs(200, classes), _blobs(150, classes, seed=1)
    result = linear_probe(*train, *test, regularizations=[0.3])
    reference = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.3, max_iter=2000)
    ).fit(*train)
    np.testing.assert_array_equal(result.classes, np.arange(classes))
    np.testing.assert_allclose(
        np.exp(result.scores), reference.predict_proba(test[0]), atol=2e-3
    )
    # Far away, probabilities are too small for floats; their logarithms are not.
    far = linear_probe(*train, 1e5 * test[0], test[1], regularizations=[0.3])
    assert np.isfinite(far.scores).all() and far.scores.min() < -1000


def test_result_fields():
    train, test = _blobs(200), _blobs(151, seed=1)
    names = np.array(["ant", "bee", "cat", "dog"])
    result = linear_probe(train[0], names[train[1]], test[0], names[test[1]])
    right = result.predictions == names[test[1]]
    assert result.accuracy == right.mean()
    assert result.per_class == {
        name: right[names[test[1]] == name].mean() for name in names.tolist()
    }
    # The folds' estimate is near what the test rows say.
    assert abs(result.validation_accuracy - result.accuracy) < 0.12


def test_test_rows_take_no_part_in_fitting():
    train, test = _blobs(120), _blobs(60, seed=1)
    whole = linear_probe(*train, *test)
    half = linear_probe(*train, test[0][:30] * [[1.0]], test[1][:30])
    wrong = linear_probe(*train, 1e3 * test[0], np.zeros(60, int))
    np.testing.assert_array_equal(whole.predictions[:30], half.predictions)
    assert whole.regularization == half.regularization == wrong.regularization
    assert whole.validation_accuracy == wrong.validation_accuracy


def test_constant_columns_change_nothing():
    train, test = _blobs(200), _blobs(150, seed=1)
    noise = 1e-7 * np.random.default_rng(0).normal(size=(350, 3))
    # Differences of the size of float32 rounding, and a jump in the test rows.
    wide_train = np.concatenate([train[0], 7 + noise[:200]], axis=1)
    wide_test = np.concatenate([test[0], 9 + noise[200:]], axis=1)
    expected = linear_probe(*train, *test)
    result = linear_probe(wide_train, train[1], wide_test, test[1])
    np.testing.assert_array_equal(result.predictions, expected.predictions)


def test_groups_guard_against_memorizing_them():
    # 40 groups, each with a fingerprint in many columns; the class shows only weakly.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 8)
    labels = (groups % 4).astype(int)
    fingerprints = 3 * rng.normal(size=(40, 60))
    features = fingerprints[groups] + rng.normal(size=(320, 60))
    test_labels = np.repeat(np.arange(4), 40)
    test_features = 3 * rng.normal(size=(160, 60)) + rng.normal(size=(160, 60))
    plain = linear_probe(features, labels, test_features, test_labels)
    grouped = linear_probe(features, labels, test_features, test_labels, groups=groups)
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
    result = linear_probe(
        features, labels, features, labels, groups=groups, regularizations=strengths
    )
    inputs = StandardScaler().fit_transform(features)
    losses, accuracies = np.zeros(4), np.zeros(4)
    for index, strength in enumerate(strengths):
        for fold in range(4):
            rows = groups == fold
            reference = LogisticRegression(C=strength, max_iter=2000)
            reference.fit(inputs[~rows], labels[~rows])
            logs = reference.predict_log_proba(inputs[rows])
            losses[index] -= logs[np.arange(40), labels[rows]].sum()
            accuracies[index] += reference.score(inputs[rows], labels[rows]) / 4
    weights = np.exp(losses.min() - losses)
    weights /= weights.sum()
    assert weights[1] > 0.9
    expected = np.exp(weights @ np.log(strengths))
    assert result.regularization == pytest.approx(expected, rel=0.02)
    assert result.validation_accuracy == pytest.approx(weights @ accuracies, abs=5e-3)


def test_rounding_of_the_features_changes_nothing():
    """The same features out of another backend must give the same row of a table."""
    train, test = _blobs(160, dim=60, seed=2), _blobs(200, dim=60, seed=3)
    rng = np.random.default_rng(0)
    expected = linear_probe(*train, *test)
    for _ in range(3):
        noisy = [x * (1 + 1e-5 * rng.normal(size=x.shape)) for x in (train[0], test[0])]
        result = linear_probe(noisy[0], train[1], noisy[1], test[1])
        np.testing.assert_array_equal(result.predictions, expected.predictions)
        assert result.regularization == pytest.approx(expected.regularization, rel=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"train_features": np.full((8, 3), np.nan)},
        {"test_features": np.ones((4, 2))},
        {"train_labels": [0, 1] * 3},
        {"train_labels": [1] * 8},
        {"groups": [0, 1]},
        {"groups": [0, 0, 0, 0, 1, 1, 1, 1]},
        {"folds": 1},
        {"regularizations": [1.0, -1.0]},
    ],
)
def test_wrong_values(change):
    arguments = {
        "train_features": np.arange(24.0).reshape(8, 3),
        "train_labels": [0, 1] * 4,
        "test_features": np.arange(12.0).reshape(4, 3),
        "test_labels": [0, 1] * 2,
    }
    linear_probe(**arguments)
    with pytest.raises(ValueError):
        linear_probe(**arguments | change)


def test_a_class_in_one_group_alone_does_not_hinder():
    train, test = _blobs(200), _blobs(150, seed=1)
    groups = np.where(train[1] == 3, 50, np.arange(200) % 20)
    result = linear_probe(*train, *test, groups=groups)
    assert np.isfinite(result.regularization)
    assert result.accuracy > 0.5


def test_more_features_than_rows_are_fit_as_they_are():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    features = rng.normal(size=(120, 300))
    features[:, :3] += 2 * np.eye(3)[labels]
    result = linear_probe(features[:60], labels[:60], features[60:], labels[60:])
    mean, spread = features[:60].mean(axis=0), features[:60].std(axis=0)
    inputs = (features - mean) / spread
    classifier = LogisticRegression(C=result.regularization, max_iter=5000, tol=1e-6)
    classifier.fit(inputs[:60], labels[:60])
    np.testing.assert_array_equal(result.predictions, classifier.predict(inputs[60:]))


def _directions(rows, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, rows)
    centers = np.random.default_rng(99).normal(size=(5, 8))
    # Lengths vary by a factor of 100: only the direction tells the class.
    lengths = np.exp(rng.uniform(-2.3, 2.3, (rows, 1)))
    return lengths * (centers[labels] + 1.2 * rng.normal(size=(rows, 8))), labels


@pytest.mark.parametrize("neighbors", [1, 20])
@pytest.mark.parametrize("temperature", [0.07, None])
def test_neighbors_against_sklearn(neighbors, temperature):
    train, test = _directions(300, 0), _directions(500, 1)
    weights = (
        "uniform"
        if temperature is None
        else lambda distances: np.exp((1 - distances) / temperature)
    )
    reference = KNeighborsClassifier(neighbors, weights=weights, metric="cosine")
    expected = reference.fit(*train).score(*test)
    assert 0.4 < expected < 0.95
    result = knn_probe(*train, *test, neighbors, temperature)
    assert result == pytest.approx(expected, abs=1e-12)


def test_names_as_labels_and_tiny_temperature():
    train, test = _directions(300, 0), _directions(100, 1)
    names = np.array(list("abcde"))
    nearest = knn_probe(*train, *test, neighbors=1)
    named = (train[0], names[train[1]], test[0], names[test[1]])
    assert knn_probe(*named, 9, temperature=1e-5) == nearest
    for wrong in ({"neighbors": 0}, {"neighbors": 301}, {"temperature": 0.0}):
        with pytest.raises(ValueError):
            knn_probe(*named, **wrong)
