import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_bridle.evaluation.features import extract_features, log_mel_features


class Tokens(keras.layers.Layer):
    """Returns tokens of shape (batch, 5, 4), and counts how often it is traced."""

    def __init__(self):
        super().__init__()
        self.shapes = []
        self.dropout = keras.layers.Dropout(0.5)
        self.scale = self.add_weight(
            shape=(5, 4), initializer="random_normal", name="scale"
        )

    def call(self, inputs):
        self.shapes.append(tuple(inputs.shape))
        return self.dropout(inputs[:, None, None] * self.scale)


class Backbone(Tokens):
    def pooled_features(self, inputs):
        return keras.ops.max(self(inputs), axis=1)


@pytest.fixture
def inputs():
    return np.random.default_rng(0).normal(size=11).astype("float32")


def _dataset(inputs, batch, labels=False):
    arrays = (inputs, np.arange(len(inputs))) if labels else inputs
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch)


def test_tokens_are_averaged_in_inference_mode(inputs):
    layer = Tokens()
    features = extract_features(layer, inputs, batch_size=4)
    scale = keras.ops.convert_to_numpy(layer.scale)
    # With dropout half of the entries would be zero, the others doubled.
    np.testing.assert_allclose(
        features, inputs[:, None] * scale.mean(axis=0), rtol=1e-5, atol=1e-7
    )
    assert features.dtype == np.float32
    assert features.shape == (11, 4)


def test_pooled_features_of_the_model_are_used(inputs):
    layer = Backbone()
    scale = keras.ops.convert_to_numpy(layer.scale)
    expected = (inputs[:, None, None] * scale).max(axis=1)
    np.testing.assert_allclose(
        extract_features(layer, inputs, batch_size=4), expected, rtol=1e-5, atol=1e-7
    )


class SegmentedBackbone(Tokens):
    def pooled_features(self, inputs, segments=1):
        return keras.ops.tile(keras.ops.mean(self(inputs), axis=1), (1, segments))


def test_segments_are_asked_of_the_model(inputs):
    model = SegmentedBackbone()
    features = extract_features(model, inputs, segments=3)
    expected = np.tile(extract_features(model, inputs), (1, 3))
    assert features.shape == (11, 12)
    np.testing.assert_allclose(features, expected, 1e-6)


def test_segments_need_a_model_that_knows_them(inputs):
    with pytest.raises(ValueError, match="received segments=2"):
        extract_features(Tokens(), inputs, segments=2)


def test_pooling_function(inputs):
    layer = Backbone()
    features = extract_features(layer, inputs, 3, pooling=lambda tokens: tokens[:, 0])
    scale = keras.ops.convert_to_numpy(layer.scale)
    np.testing.assert_allclose(features, inputs[:, None] * scale[0], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_batch_size_does_not_change_the_rows(inputs, batch_size):
    layer = Tokens()
    expected = extract_features(layer, inputs, batch_size=5)
    features = extract_features(layer, inputs, batch_size=batch_size)
    np.testing.assert_allclose(features, expected, rtol=1e-6, atol=1e-8)


def test_every_batch_has_one_shape(inputs):
    for data in (inputs, _dataset(inputs, 4)):
        layer = Tokens()
        extract_features(layer, data, batch_size=4)
        # None: TensorFlow and the symbolic build may leave the batch axis open.
        assert {shape for shape in layer.shapes if shape[0] is not None} <= {(4,)}


@pytest.mark.parametrize("labels", [False, True])
def test_dataset(inputs, labels):
    layer = Tokens()
    expected = extract_features(layer, inputs, batch_size=5)
    features = extract_features(layer, _dataset(inputs, 4, labels))
    np.testing.assert_allclose(features, expected, rtol=1e-6, atol=1e-8)


def test_batches_larger_than_the_first(inputs):
    layer = Tokens()
    expected = extract_features(layer, inputs, batch_size=5)
    features = extract_features(layer, iter([inputs[:2], inputs[2:9], inputs[9:]]))
    np.testing.assert_allclose(features, expected, rtol=1e-6, atol=1e-8)


def test_progress_bar_loses_nothing(inputs, capsys):
    layer = Tokens()
    quiet = extract_features(layer, inputs, batch_size=4)
    assert capsys.readouterr().out == ""
    loud = extract_features(
        layer, inputs, batch_size=4, progress=True, description="probing"
    )
    assert "probing" in capsys.readouterr().out
    np.testing.assert_array_equal(quiet, loud)


def test_the_model_is_left_as_it_was(inputs):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    model.compile(optimizer="sgd", loss="mse")
    optimizer = model.optimizer
    extract_features(model, inputs[:, None], batch_size=4)
    assert model.optimizer is optimizer
    assert model.trainable
    model.fit(inputs[:, None], np.zeros((11, 3)), verbose=0)


def test_refusals(inputs):
    layer = Tokens()
    with pytest.raises(ValueError, match='pooling must be "mean" or a function'):
        extract_features(layer, inputs, pooling="median")
    with pytest.raises(ValueError, match="batch_size"):
        extract_features(layer, inputs, batch_size=0)
    with pytest.raises(ValueError, match=r"one array or an iterable .* a list"):
        extract_features(layer, [inputs])
    with pytest.raises(ValueError, match="at least one example"):
        extract_features(layer, inputs[:0])
    with pytest.raises(ValueError, match=r"shape \(11, 5, 4\)"):
        extract_features(layer, inputs, pooling=lambda tokens: tokens)


def _fold_spectrogram(waveforms):
    """Stands in for a log-mel layer: (batch, 600) -> (batch, 30, 20)."""
    return keras.ops.reshape(waveforms, (-1, 30, 20))


@pytest.fixture
def waveforms():
    return np.random.default_rng(1).normal(size=(7, 600)).astype("float32")


def test_log_mel_statistics(waveforms):
    features = log_mel_features(_fold_spectrogram, waveforms, batch_size=3)
    images = waveforms.reshape(7, 30, 20).astype("float64")
    np.testing.assert_allclose(features[:, :20], images.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(features[:, 20:], images.std(axis=1), atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 16), (8, 5), (30, 20), (12, 48)])
def test_log_mel_resized_against_pillow(waveforms, shape):
    features = log_mel_features(
        _fold_spectrogram, waveforms, "resized", shape=shape, batch_size=3
    )
    for row, waveform in zip(features, waveforms, strict=True):
        image = Image.fromarray(waveform.reshape(30, 20))
        expected = image.resize(shape[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(row, np.asarray(expected).ravel(), atol=1e-5)


@pytest.mark.parametrize("mode", ["statistics", "resized"])
def test_log_mel_of_the_sounding_frames_only(waveforms, mode):
    counts = np.array([30, 11, 5, 30, 1, 29, 17])
    features = log_mel_features(_fold_spectrogram, waveforms, mode, counts)
    changed = waveforms.reshape(7, 30, 20).copy()
    for clip, count in zip(changed, counts, strict=True):
        clip[count:] = 100.0
    result = log_mel_features(_fold_spectrogram, changed.reshape(7, 600), mode, counts)
    np.testing.assert_array_equal(result, features)
    alone = log_mel_features(lambda x: x, changed[1:2, :11, :, None], mode)
    np.testing.assert_allclose(features[1:2], alone, rtol=1e-6)


def test_log_mel_refusals(waveforms):
    with pytest.raises(ValueError, match="mode"):
        log_mel_features(_fold_spectrogram, waveforms, "mean")
    with pytest.raises(ValueError, match=r"\(7, 600\)"):
        log_mel_features(lambda x: x, waveforms)
    for counts in ([1, 2], [0] + [1] * 6, [31] + [1] * 6):
        with pytest.raises(ValueError, match="between 1 and 30"):
            log_mel_features(_fold_spectrogram, waveforms, frame_counts=counts)
