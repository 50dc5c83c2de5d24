import math

import numpy as np
import pytest
from harness import perturb, to_numpy

from keras_bridle.layers.positions import (
    LearnedPositionEncoding,
    RelativePositionBias,
    SineCosinePositionEncoding,
)


def channels(place, dim):
    """Sines then cosines of one coordinate."""
    angles = [place * 10000 ** (-i / (dim / 2)) for i in range(dim // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def table_of(cells, dim):
    """Column first, then row, for cells `(row, column)`."""
    return [channels(y, dim // 2) + channels(x, dim // 2) for x, y in cells]


def table(grid, dim, *args, **kwargs):
    return to_numpy(SineCosinePositionEncoding(*args, **kwargs).table(grid, dim))


def sequence_of(positions, dim):
    """Sines at even channels, cosines at odd ones."""
    return [
        [
            (math.sin if j % 2 == 0 else math.cos)(n / 10000 ** (2 * (j // 2) / dim))
            for j in range(dim)
        ]
        for n in positions
    ]


def test_grid():
    cells = [(row, column) for row in range(3) for column in range(5)]
    np.testing.assert_allclose(table((3, 5), 8), table_of(cells, 8), atol=1e-6)
    # A shorter map gets the first positions of a longer one.
    np.testing.assert_array_equal(table((3, 4), 8), table((7, 4), 8)[:12])
    far = table((50_000, 1), 8)[-1, 4:]
    np.testing.assert_allclose(far, channels(49_999, 4), atol=1e-6)


def test_sequence():
    found = table((2, 3, 2), 6, "sequence")
    np.testing.assert_allclose(found, sequence_of(range(12), 6), atol=1e-6)


def test_trained_grid_stretches_other_grids():
    cells = [(row * 2.0, column * 0.5) for row in range(3) for column in range(8)]
    found = table((3, 8), 8, trained_grid=(6, 4))
    np.testing.assert_allclose(found, table_of(cells, 8), atol=1e-6)


def test_trained_grid_stretches_sequences():
    # Half as many columns, twice as many rows, and other frames.
    layer = SineCosinePositionEncoding("sequence", trained_grid=(None, 4, 6))
    found = to_numpy(layer.table((3, 8, 3), 6))
    positions = [
        frame * 24 + row * 0.5 * 6 + column * 2.0
        for frame in range(3)
        for row in range(8)
        for column in range(3)
    ]
    expected = sequence_of(positions, 6)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    plain = table((5, 4, 6), 6, "sequence")
    np.testing.assert_array_equal(to_numpy(layer.table((5, 4, 6), 6)), plain)


def test_some_patches_of_a_grid():
    layer = SineCosinePositionEncoding("grid")
    visible = np.array([[3, 0], [5, 1]], "int32")
    some = layer(np.zeros((2, 2, 8), "float32"), grid=(2, 3), visible=visible)
    whole = to_numpy(layer(np.zeros((1, 6, 8), "float32"), grid=(2, 3)))
    np.testing.assert_array_equal(to_numpy(some), whole[0][visible])


def learned(grid, dim=8):
    layer = LearnedPositionEncoding(grid)
    layer.build((None, *grid, dim))
    perturb(layer.weights)
    return layer, to_numpy(layer.positions).reshape(*grid, dim)


@pytest.mark.parametrize(
    ("trained", "grid"),
    [((3, 4), (3, 4)), ((3, 4), (2, 4)), ((3, 4), (3, 1)), ((2, 3, 4), (1, 3, 2))],
)
def test_smaller_grids_have_the_first_positions(trained, grid):
    layer, positions = learned(trained)
    expected = positions[tuple(map(slice, grid))]
    patches = np.random.default_rng(0).normal(size=(2, *grid, 8)).astype("float32")
    found = to_numpy(layer(patches))
    np.testing.assert_allclose(found, patches + expected, 1e-6, 1e-6)
    # Some of them, each example its own.
    visible = np.array([[2, 0], [0, 1]], "int32")
    found = layer(np.zeros((2, 2, 8), "float32"), grid=grid, visible=visible)
    expected = expected.reshape(-1, 8)[visible]
    np.testing.assert_allclose(to_numpy(found), expected, 1e-6, 1e-6)


def test_grids_and_sizes_that_do_not_fit():
    for wrong in (
        lambda: SineCosinePositionEncoding("grid").table((2, 3, 4), 8),
        lambda: table((2, 3), 8, "sequence", trained_grid=(None, 2, 3)),
        lambda: SineCosinePositionEncoding("grid").build((None, 2, 2, 6)),
        lambda: learned((3, 4))[0](np.zeros((1, 4, 4, 8), "float32")),
        lambda: learned((3, 4))[0](np.zeros((1, 3, 4, 1, 8), "float32")),
        lambda: SineCosinePositionEncoding("sequence").build((None, 2, 2, 5)),
    ):
        with pytest.raises(ValueError):
            wrong()


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize(
    ("grid", "trained"), [((3, 5), (3, 5)), ((2, 3), (4, 3)), ((2, 1, 3), (2, 2, 4))]
)
def test_relative_positions_by_their_definition(grid, trained, token):
    layer = RelativePositionBias(2, trained, use_class_token=token)
    layer.build((None, *trained, 4))
    perturb(layer.weights)
    table = to_numpy(layer.positions)
    spans = [2 * side - 1 for side in trained]
    offsets = table[: np.prod(spans)].reshape(*spans, 2)
    cells = list(np.ndindex(grid))
    expected = np.zeros((len(cells) + token, len(cells) + token, 2))
    for row, query in enumerate(cells, start=token):
        for column, key in enumerate(cells, start=token):
            places = zip(query, key, trained, strict=True)
            place = tuple(x - y + side - 1 for x, y, side in places)
            expected[row, column] = offsets[place]
    if token:
        expected[0], expected[:, 0], expected[0, 0] = table[-3], table[-2], table[-1]
    found = to_numpy(layer(np.zeros((2, *grid, 4), "float32")))
    assert layer.compute_output_shape((2, *grid, 4)) == found.shape
    np.testing.assert_allclose(found[0], expected.transpose(2, 0, 1), atol=1e-6)
