"""k-means in NumPy, the same on every backend."""

import keras
import numpy as np
from keras import ops

# Rows to compare with all means at a time, which bounds memory.
ROWS_AT_ONCE = 4096
# Squared rounding errors, relative to the squares of the numbers.
ROUNDING = np.float32(1e-12)


def kmeans(
    samples, num_clusters, iterations=10, cosine=False, initial_ids=None, seed=None
):
    """Lloyd's k-means in bounded memory: means, and the samples of each cluster.

    It starts from random samples, or those of `initial_ids`. A cluster without samples
    restarts at one of the samples farthest from their means; with `initial_ids` it
    keeps its mean, as in the published code. `cosine` compares by dot products and
    normalizes means to unit length.
    """
    samples = np.ascontiguousarray(samples, dtype="float32")
    if samples.ndim != 2 or not samples.size or not np.isfinite(samples).all():
        raise ValueError(
            "k-means needs a matrix of finite numbers with at least one row. "
            f"Received: shape {samples.shape}, finite: {np.isfinite(samples).all()}"
        )
    rng = None
    if initial_ids is None:
        rng = np.random.default_rng(seed)
        initial_ids = rng.choice(
            len(samples), num_clusters, replace=len(samples) < num_clusters
        )
    means = samples[np.asarray(initial_ids)]
    for _ in range(max(iterations, 1)):
        labels = nearest_means(samples, means, cosine=cosine)[:, 0]
        if rng is not None:
            _fill_empty(samples, labels, means, rng)
        means, counts = _moved_means(samples, labels, means, cosine)
    return means, counts


def residual_kmeans(quantizer, vectors, iterations, seed):
    """Runs `kmeans()` for each level on the residuals of the levels before."""
    levels, top_k = quantizer.num_levels, quantizer.top_k
    by_level = quantizer.normalize == "level"
    cosine = quantizer.normalize_codes or by_level

    def looked_up(residual):
        if not by_level:
            return residual
        squares = np.square(residual).sum(axis=1, keepdims=True)
        floor = ROUNDING * np.square(vectors).sum(axis=1, keepdims=True)
        return unit_rows(np.where(squares > floor, residual, np.float32(1)))

    def rest(residual, means):
        codes = nearest_means(looked_up(residual), means, top_k)
        return residual - sum(means[codes[:, k]] for k in range(top_k))

    if quantizer.normalize == "input":
        vectors = unit_rows(vectors)
    tables: list = []
    residuals = [vectors]
    for level in range(levels):
        rows = np.concatenate([looked_up(residual) for residual in residuals])
        size = quantizer.codebook_size
        means, counts = kmeans(rows, size, iterations, cosine, seed=[seed, level])
        # The codes of a vector add up to it, so each is moved by its share.
        means = means if cosine else means * np.float32(1.0 / top_k)
        if quantizer.shared_codebooks:
            # With a shared codebook, all residuals change.
            tables, residuals = [], [vectors]
            for _ in range(min(level + 1, levels - 1)):
                residuals.append(rest(residuals[-1], means))
        else:
            residuals = [rest(residuals[-1], means)]
        tables.append((means, counts))
    return tuple(map(np.stack, zip(*tables, strict=True)))


def unit_rows(vectors):
    """Normalizes rows to unit length; zeros stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def nearest_means(samples, means, top_k=1, cosine=False):
    """Finds the `top_k` nearest means of each sample, the nearest first."""
    penalties = 0.0 if cosine else 0.5 * np.square(means).sum(axis=1)
    nearest = np.empty((len(samples), top_k), dtype="int64")
    for start in range(0, len(samples), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        distances = penalties - samples[rows] @ means.T
        if top_k == 1:
            nearest[rows, 0] = distances.argmin(axis=1)
        else:
            nearest[rows] = distances.argsort(axis=1)[:, :top_k]
    return nearest


def _fill_empty(samples, labels, means, rng):
    """Moves each empty cluster to a sample, likely one far from its mean."""
    empty = np.flatnonzero(np.bincount(labels, minlength=len(means)) == 0)
    if not len(empty):
        return
    misfits = np.square(samples - means[labels]).sum(axis=1, dtype="float64")
    misfits[misfits <= ROUNDING * np.square(samples).sum(axis=1)] = 0.0
    count = min(len(empty), np.count_nonzero(misfits))
    if count:
        chances = misfits / misfits.sum()
        drawn = rng.choice(len(samples), count, replace=False, p=chances)
        labels[drawn] = empty[:count]


def _moved_means(samples, labels, means, cosine):
    counts = np.bincount(labels, minlength=len(means))
    occupied = np.flatnonzero(counts)
    # Sort samples by cluster, so that reduceat sums each cluster's run.
    starts = (np.cumsum(counts) - counts)[occupied]
    order = np.argsort(labels, kind="stable")
    moved = np.add.reduceat(samples[order], starts, axis=0)
    moved /= counts[occupied, None]
    means = means.copy()
    means[occupied] = unit_rows(moved) if cosine else moved
    return means, counts


def sample_vectors(data, max_vectors, seed):
    """Draws at most `max_vectors` rows uniformly from an array or batches."""
    if isinstance(data, np.ndarray) or ops.is_tensor(data):
        data = [data]
    elif isinstance(data, keras.utils.PyDataset):
        data = map(data.__getitem__, range(data.num_batches))
    rng = np.random.default_rng(seed)
    drawn, seen = None, 0
    for batch in data:
        vectors = _real_vectors(batch)
        if drawn is None:
            drawn = np.empty((0, vectors.shape[1]), "float32")
        room = vectors[: max_vectors - len(drawn)]
        drawn = np.concatenate([drawn, room]) if len(room) else drawn
        # Algorithm R: if in the sample, the n-th vector replaces a random one.
        later = vectors[len(room) :]
        first = seen + len(room)
        seats = rng.integers(0, np.arange(first, first + len(later)) + 1)
        taken = seats < max_vectors
        drawn[seats[taken]] = later[taken]
        seen += len(vectors)
    if not seen:
        raise ValueError("`data` must hold at least one real vector. Received none.")
    return drawn


def _real_vectors(batch):
    batch, mask = batch if isinstance(batch, tuple) else (batch, None)
    vectors = np.asarray(ops.convert_to_numpy(batch), dtype="float32")
    if mask is not None:
        vectors = vectors[np.asarray(ops.convert_to_numpy(mask), dtype=bool)]
    return vectors.reshape(-1, vectors.shape[-1])
