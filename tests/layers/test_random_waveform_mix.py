import numpy as np
import pytest
from keras import ops
from scipy import stats

from keras_bridle.augmentation.audio import RandomWaveformMix
from keras_bridle.augmentation.base import mix_labels


def mixed(layer, waveforms, training=True):
    return [ops.convert_to_numpy(x) for x in layer(waveforms, training=training)]


def waveforms(count=6, samples=400):
    clips = np.random.default_rng(0).normal(0.3, 1, (count, samples)).astype("float32")
    clips[::2, 250:] = 0.0
    return clips


def without_mean(clip):
    length = np.flatnonzero(clip)[-1] + 1
    centered = np.zeros(len(clip))
    centered[:length] = clip[:length] - clip[:length].astype("float64").mean()
    return centered


def test_mixtures_are_what_partners_and_shares_say():
    clips = waveforms()
    found, partners, shares = mixed(RandomWaveformMix(1.0, alpha=2.0, seed=3), clips)
    assert sorted(partners) == list(range(6))
    assert (partners != np.arange(6)).any()
    for i in range(6):
        own, other = without_mean(clips[i]), without_mean(clips[partners[i]])
        expected = shares[i] * own + (1 - shares[i]) * other
        np.testing.assert_allclose(found[i], expected, atol=2e-6)
        # Where both are padding, so is the mixture.
        both = (clips[i] == 0) & (clips[partners[i]] == 0)
        assert (found[i][both] == 0).all()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 10.0])
def test_shares_follow_the_beta_distribution(alpha):
    clips = np.ones((20000, 2), "float32")
    _, _, shares = mixed(RandomWaveformMix(1.0, alpha, seed=0), clips)
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_rate_and_inference():
    clips = np.random.default_rng(0).normal(size=(4000, 3)).astype("float32")
    layer = RandomWaveformMix(0.25, seed=0)
    found, _, shares = mixed(layer, clips)
    assert abs((shares < 1).mean() - 0.25) < 0.03
    np.testing.assert_array_equal(found[shares == 1], clips[shares == 1])
    found, partners, shares = mixed(layer, clips, training=False)
    np.testing.assert_array_equal(found, clips)
    np.testing.assert_array_equal(partners, np.arange(4000))
    assert (shares == 1).all()


def test_seed():
    first, again, other = (
        mixed(RandomWaveformMix(1.0, seed=seed), waveforms()) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first[0], again[0])
    assert np.abs(first[0] - other[0]).max() > 0.01


def test_labels_are_mixed_alike():
    labels = np.eye(3, dtype="float32")
    partners = np.int32([1, 2, 0])
    shares = np.float32([1.0, 0.75, 0.5])
    found = ops.convert_to_numpy(
        mix_labels(ops.convert_to_tensor(labels), partners, shares)
    )
    expected = [[1, 0, 0], [0, 0.75, 0.25], [0.5, 0, 0.5]]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("settings", [{"rate": 1.5}, {"alpha": 0}])
def test_wrong_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RandomWaveformMix(**settings)
