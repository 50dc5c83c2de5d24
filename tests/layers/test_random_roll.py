import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle.augmentation.audio import RandomWaveformRoll
from keras_bridle.layers.log_mel import LogMelSpectrogram


def _counting(batch_size, num_samples):
    """Clips 1, 2, 3, ...: what stands first tells the offset."""
    clip = np.arange(1, num_samples + 1, dtype="float32")
    return np.repeat(clip[None], batch_size, axis=0)


def _roll(layer, waveforms):
    return ops.convert_to_numpy(layer(waveforms, training=True))


def _offsets(rolled, lengths):
    offsets = (1 - rolled[:, 0].astype(int)) % lengths
    for row, offset, length in zip(rolled, offsets, lengths, strict=True):
        clip = np.arange(1, length + 1)
        np.testing.assert_array_equal(row[:length], np.roll(clip, offset))
        np.testing.assert_array_equal(row[length:], 0)
    return offsets


def test_every_offset_is_equally_likely():
    rolled = _roll(RandomWaveformRoll(seed=0), _counting(5000, 10))
    counts = np.bincount(_offsets(rolled, np.full(5000, 10)), minlength=10)
    assert counts.min() > 400 and counts.max() < 600


def test_padding_stays_at_the_end():
    lengths = np.random.default_rng(0).integers(20, 101, 200)
    waveforms = _counting(200, 100) * (np.arange(100) < lengths[:, None])
    rolled = _roll(RandomWaveformRoll(seed=0), waveforms.astype("float32"))
    offsets = _offsets(rolled, lengths)
    assert len(set(offsets)) > 30
    layer = LogMelSpectrogram(sample_rate=1000, num_mel_bins=4)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(layer.padding_mask(rolled)),
        ops.convert_to_numpy(layer.padding_mask(waveforms.astype("float32"))),
    )


def test_trailing_zeros_as_signal():
    waveforms = _counting(50, 100)
    waveforms[:, 60:] = 0
    layer = RandomWaveformRoll(trailing_zeros_are_padding=False, seed=0)
    rolled = _roll(layer, waveforms)
    firsts = np.argmax(rolled == 1, axis=1)
    assert len(set(firsts)) > 20
    for row, first in zip(rolled, firsts, strict=True):
        np.testing.assert_array_equal(row, np.roll(waveforms[0], first))


def test_factor_bounds_the_offset():
    rolled = _roll(RandomWaveformRoll(factor=0.1, seed=0), _counting(500, 100))
    offsets = _offsets(rolled, np.full(500, 100))
    assert set((offsets + 50) % 100 - 50) == set(range(-10, 11))
    still = _roll(RandomWaveformRoll(factor=0.0), _counting(2, 100))
    np.testing.assert_array_equal(still, _counting(2, 100))


def test_seed_inference_and_silence():
    first, second, other = (RandomWaveformRoll(seed=seed) for seed in (1, 1, 2))
    waveforms = _counting(8, 1000)
    rolled = _roll(first, waveforms)
    np.testing.assert_array_equal(rolled, _roll(second, waveforms))
    assert (rolled != _roll(other, waveforms)).any()
    assert (rolled != _roll(first, waveforms)).any()  # the next step differs
    np.testing.assert_array_equal(ops.convert_to_numpy(first(waveforms)), waveforms)
    np.testing.assert_array_equal(_roll(first, waveforms * 0), waveforms * 0)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_inside_a_training_step(jit_compile):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("torch.compile takes minutes on a CPU")
    waveforms = _counting(256, 200)

    def losses():
        inputs = keras.Input((None,))
        model = keras.Model(inputs, RandomWaveformRoll(seed=3)(inputs))
        model.compile("sgd", loss="mae", jit_compile=jit_compile)
        steps = [float(model.train_on_batch(waveforms, waveforms)) for _ in range(2)]
        assert model.test_on_batch(waveforms, waveforms) == 0
        return steps

    first = losses()
    assert first == losses()
    assert first[0] != first[1]
    # Offset k of n changes a sample by 2k(n - k)/n in the mean: n/3 over all offsets.
    assert all(57 < loss < 76 for loss in first)


def test_config_and_policy():
    keras.config.set_dtype_policy("mixed_float16")
    layer = RandomWaveformRoll(factor=0.3, trailing_zeros_are_padding=False, seed=5)
    same = RandomWaveformRoll.from_config(layer.get_config())
    waveforms = _counting(4, 5000)  # float16 cannot count so far
    np.testing.assert_array_equal(_roll(layer, waveforms), _roll(same, waveforms))
    assert set(_roll(layer, waveforms)[0]) == set(waveforms[0])
    assert layer(keras.Input((10,), dtype="float32")).dtype == "float32"


@pytest.mark.parametrize("factor", [-0.1, 1.5])
def test_bad_factor(factor):
    with pytest.raises(ValueError, match="factor"):
        RandomWaveformRoll(factor)


def test_bad_waveforms():
    with pytest.raises(ValueError, match="shape"):
        RandomWaveformRoll()(np.ones(5, "float32"))
