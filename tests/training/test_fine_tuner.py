import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle import BridleBackbone, BridleImageClassifier, MixedBatch
from keras_bridle.training.fine_tune import FineTuner

DIMS = (16, 16, 1)


def classifier(**settings):
    backbone = BridleBackbone(
        patch_size=8,
        hidden_dim=16,
        num_layers=1,
        num_heads=2,
        mlp_dim=32,
        input_dims=DIMS,
    )
    return BridleImageClassifier(backbone, num_classes=3, **settings)


def images(count=6):
    return np.random.default_rng(0).normal(size=(count, *DIMS)).astype("float32")


@keras.saving.register_keras_serializable(package="keras_bridle_tests")
class Turned(keras.layers.Layer):
    """Mixes each example with the one before it, three quarters of its own."""

    def call(self, inputs, training=None):
        count = ops.shape(inputs)[0]
        partners = ops.cast(ops.mod(ops.arange(count) - 1, count), "int32")
        shares = ops.full((count,), 0.75)
        others = ops.take(inputs, partners, axis=0)
        return MixedBatch(0.75 * inputs + 0.25 * others, partners, shares)


def compiled(tuner, smoothing=0.0, loss=keras.losses.CategoricalCrossentropy):
    tuner.compile(
        keras.optimizers.SGD(0.0), loss(from_logits=True, label_smoothing=smoothing)
    )
    return tuner


def log_softmax(logits):
    logits = np.asarray(logits, "float64")
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def logits_of(model, inputs):
    return ops.convert_to_numpy(model(inputs))


def test_loss_of_repeated_and_mixed_examples():
    model = classifier()
    tuner = compiled(FineTuner(model, mix=Turned(), repeats=2), smoothing=0.1)
    inputs, labels = images(), np.array([0, 1, 2, 2, 1, 0])
    found = tuner.train_on_batch(inputs, labels)
    repeated = np.repeat(inputs, 2, axis=0)
    targets = np.repeat(np.eye(3)[labels], 2, axis=0)
    mixed = 0.75 * repeated + 0.25 * np.roll(repeated, 1, axis=0)
    targets = 0.75 * targets + 0.25 * np.roll(targets, 1, axis=0)
    targets = 0.9 * targets + 0.1 / 3
    expected = -(targets * log_softmax(logits_of(model, mixed))).sum(axis=1).mean()
    np.testing.assert_allclose(float(np.ravel(found)[0]), expected, rtol=1e-5)


def test_nothing_is_mixed_or_repeated_in_evaluation():
    model = classifier()
    tuner = compiled(FineTuner(model, mix=Turned(), repeats=2))
    inputs, labels = images(), np.array([0, 1, 2, 2, 1, 0])
    found = tuner.test_on_batch(inputs, labels)
    logits = logits_of(model, inputs)
    expected = -log_softmax(logits)[np.arange(6), labels].mean()
    np.testing.assert_allclose(float(np.ravel(found)[0]), expected, rtol=1e-5)
    predicted = tuner.predict_on_batch(inputs)["logits"]
    np.testing.assert_allclose(predicted, logits, rtol=1e-4, atol=1e-5)


def test_binary_loss_of_several_labels():
    model = classifier(multi_label=True)
    tuner = compiled(FineTuner(model), loss=keras.losses.BinaryCrossentropy)
    inputs = images()
    labels = np.random.default_rng(1).integers(0, 2, (6, 3)).astype("float32")
    found = tuner.train_on_batch(inputs, labels)
    shares = 1 / (1 + np.exp(-logits_of(model, inputs).astype("float64")))
    likely = np.where(labels == 1, shares, 1 - shares)
    np.testing.assert_allclose(
        float(np.ravel(found)[0]), -np.log(likely).mean(), rtol=1e-5
    )


def test_augmentation_gives_inputs_their_size():
    crop = keras.layers.CenterCrop(16, 16)
    tuner = compiled(FineTuner(classifier(), augmentation=crop))
    large = np.zeros((2, 20, 20, 1), "float32")
    assert tuner.predict_on_batch(large)["logits"].shape == (2, 3)


def test_saved_and_loaded(tmp_path):
    tuner = compiled(FineTuner(classifier(), mix=Turned(), repeats=3))
    tuner.save(tmp_path / "tuner.keras")
    loaded = keras.saving.load_model(tmp_path / "tuner.keras")
    assert loaded.repeats == 3 and isinstance(loaded.mix, Turned)
    np.testing.assert_allclose(
        loaded.predict_on_batch(images())["logits"],
        tuner.predict_on_batch(images())["logits"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_wrong_settings():
    with pytest.raises(ValueError):
        FineTuner(classifier(), repeats=0)
    with pytest.raises(ValueError):
        FineTuner(classifier(activation="softmax"))
