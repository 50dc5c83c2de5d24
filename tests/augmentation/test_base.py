import keras
import numpy as np
import pytest
from harness import to_numpy
from keras import ops

import keras_bridle as kb
from keras_bridle.augmentation.base import mix_labels


def erasing(seed=None):
    settings = {"fill_value": 0, "seed": seed, "dtype": "float32"}
    return kb.ImageAugmentation(keras.layers.RandomErasing((1.0, 1.0), **settings))


WAVEFORMS = np.random.default_rng(0).normal(size=(8, 50)).astype("float32")
MAPS = np.random.default_rng(0).normal(size=(8, 30, 20, 1)).astype("float32")
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 12, 16, 3), "uint8")
CLIPS = np.repeat(IMAGES[:, None], 3, axis=1)


RESIZING = (kb.RandomResizedCrop, kb.RandomMultiScaleCrop)


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (kb.RandomWaveformGain, WAVEFORMS),
        (kb.RandomWaveformRoll, WAVEFORMS),
        (kb.RandomWaveformMix, WAVEFORMS),
        (kb.SpecAugment, MAPS),
        (kb.RandomHorizontalFlip, CLIPS),
        (kb.RandomResizedCrop, CLIPS),
        (kb.RandomMultiScaleCrop, CLIPS),
        (kb.RandAugment, IMAGES),
        (erasing, CLIPS[..., :1]),
        (kb.RandomImageMix, CLIPS),
    ],
)
def test_seed_inference_and_frames(kind, inputs):
    size = [(6, 8)] if kind in RESIZING else []
    first, same, other = (kind(*size, seed=seed) for seed in (1, 1, 2))
    one, two, three, later = (
        to_numpy(keras.tree.flatten(layer(inputs, training=True))[0])
        for layer in (first, same, other, first)
    )
    np.testing.assert_array_equal(one, two)
    assert (one != three).any() and (one != later).any()
    if kind not in RESIZING:
        found = to_numpy(keras.tree.flatten(first(inputs, training=False)))
        np.testing.assert_array_equal(found[0], inputs)
        if len(found) == 3:
            np.testing.assert_array_equal(found[1], np.arange(8))
            np.testing.assert_array_equal(found[2], np.ones(8))
    if inputs.ndim == 5:
        # All frames of a clip are changed alike.
        np.testing.assert_allclose(one[:, 1:], one[:, :-1], atol=1e-3)
    with pytest.raises(ValueError):
        first(np.ones((5, 5)[: inputs.ndim - 1], "float32"), training=True)


def test_inside_a_training_step():
    clips = np.random.default_rng(0).normal(size=(64, 100)).astype("float32")

    def losses():
        inputs = keras.Input((None,))
        outputs = kb.RandomWaveformGain(seed=3)(kb.RandomWaveformRoll(seed=3)(inputs))
        model = keras.Model(inputs, outputs)
        # Compiling takes torch minutes on a CPU.
        jit_compile = keras.backend.backend() != "torch"
        model.compile("sgd", loss="mae", jit_compile=jit_compile)
        steps = [float(model.train_on_batch(clips, clips)) for _ in range(2)]
        assert model.test_on_batch(clips, clips) == 0
        return steps

    first = losses()
    assert first == losses()
    assert first[0] != first[1]


def test_labels_are_mixed_alike():
    labels = ops.convert_to_tensor(np.eye(3, dtype="float32"))
    partners, shares = np.int32([1, 2, 0]), np.float32([1.0, 0.75, 0.5])
    found = to_numpy(mix_labels(labels, partners, shares))
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 0.75, 0.25], [0.5, 0, 0.5]])
