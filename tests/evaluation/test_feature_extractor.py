import keras
import numpy as np
import pytest

from keras_bridle.evaluation.features import FeatureExtractor, extract_features


class Scale(keras.layers.Layer):
    """Multiplies numbers to vectors, and counts how often it is traced."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")

    def call(self, inputs):
        self.calls += 1
        return inputs[:, None] * self.scale


def test_features_are_those_of_the_weights_as_they_are_and_compile_once():
    model, inputs = Scale(), np.arange(11, dtype="float32")
    extract = FeatureExtractor(model)
    train, test = extract(inputs[:7], batch_size=4), extract(inputs[7:], batch_size=4)
    np.testing.assert_array_equal(train, np.repeat(inputs[:7, None], 4, 1))
    np.testing.assert_array_equal(test, np.repeat(inputs[7:, None], 4, 1))
    traced = model.calls
    model.scale.assign([1.0, 2.0, 3.0, 4.0])
    changed = extract(inputs, batch_size=4)
    np.testing.assert_array_equal(changed, inputs[:, None] * [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(changed, extract_features(model, inputs))
    if keras.backend.backend() != "torch":  # which compiles nothing
        once = Scale()
        FeatureExtractor(once)(inputs, batch_size=4)
        assert traced == once.calls


@pytest.mark.parametrize(
    ("options", "message"),
    [({"pooling": "max"}, "pooling must be"), ({"segments": 2}, "segments need")],
)
def test_wrong_arguments_are_told_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        FeatureExtractor(Scale(), **options)
