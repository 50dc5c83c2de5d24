import numpy as np
import pytest
from harness import to_numpy
from scipy import stats

import keras_bridle as kb


def augmented(layer, waveforms):
    return to_numpy(layer(waveforms, training=True))


@pytest.mark.parametrize("concentration", [1, 10])
def test_gains_follow_the_beta_distribution(concentration):
    ones = np.ones((20000, 3), "float32")
    layer = kb.RandomWaveformGain(concentration, seed=0)
    found = augmented(layer, ones)
    np.testing.assert_array_equal(found, np.repeat(found[:, :1], 3, axis=1))
    beta = stats.beta(concentration, concentration, loc=0.5)
    assert stats.kstest(found[:, 0], beta.cdf).pvalue > 1e-3


def counting(batch_size, num_samples):
    """Clips 1, 2, 3, ...: what stands first tells the offset."""
    clip = np.arange(1, num_samples + 1, dtype="float32")
    return np.repeat(clip[None], batch_size, axis=0)


def offsets_of(rolled, lengths):
    offsets = (1 - rolled[:, 0].astype(int)) % lengths
    for row, offset, length in zip(rolled, offsets, lengths, strict=True):
        clip = np.arange(1, length + 1)
        np.testing.assert_array_equal(row[:length], np.roll(clip, offset))
        np.testing.assert_array_equal(row[length:], 0)
    return offsets


def test_offsets_are_even_and_padding_stays_at_the_end():
    offsets = offsets_of(
        augmented(kb.RandomWaveformRoll(seed=0), counting(5000, 10)), np.full(5000, 10)
    )
    counts = np.bincount(offsets, minlength=10)
    assert counts.min() > 400 and counts.max() < 600
    lengths = np.random.default_rng(0).integers(20, 101, 200)
    waveforms = counting(200, 100) * (np.arange(100) < lengths[:, None])
    rolled = augmented(kb.RandomWaveformRoll(seed=0), waveforms.astype("float32"))
    offsets = offsets_of(rolled, lengths)
    assert len(set(offsets)) > 30
    layer = kb.LogMelSpectrogram(sample_rate=1000, num_mel_bins=4)
    np.testing.assert_array_equal(
        to_numpy(layer.padding_mask(rolled)),
        to_numpy(layer.padding_mask(waveforms.astype("float32"))),
    )


def test_rolled_trailing_zeros():
    waveforms = counting(50, 100)
    waveforms[:, 60:] = 0
    layer = kb.RandomWaveformRoll(trailing_zeros_are_padding=False, seed=0)
    rolled = augmented(layer, waveforms)
    firsts = np.argmax(rolled == 1, axis=1)
    assert len(set(firsts)) > 20
    for row, first in zip(rolled, firsts, strict=True):
        np.testing.assert_array_equal(row, np.roll(waveforms[0], first))


def test_factor_bounds_the_offset():
    rolled = augmented(kb.RandomWaveformRoll(factor=0.1, seed=0), counting(500, 100))
    offsets = offsets_of(rolled, np.full(500, 100))
    assert set((offsets + 50) % 100 - 50) == set(range(-10, 11))
    still = augmented(kb.RandomWaveformRoll(factor=0.0), counting(2, 100))
    np.testing.assert_array_equal(still, counting(2, 100))
    silence = np.zeros((2, 100), "float32")
    np.testing.assert_array_equal(augmented(kb.RandomWaveformRoll(), silence), silence)


def without_mean(clip):
    length = np.flatnonzero(clip)[-1] + 1
    centered = np.zeros(len(clip))
    centered[:length] = clip[:length] - clip[:length].astype("float64").mean()
    return centered


def test_mixtures_are_what_partners_and_shares_say():
    clips = np.random.default_rng(0).normal(0.3, 1, (6, 400)).astype("float32")
    clips[::2, 250:] = 0.0
    layer = kb.RandomWaveformMix(1.0, alpha=2.0, seed=3)
    found, partners, shares = augmented(layer, clips)
    assert sorted(partners) == list(range(6))
    assert (partners != np.arange(6)).any()
    for i in range(6):
        own, other = without_mean(clips[i]), without_mean(clips[partners[i]])
        expected = shares[i] * own + (1 - shares[i]) * other
        np.testing.assert_allclose(found[i], expected, atol=2e-6)
        # Where both are padding, so is the mixture.
        both = (clips[i] == 0) & (clips[partners[i]] == 0)
        assert (found[i][both] == 0).all()


@pytest.mark.parametrize("alpha", [0.3, 10.0])
def test_shares_follow_the_beta_distribution(alpha):
    clips = np.ones((20000, 2), "float32")
    found, _, shares = augmented(kb.RandomWaveformMix(0.25, alpha, seed=0), clips)
    assert (found[shares == 1] == 1).all()
    assert abs((shares < 1).mean() - 0.25) < 0.015
    shares = shares[shares < 1]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def hidden(layer, count=200, frames=40, bins=20):
    """Where a map of ones is hidden, of shape `(count, frames, bins)`."""
    maps = np.ones((count, frames, bins, 1), "float32")
    return augmented(layer, maps)[..., 0] == 0


def widths(stripes):
    """Widths of stripes, which must be in one piece."""
    found = stripes.sum(axis=1)
    edges = np.abs(np.diff(np.pad(stripes, ((0, 0), (1, 1))).astype(int), axis=1))
    assert (edges.sum(axis=1) == 2 * (found > 0)).all()
    return found


def test_stripes_of_time():
    is_hidden = hidden(kb.SpecAugment(max_bins=0, max_frames=8, seed=0), count=4000)
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
    columns = hidden(kb.SpecAugment(max_bins=6, max_frames=0, seed=0)).any(axis=1)
    assert 0 < widths(columns).max() < 6
    is_hidden = hidden(kb.SpecAugment(max_bins=6, max_frames=8, seed=0))
    rows, columns = is_hidden.all(axis=2), is_hidden.all(axis=1)
    expected = rows[:, :, None] | columns[:, None, :]
    np.testing.assert_array_equal(is_hidden, expected)
    # A stripe may be as long as the map, never longer.
    rows = hidden(kb.SpecAugment(max_bins=0, max_frames=192, seed=0), frames=10)
    assert widths(rows.any(axis=2)).max() <= 10
    one, three = (hidden(kb.SpecAugment(0, 8, num_masks=x, seed=0)) for x in (1, 3))
    assert 2 * one.mean() < three.mean() < 3.2 * one.mean()


def test_what_is_not_hidden_stays():
    maps = np.random.default_rng(0).normal(size=(8, 30, 16, 2)).astype("float32")
    found = to_numpy(kb.SpecAugment(8, 12, fill_value=7.0, seed=1)(maps, training=True))
    assert set(found[found != maps]) == {7.0}
