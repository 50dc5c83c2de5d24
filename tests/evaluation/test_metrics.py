from collections import Counter
from math import exp, log

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    roc_auc_score,
    top_k_accuracy_score,
)

from keras_bridle.config import ArgumentError
from keras_bridle.evaluation.metrics import classification_metrics, code_usage
from keras_bridle.evaluation.probes import mean_per_class

pytestmark = pytest.mark.one_backend


def _scores(rows=300, classes=8, seed=0, decimals=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    scores = rng.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, scores if decimals is None else scores.round(decimals)


# With one decimal, many scores are equal.
@pytest.mark.parametrize("decimals", [None, 1])
def test_multi_label_against_sklearn(decimals):
    _, scores = _scores(decimals=decimals)
    noise = np.random.default_rng(1).normal(size=scores.shape)
    hot = (scores + noise > 1.5).astype("float32")
    metrics = classification_metrics(hot, scores)
    precisions = [average_precision_score(hot[:, i], scores[:, i]) for i in range(8)]
    areas = [roc_auc_score(hot[:, i], scores[:, i]) for i in range(8)]
    for row, precision, area in zip(metrics.per_class, precisions, areas, strict=True):
        assert row["average precision"] == pytest.approx(precision, rel=1e-12)
        assert row["AUC"] == pytest.approx(area, rel=1e-12)
    assert [row["examples"] for row in metrics.per_class] == hot.sum(axis=0).tolist()
    assert metrics.mean_average_precision == pytest.approx(
        average_precision_score(hot, scores, average="macro"), rel=1e-12
    )
    area = roc_auc_score(hot, scores, average="macro")
    assert metrics.area_under_curve == pytest.approx(area, rel=1e-12)
    assert metrics.d_prime == pytest.approx(np.sqrt(2) * norm.ppf(area), rel=1e-9)
    assert 0.3 < metrics.mean_average_precision < 0.99  # or nothing is compared
    assert metrics.accuracy is metrics.top5 is metrics.confusion is None
    assert metrics.excluded == ()
    assert list(metrics.summary()) == ["mAP", "AUC", "d'"]


def test_single_label_against_sklearn():
    labels, scores = _scores()
    metrics = classification_metrics(labels, scores, list("abcdefgh"))
    assert metrics.accuracy == top_k_accuracy_score(labels, scores, k=1)
    assert metrics.top5 == top_k_accuracy_score(labels, scores, k=5)
    assert 0.3 < metrics.accuracy < metrics.top5 < 1
    expected = confusion_matrix(labels, scores.argmax(axis=1))
    np.testing.assert_array_equal(metrics.confusion, expected)
    shares = expected.diagonal() / expected.sum(axis=1)
    assert [row["name"] for row in metrics.per_class] == list("abcdefgh")
    np.testing.assert_allclose([row["accuracy"] for row in metrics.per_class], shares)
    assert metrics.mean_average_precision == pytest.approx(
        average_precision_score(np.eye(8)[labels], scores, average="macro"), rel=1e-12
    )
    summary = metrics.summary()
    assert list(summary) == ["accuracy", "top-5", "mAP", "AUC", "d'"]
    assert summary["d'"] == f"{metrics.d_prime:.3f}"


def test_classes_without_positives_are_left_out_and_named():
    labels, scores = _scores(classes=6)
    labels[labels == 2] = 3
    names = ["ant", "bee", "cat", "dog", "eel", "fox"]
    metrics = classification_metrics(labels, scores, names)
    assert metrics.excluded == ("cat",)
    assert metrics.per_class[2] == {
        "name": "cat",
        "examples": 0,
        "accuracy": None,
        "average precision": None,
        "AUC": None,
    }
    occurring = [0, 1, 3, 4, 5]
    hot = np.eye(6)[labels]
    assert metrics.mean_average_precision == pytest.approx(
        average_precision_score(hot[:, occurring], scores[:, occurring]), rel=1e-12
    )
    assert metrics.area_under_curve == pytest.approx(
        roc_auc_score(hot[:, occurring], scores[:, occurring]), rel=1e-12
    )


def test_a_class_of_all_rows_has_a_precision_and_no_area():
    hot = np.array([[1, 0], [1, 1], [1, 0]])
    metrics = classification_metrics(hot, np.array([[0.1, 0.2], [0.5, 0.9], [0.3, 0]]))
    assert metrics.per_class[0]["average precision"] == 1
    assert metrics.per_class[0]["AUC"] is None
    assert metrics.area_under_curve == 1 and metrics.d_prime == np.inf
    assert metrics.excluded == ()


def test_of_equal_scores_the_first_class_is_predicted():
    scores = np.zeros((6, 6))
    metrics = classification_metrics(np.arange(6), scores)
    assert metrics.accuracy == 1 / 6 and metrics.top5 == 5 / 6
    assert metrics.confusion[:, 0].tolist() == [1] * 6
    # All in one tie: as good as the share of positives, or as chance.
    assert metrics.mean_average_precision == pytest.approx(1 / 6)
    assert metrics.area_under_curve == 0.5 and metrics.d_prime == 0


@pytest.mark.parametrize(
    ("labels", "scores", "names"),
    [
        ([0, 1], [[0, 1], [0, np.nan]], None),
        ([0, 2], np.zeros((2, 2)), None),
        ([-1, 0], np.zeros((2, 2)), None),
        ([0], np.zeros((2, 2)), None),
        ([[0, 2], [0, 1]], np.zeros((2, 2)), None),
        ([0, 1], np.zeros((2, 2)), ["a"]),
    ],
)
def test_wrong_values(labels, scores, names):
    with pytest.raises(ArgumentError):
        classification_metrics(labels, scores, names)


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


def _codes(size, rows=700, levels=3, seed=0):
    rng = np.random.default_rng(seed)
    columns = [
        rng.choice(size, rows, p=rng.dirichlet(np.full(size, concentration)))
        for concentration in (0.1, 1.0, 20.0)[:levels]
    ]
    return np.stack(columns, axis=-1).astype("int32")


def test_code_usage_against_plain_python():
    codes = _codes(50)
    result = code_usage(codes.reshape(7, 100, 3), 50)
    published = result.published()
    for level in range(3):
        counter = Counter(codes[:, level].tolist())
        shares = [count / 700 for count in counter.values()]
        assert result.counts[level].tolist() == [counter[code] for code in range(50)]
        assert result.usage[level] == pytest.approx(len(counter) / 50, rel=1e-14)
        entropy = -sum(share * log(share) for share in shares)
        assert result.perplexity[level] == pytest.approx(exp(entropy), rel=1e-12)
        bits = entropy / log(2)
        assert published["CUR"][level] == result.usage[level]
        assert published["UE"][level] == pytest.approx(bits, rel=1e-12)
        assert published["ECU"][level] == pytest.approx(
            len(counter) / 50 / (bits * log(50)), rel=1e-12
        )


def test_collapsed_codes():
    result = code_usage(np.full((9, 2), 3), 8)
    assert result.usage.tolist() == [1 / 8, 1 / 8]
    assert result.perplexity.tolist() == [1.0, 1.0]
    assert result.published()["UE"].tolist() == [0.0, 0.0]
    assert result.published()["ECU"].tolist() == [np.inf, np.inf]


@pytest.mark.parametrize(
    "codes", [np.zeros((0, 2), int), np.zeros(5, int), [[0], [4]], [[-1], [0]]]
)
def test_wrong_codes(codes):
    with pytest.raises(ValueError):
        code_usage(codes, 4)
