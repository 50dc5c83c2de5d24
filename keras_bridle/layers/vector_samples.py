"""Draws vectors from any kind of data, in bounded memory."""

import itertools

import keras
import numpy as np
from keras import ops


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
