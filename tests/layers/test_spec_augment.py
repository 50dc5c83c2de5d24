import numpy as np
import pytest
from keras import ops

from keras_bridle.augmentation.audio import SpecAugment


def hidden(layer, count=200, frames=40, bins=20):
    """Where a map of ones is hidden, of shape `(count, frames, bins)`."""
    maps = np.ones((count, frames, bins, 1), "float32")
    return ops.convert_to_numpy(layer(maps, training=True))[..., 0] == 0


def widths(stripes):
    """Widths of stripes, which must be in one piece."""
    found = stripes.sum(axis=1)
    edges = np.abs(np.diff(np.pad(stripes, ((0, 0), (1, 1))).astype(int), axis=1))
    assert (edges.sum(axis=1) == 2 * (found > 0)).all()
    return found


def test_stripes_of_time():
    is_hidden = hidden(SpecAugment(max_bins=0, max_frames=8, seed=0), count=4000)
    rows = is_hidden.any(axis=2)
    np.testing.assert_array_equal(is_hidden, np.repeat(rows[..., None], 20, axis=2))
    found = widths(rows)
    # Widths are even over 0 to 7, places as far as it fits.
    np.testing.assert_allclose(np.bincount(found, minlength=8) / 4000, 1 / 8, atol=0.02)
    starts = rows.argmax(axis=1)
    ends = starts + found
    assert starts[found > 0].min() == 0 and ends.max() == 40
    middle = ((starts + ends) / 2)[found > 0]
    assert abs(middle.mean() - 20) < 0.7


def test_stripes_of_frequency_and_both():
    columns = hidden(SpecAugment(max_bins=6, max_frames=0, seed=0)).any(axis=1)
    assert 0 < widths(columns).max() < 6
    is_hidden = hidden(SpecAugment(max_bins=6, max_frames=8, seed=0))
    rows, columns = is_hidden.all(axis=2), is_hidden.all(axis=1)
    expected = rows[:, :, None] | columns[:, None, :]
    np.testing.assert_array_equal(is_hidden, expected)


def test_short_maps_and_several_stripes():
    # A stripe may be as long as the map, never longer.
    rows = hidden(SpecAugment(max_bins=0, max_frames=192, seed=0), frames=10)
    assert widths(rows.any(axis=2)).max() <= 10
    one = hidden(SpecAugment(0, 8, num_masks=1, seed=0)).mean()
    three = hidden(SpecAugment(0, 8, num_masks=3, seed=0)).mean()
    assert 2 * one < three < 3.2 * one


def test_values_seed_and_inference():
    maps = np.random.default_rng(0).normal(size=(8, 30, 16, 2)).astype("float32")
    first, again, other = (
        ops.convert_to_numpy(
            SpecAugment(8, 12, fill_value=7.0, seed=seed)(maps, training=True)
        )
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert set(first[first != maps]) == {7.0}
    np.testing.assert_array_equal(ops.convert_to_numpy(SpecAugment()(maps)), maps)


@pytest.mark.parametrize(
    "settings", [{"max_bins": -1}, {"max_frames": -1}, {"num_masks": 0}]
)
def test_wrong_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SpecAugment(**settings)


def test_wrong_maps():
    with pytest.raises(ValueError, match="shape"):
        SpecAugment()(np.ones((2, 30, 16), "float32"), training=True)
