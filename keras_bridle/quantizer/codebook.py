"""The operations of a level: search, statistics, update, restart.

All functions are pure. Codebooks, or `tables`, are tensors of shape
`(..., codebook_size, dim)`; a shared codebook is one table for all levels.
"""

import keras
from keras import ops

from keras_bridle.engine import argmax_of_rows, is_symbolic, segment_sum
from keras_bridle.replicas import all_rows, take_rows

# Rows to compare with all codes at a time: enough for a fast matrix product, few enough
# to stay in the cache and not to raise peak memory.
ROWS_AT_ONCE = 1024
# Added to the EMA counts (Laplace smoothing), so that no code is divided by zero.
SMOOTHING = 1e-5


class DrawnSeed(keras.random.SeedGenerator):
    """A seed that was drawn before, as `keras.random` takes it."""

    def __init__(self, seed):
        # Without the parent's variables, as there is no state.
        self._seed = seed

    def next(self, ordered=True):
        """Returns the seed."""
        return self._seed


def uniform(seed, shape, draw=keras.random.uniform):
    """Draws float32 numbers in `[0, 1)` from a drawn seed; `None` without one."""
    return None if seed is None else draw(shape, dtype="float32", seed=DrawnSeed(seed))


def unit_vectors(vectors):
    """Normalizes vectors `(..., dim)` to unit length; zero vectors stay zero."""
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    scale = ops.rsqrt(ops.maximum(squares, 1e-24))
    # The gradient is zero at zero, where it would be 1e12 times too large.
    return vectors * ops.where(squares > 1e-24, scale, 0.0)


def choose_codes(scores, top_k=1, temperature=None, drawn=None):
    """Returns the codes of the highest `nearness()`, or samples them with `drawn`."""
    if drawn is not None:
        # Scores lack a part of the squared distance that softmax ignores.
        shares = ops.softmax(scores * (2.0 / temperature), axis=-1)
        reached = ops.cumsum(shares, axis=-1)
        threshold = drawn[:, None] * reached[:, -1:]
        codes = ops.sum(ops.cast(reached <= threshold, "int32"), axis=-1)
        return ops.minimum(codes, scores.shape[-1] - 1)[:, None]
    if top_k > 1:
        return ops.cast(ops.top_k(scores, top_k)[1], "int32")
    return argmax_of_rows(scores)[:, None]


def sum_of_codes(table, codes, absent=False):
    """Sums the code vectors of `codes` `(..., k)`; with `absent`, -1 adds nothing."""

    def vectors_of(ids):
        if not absent:
            return ops.take(table, ids, axis=0)
        vectors = ops.take(table, ops.maximum(ids, 0), axis=0)
        return vectors * ops.cast(ids >= 0, vectors.dtype)[..., None]

    return sum(vectors_of(codes[..., k]) for k in range(codes.shape[-1]))


def counts_and_sums(targets, codes, codebook_size):
    """Counts codes `(rows, top_k)`, and sums the targets `(rows, dim)` of each."""
    # Codes of -1 go to a separate segment, which is dropped.
    ids = ops.where(codes < 0, codebook_size, codes)
    ones = ops.ones_like(targets[:, 0])
    counts = sums = 0.0
    for k in range(codes.shape[-1]):
        counts = counts + segment_sum(ones, ids[:, k], codebook_size + 1)[:-1]
        sums = sums + segment_sum(targets, ids[:, k], codebook_size + 1)[:-1]
    return counts, sums


def moved_tables(tables, counts, sums, decay, unit_means=False, unit_codes=False):
    """Updates codebooks with counts and sums; `unit_means` may be an array."""
    new = {"counts": decay * tables["counts"] + (1.0 - decay) * counts}
    codes = tables["code_vectors"]
    if "sums" in tables:
        new["sums"] = decay * tables["sums"] + (1.0 - decay) * sums
        total = ops.sum(new["counts"], axis=-1, keepdims=True)
        share = total / (total + counts.shape[-1] * SMOOTHING)
        codes = new["sums"] / ((new["counts"] + SMOOTHING) * share)[..., None]
    else:
        counts = counts[..., None]
        means = sums / ops.maximum(counts, 1.0)
        means = ops.where(unit_means, unit_vectors(means), means)
        step = decay * codes + (1.0 - decay) * means
        codes = ops.where(counts > 0, step, codes)
    return new | {"code_vectors": unit_vectors(codes) if unit_codes else codes}


def restarted_tables(
    tables, targets, order, threshold, real=None, num_used=None, unit_codes=False
):
    """Restarts rarely used codes at vectors of the batch, distinct ones if possible.

    The batch includes all replicas, which draw the same vectors by `order`, a random
    number for each row. `targets` has the vectors that each level looked up. A code
    restarts if its count is below the share `threshold` of the mean.
    """
    mean = ops.mean(tables["counts"], axis=-1, keepdims=True)
    dead = tables["counts"] < threshold * mean
    num_rows = ops.shape(order)[0]
    if real is not None:
        # Padding is sorted last, out of reach.
        real = all_rows(ops.cast(real, "int32")) > 0
        order = ops.where(real, order, 2.0)
        num_rows = ops.maximum(ops.sum(ops.cast(real, "int32")), 1)
    rank = ops.cumsum(ops.reshape(ops.cast(dead, "int32"), (-1,))) - 1
    rank = ops.maximum(rank, 0)
    rows = ops.cast(ops.argsort(order), "int32")
    rows = ops.take(rows, ops.mod(rank, num_rows), axis=0)
    if len(targets) == dead.shape[0]:
        rows = ops.reshape(rows, dead.shape)
        vectors = [take_rows(target, rows[i]) for i, target in enumerate(targets)]
        vectors = ops.stack(vectors)
    else:
        turn = ops.mod(rank, len(targets) if num_used is None else num_used)[:, None]
        vectors = take_rows(targets[0], rows)
        for level in range(1, len(targets)):
            vectors = ops.where(turn == level, take_rows(targets[level], rows), vectors)
        vectors = vectors[None]
    if unit_codes:
        vectors = unit_vectors(vectors)
    seats = {
        "code_vectors": vectors,
        "counts": mean,
        "sums": vectors * mean[..., None],
    }
    return {
        name: ops.where(dead if name == "counts" else dead[..., None], seats[name], old)
        for name, old in tables.items()
    }


def map_rows(function, rows, rows_at_once=ROWS_AT_ONCE):
    """Applies `function` to slices of about `rows_at_once` rows in turn."""
    total = ops.shape(keras.tree.flatten(rows)[0])[0]
    # Exported graphs have no loops.
    if is_symbolic(total) or (isinstance(total, int) and total <= rows_at_once):
        return function(rows)
    num_slices = (total + rows_at_once - 1) // rows_at_once
    if not isinstance(total, int):
        num_slices = ops.maximum(num_slices, 1)
    # Slices of equal size, so that little is padded.
    size = (total + num_slices - 1) // num_slices
    missing = num_slices * size - total
    # Each slice takes rows from all devices.
    is_spread = keras.distribution.distribution() is not None

    def sliced(array):
        rest = tuple(array.shape[1:])
        array = ops.pad(array, [(0, missing)] + [(0, 0)] * len(rest))
        if is_spread:
            return ops.swapaxes(ops.reshape(array, (size, num_slices, *rest)), 0, 1)
        return ops.reshape(array, (num_slices, size, *rest))

    results = ops.map(function, keras.tree.map_structure(sliced, rows))
    if is_spread:
        results = ops.swapaxes(results, 0, 1)
    return ops.reshape(results, (-1, *results.shape[2:]))[:total]
