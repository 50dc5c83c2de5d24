import numpy as np
import pytest

from keras_bridle.quantizer import kmeans as kmeans_module
from keras_bridle.quantizer.kmeans import kmeans, sample_vectors

pytestmark = pytest.mark.one_backend


def samples(count=500, dim=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype("float32")


def test_no_cluster_stays_empty_where_many_samples_are_equal():
    data = samples()
    data[: len(data) // 2] = 0
    means, counts = kmeans(data, 16, seed=0)
    assert counts.min() > 0
    distances = np.square(data[:, None] - means).sum(axis=-1)
    assert len(np.unique(distances.argmin(axis=1))) == 16
    # Where there are too few different samples, or samples, there is no endless search.
    for few in (np.repeat(np.eye(3), 9, axis=0), samples(count=5)):
        means, counts = kmeans(few, 9, seed=0)
        assert np.isfinite(means).all() and counts.sum() == len(few)


def test_slices_of_rows_change_nothing(monkeypatch):
    data = samples()
    whole = kmeans(data, 16, seed=0)
    monkeypatch.setattr(kmeans_module, "ROWS_AT_ONCE", 37)
    for ours, theirs in zip(kmeans(data, 16, seed=0), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_samples_are_even_and_bounded():
    # Batch b holds vectors of b; the sample should hold each number alike.
    batches = (np.full((100, 1), b, "float32") for b in range(50))
    drawn = sample_vectors(batches, 1000, seed=0)
    assert drawn.shape == (1000, 1)
    counts = np.bincount(drawn[:, 0].astype(int), minlength=50)
    assert counts.min() > 6 and counts.max() < 38
