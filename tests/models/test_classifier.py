"""Tests of the classifiers of all modalities."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from harness import perturb, run, to_numpy

import keras_bridle as kb
from keras_bridle.models.classifier import ClassScore

SIZES = {"hidden_dim": 16, "num_heads": 2, "mlp_dim": 32}


def backbone(num_layers=1, front_end=kb.LogMelSpectrogram, **settings):
    return kb.BridleBackbone(
        patch_size=(4, 8),
        num_layers=num_layers,
        input_dims=(None,),
        front_end=front_end(num_mel_bins=16),
        **SIZES,
        **settings,
    )


def classifier(encoder=None, **settings):
    settings = {"num_classes": 3, "compile": False, **settings}
    made = kb.BridleAudioClassifier(encoder or backbone(), **settings)
    perturb(made.weights)
    return made


def clips(*frames, longest=12):
    """Noise with so many real frames each, padded with zeros."""
    rng = np.random.default_rng(0)
    made = rng.uniform(-1, 1, (len(frames), 400 + (longest - 1) * 160))
    for clip, count in zip(made, frames, strict=True):
        clip[400 + (count - 1) * 160 :] = 0.0
    return made.astype("float32")


def outputs(model, inputs):
    return run(lambda: model(inputs), model)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, tolerance, tolerance)


def test_padding_has_no_say():
    model, x = classifier(token_mask=kb.RandomMask(0.5)), clips(12, 4)
    maps, mask = model.backbone.maps(x)
    # The second clip, of which patches 0 and 1 are real, shows both and a padded one.
    noise = np.float32([[5, 0, 3, 1, 4, 2], [1, 0, 2, 3, 4, 5]])

    def values():
        masked = model.classify(maps, mask, noise=noise, training=True)
        return model(x), model.classify(maps, mask), masked

    called, whole, masked = run(values, model)
    close(called, whole)
    alone = outputs(model, x[1:, : 400 + 3 * 160])
    close(called[1:], alone, 2e-5)
    close(masked[1:], alone, 2e-5)
    assert np.abs(whole - masked)[0].max() > 1e-2


@keras.saving.register_keras_serializable(package="keras_bridle_tests")
class Louder(keras.layers.Layer):
    def call(self, features, training=None):
        return features + 1.0 if training else features


@pytest.mark.parametrize(
    ("settings", "rate", "random"),
    [
        ({"token_mask": kb.TimeFrequencyMask(0.5, 0.5, seed=1)}, 0.0, True),
        ({"feature_augmentation": Louder()}, 0.0, False),
        ({}, 0.5, True),
    ],
    ids=["masked", "louder", "dropped blocks"],
)
def test_what_happens_in_training_only(settings, rate, random):
    model = classifier(backbone(2, drop_path_rate=rate), **settings)
    plain, x = classifier(backbone(2)), clips(12, 12)
    expected = outputs(plain, x)
    close(outputs(model, x), expected)
    maps, mask = model.backbone.maps(x)
    # Within a call, and without one around it, as trainers do it.
    drawn = [to_numpy(model(x, training=True)) for _ in range(3)]
    drawn += [to_numpy(model.classify(maps, mask, training=True)) for _ in range(3)]
    for three in (drawn[:3], drawn[3:]):
        assert max(np.abs(logits - expected).max() for logits in three) > 1e-3
        assert random == any((logits != three[0]).any() for logits in three)
    if not random:
        close(drawn[0], run(lambda: plain.classify(maps + 1.0, mask), plain))


def tones():
    """Clips of unequal lengths of a low or a high tone in noise."""
    rng = np.random.default_rng(1)
    made = []
    for index in range(8):
        time = np.arange(1600 + 100 * (index % 5)) / 16000
        clip = 0.5 * np.sin(2 * np.pi * (200, 5000)[index % 2] * time)
        made.append((clip + rng.normal(scale=0.1, size=len(time))).astype("float32"))
    return made


def images(*sides, channels=3):
    """Dark and light ones of unequal sizes."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 128, (*sides, 8 + i, 12, channels)).astype("uint8")
        + 127 * (i % 2)
        for i in range(8)
    ]


def video():
    return images(5, channels=1)


def pixel_backbone(patch_size, *input_dims, **settings):
    settings = {"num_layers": 1, "input_dims": input_dims, **SIZES, **settings}
    return kb.BridleBackbone(
        patch_size, front_end=kb.PixelNormalization(0.5, 0.25), **settings
    )


def image_backbone():
    return pixel_backbone(4, 8, 12, 1, trained_grid="input")


def video_backbone():
    settings = {"use_class_token": False, "position_layout": "sequence"}
    return pixel_backbone((2, 4, 4), 4, 8, 8, 1, **settings)


FITS = {
    "audio": (backbone, tones, kb.TimeFrequencyMask(0.2, 0.2, seed=1)),
    "image": (image_backbone, images, None),
    "video": (video_backbone, video, kb.TubeMask(0.5, seed=1)),
}


@pytest.mark.parametrize("modality", FITS)
def test_fit_raw_inputs_and_name_their_classes(tmp_path, modality):
    make, inputs, token_mask = FITS[modality]
    kind = getattr(kb, f"Bridle{modality.title()}Classifier")
    encoder, inputs, labels = make(), inputs(), [0, 1] * 4
    perturb(encoder.weights)
    encoder.save_to_preset(str(tmp_path / "run" / "preset"))
    settings = {"class_names": ["first", "second"], "drop_path_rate": 0.0}
    run = str(tmp_path / "run")
    model = kind.from_preset(run, token_mask=token_mask, **settings)
    model.optimizer.learning_rate = 5e-3
    validation = {"validation_data": (inputs, labels), "validation_freq": 40}
    fit = {"batch_size": 4, "epochs": 40, "verbose": 0, **validation}
    history = model.fit(inputs, labels, **fit).history
    assert history["loss"][-1] < 0.3
    assert history["val_accuracy"][-1] == 1.0
    # What Keras takes as arrays may be lists.
    heavy, _ = model.evaluate(inputs, labels, sample_weight=[2.0] * 8, verbose=0)
    light, accuracy = model.evaluate(inputs, labels, verbose=0)
    assert (heavy, accuracy) == (pytest.approx(2 * light, rel=1e-4), 1.0)
    named = model.predict_classes(inputs, top=2, batch_size=5)
    names = [model.class_names[label] for label in labels]
    assert [best.name for best, _ in named] == names
    # Its optimizer's state has no place in a preset.
    model.save_to_preset(str(tmp_path / "classifier"))
    loaded = kind.from_preset(str(tmp_path / "classifier"))
    close(loaded.predict(inputs, verbose=0), model.predict(inputs, verbose=0))


def test_presets_of_other_modalities_and_in_half_precision(tmp_path):
    encoder = pixel_backbone(4, 8, 12, 1, dtype="mixed_bfloat16")
    preset, whole = str(tmp_path / "run" / "preset"), str(tmp_path / "whole")
    encoder.save_to_preset(preset)
    kb.BridleImageClassifier(encoder, 3).save_to_preset(whole)
    for folder in (str(tmp_path / "run"), preset, whole):
        with pytest.raises(ValueError, match="image"):
            kb.BridleAudioClassifier.from_preset(folder, num_classes=2)
    for policy in (None, "mixed_bfloat16"):
        loaded = kb.BridleImageClassifier.from_preset(whole, dtype=policy)
        assert loaded.backbone.dtype_policy.name == (policy or "float32")
    converter = kb.BridleImageConverter((16, 16), channels=1)
    kb.BridleImagePreprocessor(converter).save_to_preset(preset)
    loaded = kb.BridleImageClassifier.from_preset(preset, num_classes=2)
    assert loaded.preprocessor.image_converter.image_size == (16, 16)


def cropping(num_samples):
    converter = kb.BridleAudioConverter(num_samples=num_samples)
    return kb.BridleAudioPreprocessor(converter)


def test_data_sets_are_preprocessed_batch_by_batch():
    model = classifier(preprocessor=cropping(1200), compile=True)
    x, labels = clips(12, 8, 5), np.int32([0, 1, 2])
    cropped = to_numpy(model.preprocessor(x))
    data = tf.data.Dataset.from_tensor_slices((x, labels)).batch(2)
    expected = outputs(model, cropped)
    close(model.predict(data, verbose=0), expected)
    close(model.predict(x, verbose=0), expected)
    shares = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    for row, (best,) in zip(shares, model.predict_classes(data), strict=True):
        index = row.argmax()
        right = ClassScore(str(index), index, pytest.approx(row[index], rel=1e-4))
        assert best == right


def test_defaults_of_compile():
    model = classifier()
    model.compile()
    assert isinstance(model.optimizer, keras.optimizers.AdamW)
    x, labels = clips(12, 8), np.int32([2, 0])
    logits = outputs(model, x).astype("float64")
    log_shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = model.evaluate(x, labels, verbose=0)[0]
    assert loss == pytest.approx(-log_shares[[0, 1], labels].mean(), rel=1e-5)
    # The encoder's norm is not used.
    assert not any("backbone/norm" in v.path for v in model.trainable_variables)
    model.backbone.trainable = True
    model.compile()
    assert len(model.trainable_variables) == len(model.weights) - 2


def test_several_labels():
    model = classifier(multi_label=True, class_names=["a", "b", "c"])
    model.compile()
    x, labels = clips(12, 8), np.float32([[1, 0, 1], [0, 0, 0]])
    shares = 1.0 / (1.0 + np.exp(-outputs(model, x).astype("float64")))
    right = -np.log(np.where(labels, shares, 1 - shares)).mean()
    assert model.evaluate(x, labels, verbose=0)[0] == pytest.approx(right, rel=1e-5)
    found = model.predict_classes(x, top=3)
    assert [s.probability for s in found[0]] == pytest.approx(-np.sort(-shares[0]))
    with pytest.raises(ValueError):
        model.predict_classes(x, top=4)
    # With a softmax of its own, scores are probabilities already.
    model = classifier(activation="softmax")
    expected = outputs(model, x)
    np.testing.assert_allclose(expected.sum(axis=1), 1.0, 1e-5)
    scores = model.predict_classes(x)
    assert [s[0].probability for s in scores] == pytest.approx(expected.max(axis=1))


def test_preset_of_a_classifier(tmp_path):
    path = str(tmp_path)
    settings = {
        "class_names": ["a", "b", "c"],
        "token_mask": kb.TimeFrequencyMask(0.5, 0.5, seed=1),
        "feature_augmentation": Louder(),
        "dropout": 0.1,
        "multi_label": True,
        "preprocessor": cropping(1500),
    }
    model, x = classifier(**settings, compile=True), clips(12, 8)
    model.save_to_preset(path)
    expected = model.predict(x, verbose=0)
    loaded = kb.BridleAudioClassifier.from_preset(path)
    assert (loaded.class_names, loaded.multi_label) == (["a", "b", "c"], True)
    assert (loaded.dropout, loaded.token_mask.time_mask_ratio) == (0.1, 0.5)
    assert isinstance(loaded.feature_augmentation, Louder)
    assert kb.BridleAudioConverter.from_preset(path).num_samples == 1500
    close(loaded.predict(x, verbose=0), expected, 1e-6)
    for names in (["x", "y", "z"], ["a", "b", "c", "d"]):
        with pytest.raises(ValueError, match=f"pass num_classes={len(names)} as well"):
            kb.BridleAudioClassifier.from_preset(path, class_names=names)
    other = kb.BridleAudioClassifier.from_preset(
        path, num_classes=4, token_mask=None, drop_path_rate=0.3
    )
    assert (other.num_classes, other.class_names, other.token_mask) == (4, None, None)
    assert other.backbone.drop_path_rate == 0.3
    fresh = kb.BridleAudioClassifier.from_preset(
        path, load_weights=False, num_classes=4
    )
    for made, same in ((other, True), (fresh, False), (loaded, True)):
        kernel = to_numpy(made.backbone.blocks[0].qkv.kernel)
        right = to_numpy(model.backbone.blocks[0].qkv.kernel)
        assert (kernel == right).all() == same
