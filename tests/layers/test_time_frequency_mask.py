import numpy as np
import pytest
from harness import to_numpy

from keras_bridle.layers.masks import TimeFrequencyMask

GRID = (10, 4)


def drawn(layer, batch=3):
    return to_numpy(layer(np.zeros((batch, 40, 1), "float32"), grid=GRID))


def test_whole_rows_and_columns_are_hidden():
    rng = np.random.default_rng(0)
    rows, columns = rng.uniform(size=(3, 10)), rng.uniform(size=(3, 4))
    layer = TimeFrequencyMask(0.7, 0.25)
    mask = to_numpy(layer(np.zeros((3, 40, 1)), grid=GRID, noise=(rows, columns)))
    for example in range(3):
        kept_rows = np.argsort(rows[example])[:3]
        kept_columns = np.argsort(columns[example])[:3]
        seen = np.isin(np.arange(10), kept_rows)[:, None] & np.isin(
            np.arange(4), kept_columns
        )
        np.testing.assert_array_equal(mask.visible[example], np.flatnonzero(seen))
        np.testing.assert_array_equal(mask.masked[example], np.flatnonzero(~seen))


def test_seed_and_types():
    first = drawn(TimeFrequencyMask(0.5, 0.5, seed=1))
    second = drawn(TimeFrequencyMask(0.5, 0.5, seed=1))
    np.testing.assert_array_equal(first.masked, second.masked)
    assert (drawn(TimeFrequencyMask(0.5, 0.5, seed=2)).masked != first.masked).any()
    assert first.visible.dtype == first.masked.dtype == np.int32


def test_every_patch_is_seen_as_often():
    layer = TimeFrequencyMask(0.5, 0.5, seed=0)
    counts = np.bincount(drawn(layer, batch=4000).visible.ravel(), minlength=40)
    # 1,000 each, with a standard deviation of 27.
    assert np.abs(counts - 1000).max() < 140


@pytest.mark.parametrize("name", ["time_mask_ratio", "frequency_mask_ratio"])
def test_wrong_ratio(name):
    with pytest.raises(ValueError, match=f"`{name}` must be .*{name}=0.0"):
        TimeFrequencyMask(**{name: 0.0})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ((40, 1), "at least 2 rows"),
        ((8, 4), "as many cells"),
        ((2, 2, 10), "2 sides"),
    ],
)
def test_wrong_grid(grid, message):
    with pytest.raises(ValueError, match=f"`grid` must have .*{message}"):
        TimeFrequencyMask()(np.zeros((2, 40, 1)), grid=grid)
