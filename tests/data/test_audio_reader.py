import math

import numpy as np
import pytest
import soundfile
import soxr
from sound_files import decibels, noise, write

from keras_bridle.data.readers import AudioReader

pytestmark = pytest.mark.one_backend


def read_clip(path, num_samples, sample_rate, position=0.5, segment=None):
    reader = AudioReader(num_samples=num_samples, sample_rate=sample_rate)
    return reader(path, (position, 0.5, 0.5), segment)


@pytest.mark.parametrize(
    ("name", "subtype", "step"),
    [
        ("a.wav", "PCM_U8", 2**-7),
        ("A.WAV", "PCM_24", 2**-23),
        ("a.wav", "PCM_32", 2**-24),
        ("a.wav", "FLOAT", 2**-24),
        ("a.Flac", "PCM_24", 2**-23),
    ],
)
def test_lossless_formats_come_out_as_written(tmp_path, name, subtype, step):
    sound = noise(0.5)
    path = write(tmp_path / name, sound, subtype=subtype)
    clip = read_clip(path, 8000, 16000)
    assert clip.dtype == np.float32 and clip.shape == (8000,)
    np.testing.assert_allclose(clip, sound[:, 0], atol=step, rtol=0)


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_lossy_formats_come_near_what_was_written(tmp_path, name):
    sound = noise(1.0, highest=1000)
    clip = read_clip(write(tmp_path / name, sound), 16000, 16000)
    assert decibels(clip - sound[:, 0], sound) < -15


def test_channels_are_averaged(tmp_path):
    sound = noise(0.2, channels=3)
    path = write(tmp_path / "a.wav", sound, subtype="FLOAT")
    clip = read_clip(path, 3200, 16000)
    np.testing.assert_allclose(clip, sound.mean(axis=1), atol=1e-7)
    # Values stay within full scale.
    path = write(tmp_path / "b.wav", 1.5 * np.sign(sound), 44100, "FLOAT")
    clip = read_clip(path, 2000, 16000)
    assert clip.max() == 1.0 and clip.min() == -1.0


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampled_tone_is_the_tone(tmp_path, rate):
    time = np.arange(rate) / rate
    tone = 0.5 * np.sin(2000 * np.pi * time)
    if rate > 22050:
        # Frequencies above half the rate are removed.
        tone += 0.5 * np.sin(22000 * np.pi * time)
    clip = read_clip(write(tmp_path / "a.wav", tone, rate, "FLOAT"), 16000, 16000)
    expected = 0.5 * np.sin(2000 * np.pi * np.arange(16000) / 16000)
    # The filter needs some samples of past and future.
    np.testing.assert_allclose(clip[400:-400], expected[400:-400], atol=5e-5)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize("position", [0.0, 0.003, 0.5, 1.0])
def test_cut_then_resampled_equals_resampled_then_cut(tmp_path, rate, position):
    sound = noise(2.0, rate, highest=3000)[:, 0]
    path = write(tmp_path / "a.wav", sound, rate, "FLOAT")
    clip = read_clip(path, 8000, 16000, position)
    needed = rate // 2
    start = min(int(position * (len(sound) - needed + 1)), len(sound) - needed)
    # The reference starts a whole number of resampled samples before the clip.
    rest = start % (rate // math.gcd(rate, 16000))
    resampled = soxr.resample(sound[rest:].astype("float32"), rate, 16000)
    first = (start - rest) * 16000 // rate
    expected = resampled[first : first + 8000]
    np.testing.assert_allclose(clip, expected, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_short_recordings_are_padded_with_exact_zeros(tmp_path, rate):
    path = write(tmp_path / "a.wav", np.full(rate // 10, 0.25), rate, "FLOAT")
    clip = read_clip(path, 4000, 16000, position=0.7)
    assert np.all(clip[:1600] > 0.05) and not clip[1600:].any()
    np.testing.assert_allclose(clip[400:1200], 0.25, atol=1e-4)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_segment_is_the_recording(tmp_path, rate):
    values = np.repeat([0.1, 0.2, 0.3, 0.4], rate)
    path = write(tmp_path / "a.wav", values, rate, "FLOAT")
    for start, value in ((1.0, 0.2), (2.0, 0.3)):
        segment = (start, start + 1.0)
        for position in (0.0, 0.5, 1.0):
            clip = read_clip(path, 8000, 16000, position, segment)
            np.testing.assert_allclose(clip[400:-400], value, atol=2e-4)
        longer = read_clip(path, 32000, 16000, 0.5, segment)
        assert longer[:16000].all() and not longer[16000:].any()
    last = read_clip(path, 32000, 16000, 0.0, (3.0, None))
    np.testing.assert_allclose(last[400:15600], 0.4, atol=2e-4)
    assert not last[16000:].any()


def test_only_the_needed_part_is_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "a.flac", np.zeros(160000))
    counts = []
    original = soundfile.SoundFile.read

    def read(self, frames=-1, **options):
        counts.append(frames)
        return original(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    read_clip(path, 8000, 16000, 0.5)
    read_clip(path, 4000, 8000, 0.5)
    # With 20 ms of margin on either side where it resamples.
    assert counts == [8000, 8000 + 2 * 320]


@pytest.mark.parametrize("ending", ["flac", "mp3", "wav", "ogg"])
def test_files_broken_off(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    write(path, noise(6.0))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if ending in ("flac", "mp3"):
        with pytest.raises((ValueError, soundfile.LibsndfileError)):
            read_clip(str(path), 96000, 16000)
    else:
        # Libsndfile takes the length of these from what is there.
        clip = read_clip(str(path), 96000, 16000)
        assert clip[:8000].any() and not clip[-8000:].any()


def test_other_unreadable_files(tmp_path):
    (tmp_path / "text.wav").write_text("this is no sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    write(tmp_path / "none.wav", np.zeros(0))
    write(tmp_path / "nan.wav", np.array([0.0, np.nan]), subtype="FLOAT")
    write(tmp_path / "short.wav", np.zeros(16000))
    for path in tmp_path.iterdir():
        segment = (2.0, 3.0) if path.stem == "short" else None
        with pytest.raises((ValueError, soundfile.LibsndfileError)):
            read_clip(str(path), 100, 16000, segment=segment)
