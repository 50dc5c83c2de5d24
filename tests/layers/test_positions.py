import math

import numpy as np
import pytest
from harness import perturb, to_numpy

import keras_bridle as kb


def channels(place, dim):
    """Sines then cosines of one coordinate."""
    angles = [place * 10000 ** (-i / (dim / 2)) for i in range(dim // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]


def reference(layout, grid, trained, dim):
    """The table cell by cell, sides stretched onto the trained ones."""
    wanted = [new or old for new, old in zip(trained or grid, grid, strict=True)]
    cells = np.array(list(np.ndindex(grid))) * np.divide(wanted, grid)
    if layout == "grid":
        return [channels(y, dim // 2) + channels(x, dim // 2) for x, y in cells]
    steps = [math.prod(wanted[side + 1 :]) for side in range(len(grid))]
    # Sines at even channels, cosines at odd ones.
    return [
        [
            (math.sin if j % 2 == 0 else math.cos)(n / 10000 ** (2 * (j // 2) / dim))
            for j in range(dim)
        ]
        for n in cells @ steps
    ]


def table(grid, dim, *args, **kwargs):
    return to_numpy(kb.SineCosinePositionEncoding(*args, **kwargs).table(grid, dim))


@pytest.mark.parametrize(
    ("layout", "grid", "trained", "dim"),
    [
        ("grid", (3, 5), None, 8),
        ("grid", (3, 8), (6, 4), 8),
        ("sequence", (2, 3, 2), None, 6),
        # Half as many columns, twice as many rows, and other frames.
        ("sequence", (3, 8, 3), (None, 4, 6), 6),
    ],
)
def test_positions_by_their_definition(layout, grid, trained, dim):
    found = table(grid, dim, layout, trained_grid=trained)
    np.testing.assert_allclose(found, reference(layout, grid, trained, dim), atol=1e-6)


def test_far_positions_are_exact():
    far = table((50_000, 1), 8)[-1, 4:]
    np.testing.assert_allclose(far, channels(49_999, 4), atol=1e-6)


def learned(grid, dim=8):
    layer = kb.LearnedPositionEncoding(grid)
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
        lambda: kb.SineCosinePositionEncoding("grid").table((2, 3, 4), 8),
        lambda: table((2, 3), 8, "sequence", trained_grid=(None, 2, 3)),
        lambda: kb.SineCosinePositionEncoding("grid").build((None, 2, 2, 6)),
        lambda: learned((3, 4))[0](np.zeros((1, 4, 4, 8), "float32")),
        lambda: learned((3, 4))[0](np.zeros((1, 3, 4, 1, 8), "float32")),
        lambda: kb.SineCosinePositionEncoding("sequence").build((None, 2, 2, 5)),
    ):
        with pytest.raises(ValueError):
            wrong()


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize(
    ("grid", "trained"), [((3, 5), (3, 5)), ((2, 3), (4, 3)), ((2, 1, 3), (2, 2, 4))]
)
def test_relative_positions_by_their_definition(grid, trained, token):
    layer = kb.RelativePositionBias(2, np.array(trained), use_class_token=token)
    assert layer.get_config()["trained_grid"] == trained
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
