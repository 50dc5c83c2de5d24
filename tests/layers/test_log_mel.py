import keras
import numpy as np
import pytest
from harness import run
from keras import ops

from keras_bridle.layers.log_mel import LogMelSpectrogram, mel_filters

FLOOR = np.log(1.1920929e-07)


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype("float32")


def _reference(waveform, sample_rate=16000, bins=128, length=400, step=160, fft=512):
    """Kaldi's log-mel filter bank, stated frame by frame in float64."""
    waveform = waveform.astype("float64")
    waveform = waveform - waveform.mean()
    rows = []
    for start in range(0, len(waveform) - length + 1, step):
        frame = waveform[start : start + length]
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))
        rows.append(np.abs(np.fft.rfft(frame * window, fft)) ** 2)
    # These are compared with the published ones.
    filters = mel_filters(bins, fft, sample_rate)
    return np.log(np.maximum(np.array(rows) @ filters, 1.1920929e-07))


def _numpy(layer, waveforms):
    return ops.convert_to_numpy(layer(waveforms))[..., 0]


def _raw(**options):
    return LogMelSpectrogram(mean=None, std=None, **options)


@pytest.mark.parametrize(
    "sample_rate, bins, length, step, fft",
    [
        (22050, 80, 551, 220, 1024),  # the step divides nothing
        (8000, 40, 200, 80, 256),
        (16000, 64, 160, 240, 512),  # gaps between frames, a longer transform
    ],
)
def test_equals_float64_reference(sample_rate, bins, length, step, fft):
    waveform = _noise(7001)
    options = {
        "sample_rate": sample_rate,
        "num_mel_bins": bins,
        "frame_length_ms": (length + 0.5) * 1000 / sample_rate,
        "frame_step_ms": (step + 0.5) * 1000 / sample_rate,
        "fft_length": fft if fft != 512 or length < 256 else None,
    }
    expected = _reference(waveform, sample_rate, bins, length, step, fft)
    for fourier in ("rfft", "matmul"):
        log_mel = _numpy(_raw(fourier=fourier, **options), waveform[None])[0]
        np.testing.assert_allclose(log_mel, expected, atol=1e-3)


def test_whole_groups_of_frames():
    waveforms = _noise(3, 12000)
    waveforms[1, 6000:] = 0  # 36 frames
    waveforms[2, 500:] = 0
    layer = LogMelSpectrogram(multiple_of=16)
    found, all_frames = _numpy(layer, waveforms), _numpy(_raw(), waveforms)
    assert found.shape == (3, 64, 128)
    assert layer.compute_output_shape(waveforms.shape) == (3, 64, 128, 1)
    assert layer.compute_output_shape((3, 900)) == (3, 16, 128, 1)
    mask = ops.convert_to_numpy(layer.padding_mask(waveforms))
    assert mask.sum(axis=1).tolist() == [64, 32, 16]
    scaled = (all_frames[:, :64] - layer.mean) / (2 * layer.std)
    np.testing.assert_allclose(found[0], scaled[0], atol=1e-5)
    np.testing.assert_allclose(found[1, :32], scaled[1, :32], atol=1e-5)
    np.testing.assert_array_equal(found[1, 32:], 0)


def test_for_data_gives_real_frames_mean_0_and_deviation_half():
    waveforms = _noise(2, 8000)
    waveforms[1, 3000:] = 0
    layer = LogMelSpectrogram.for_data(waveforms, num_mel_bins=64, name="mel")
    real = ops.convert_to_numpy(layer.padding_mask(waveforms))
    values = _numpy(layer, waveforms)[real]
    assert layer.name == "mel" and values.shape[1] == 64
    np.testing.assert_allclose([values.mean(), values.std()], [0, 0.5], atol=1e-4)


@pytest.mark.parametrize(
    "num_samples, fourier", [(50, "rfft"), (50, "matmul"), (4321, "rfft")]
)
def test_padded_clip_has_the_frames_it_has_alone(num_samples, fourier):
    clip = _noise(1, num_samples, seed=1) + 0.2
    padded = np.zeros((2, 12000), "float32")
    padded[0, :num_samples] = clip
    padded[1] = _noise(12000, seed=2)
    layer = LogMelSpectrogram(fourier=fourier)
    alone = _numpy(layer, clip)[0]
    together = _numpy(layer, padded)
    mask = ops.convert_to_numpy(layer.padding_mask(padded))
    frames = max(1, 1 + (num_samples - 400) // 160)
    assert alone.shape == (frames, 128)
    np.testing.assert_allclose(together[0, :frames], alone, atol=2e-4)
    np.testing.assert_array_equal(together[0, frames:], 0)
    np.testing.assert_array_equal(mask[0], np.arange(73) < frames)
    assert mask[1].all()


def test_trailing_zeros_as_signal():
    waveform = _noise(8000) + 0.2
    waveform[4000:] = 0
    layer = _raw(trailing_zeros_are_padding=False)
    expected = _reference(waveform)
    # A mean that is not zero in the silence leaves nothing but rounding there.
    np.testing.assert_allclose(
        _numpy(layer, waveform[None])[0, :20], expected[:20], atol=1e-3
    )
    mask = ops.convert_to_numpy(layer.padding_mask(np.stack([waveform] * 3)))
    assert mask.shape == (3, len(expected)) and mask.all()


def test_silence_is_not_padding():
    layer = LogMelSpectrogram(mean=-6.0, std=4.0, num_frames=20)
    log_mel = _numpy(layer, np.zeros((1, 2000), "float32"))
    np.testing.assert_allclose(log_mel[0, :11], (FLOOR + 6) / 8, rtol=1e-6)
    np.testing.assert_array_equal(log_mel[0, 11:], 0)
    mask = ops.convert_to_numpy(layer.padding_mask(np.zeros((1, 2000), "float32")))
    np.testing.assert_array_equal(mask[0], np.arange(20) < 11)


@pytest.mark.parametrize(
    "num_frames, options, filling",
    [
        (5, {}, 0.0),
        (60, {}, 0.0),
        (60, {"padding_value": 0.0}, 4.4446096 / (2 * 3.3216383)),
        (60, {"mean": None, "std": None}, FLOOR),
    ],
)
def test_num_frames_cuts_or_fills(num_frames, options, filling):
    waveforms = _noise(2, 4000)
    every = _numpy(LogMelSpectrogram(**options), waveforms)
    fixed = _numpy(LogMelSpectrogram(num_frames=num_frames, **options), waveforms)
    assert fixed.shape == (2, num_frames, 128)
    common = min(num_frames, every.shape[1])
    np.testing.assert_allclose(fixed[:, :common], every[:, :common], atol=1e-5)
    np.testing.assert_allclose(fixed[:, common:], filling, rtol=1e-6)
    assert np.abs(every - filling).max(axis=-1).min() > 0.1


@pytest.mark.every_backend
@pytest.mark.parametrize("num_frames, fourier", [(None, "rfft"), (40, "matmul")])
def test_in_a_model_with_unknown_sizes(num_frames, fourier):
    inputs = keras.Input((None,))
    layer = LogMelSpectrogram(num_frames=num_frames, fourier=fourier)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, num_frames, 128, 1)
    # Compiling takes torch minutes on a CPU.
    model.compile(jit_compile=keras.backend.backend() != "torch")
    for shape in ((3, 8000), (1, 300)):
        waveforms = _noise(*shape)
        expected = run(lambda waveforms=waveforms: layer(waveforms), layer)
        predicted = model.predict(waveforms, verbose=0)
        np.testing.assert_allclose(predicted, expected, atol=5e-4)
        assert layer.compute_output_shape(shape) == expected.shape


def test_computes_in_float32_under_every_policy():
    # Too soft for float16: it would round to its subnormal numbers.
    waveforms = _noise(1, 4000) * 1e-4
    rounded = _numpy(_raw(), waveforms).astype("float16")
    log_mel = _numpy(_raw(dtype="float16"), waveforms)
    assert log_mel.dtype == "float16"
    # One unit in the last place, where it rounds differently.
    np.testing.assert_allclose(log_mel, rounded, rtol=1e-3)
    assert (log_mel == rounded).mean() > 0.95
