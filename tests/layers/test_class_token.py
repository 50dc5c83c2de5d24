import numpy as np
from harness import to_numpy

from keras_bridle.layers.patches import ClassToken


def test_same_token_in_front_of_every_sequence():
    tokens = np.random.default_rng(0).normal(size=(3, 4, 6)).astype("float32")
    layer = ClassToken()
    out = to_numpy(layer(tokens))
    token = to_numpy(layer.class_token)[0, 0]
    assert out.shape == (3, 5, 6)
    np.testing.assert_array_equal(out[:, 0], np.broadcast_to(token, (3, 6)))
    np.testing.assert_array_equal(out[:, 1:], tokens)
    assert 0 < np.abs(token).max() < 0.15
    assert layer.compute_output_shape((None, 4, 6)) == (None, 5, 6)
    assert layer.compute_output_shape((None, None, 6)) == (None, None, 6)
