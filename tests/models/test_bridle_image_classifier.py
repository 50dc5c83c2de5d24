import numpy as np
import pytest
from harness import perturb, run, to_numpy

from keras_bridle.layers.pixels import PixelNormalization
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import (
    BridleAudioClassifier,
    BridleImageClassifier,
    BridleVideoClassifier,
)
from keras_bridle.models.converters import BridleImageConverter, BridleImagePreprocessor


def backbone(**settings):
    settings = {"input_dims": (8, 12, 1), "trained_grid": "input", **settings}
    made = BridleBackbone(
        4, 16, 1, 2, 32, front_end=PixelNormalization(0.5, 0.25), **settings
    )
    perturb(made.weights)
    return made


def pictures(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


def test_fit_raw_pictures(tmp_path):
    backbone().save_to_preset(str(tmp_path))
    model = BridleImageClassifier.from_preset(
        str(tmp_path), class_names=["dark", "light"]
    )
    labels = [0, 1] * 4
    seen = [
        pictures(20 + 2 * i, 30, 3) // 2 + 127 * label for i, label in enumerate(labels)
    ]
    model.optimizer.learning_rate = 5e-3
    model.fit(seen, labels, batch_size=4, epochs=25, verbose=0)
    # What Keras takes as arrays is taken as lists.
    heavy = model.evaluate(
        seen, labels, sample_weight=[2.0] * 8, verbose=0, return_dict=True
    )
    light = model.evaluate(seen, labels, verbose=0, return_dict=True)
    assert heavy["loss"] == pytest.approx(2 * light["loss"], rel=1e-4)
    model.fit(seen, labels, sample_weight=[0.0] * 8, verbose=0)
    named = model.predict_classes(seen)
    assert [best.name for (best,) in named] == [model.class_names[i] for i in labels]


def test_encoder_sees_what_the_converter_makes():
    preprocessor = BridleImagePreprocessor(BridleImageConverter((8, 12), channels=1))
    model = BridleImageClassifier(backbone(), 3, preprocessor)
    perturb(model.weights)
    images = pictures(2, 30, 40, 3)
    converted = to_numpy(preprocessor(images))
    expected = run(lambda: model(converted), model)
    found = model.predict(images, verbose=0)
    np.testing.assert_allclose(found, expected, 1e-5, 1e-5)


def test_from_the_preset_of_a_run(tmp_path):
    encoder = backbone()
    encoder.save_to_preset(str(tmp_path / "runs" / "preset"))
    for folder in (tmp_path / "runs", tmp_path / "runs" / "preset"):
        model = BridleImageClassifier.from_preset(
            str(folder), num_classes=5, drop_path_rate=0.2
        )
        assert model.backbone.drop_path_rate == 0.2
        assert isinstance(model.preprocessor, BridleImagePreprocessor)
        converter = model.preprocessor.image_converter
        assert (converter.image_size, converter.channels) == ((8, 12), 1)
        for ours, right in zip(model.backbone.weights, encoder.weights, strict=True):
            np.testing.assert_array_equal(to_numpy(ours), to_numpy(right))
        assert model.predict(pictures(2, 20, 30, 3), verbose=0).shape == (2, 5)
    fresh = BridleImageClassifier.from_preset(
        str(tmp_path / "runs"), load_weights=False, num_classes=5
    )
    kernel = to_numpy(fresh.backbone.blocks[0].qkv.kernel)
    assert np.abs(kernel - to_numpy(encoder.blocks[0].qkv.kernel)).max() > 0.1


def test_preset_of_another_modality(tmp_path):
    backbone().save_to_preset(str(tmp_path / "run" / "preset"))
    BridleImageClassifier(backbone(), 3).save_to_preset(str(tmp_path / "classifier"))
    for folder in ("run", "run/preset", "classifier"):
        for kind, modality in (
            (BridleVideoClassifier, "video"),
            (BridleAudioClassifier, "audio"),
        ):
            message = f"`{kind.__name__}` needs an encoder for {modality}.* for image"
            with pytest.raises(ValueError, match=message):
                kind.from_preset(str(tmp_path / folder), num_classes=2)


def test_preset_of_a_classifier(tmp_path):
    model = BridleImageClassifier(
        backbone(), 3, BridleImagePreprocessor(BridleImageConverter((16, 16)))
    )
    perturb(model.weights)
    model.save_to_preset(str(tmp_path))
    loaded = BridleImageClassifier.from_preset(str(tmp_path))
    assert loaded.preprocessor.image_converter.image_size == (16, 16)
    images = pictures(2, 20, 20, 1)
    np.testing.assert_allclose(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0), 1e-5, 1e-5
    )
