"""What labels and raw inputs of any form mean, the same on every backend."""

import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
import torch
from harness import to_numpy

from keras_bridle.config import ArgumentError
from keras_bridle.evaluation.features import FeatureExtractor, InputFeatures
from keras_bridle.evaluation.probes import knn_probe, linear_probe, probe
from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.layers.pixels import PixelNormalization
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import BridleAudioClassifier, BridleImageClassifier
from keras_bridle.models.converters import (
    BridleAudioPreprocessor,
    BridleImagePreprocessor,
)
from keras_bridle.models.inputs import as_batch, as_labels
from keras_bridle.training.batches import raw_batch
from keras_bridle.training.examples import ArrayExamples
from keras_bridle.training.fine_tune import FineTuner, fine_tune
from keras_bridle.training.interleaved import InterleavedPretraining
from keras_bridle.training.trainers import EncoderPretrainer

NAMES = ["cat", "dog", "owl"]
IMAGES = np.random.default_rng(0).random((6, 8, 8, 1), "float32")
FROM_ONE = np.arange(6) % 3 + 1

# Each takes the place of labels 0, 1, 2, 0, 1, 2.
GOOD_LABELS = {
    "floats": np.arange(6.0) % 3,
    "names": [*NAMES, *NAMES],
    "bytes": np.array([*NAMES, *NAMES], "S"),
    "series": pandas.Series([*NAMES, *NAMES]),
    "categories": pandas.Categorical([*NAMES, *NAMES]),
    "column": np.arange(6)[:, None] % 3,
    "torch": torch.arange(6) % 3,
    "tensorflow": tf.range(6) % 3,
}
BAD_LABELS = {
    "from 1": FROM_ONE,
    "unlabeled": [0, 1, 2, 0, -1, -1],
    "shares": np.linspace(0, 2, 6),
    "missing": [0.0, 1.0, 2.0, np.nan, 1.0, 0.0],
    "unknown name": [*NAMES, "cat", "dog", "emu"],
    "rows of another number": np.zeros((6, 4)),
    "uneven": [[0], [1], [2], [0, 1], [1], [2]],
    "torch": torch.arange(6) - 1,
}


def backbone():
    return BridleBackbone(4, 8, 1, 1, 8, input_dims=(8, 8, 1))


def classifier(**options):
    return BridleImageClassifier(backbone(), class_names=NAMES, **options)


def compiled_tuner(model):
    tuner = FineTuner(model)
    tuner.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    return tuner


@pytest.mark.parametrize("labels", GOOD_LABELS.values(), ids=GOOD_LABELS)
def test_labels_that_mean_the_same(labels):
    found = as_labels(labels, 3, NAMES)
    assert found.dtype == "int32"
    np.testing.assert_array_equal(found, [0, 1, 2, 0, 1, 2])


def test_labels_without_a_meaning():
    """Refused before a weight moves, and what refused them works on."""
    model = classifier()
    before = [np.copy(weight) for weight in model.get_weights()]
    tuner, good = compiled_tuner(classifier()), GOOD_LABELS["names"]
    quiet, tuning = {"verbose": 0}, {"epochs": 1, "batch_size": 2, "verbose": 0}
    for labels in BAD_LABELS.values():
        calls = [
            lambda y: model.fit(IMAGES, y, **quiet),
            lambda y: model.fit(IMAGES, good, validation_data=(IMAGES, y), **quiet),
            lambda y: model.evaluate(IMAGES, y, **quiet),
            lambda y: tuner.fit(IMAGES, y, **quiet),
            lambda y: fine_tune(FineTuner(model), ArrayExamples(IMAGES, y), **tuning),
        ]
        for call in calls:
            with pytest.raises(ArgumentError):
                call(labels)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    model.fit(IMAGES, good, **quiet)
    examples = ArrayExamples(IMAGES, good)
    found = fine_tune(FineTuner(model), examples, examples, **tuning)
    assert 0 <= found.best_score <= 1


def test_rows_of_several_classes():
    model = classifier(multi_label=True)
    rows = np.eye(3)[np.arange(6) % 3]
    model.fit(IMAGES, rows, verbose=0)
    for wrong in (np.arange(6) % 3, 2 * rows, GOOD_LABELS["names"], rows[:, :2]):
        with pytest.raises(ArgumentError):
            model.fit(IMAGES, wrong, verbose=0)
    # Of other losses than cross-entropies labels can be anything.
    model = classifier()
    model.compile("sgd", "mse", metrics=[])
    model.fit(IMAGES, 5 * rows, verbose=0)


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, -1, 0],
        [0.0, 1.0, np.nan, 1.0],
        ["a", None, "b", "a"],
        ["a", np.nan, 1, 1],
    ],
)
def test_probes(labels):
    features = np.random.default_rng(1).normal(size=(4, 5))
    labels = np.array(labels, object if "a" in labels else "float64")
    for call in (linear_probe, knn_probe, lambda *split: probe("dense", *split)):
        with pytest.raises(ArgumentError):
            call(features, labels, features, [0, 1, 0, 1])
    names = np.array(["a", "b", "a", "b"])
    for kind in ("knn", "linear"):
        by_name = probe(kind, features, names, features, names)
        by_number = probe(kind, features, [0, 1, 0, 1], features, [0, 1, 0, 1])
        assert by_name.accuracy == by_number.accuracy


def test_inputs_that_mean_the_same():
    model, extract = classifier(), FeatureExtractor(backbone())
    scores, features = model.predict(IMAGES, verbose=0), extract(IMAGES)
    forms = [
        list(IMAGES),
        IMAGES.tolist(),
        torch.from_numpy(IMAGES),
        tf.constant(IMAGES),
        keras.ops.convert_to_tensor(IMAGES),
    ]
    for inputs in forms:
        found = model.predict(inputs, verbose=0)
        np.testing.assert_allclose(found, scores, rtol=1e-5)
        np.testing.assert_allclose(extract(inputs), features, rtol=1e-5)
    # One input is a batch of one.
    found = model.predict(IMAGES[0], verbose=0)
    np.testing.assert_allclose(found, scores[:1], rtol=1e-5)
    assert extract(IMAGES[0]).shape == (1, 8)
    assert as_batch(np.zeros(5), (None,)).shape == (1, 5)
    half = torch.from_numpy(IMAGES).bfloat16()
    found = model.predict(half, verbose=0)
    np.testing.assert_array_equal(found, model.predict(half.float(), verbose=0))
    for inputs in (*forms, half):
        model.fit(inputs, np.arange(6) % 3, verbose=0)


BAD_INPUTS = [
    [],
    np.zeros((0, 8, 8, 1)),
    np.zeros((2, 0, 8, 1)),
    np.zeros((2, 3, 8, 8, 1)),
    np.zeros(64),
    np.zeros((2, 8, 8, 5)),
    [np.zeros((8, 8, 1)), np.zeros((9, 8, 1))],
    np.full((2, 8, 8, 1), "a"),
]


def test_inputs_without_a_meaning():
    model, encoder = classifier(), backbone()
    expected = model.predict(IMAGES, verbose=0)
    extract = FeatureExtractor(encoder)
    pretraining = InterleavedPretraining(encoder, num_levels=1, codebook_size=4)
    options = {"rounds": 0, "cold_start_epochs": 1, "verbose": 0}
    tuner = compiled_tuner(model)
    calls = [
        lambda inputs: model.predict(inputs, verbose=0),
        lambda inputs: model.fit(inputs, [0], verbose=0),
        extract,
        lambda inputs: pretraining.fit(inputs, **options),
    ]
    for inputs in BAD_INPUTS:
        for call in calls:
            with pytest.raises(ArgumentError):
                call(inputs)
    # Within a trainer, Keras makes errors anew.
    for wrong in (np.zeros((6, 8, 8)), np.zeros((6, 8, 8, 3))):
        with pytest.raises(ValueError, match="input_dims"):
            tuner.fit(wrong, np.arange(6) % 3, verbose=0)
    np.testing.assert_array_equal(model.predict(IMAGES, verbose=0), expected)
    assert to_numpy(encoder(IMAGES)).shape == (6, 5, 8)


def test_pixels_of_16_bits_in_any_form():
    deep = (IMAGES * 65535).astype("uint16")
    shallow = (deep >> 8).astype("uint8")
    labels = np.arange(6) % 3
    model, extract = classifier(), FeatureExtractor(backbone())
    tuner = compiled_tuner(model)
    calls = [
        lambda x: model.predict(x, verbose=0),
        lambda x: extract([x[:4], x[4:]]),
        lambda x: extract(torch.utils.data.DataLoader(list(x), 2)),
        lambda x: tuner.evaluate(x, labels, verbose=0),
        lambda x: next(ArrayExamples(x, labels).batches_in_order(6))[0],
        lambda x: raw_batch((x, labels), (None, None, 1)),
    ]
    for call in calls:
        np.testing.assert_allclose(call(deep), call(shallow), rtol=1e-5)


def pixel_encoder(**options):
    layer = PixelNormalization(0.5, 0.25, **options)
    return BridleBackbone(4, 8, 1, 1, 8, input_dims=(8, 8, 1), front_end=layer)


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype("float32")
NO_PIXELS = {
    "shares of white": PIXELS / 255,
    "one color": np.full_like(PIXELS, 0.3),
    "normalized": PIXELS / 64 - 2,
    "16 bits": PIXELS * 257,
    "not a number": np.where(PIXELS > 250, np.nan, PIXELS),
    "infinite": np.where(PIXELS > 250, np.inf, PIXELS),
}


def test_floats_that_are_no_pixels():
    """They would be learned from as nearly black pictures."""
    encoder, labels, quiet = pixel_encoder(), np.arange(6) % 3, {"verbose": 0}
    model = BridleImageClassifier(encoder, 3)
    raw = BridleImagePreprocessor.for_backbone(encoder)
    with_preprocessor = BridleImageClassifier(pixel_encoder(), 3, preprocessor=raw)
    pretraining = InterleavedPretraining(
        encoder, num_levels=1, codebook_size=4, code_dim=4
    )
    options = {"rounds": 0, "cold_start_epochs": 1, "batch_size": 3, "verbose": 0}
    pretraining.fit(PIXELS, **options)
    trainer = EncoderPretrainer(
        pixel_encoder(), pretraining.decoder, pretraining.tokenizer
    )
    trainer.compile("sgd")
    tuning = {"epochs": 1, "batch_size": 2, "verbose": 0}
    calls = [
        lambda x: model.fit(x, labels, **quiet),
        lambda x: model.fit(list(x), labels, **quiet),
        lambda x: model.fit(
            torch.utils.data.DataLoader([*zip(x, labels, strict=True)], 3)
        ),
        lambda x: model.evaluate(torch.from_numpy(x), labels, **quiet),
        lambda x: model.predict(x, **quiet),
        lambda x: model.predict(x[0], **quiet),
        lambda x: model.train_on_batch(x, labels),
        lambda x: model.predict_on_batch(x),
        lambda x: with_preprocessor.predict([x[0], x[0, :7]], **quiet),
        lambda x: compiled_tuner(model).fit(x, labels, **quiet),
        lambda x: fine_tune(FineTuner(model), ArrayExamples(x, labels), **tuning),
        FeatureExtractor(encoder),
        lambda x: FeatureExtractor(encoder)([x[:3], x[3:]]),
        InputFeatures(encoder),
        pretraining.codes,
        lambda x: pretraining.fit(x, **options),
        lambda x: pretraining.fit([x[:3], x[3:]], **options),
        lambda x: pretraining.fit(tf.data.Dataset.from_tensors(x), **options),
        lambda x: trainer.fit(x, **quiet),
    ]
    before = [np.copy(weight) for weight in model.get_weights()]
    for inputs in NO_PIXELS.values():
        for call in calls:
            with pytest.raises(ArgumentError, match="pixels from 0 to 255"):
                call(inputs)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    # On TensorFlow, the error comes within a step, beside the weight decay.
    wrong = (NO_PIXELS["shares of white"], labels), (PIXELS, labels + 99)
    for batch, expected in zip(wrong, ("pixels from 0 to 255", "labels"), strict=True):
        with pytest.raises(ArgumentError, match=expected):
            model.fit(tf.data.Dataset.from_tensors(batch), **quiet)
    # Bicubic filters overshoot a little, and pictures may be black.
    good = (PIXELS * 1.2 - 20, 0 * PIXELS, (PIXELS > 99).astype("uint8"))
    for inputs in good:
        assert np.isfinite(model.predict(inputs, **quiet)).all()
        assert FeatureExtractor(encoder)(inputs).shape == (6, 8)
        model.fit(inputs, labels, **quiet)
    for encoder in (pixel_encoder(scale=1.0), backbone()):
        assert FeatureExtractor(encoder)(PIXELS / 255).shape == (6, 8)


def test_waveforms_of_16_bits():
    encoder = BridleBackbone(
        16, 8, 1, 1, 8, input_dims=(None,), front_end=LogMelSpectrogram(num_mel_bins=16)
    )
    model, extract = BridleAudioClassifier(encoder, 2), FeatureExtractor(encoder)
    raw = BridleAudioPreprocessor.for_backbone(encoder)
    converted = BridleAudioClassifier(encoder, 2, preprocessor=raw)
    converted.set_weights(model.get_weights())
    deep = np.random.default_rng(0).integers(-9999, 9999, (2, 4000)).astype("int16")
    waves = deep.astype("float32") / 32768
    calls = [
        lambda x: model.predict(x, verbose=0),
        lambda x: converted.predict(x, verbose=0),
        lambda x: model.predict(x[0], verbose=0),
        lambda x: to_numpy(model(x)),
        lambda x: to_numpy(model(x[0])),
        extract,
        lambda x: extract([x]),
        lambda x: raw_batch(x, (None,)),
        lambda x: ArrayExamples(x, [0, 1]).inputs,
    ]
    for call in calls:
        np.testing.assert_allclose(call(deep), call(waves), rtol=1e-4, atol=1e-6)
        assert np.abs(call(waves)).max() > 1e-6
    for call in calls[:2]:
        with pytest.raises(ArgumentError, match="16-bit"):
            call(deep.astype("int32"))


@pytest.mark.every_backend
def test_one_input_is_a_batch_of_one():
    model = classifier()
    scores, quiet = to_numpy(model(IMAGES[:1])), {"verbose": 0}
    for found in (
        model(IMAGES[0]),
        model(keras.ops.convert_to_tensor(IMAGES[0])),
        model.predict_on_batch(IMAGES[0]),
    ):
        np.testing.assert_allclose(to_numpy(found), scores, rtol=1e-5)
    np.testing.assert_allclose(
        to_numpy(model.backbone(IMAGES[0])),
        to_numpy(model.backbone(IMAGES[:1])),
        rtol=1e-5,
    )
    assert model(keras.Input((8, 8, 1))).shape == (None, 3)
    for label in (1, [1], "dog"):
        assert np.isfinite(model.train_on_batch(IMAGES[0], label)).all()
        assert np.isfinite(model.evaluate(IMAGES[0], label, **quiet)).all()
    for network in (model, model.backbone):
        for inputs in BAD_INPUTS[3:6]:
            # Keras would give all their numbers, and take an axis of one for the batch.
            with pytest.raises(ArgumentError) as found:
                network(inputs)
            assert "\n" not in str(found.value)


@pytest.mark.every_backend
def test_weights_outlast_a_data_set_that_breaks_off():
    """Keras takes them from a model that it evaluates on JAX."""
    model, labels = classifier(), np.arange(6) % 3
    scores = model.predict(IMAGES, verbose=0)

    def batches():
        yield IMAGES[:3], labels[:3]
        yield IMAGES[3:], labels[3:]
        raise OSError("a disk is gone")

    for call in (model.evaluate, model.predict, model.fit):
        with pytest.raises(Exception, match="disk"):  # TensorFlow wraps it
            call(batches(), verbose=0)
        found = model.predict(IMAGES, verbose=0)
        assert np.isfinite(found).all()
        if call != model.fit:
            np.testing.assert_array_equal(found, scores)


@pytest.mark.every_backend
def test_labels_are_needed():
    model, quiet = classifier(), {"verbose": 0}
    tuner, labels = compiled_tuner(classifier()), np.arange(6) % 3
    loader = torch.utils.data.DataLoader(list(IMAGES), 3)
    tf_data = tf.data.Dataset.from_tensor_slices(IMAGES).batch(3)
    calls = [
        lambda x: model.fit(x, **quiet),
        lambda x: model.evaluate(x, **quiet),
        lambda x: model.fit(IMAGES, labels, validation_data=x, **quiet),
        lambda x: tuner.fit(x, **quiet),
    ]
    for call in calls:
        for inputs in (IMAGES, list(IMAGES), [*loader], loader, tf_data):
            if call is calls[2] and isinstance(inputs, np.ndarray | list):
                inputs = (np.array(inputs[0])[None],)
            with pytest.raises(ArgumentError, match="labels, one for each input"):
                call(inputs)
    for wrong in (None, labels + 1, labels + 0.5, -labels, np.zeros((6, 2))):
        for call in (model.train_on_batch, model.test_on_batch):
            with pytest.raises(ArgumentError):
                call(IMAGES, wrong)
    # What refused them works on.
    model.fit(IMAGES, labels, validation_data=(IMAGES, labels), **quiet)
    by_name = model.test_on_batch(IMAGES, np.array(NAMES)[labels])
    np.testing.assert_allclose(by_name, model.test_on_batch(IMAGES, labels), rtol=1e-5)


@pytest.mark.one_backend
def test_unknown_arguments_are_named(tmp_path):
    calls = [
        lambda **more: BridleBackbone(4, 8, 1, 1, 8, (8, 8, 1), **more),
        lambda **more: classifier(**more),
        lambda **more: BridleBackbone.from_preset(
            "bridle_image_tiny", load_weights=False, **more
        ),
    ]
    for make in calls:
        with pytest.raises(ArgumentError, match="`num_layer` must be an argument of"):
            make(num_layer=3)
        found = make(name="mine", dtype="bfloat16", trainable=False)
        assert found.name == "mine" and not found.trainable_weights
    model = classifier(name="mine", compile=False)
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").name == "mine"
    assert type(model).from_config(model.get_config()).name == "mine"
