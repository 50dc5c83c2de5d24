"""The log-mel front end against the published code's filter banks."""

import numpy as np
import pytest
from golden_files import golden_files, load
from keras import ops

from keras_bridle.layers.log_mel import LogMelSpectrogram, mel_filters

FILES = golden_files("fbank*.npz")


def _waves(arrays):
    return sorted({name.split(".")[0] for name in arrays if ".in.waveform" in name})


def _assert_close(log_mel, expected):
    """Within 1e-3 where there is energy, 2e-2 near the floor (see the tolerances)."""
    difference = np.abs(log_mel.astype("float64") - expected)
    loud = expected > -8
    assert log_mel.shape == expected.shape
    assert difference[loud].max(initial=0) <= 1e-3
    assert difference.max() <= 2e-2


def _log_mel(config, waveform, **options):
    options = {"mean": None, "std": None, **options}
    layer = LogMelSpectrogram(config["sample_rate"], config["bins"], **options)
    return ops.convert_to_numpy(layer(waveform[None]))[0, :, :, 0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_filters_and_log_mel(path):
    config, arrays = load(path)
    expected = arrays["mel_banks"].T
    filters = mel_filters(config["bins"], 2 * len(expected), config["sample_rate"])
    np.testing.assert_allclose(filters[:-1], expected, atol=1e-4)
    np.testing.assert_array_equal(filters[-1], 0)  # the Nyquist frequency
    for wave in _waves(arrays):
        log_mel = _log_mel(config, arrays[f"{wave}.in.waveform"])
        for name in ("fbank", "fbank_kaldi_native"):
            if f"{wave}.out.{name}" in arrays:
                _assert_close(log_mel, arrays[f"{wave}.out.{name}"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_normalized_with_published_padding(path):
    config, arrays = load(path)
    for wave in _waves(arrays):
        expected = arrays[f"{wave}.out.item"][0]
        report = config["report"][wave]
        mean, std = config["stats"][report["stats"]]
        padding = {"padding_value": 0.0, "trailing_zeros_are_padding": False}
        options = {"num_frames": report["target"], "mean": mean, "std": std, **padding}
        item = _log_mel(config, arrays[f"{wave}.in.waveform"], **options)
        # The tolerances hold for log-mel values.
        _assert_close(
            item * 2 * std + mean, expected.astype("float64") * 2 * std + mean
        )
        rest = slice(report["frames"], None)
        np.testing.assert_allclose(item[rest], expected[rest], atol=1e-6)
