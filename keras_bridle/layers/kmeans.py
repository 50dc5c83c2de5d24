"""k-means in NumPy: the same clusters on every backend."""

from typing import NamedTuple

import numpy as np

# Rows compared with all means at a time: bounds the memory of the distances.
ROWS_AT_ONCE = 4096


class KMeansResult(NamedTuple):
    """What `kmeans` finds.

    Attributes:
        means: Float32 array of shape `(num_clusters, dim)`.
        counts: Int64 array of shape `(num_clusters,)`, the samples of each cluster in
            the last assignment, which came before the last move of the means.
    """

    means: np.ndarray
    counts: np.ndarray


def kmeans(
    samples, num_clusters, iterations=10, cosine=False, initial_ids=None, seed=None
):
    """Lloyd's k-means, from chosen samples, in bounded memory.

    A cluster without samples begins anew at one of those that fit their means worst. So
    no cluster is lost, not even where many samples are equal. With `initial_ids` it
    keeps its mean.

    Args:
        samples: Float array of shape `(num_samples, dim)`.
        num_clusters: Integer.
        iterations: Integer, how often samples are assigned and means moved.
        cosine: Boolean. If `True`, a sample goes to the mean with the largest dot
            product and means are brought to unit length; otherwise it goes to the
            nearest mean.
        initial_ids: Integer array of shape `(num_clusters,)`, the samples to start
            from. `None` draws them, without repeats where there are enough samples.
        seed: Integer, seeds all that is drawn.

    Returns:
        A `KMeansResult`.

    Raises:
        ValueError: if the samples are no matrix of finite numbers, or an argument is
            out of range.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.kmeans import kmeans

    samples = np.random.default_rng(0).normal(size=(500, 8))
    result = kmeans(samples, num_clusters=16, seed=0)
    print(result.means.shape, result.counts.sum())
    ```
    """
    samples = _checked_samples(samples)
    if num_clusters < 1 or iterations < 1:
        raise ValueError(
            "`num_clusters` and `iterations` must be at least 1. "
            f"Received: num_clusters={num_clusters}, iterations={iterations}"
        )
    rng = None
    if initial_ids is None:
        rng = np.random.default_rng(seed)
        initial_ids = rng.choice(
            len(samples), num_clusters, replace=len(samples) < num_clusters
        )
    elif np.shape(initial_ids) != (num_clusters,):
        raise ValueError(
            "`initial_ids` must name one sample for each cluster. Received shape "
            f"{np.shape(initial_ids)}, expected {(num_clusters,)}"
        )
    means = samples[np.asarray(initial_ids)]
    for _ in range(iterations):
        labels = _assign(samples, means, cosine)
        if rng is not None:
            _fill_empty(samples, labels, means, rng)
        means, counts = _move(samples, labels, means, cosine)
    return KMeansResult(means, counts)


def _checked_samples(samples):
    samples = np.ascontiguousarray(samples, dtype="float32")
    if samples.ndim != 2 or not samples.size:
        raise ValueError(
            "`samples` must be a matrix with at least one row. "
            f"Received shape: {samples.shape}"
        )
    if not np.isfinite(samples).all():
        raise ValueError("`samples` must be finite. Received infinite or NaN values.")
    return samples


def _assign(samples, means, cosine):
    penalty = 0.0 if cosine else 0.5 * np.square(means).sum(axis=1)
    labels = np.empty(len(samples), dtype="int64")
    for start in range(0, len(samples), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        labels[rows] = np.argmax(samples[rows] @ means.T - penalty, axis=1)
    return labels


def _fill_empty(samples, labels, means, rng):
    """Gives each empty cluster a sample, the likelier the farther from its mean."""
    empty = np.flatnonzero(np.bincount(labels, minlength=len(means)) == 0)
    if not len(empty):
        return
    misfits = np.empty(len(samples))
    for start in range(0, len(samples), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        distances = np.square(samples[rows] - means[labels[rows]])
        misfits[rows] = distances.sum(axis=1, dtype="float64")
    count = min(len(empty), np.count_nonzero(misfits))
    if count:
        chances = misfits / misfits.sum()
        drawn = rng.choice(len(samples), count, replace=False, p=chances)
        labels[drawn] = empty[:count]


def _move(samples, labels, means, cosine):
    counts = np.bincount(labels, minlength=len(means))
    occupied = np.flatnonzero(counts)
    # Sorted by cluster, the samples of one are a run that reduceat adds up.
    starts = (np.cumsum(counts) - counts)[occupied]
    order = np.argsort(labels, kind="stable")
    moved = np.add.reduceat(samples[order], starts, axis=0)
    moved /= counts[occupied, None]
    if cosine:
        moved /= np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)
    means = means.copy()
    means[occupied] = moved
    return means, counts
