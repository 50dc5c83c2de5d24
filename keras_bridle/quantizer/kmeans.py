"""k-means on `keras.ops`, the same on every backend."""

import itertools
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

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
    from keras_bridle.quantizer.kmeans import kmeans

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


def sample_vectors(data, padding_mask, max_vectors, steps, dim, seed):
    """Draws at most `max_vectors` vectors, each with the same chance.

    Args:
        data: An array or tensor of shape `(..., dim)`, or an iterable of batches, each
            such an array or a tuple `(vectors, padding_mask)`.
        padding_mask: Boolean array of shape `(...)` or `None`, if `data` is one array.
        max_vectors: Integer.
        steps: Integer, number of batches to read, or `None` for all.
        dim: Integer, the vectors' size, or `None` for that of the first batch.
        seed: Integer.

    Returns:
        Float32 array of shape `(num_vectors, dim)`, `1 <= num_vectors <= max_vectors`.

    Raises:
        ValueError: if there are no vectors, or a batch has a wrong shape or values.
    """
    if max_vectors < 1:
        raise ValueError(
            f"`max_vectors` must be at least 1. Received: max_vectors={max_vectors}"
        )
    rng = np.random.default_rng(seed)
    drawn = None
    seen = 0
    for batch in itertools.islice(_batches(data, padding_mask), steps):
        vectors = _real_vectors(batch, dim)
        dim = vectors.shape[1]
        if drawn is None:
            drawn = np.empty((0, dim), "float32")
        room = vectors[: max_vectors - len(drawn)]
        drawn = np.concatenate([drawn, room]) if len(room) else drawn
        # Algorithm R: the n-th vector takes a random seat of n, if it is in the sample.
        later = vectors[len(room) :]
        first = seen + len(room)
        seats = rng.integers(0, np.arange(first, first + len(later)) + 1)
        taken = seats < max_vectors
        drawn[seats[taken]] = later[taken]
        seen += len(vectors)
    if not seen:
        raise ValueError("`data` must hold at least one real vector. Received none.")
    return drawn


def _is_array(data):
    return isinstance(data, np.ndarray) or ops.is_tensor(data)


def _batches(data, padding_mask):
    if _is_array(data):
        yield data if padding_mask is None else (data, padding_mask)
        return
    if padding_mask is not None:
        raise ValueError(
            "`padding_mask` goes with one array. For batches, let `data` yield tuples "
            "`(vectors, padding_mask)`."
        )
    if isinstance(data, keras.utils.PyDataset):
        yield from (data[index] for index in range(data.num_batches))
        return
    try:
        batches = iter(data)
    except TypeError:
        raise ValueError(
            "`data` must be an array, a tensor or an iterable of batches. "
            f"Received: {type(data)}"
        ) from None
    yield from batches


def _real_vectors(batch, dim):
    mask = None
    if isinstance(batch, tuple):
        if len(batch) != 2:
            raise ValueError(
                "A batch of `data` must be an array or a tuple "
                f"`(vectors, padding_mask)`. Received a tuple of {len(batch)}"
            )
        batch, mask = batch
    vectors = np.asarray(_to_numpy(batch), dtype="float32")
    if vectors.ndim < 2 or dim not in (None, vectors.shape[-1]):
        raise ValueError(
            f"Batches of `data` must have shape `(..., {dim or 'dim'})` with at least "
            f"two axes. Received shape: {vectors.shape}"
        )
    if mask is not None:
        mask = np.asarray(_to_numpy(mask))
        if mask.dtype != bool or mask.shape != vectors.shape[:-1]:
            raise ValueError(
                "`padding_mask` must be boolean with the shape of the vectors without "
                f"the last axis, {vectors.shape[:-1]}. Received: dtype {mask.dtype}, "
                f"shape {mask.shape}"
            )
        vectors = vectors[mask]
    vectors = vectors.reshape(-1, vectors.shape[-1])
    if not np.isfinite(vectors).all():
        raise ValueError("`data` must be finite. Received infinite or NaN values.")
    return vectors


def _to_numpy(array):
    if ops.is_tensor(array):
        return ops.convert_to_numpy(array)
    # Tensors of another library than the backend, such as tf.data's.
    return array.numpy() if hasattr(array, "numpy") else array
