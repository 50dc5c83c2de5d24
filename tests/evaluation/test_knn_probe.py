import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from keras_bridle.evaluation.probes import knn_probe


def _blobs(rows, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, rows)
    centers = np.random.default_rng(99).normal(size=(5, 8))
    # Lengths vary by a factor of 100: only the direction tells the class.
    lengths = np.exp(rng.uniform(-2.3, 2.3, (rows, 1)))
    return lengths * (centers[labels] + 1.2 * rng.normal(size=(rows, 8))), labels


@pytest.mark.parametrize("neighbors", [1, 7, 20])
@pytest.mark.parametrize("temperature", [0.07, None])
def test_against_sklearn(neighbors, temperature):
    # More test rows than one block of similarities has.
    train, test = _blobs(300, 0), _blobs(1500, 1)
    weights = (
        "uniform"
        if temperature is None
        else lambda distances: np.exp((1 - distances) / temperature)
    )
    reference = KNeighborsClassifier(
        neighbors, weights=weights, metric="cosine", algorithm="brute"
    ).fit(*train)
    expected = reference.score(*test)
    assert 0.4 < expected < 0.95
    result = knn_probe(*train, *test, neighbors, temperature)
    assert result == pytest.approx(expected, abs=1e-12)


def test_names_as_labels_and_tiny_temperature():
    train, test = _blobs(300, 0), _blobs(100, 1)
    names = np.array(list("abcde"))
    nearest = knn_probe(*train, *test, neighbors=1)
    result = knn_probe(
        train[0], names[train[1]], test[0], names[test[1]], 9, temperature=1e-5
    )
    assert result == nearest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neighbors": 0}, "neighbors"),
        ({"neighbors": 11}, "10 training rows; received 11"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_refusals(change, message):
    train, test = _blobs(10, 0), _blobs(5, 1)
    with pytest.raises(ValueError, match=message):
        knn_probe(*train, *test, **{"neighbors": 3} | change)
