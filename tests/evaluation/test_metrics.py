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

NAMES = list("abcdefgh")


def _scores(rows=300, classes=8):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    return labels, rng.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]


# With one decimal, many scores are equal.
@pytest.mark.parametrize("decimals", [8, 1])
def test_multi_label_against_sklearn(decimals):
    scores = _scores()[1].round(decimals)
    noise = np.random.default_rng(1).normal(size=scores.shape)
    hot = (scores + noise > 1.5).astype("float32")
    metrics = classification_metrics(hot, scores)
    for index, row in enumerate(metrics.per_class):
        columns = hot[:, index], scores[:, index]
        assert row["examples"] == hot[:, index].sum()
        assert row["average precision"] == average_precision_score(*columns)
        assert row["AUC"] == roc_auc_score(*columns)
    precision = average_precision_score(hot, scores, average="macro")
    assert 0.3 < precision < 0.99  # or nothing is compared
    assert metrics.mean_average_precision == pytest.approx(precision, rel=1e-12)
    area = roc_auc_score(hot, scores, average="macro")
    assert metrics.area_under_curve == pytest.approx(area, rel=1e-12)
    assert metrics.d_prime == pytest.approx(np.sqrt(2) * norm.ppf(area), rel=1e-9)
    assert metrics.accuracy is metrics.top5 is metrics.confusion is None
    assert list(metrics.summary()) == ["mAP", "AUC", "d'"]


def test_single_label_against_sklearn():
    labels, scores = _scores()
    metrics = classification_metrics(labels, scores, NAMES)
    assert metrics.accuracy == top_k_accuracy_score(labels, scores, k=1)
    assert metrics.top5 == top_k_accuracy_score(labels, scores, k=5)
    assert 0.3 < metrics.accuracy < metrics.top5 < 1
    expected = confusion_matrix(labels, scores.argmax(axis=1))
    np.testing.assert_array_equal(metrics.confusion, expected)
    shares = expected.diagonal() / expected.sum(axis=1)
    np.testing.assert_allclose([row["accuracy"] for row in metrics.per_class], shares)
    assert [row["name"] for row in metrics.per_class] == NAMES
    precision = average_precision_score(np.eye(8)[labels], scores, average="macro")
    assert metrics.mean_average_precision == pytest.approx(precision, rel=1e-12)
    assert list(metrics.summary()) == ["accuracy", "top-5", "mAP", "AUC", "d'"]


def test_classes_without_positives_are_left_out_and_named():
    labels, scores = _scores()
    labels[labels == 2] = 3
    metrics = classification_metrics(labels, scores, NAMES)
    assert metrics.excluded == ("c",)
    unknown = dict.fromkeys(("accuracy", "average precision", "AUC"))
    assert metrics.per_class[2] == {"name": "c", "examples": 0, **unknown}
    hot, others = np.delete(np.eye(8)[labels], 2, 1), np.delete(scores, 2, 1)
    expected = average_precision_score(hot, others)
    assert metrics.mean_average_precision == pytest.approx(expected, rel=1e-12)


def test_of_equal_scores_the_first_class_is_predicted():
    metrics = classification_metrics(np.arange(6), np.zeros((6, 6)))
    assert metrics.accuracy == 1 / 6 and metrics.top5 == 5 / 6
    assert metrics.confusion[:, 0].tolist() == [1] * 6
    # All in one tie: as good as the share of positives, or as chance.
    assert metrics.mean_average_precision == pytest.approx(1 / 6)
    assert metrics.area_under_curve == 0.5 and metrics.d_prime == 0


def test_wrong_values():
    scores = np.zeros((2, 2))
    for argument, *wrong in (
        ("labels", [0, 2], scores),
        ("labels", [0], scores),
        ("labels", [[0, 2], [0, 1]], scores),
        ("scores", [0, 1], [[0, 1], [0, np.nan]]),
        ("class_names", [0, 1], scores, ["a"]),
    ):
        with pytest.raises(ArgumentError, match=argument):
            classification_metrics(*wrong)
    for codes in (np.zeros((0, 2), int), [[0], [4]], [[-1], [0]]):
        with pytest.raises(ValueError):
            code_usage(codes, 4)


def test_mean_per_class():
    several = [
        classification_metrics([0, 0, 1], np.eye(3)[[0, 1, 1]]),
        classification_metrics([0, 2], np.eye(3)[[0, 2]]),
    ]
    rows = mean_per_class(several)
    assert [row["examples"] for row in rows] == [3, 1, 1]
    assert [row["accuracy"] for row in rows] == [0.75, 1.0, 1.0]
    # A class of all rows has a precision and no area.
    lonely = classification_metrics([[1, 0], [1, 1]], [[0.1, 0.2], [0.5, 0.9]])
    assert lonely.per_class[0]["average precision"] == 1
    assert mean_per_class([lonely])[0]["AUC"] is None
