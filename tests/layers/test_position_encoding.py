import math

import numpy as np
import pytest
from harness import to_numpy

from keras_bridle.layers.positions import SineCosinePositionEncoding


def channels(place, dim):
    """Sines then cosines of one coordinate."""
    angles = [place * 10000 ** (-i / (dim / 2)) for i in range(dim // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def table_of(cells, dim):
    """Column first, then row, for cells `(row, column)`."""
    return np.array(
        [channels(column, dim // 2) + channels(row, dim // 2) for row, column in cells]
    )


def table(grid, dim, *args, **kwargs):
    return to_numpy(SineCosinePositionEncoding(*args, **kwargs).table(grid, dim))


def test_grid():
    cells = [(row, column) for row in range(3) for column in range(5)]
    np.testing.assert_allclose(table((3, 5), 8), table_of(cells, 8), atol=1e-6)


def test_transposed_grid_is_read_in_the_wrong_order():
    cells = [divmod(index, 3) for index in range(15)]
    found = table((3, 5), 8, "transposed_grid")
    np.testing.assert_allclose(found, table_of(cells, 8), atol=1e-6)
    assert np.abs(found - table((3, 5), 8)).max() > 0.1
    square = table((4, 4), 8, "transposed_grid")
    np.testing.assert_array_equal(square, table((4, 4), 8))


def test_sequence():
    expected = [
        [
            (math.sin if j % 2 == 0 else math.cos)(n / 10000 ** (2 * (j // 2) / 6))
            for j in range(6)
        ]
        for n in range(12)
    ]
    found = table((2, 3, 2), 6, "sequence")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_far_positions_are_exact():
    found = table((50_000, 1), 8)[-1, 4:]
    np.testing.assert_allclose(found, channels(49_999, 4), atol=1e-6)


def test_trained_grid_stretches_other_grids():
    cells = [(row * 2.0, column * 0.5) for row in range(3) for column in range(8)]
    found = table((3, 8), 8, trained_grid=(6, 4))
    np.testing.assert_allclose(found, table_of(cells, 8), atol=1e-6)
    same = table((6, 4), 8, trained_grid=(6, 4))
    np.testing.assert_array_equal(same, table((6, 4), 8))


def test_a_side_of_none_is_left_alone():
    cells = [(row, column * 0.5) for row in range(3) for column in range(8)]
    found = table((3, 8), 8, trained_grid=(None, 4))
    np.testing.assert_allclose(found, table_of(cells, 8), atol=1e-6)


def test_trained_grid_stretches_sequences():
    # Half as many columns, twice as many rows, and other frames.
    layer = SineCosinePositionEncoding("sequence", trained_grid=(None, 4, 6))
    found = to_numpy(layer.table((3, 8, 3), 6))
    places = [
        frame * 24 + row * 0.5 * 6 + column * 2.0
        for frame in range(3)
        for row in range(8)
        for column in range(3)
    ]
    expected = [
        [
            (math.sin if j % 2 == 0 else math.cos)(n / 10000 ** (2 * (j // 2) / 6))
            for j in range(6)
        ]
        for n in places
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    plain = table((5, 4, 6), 6, "sequence")
    np.testing.assert_array_equal(to_numpy(layer.table((5, 4, 6), 6)), plain)


def test_grid_of_other_sides_than_the_trained_one():
    with pytest.raises(ValueError, match=r"as many sides .*grid=\(2, 3\)"):
        table((2, 3), 8, "sequence", trained_grid=(None, 2, 3))


def test_a_shorter_map_gets_the_first_positions_of_a_longer_one():
    np.testing.assert_array_equal(table((3, 4), 8), table((7, 4), 8)[:12])


def test_some_patches_of_a_grid():
    layer = SineCosinePositionEncoding("grid")
    visible = np.array([[3, 0], [5, 1]], "int32")
    some = layer(np.zeros((2, 2, 8), "float32"), grid=(2, 3), visible=visible)
    whole = to_numpy(layer(np.zeros((1, 6, 8), "float32"), grid=(2, 3)))
    np.testing.assert_array_equal(to_numpy(some), whole[0][visible])


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"`layout` must be one of .*'diagonal'"):
        SineCosinePositionEncoding("diagonal")
    with pytest.raises(ValueError, match=r"2 sides.*'sequence'.*\(2, 3, 4\)"):
        SineCosinePositionEncoding("grid").table((2, 3, 4), 8)


@pytest.mark.parametrize(("layout", "dim"), [("grid", 6), ("sequence", 5)])
def test_wrong_channels(layout, dim):
    with pytest.raises(ValueError, match=f"multiple of .*{dim}"):
        SineCosinePositionEncoding(layout).build((None, 2, 2, dim))
