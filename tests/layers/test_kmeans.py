import numpy as np
import pytest
from sklearn.cluster import KMeans

from keras_bridle.quantizer import kmeans as kmeans_module
from keras_bridle.quantizer.kmeans import kmeans


def samples(count=500, dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype("float32")


def test_matches_scikit_learn_from_the_same_start():
    data = samples()
    ids = np.arange(12)
    ours = kmeans(data, 12, iterations=10, initial_ids=ids)
    theirs = KMeans(
        12, init=data[ids], n_init=1, max_iter=10, tol=0.0, algorithm="lloyd"
    ).fit(data)
    np.testing.assert_allclose(ours.means, theirs.cluster_centers_, atol=1e-5)


def test_cosine_matches_spherical_reference():
    data = samples().astype("float64")
    means = data[:8].copy()
    for _ in range(4):
        labels = (data @ means.T).argmax(axis=1)
        counts = np.bincount(labels, minlength=8)
        for label in range(8):
            if counts[label]:
                mean = data[labels == label].mean(axis=0)
                means[label] = mean / np.linalg.norm(mean)
    ours = kmeans(data, 8, iterations=4, cosine=True, initial_ids=np.arange(8))
    np.testing.assert_allclose(ours.means, means, atol=1e-5)
    np.testing.assert_array_equal(ours.counts, counts)


def test_empty_cluster_keeps_its_mean():
    data = np.float32([[0.0], [0.0], [1.0], [5.0]])
    result = kmeans(data, 3, iterations=1, initial_ids=[0, 1, 3])
    # The first two start alike, and the first of equals wins.
    np.testing.assert_allclose(result.means, [[1 / 3], [0.0], [5.0]], atol=1e-6)
    np.testing.assert_array_equal(result.counts, [3, 0, 1])


def test_no_cluster_stays_empty_where_many_samples_are_equal():
    data = samples()
    data[: len(data) // 2] = 0
    result = kmeans(data, 16, seed=0)
    assert result.counts.min() > 0
    distances = np.square(data[:, None] - result.means).sum(axis=-1)
    assert len(np.unique(distances.argmin(axis=1))) == 16
    # There are too few different samples for so many clusters, and no endless search.
    few = kmeans(np.repeat(np.eye(3), 9, axis=0), 5, seed=0)
    assert np.isfinite(few.means).all()


def test_slices_of_rows_change_nothing(monkeypatch):
    data = samples()
    whole = kmeans(data, 16, seed=0)
    monkeypatch.setattr(kmeans_module, "ROWS_AT_ONCE", 37)
    sliced = kmeans(data, 16, seed=0)
    np.testing.assert_allclose(sliced.means, whole.means, atol=1e-5)
    np.testing.assert_array_equal(sliced.counts, whole.counts)


def test_seed_decides_the_start():
    data = samples()
    first, again, other = (kmeans(data, 16, seed=seed).means for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_more_clusters_than_samples():
    data = samples(count=5)
    result = kmeans(data, 9, seed=0)
    assert np.isfinite(result.means).all()
    assert result.counts.sum() == 5


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (np.zeros((0, 3)), {"num_clusters": 2}, "`samples` must be a matrix"),
        (np.zeros(3), {"num_clusters": 2}, "`samples` must be a matrix"),
        (np.full((4, 3), np.nan), {"num_clusters": 2}, "finite"),
        (np.zeros((4, 3)), {"num_clusters": 0}, "`num_clusters`"),
        (np.zeros((4, 3)), {"num_clusters": 2, "iterations": 0}, "`iterations`"),
        (np.zeros((4, 3)), {"num_clusters": 2, "initial_ids": [1]}, "`initial_ids`"),
    ],
)
def test_wrong_arguments(data, arguments, message):
    with pytest.raises(ValueError, match=message):
        kmeans(data, **arguments)
