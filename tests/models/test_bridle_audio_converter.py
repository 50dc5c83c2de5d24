import numpy as np
import pytest
import tensorflow as tf
from harness import to_numpy
from keras import ops

from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.converters import BridleAudioConverter, BridleAudioPreprocessor


def noise(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")


def test_list_of_clips():
    short, stereo = noise(3), noise(6, 2)
    found = BridleAudioConverter(num_samples=5)([short, stereo])
    expected = np.stack([np.pad(short, (0, 2)), stereo.mean(axis=1)[1:6]])
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected, 1e-6)
    longest = BridleAudioConverter()([short, stereo])
    np.testing.assert_allclose(longest[0], np.pad(short, (0, 3)))
    assert longest.shape == (2, 6)


@pytest.mark.parametrize("length", [4, 7, 9])
@pytest.mark.parametrize("shape", [(2, 7), (2, 7, 2), (7,)])
def test_arrays_tensors_and_pipelines(shape, length):
    x = noise(*shape)
    mono = x.mean(axis=-1) if len(shape) == 3 else x
    padding = [(0, 0)] * (mono.ndim - 1) + [(0, max(0, length - 7))]
    # Of what is too long the middle, as of files.
    first = (max(0, 7 - length) + 1) // 2
    expected = np.pad(mono, padding)[..., first : first + length]
    converter = BridleAudioConverter(num_samples=length)
    np.testing.assert_allclose(converter(x), expected, 1e-6)
    found = to_numpy(converter(ops.convert_to_tensor(x)))
    np.testing.assert_allclose(found, expected, 1e-6)
    data = tf.data.Dataset.from_tensors(x).map(converter)
    assert data.element_spec.shape == expected.shape
    np.testing.assert_allclose(next(iter(data)).numpy(), expected, 1e-6)


def test_pipeline_of_unknown_length():
    clips = [noise(3), noise(8)]
    data = tf.data.Dataset.from_generator(
        lambda: iter(clips), output_signature=tf.TensorSpec((None,), tf.float32)
    ).padded_batch(1)
    found = [*data.map(BridleAudioConverter(num_samples=5))]
    assert [x.shape for x in found] == [(1, 5), (1, 5)]
    np.testing.assert_allclose(found[0][0], np.pad(clips[0], (0, 2)))
    np.testing.assert_allclose(found[1][0], clips[1][2:7])


def test_ragged_clips():
    clips = [noise(3), noise(8)]
    found = BridleAudioConverter(num_samples=5)(tf.ragged.constant(clips))
    expected = BridleAudioConverter(num_samples=5)(clips)
    np.testing.assert_allclose(np.asarray(found), expected, 1e-6)


def test_integers():
    x = np.int16([[-32768, 0, 16384]])
    np.testing.assert_allclose(BridleAudioConverter()(x), [[-1.0, 0.0, 0.5]])
    for nothing in ([np.zeros(0)], np.zeros((2, 0))):
        with pytest.raises(ValueError, match="must hold samples"):
            BridleAudioConverter()(nothing)
    doubles = BridleAudioConverter()(np.float64([[0.1, 0.2]]))
    assert doubles.dtype == np.float32
    with pytest.raises(ValueError, match=r"16-bit integers. Received: dtype int32"):
        BridleAudioConverter()(np.int32([[1, 2]]))


def test_right_clips_stay_as_they_are():
    x = noise(2, 5)
    assert np.shares_memory(BridleAudioConverter(num_samples=5)(x), x)


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"`num_samples` must be positive"):
        BridleAudioConverter(num_samples=0)
    with pytest.raises(ValueError, match="`sampling_rate` must be positive"):
        BridleAudioConverter(sampling_rate=-1)
    with pytest.raises(ValueError, match=r"must have the shape \(samples,\)"):
        BridleAudioConverter()(noise(1, 2, 3, 4))
    with pytest.raises(ValueError, match="`audio` must hold clips"):
        BridleAudioConverter()([])


def test_preprocessor(tmp_path):
    preprocessor = BridleAudioPreprocessor(BridleAudioConverter(8000, 5))
    x, y, weights = preprocessor([noise(3), noise(8)], [0, 1], [1.0, 2.0])
    assert x.shape == (2, 5)
    assert (y, weights) == ([0, 1], [1.0, 2.0])
    preprocessor.save_to_preset(str(tmp_path))
    loaded = BridleAudioPreprocessor.from_config(preprocessor.get_config())
    assert loaded.audio_converter.get_config() == (
        preprocessor.audio_converter.get_config()
    )
    assert (tmp_path / "audio_converter.json").exists()


def test_preprocessor_of_an_encoder():
    def backbone(**settings):
        return BridleBackbone(8, 8, 1, 1, 8, **settings)

    heard = backbone(input_dims=(None,), front_end=LogMelSpectrogram(8000))
    converter = BridleAudioPreprocessor.for_backbone(heard).audio_converter
    assert (converter.sampling_rate, converter.num_samples) == (8000, None)
    converter = BridleAudioPreprocessor.for_backbone(
        heard, num_samples=4000
    ).audio_converter
    assert converter.num_samples == 4000
    with pytest.raises(ValueError, match=r"take waveforms.*\(16, 16, 1\)"):
        BridleAudioPreprocessor.for_backbone(backbone(input_dims=(16, 16, 1)))
