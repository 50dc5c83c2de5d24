import numpy as np
import pytest
from keras import ops
from scipy import stats

from keras_bridle.augmentation.image import RandomImageMix


def mixed(layer, images, training=True):
    return [ops.convert_to_numpy(x) for x in layer(images, training=training)]


def images(count=16, frames=None):
    """Pictures of one value each, so that it is seen what comes from where."""
    values = (10.0 * np.arange(count)).astype("float32")
    side = (8, 12, 1) if frames is None else (frames, 8, 12, 1)
    return np.broadcast_to(values.reshape(-1, *[1] * len(side)), (count, *side)).copy()


def test_blended_pictures_are_what_partners_and_shares_say():
    pictures = images()
    layer = RandomImageMix(0.8, cutmix_alpha=0.0, seed=1)
    found, partners, shares = mixed(layer, pictures)
    assert sorted(partners) == list(range(16))
    for i in range(16):
        value = 10 * (shares[i] * i + (1 - shares[i]) * partners[i])
        np.testing.assert_allclose(found[i], value, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("frames", [None, 3])
def test_pasted_boxes_are_boxes_and_shares_exact(frames):
    pictures = images(frames=frames)
    layer = RandomImageMix(mixup_alpha=0.0, cutmix_alpha=1.0, seed=1)
    found, partners, shares = mixed(layer, pictures)
    seen = 0
    for i in range(16):
        is_own = found[i] == 10 * i
        if partners[i] == i:
            continue
        assert (is_own | (found[i] == 10 * partners[i])).all()
        np.testing.assert_allclose(is_own.mean(), shares[i], atol=1e-6)
        pasted = ~is_own[..., 0]
        if frames is not None:
            # All frames of a clip have the same box.
            assert (pasted == pasted[:1]).all()
            pasted = pasted[0]
        rows, columns = pasted.any(axis=1), pasted.any(axis=0)
        np.testing.assert_array_equal(pasted, rows[:, None] & columns[None])
        seen += 0 < pasted.mean() < 1
    assert seen > 5


def test_both_kinds_take_turns_and_blends_follow_beta():
    pictures = images(3000)[:, :2, :2]
    found, partners, shares = mixed(RandomImageMix(0.8, 1.0, seed=0), pictures)
    # A pasted pixel is one or the other, a blended one is between.
    own = pictures[:, 0, 0, 0]
    first = found[:, 0, 0, 0]
    other = own[partners]
    is_blend = ~np.isclose(first, own) & ~np.isclose(first, other)
    assert abs(is_blend.mean() - 0.5) < 0.05
    test = stats.kstest(shares[is_blend], stats.beta(0.8, 0.8).cdf)
    assert test.statistic < 0.05


def test_rate_seed_and_inference():
    pictures = images(2000)[:, :2, :2]
    layer = RandomImageMix(rate=0.3, cutmix_alpha=0.0, seed=0)
    _, _, shares = mixed(layer, pictures)
    assert abs((shares < 1).mean() - 0.3) < 0.04
    found, partners, shares = mixed(layer, pictures.astype("uint8"), training=False)
    np.testing.assert_array_equal(found, pictures.astype("uint8"))
    np.testing.assert_array_equal(partners, np.arange(2000))
    assert (shares == 1).all()
    first, again = (mixed(RandomImageMix(seed=4), pictures)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    "settings",
    [{"rate": -0.1}, {"mixup_alpha": 0, "cutmix_alpha": 0}, {"mixup_alpha": -1}],
)
def test_wrong_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RandomImageMix(**settings)
