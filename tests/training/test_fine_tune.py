"""Fine-tuning: its loss, its best epoch, its averages, and how it resumes."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle import (
    BridleBackbone,
    BridleImageClassifier,
    MixedBatch,
    RandomImageMix,
)
from keras_bridle.config import ArgumentError
from keras_bridle.training.checkpoint import SaveError
from keras_bridle.training.examples import ArrayExamples
from keras_bridle.training.fine_tune import (
    FineTuner,
    ValidationScores,
    averaged_weights,
    fine_tune,
    predict_examples,
)

DIMS = (16, 16, 1)


def classifier(num_classes=3, drop_path_rate=0.0, **settings):
    keras.utils.set_random_seed(1)
    backbone = BridleBackbone(
        8, 16, 1, 2, 32, input_dims=DIMS, drop_path_rate=drop_path_rate
    )
    return BridleImageClassifier(backbone, num_classes=num_classes, **settings)


def tuner(**settings):
    return FineTuner(classifier(2, drop_path_rate=0.1), **settings)


def examples(count=24, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = random.normal(size=(count, 16, 16, 1)).astype("float32")
    images[labels == 1, 4:12, 4:12] += 1.5
    return ArrayExamples(images, labels)


SETTINGS = {"batch_size": 8, "learning_rate": 5e-3, "verbose": 0}


def test_learns_and_keeps_the_best_epoch(tmp_path):
    model, validation = tuner(), examples(32, seed=1)
    options = {"epochs": 8, "warmup_epochs": 1, "directory": tmp_path}
    found = fine_tune(model, examples(), validation, **options, **SETTINGS)
    scores = found.history["val_accuracy"]
    assert len(scores) == 8 and max(scores) > 0.8
    assert found.best_score == max(scores)
    assert found.best_epoch == int(np.argmax(scores))
    # The classifier has the weights of that epoch.
    predictions = predict_examples(model, validation, 8)
    accuracy = (predictions.scores.argmax(axis=1) == validation.labels).mean()
    assert accuracy == pytest.approx(found.best_score)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert len(lines) == 9 and "val_accuracy" in lines[0]
    with pytest.raises(FileExistsError):
        fine_tune(tuner(), examples(), epochs=1, directory=tmp_path, **SETTINGS)


@pytest.mark.every_backend
def test_a_resumed_run_is_the_one_it_would_have_been(tmp_path):
    def run(directory, **kwargs):
        model = tuner(mix=RandomImageMix(seed=0))
        options = {"epochs": 4, "checkpoint_every": 1, "ema_momentum": 0.9, **SETTINGS}
        options |= {"directory": tmp_path / directory, **kwargs}
        found = fine_tune(model, examples(), examples(8, seed=1), **options)
        return found, model.classifier.get_weights()

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise InterruptedError

    expected, weights = run("whole")
    with pytest.raises(InterruptedError):
        run("parts", callbacks=[Stop()])
    found, resumed = run("parts", resume=True)
    for name, values in expected.history.items():
        np.testing.assert_allclose(found.history[name], values, 1e-4, 1e-5, name)
    assert found[1:] == pytest.approx(expected[1:])
    for first, second in zip(resumed, weights, strict=True):
        np.testing.assert_allclose(first, second, 1e-3, 1e-5)
    # What is done is only loaded.
    again, loaded = run("whole", resume=True, callbacks=[Stop()])
    assert again == expected
    for first, second in zip(loaded, weights, strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_best_weights_are_there_whole_or_not_at_all(tmp_path, monkeypatch):
    model = tuner()
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    scores = ValidationScores(examples(8), tmp_path / "best.weights.h5")
    scores.set_model(model)
    scores.on_epoch_end(0)
    before = scores.path.read_bytes()

    def stop(path):
        Path(path).write_bytes(b"half")
        # As HDF5 tells it.
        raise RuntimeError("Can't write data (error message = 'No space left')")

    monkeypatch.setattr(model.classifier, "save_weights", stop)
    scores.best = -1.0
    with pytest.raises(SaveError) as caught:
        scores.on_epoch_end(1)
    assert caught.value.path == scores.path
    assert scores.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [scores.path]


def test_averaged_weights_are_scored_and_kept():
    def most_moved(**settings):
        model = tuner()
        before = [np.copy(weight) for weight in model.classifier.get_weights()]
        fine_tune(
            model, examples(), examples(8, seed=1), epochs=3, **SETTINGS, **settings
        )
        after = model.classifier.get_weights()
        return max(np.abs(x - y).max() for x, y in zip(before, after, strict=True))

    # The first step is as long as the learning rate, and an average that hardly moves
    # stays there.
    assert 4e-3 < most_moved(ema_momentum=0.9999) < 6e-3
    assert most_moved() > 1e-2


def test_weights_are_given_back():
    model = tuner()
    fine_tune(model, examples(), epochs=1, ema_momentum=0.5, **SETTINGS)
    values = [np.copy(weight) for weight in model.get_weights()]
    for variable in model.trainable_variables:
        variable.assign(variable + 1.0)
    with averaged_weights(model):
        inside = [np.copy(weight) for weight in model.get_weights()]
    for first, second, third in zip(values, inside, model.get_weights(), strict=True):
        # Averages are what training ended with.
        np.testing.assert_array_equal(first, second)
        assert (third == first).all() or (third == first + 1).all()


def test_several_labels_need_binary_losses_and_some_to_validate(tmp_path):
    model, inputs = tuner(), examples(16).inputs
    model.classifier.multi_label = True
    data = ArrayExamples(inputs, np.eye(2, dtype="uint8")[np.arange(16) % 2])
    nothing = ArrayExamples(inputs, np.zeros((16, 2), "uint8"))
    for validation, loss, name in (
        (None, "categorical", "loss"),
        (nothing, "auto", "validation"),
    ):
        settings = {"epochs": 1, "loss": loss, "directory": tmp_path / "run"}
        with pytest.raises(ArgumentError) as caught:
            fine_tune(model, data, validation, **settings, **SETTINGS)
        assert caught.value.argument == name
    assert not (tmp_path / "run").exists()


def test_one_class_that_an_example_may_have_or_not():
    keras.utils.set_random_seed(1)
    model = BridleImageClassifier(
        tuner().classifier.backbone, class_names=["cough"], multi_label=True
    )
    data = examples(48)
    data = ArrayExamples(data.inputs, data.labels[:, None].astype("uint8"))
    found = fine_tune(FineTuner(model), data, data, epochs=6, **SETTINGS)
    assert found.best_score > 0.8


def test_balanced_epochs_of_a_given_length():
    rare = examples(40)
    rare = rare.subset(np.flatnonzero((rare.labels == 0) | (np.arange(40) < 6)))
    found = fine_tune(
        tuner(), rare, epochs=1, balanced=True, epoch_length=64, **SETTINGS
    )
    assert found.best_score is None and found.best_epoch == 0
    make, steps = rare.training_batches(8, 0, np.full(23, 1 / 23), 64)
    assert steps == 8
    assert len(make(0)[7][1]) == 8


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_epochs": 5},
        {"epoch_length": 99},
        {"gradient_accumulation_steps": 99},
        {"metric": "accuracy", "multi_label": True},
    ],
)
def test_wrong_settings(settings, tmp_path):
    model = tuner()
    model.classifier.multi_label = settings.pop("multi_label", False)
    options = {"epochs": 2, "directory": tmp_path / "run", **SETTINGS, **settings}
    with pytest.raises(ArgumentError) as caught:
        fine_tune(model, examples(), **options)
    assert caught.value.argument in settings
    assert not (tmp_path / "run").exists()


IMAGES = np.random.default_rng(0).normal(size=(6, *DIMS)).astype("float32")
LABELS = np.array([0, 1, 2, 2, 1, 0])


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
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def logits_of(model, inputs):
    return ops.convert_to_numpy(model(inputs)).astype("float64")


def test_loss_of_repeated_and_mixed_examples():
    model = classifier()
    tuner = compiled(FineTuner(model, mix=Turned(), repeats=2), smoothing=0.1)
    found = tuner.train_on_batch(IMAGES, LABELS)
    repeated = np.repeat(IMAGES, 2, axis=0)
    targets = np.repeat(np.eye(3)[LABELS], 2, axis=0)
    mixed = 0.75 * repeated + 0.25 * np.roll(repeated, 1, axis=0)
    targets = 0.75 * targets + 0.25 * np.roll(targets, 1, axis=0)
    targets = 0.9 * targets + 0.1 / 3
    expected = -(targets * log_softmax(logits_of(model, mixed))).sum(axis=1).mean()
    np.testing.assert_allclose(float(np.ravel(found)[0]), expected, rtol=1e-5)


def test_nothing_is_mixed_or_repeated_in_evaluation():
    model = classifier()
    # An augmentation gives inputs their size, also here.
    crop = keras.layers.CenterCrop(16, 16)
    tuner = FineTuner(model, augmentation=crop, mix=Turned(), repeats=2)
    large = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    found = compiled(tuner).test_on_batch(large, LABELS)
    logits = logits_of(model, IMAGES)
    expected = -log_softmax(logits)[np.arange(6), LABELS].mean()
    np.testing.assert_allclose(float(np.ravel(found)[0]), expected, rtol=1e-5)
    predicted = tuner.predict_on_batch(large)["logits"]
    np.testing.assert_allclose(predicted, logits, rtol=1e-4, atol=1e-5)


def test_binary_loss_of_several_labels():
    model = classifier(multi_label=True)
    tuner = compiled(FineTuner(model), loss=keras.losses.BinaryCrossentropy)
    labels = np.random.default_rng(1).integers(0, 2, (6, 3)).astype("float32")
    found = float(np.ravel(tuner.train_on_batch(IMAGES, labels))[0])
    shares = 1 / (1 + np.exp(-logits_of(model, IMAGES)))
    likely = np.where(labels == 1, shares, 1 - shares)
    np.testing.assert_allclose(found, -np.log(likely).mean(), rtol=1e-5)


def test_saved_and_loaded(tmp_path):
    tuner = compiled(FineTuner(classifier(), mix=Turned(), repeats=3))
    tuner.save(tmp_path / "tuner.keras")
    loaded = keras.saving.load_model(tmp_path / "tuner.keras")
    assert loaded.repeats == 3 and isinstance(loaded.mix, Turned)
    found, expected = (x.predict_on_batch(IMAGES)["logits"] for x in (loaded, tuner))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for repeats, activation in ((0, None), (1, "softmax")):
        with pytest.raises(ValueError):
            FineTuner(classifier(activation=activation), repeats=repeats)
