import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle.augmentation.audio import RandomWaveformGain


def _gains(layer, batch_size):
    ones = np.ones((batch_size, 3), "float32")
    out = ops.convert_to_numpy(layer(ones, training=True))
    np.testing.assert_array_equal(out, np.repeat(out[:, :1], 3, axis=1))
    return out[:, 0]


@pytest.mark.parametrize("concentration", [1, 3, 10])
def test_gains_follow_the_beta_distribution(concentration):
    gains = _gains(RandomWaveformGain(concentration, seed=0), 20000)
    assert gains.min() >= 0.5 and gains.max() <= 1.5
    assert abs(gains.mean() - 1) < 0.01
    variance = 1 / (4 * (2 * concentration + 1))
    assert abs(gains.var() / variance - 1) < 0.05
    # The fourth moment tells the Beta distribution from others of this variance.
    kurtosis = ((gains - 1) ** 4).mean() / variance**2
    assert abs(kurtosis - (3 - 6 / (2 * concentration + 3))) < 0.15


def test_seed_and_inference():
    first, second, other = (RandomWaveformGain(seed=seed) for seed in (1, 1, 2))
    gains = _gains(first, 8)
    np.testing.assert_array_equal(gains, _gains(second, 8))
    assert np.abs(gains - _gains(other, 8)).max() > 1e-3
    assert np.abs(gains - _gains(first, 8)).max() > 1e-3  # the next step differs
    waveforms = np.random.default_rng(0).normal(size=(4, 50)).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(first(waveforms)), waveforms)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_inside_a_training_step(jit_compile):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("torch.compile takes minutes on a CPU")
    ones = np.ones((64, 10), "float32")

    def losses():
        inputs = keras.Input((None,))
        model = keras.Model(inputs, RandomWaveformGain(seed=3)(inputs))
        model.compile("sgd", loss="mae", jit_compile=jit_compile)
        steps = [float(model.train_on_batch(ones, ones)) for _ in range(2)]
        assert model.test_on_batch(ones, ones) == 0
        return steps

    first = losses()
    assert first == losses()
    assert first[0] != first[1]
    # E|gain - 1| is 0.088 for Beta(10, 10).
    assert all(0.06 < loss < 0.12 for loss in first)


def test_config_and_policy():
    keras.config.set_dtype_policy("mixed_float16")
    layer = RandomWaveformGain(concentration=4, seed=5)
    same = RandomWaveformGain.from_config(layer.get_config())
    np.testing.assert_array_equal(_gains(layer, 4), _gains(same, 4))
    assert layer(keras.Input((10,), dtype="float32")).dtype == "float32"
    out = layer(np.ones((1, 10), "float32"), training=True)
    assert keras.backend.standardize_dtype(out.dtype) == "float32"


@pytest.mark.parametrize("concentration", [0, -1, 2.5])
def test_bad_concentration(concentration):
    with pytest.raises(ValueError, match="concentration"):
        RandomWaveformGain(concentration)


def test_bad_waveforms():
    with pytest.raises(ValueError, match="shape"):
        RandomWaveformGain()(np.ones((4, 5, 1), "float32"))
