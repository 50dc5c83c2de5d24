"""Signals and files that the tests of `keras_bridle.data` share."""

from pathlib import Path

import numpy as np
import soundfile


def noise(seconds, rate=16000, channels=1, seed=0, highest=None):
    """White noise below a frequency, at half of full scale, `(frames, channels)`."""
    rng = np.random.default_rng(seed)
    frames = round(seconds * rate)
    frequencies = np.fft.rfftfreq(frames, 1 / rate)
    spectrum = rng.normal(size=(2, channels, len(frequencies)))
    spectrum = spectrum[0] + 1j * spectrum[1]
    spectrum[:, frequencies > (highest or rate)] = 0
    sound = np.fft.irfft(spectrum, frames).T
    return 0.5 * sound / np.abs(sound).max()


def write(path, sound, rate=16000, subtype=None):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, subtype=subtype)
    return str(path)


def write_constants(folder, count, seconds=0.1, rate=16000):
    """Files that hold the value `(i + 1) / 1000` all over, to tell them apart."""
    return [
        write(
            Path(folder) / f"{i:03}.wav",
            np.full(round(seconds * rate), (i + 1) / 1000),
            rate,
            "FLOAT",
        )
        for i in range(count)
    ]


def which(waveforms):
    """Numbers of the files that a batch of `write_constants` came from."""
    return [round(float(waveform[0]) * 1000) - 1 for waveform in waveforms]


def decibels(error, reference):
    return 10 * np.log10(np.sum(np.square(error)) / np.sum(np.square(reference)))
