"""The second reader against the first; needs TensorFlow 2.17.1 and tensorflow-io."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from sound_files import decibels, noise, write

from keras_bridle.data import tfio
from keras_bridle.data.files import FileList
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.readers import AudioReader

try:
    tfio.import_tensorflow_io()
    NOT_LOADED = ""
except ImportError as error:
    NOT_LOADED = str(error)

needs_tfio = pytest.mark.skipif(bool(NOT_LOADED), reason=NOT_LOADED)


@pytest.mark.skipif(not NOT_LOADED, reason="tensorflow-io loads here")
def test_where_it_does_not_load_the_error_says_what_does():
    pytest.importorskip("tensorflow")
    with pytest.raises(ImportError, match=r"2\.17\.1 with tensorflow-io 0\.37\.1"):
        AudioReader(seconds=0.1, decoder="tensorflow-io")


def read_both(path, num_samples, position=0.5, segment=None):
    return [
        AudioReader(num_samples=num_samples, decoder=decoder)(
            path, (position, 0.5, 0.5), segment
        )
        for decoder in ("soundfile", "tensorflow-io")
    ]


@needs_tfio
@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.wav", "PCM_U8"),
        ("a.wav", "PCM_16"),
        ("a.wav", "PCM_24"),
        ("a.wav", "PCM_32"),
        ("a.WAV", "FLOAT"),
        ("a.flac", "PCM_S8"),
        ("a.flac", "PCM_16"),
        ("a.flac", "PCM_24"),
        ("a.ogg", "VORBIS"),
        ("a.mp3", "MPEG_LAYER_III"),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_clips_at_the_same_rate_are_equal(tmp_path, name, subtype, channels):
    sound = noise(3.0, channels=channels, highest=6000)
    path = write(tmp_path / name, sound, subtype=subtype)
    # Decoded by other libraries, the lossy ones differ by float32 rounding.
    tolerance = 2e-6 if subtype in ("VORBIS", "MPEG_LAYER_III") else 0
    for position, segment in ((0.0, None), (0.37, None), (1.0, None), (0.5, (0.5, 1))):
        first, second = read_both(path, 20000, position, segment)
        assert second.dtype == np.float32
        np.testing.assert_allclose(second, first, rtol=0, atol=tolerance)
    assert not second[8000:].any()


@needs_tfio
def test_extensible_headers_are_read(tmp_path):
    path = str(tmp_path / "a.wav")
    soundfile.write(path, noise(1.0, channels=2), 16000, "PCM_24", format="WAVEX")
    np.testing.assert_array_equal(*read_both(path, 16000))


@needs_tfio
@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000])
def test_resamplers_agree_below_three_quarters_of_the_band(rate):
    """Measured: -86 to -104 dB. Up to 0.9 of the band Speex's edge shows: -33 dB."""
    edge = min(rate, 16000) / 2
    for share, worst in ((0.5, -94), (0.75, -85), (0.9, -30)):
        sound = noise(2.0, rate, highest=share * edge)[:, 0].astype("float32")
        first = soxr.resample(sound, rate, 16000)
        second = tfio.resample(sound, rate, 16000)
        assert len(second) == len(first) == 32000
        inner = slice(500, -500)
        assert decibels(second[inner] - first[inner], first[inner]) < worst


@needs_tfio
@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("position", [0.0, 0.37, 1.0])
def test_resampled_clips_lie_at_the_same_place(tmp_path, rate, position):
    sound = noise(2.0, rate, highest=2000)
    path = write(tmp_path / "a.flac", sound, rate)
    first, second = read_both(path, 16000, position)
    inner = slice(500, -500)
    assert decibels(second[inner] - first[inner], first[inner]) < -85
    assert np.abs(second - first).max() < 0.02


@needs_tfio
def test_pipelines_are_equal_with_many_threads(tmp_path):
    files = [write(tmp_path / f"{i}.wav", noise(1.0, seed=i)) for i in range(40)]
    (tmp_path / "7.wav").write_text("no sound in here")
    listed = FileList("audio", files, list(range(40)), [str(i) for i in range(40)])
    options = {"batch_size": 8, "shuffle": True, "num_parallel": 8}
    results = []
    for decoder in ("soundfile", "tensorflow-io"):
        reader = AudioReader(seconds=0.5, decoder=decoder)
        dataset = file_dataset(listed, reader, **options)
        results.append([np.concatenate(part) for part in zip(*dataset, strict=True)])
        assert [item.path for item in dataset.report.skipped] == [files[7]]
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


@needs_tfio
def test_unreadable_files_are_errors(tmp_path):
    reader = AudioReader(seconds=6.0, decoder="tensorflow-io")
    paths = [write(tmp_path / name, noise(6.0)) for name in ("a.flac", "a.mp3")]
    for path in map(Path, paths):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for path in (*paths, write(tmp_path / "law.wav", noise(0.1), subtype="ULAW")):
        with pytest.raises(ValueError):
            reader(path)
