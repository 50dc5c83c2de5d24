"""Orders patches by rectangular blocks, for the masks that hide or keep blocks."""

import math

import keras
from keras import ops

from keras_bridle.layers.replicas import draw_rows

# The part of a score that is drawn for each patch; the rest tells its place in a block.
_NOISE = 0.1


def block_scores(grid, heights, widths, seed_generator):
    """Scores patches by the first of some randomly placed blocks that they lie in.

    Patches of the first block have the smallest scores, the middle of the block in
    front, then come those of the second block that are not in the first, and so on.
    Patches in no block come last, in random order. So any number of patches with the
    smallest scores is a few whole blocks and the middle of one more.

    Args:
        grid: tuple of 2 ints, `(rows, columns)`.
        heights: float tensor of shape `(batch, num_blocks)`, whole numbers of rows, at
            most those of the grid.
        widths: float tensor of shape `(batch, num_blocks)` likewise.
        seed_generator: `keras.random.SeedGenerator`.

    Returns:
        float32 tensor of shape `(batch, rows * columns)`.
    """
    batch, num_blocks = ops.shape(heights)
    rows, columns = grid
    row = _distances(rows, heights, seed_generator)
    column = _distances(columns, widths, seed_generator)
    distance = ops.maximum(ops.expand_dims(row, 3), ops.expand_dims(column, 2))
    distance = ops.reshape(distance, (batch, num_blocks, rows * columns))
    index = ops.expand_dims(ops.arange(num_blocks, dtype="float32"), 1)
    inside = index + (1.0 - _NOISE) * distance
    scores = ops.min(ops.where(distance < 1.0, inside, float(num_blocks)), axis=1)
    noise = draw_rows(
        keras.random.uniform,
        (batch, rows * columns),
        dtype="float32",
        seed=seed_generator,
    )
    return scores + _NOISE * noise


def num_blocks_for(share, block_share):
    """Tells how many random blocks surely cover enough, or nearly always.

    Args:
        share: float, the share of the grid to cover.
        block_share: float, the mean share of the grid that one block covers.

    Returns:
        int, twice as many as cover the share on average, and some more.
    """
    on_average = math.log(1.0 - share) / math.log(1.0 - min(block_share, 0.99))
    return 2 * math.ceil(on_average) + 2


def _distances(length, sizes, seed_generator):
    """Places blocks along one side; how far each cell is from their middles.

    Returns:
        float32 tensor of shape `(batch, num_blocks, length)`: 0 in the middle of a
        block, below 1 inside and 1 or more outside.
    """
    draws = draw_rows(
        keras.random.uniform, ops.shape(sizes), dtype="float32", seed=seed_generator
    )
    first = ops.floor(draws * (length - sizes + 1.0))
    middle = ops.expand_dims(first + 0.5 * (sizes - 1.0), 2)
    cells = ops.arange(length, dtype="float32")
    return 2.0 * ops.abs(cells - middle) / ops.expand_dims(sizes, 2)
