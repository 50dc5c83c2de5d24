import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from harness import perturb, run, to_numpy
from keras import ops

from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.layers.masks import RandomMask, TimeFrequencyMask
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import BridleAudioClassifier, ClassScore
from keras_bridle.models.converters import BridleAudioConverter, BridleAudioPreprocessor

RATE = 16000


def backbone(**settings):
    settings = {
        "patch_size": (4, 8),
        "hidden_dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "mlp_dim": 32,
        "input_dims": (None,),
        "front_end": LogMelSpectrogram(num_mel_bins=16),
        **settings,
    }
    return BridleBackbone(**settings)


def classifier(encoder=None, **settings):
    settings = {"num_classes": 3, "compile": False, **settings}
    made = BridleAudioClassifier(encoder or backbone(), **settings)
    perturb(made.weights)
    return made


def clips(*frames, longest=12):
    """Noise with so many real frames each, padded with zeros."""
    rng = np.random.default_rng(0)
    made = rng.uniform(-1, 1, (len(frames), 400 + (longest - 1) * 160))
    for clip, count in zip(made, frames, strict=True):
        clip[400 + (count - 1) * 160 :] = 0.0
    return made.astype("float32")


def head(model, vectors):
    """Norm and dense layer in float64."""
    centered = vectors - vectors.mean(-1, keepdims=True)
    normed = centered / np.sqrt(vectors.var(-1, keepdims=True) + 1e-6)
    norm = model.fc_norm
    normed = normed * to_numpy(norm.gamma) + to_numpy(norm.beta)
    return normed @ to_numpy(model.head.kernel) + to_numpy(model.head.bias)


def test_logits_are_what_the_formula_says():
    model, x = classifier(), clips(12, 8)
    features, mask = model.backbone.features(x)
    tokens = run(
        lambda: model.backbone.encode(features, mask, normalize=False), model.backbone
    ).astype("float64")
    # Two patches to each row of four frames; the class token is left out.
    means = np.stack([tokens[0, 1:7].mean(0), tokens[1, 1:5].mean(0)])
    found = run(lambda: model(x), model)
    np.testing.assert_allclose(found, head(model, means), 2e-5, 2e-5)
    steps = run(lambda: model.classify(features, mask), model)
    np.testing.assert_allclose(steps, found, 1e-5, 1e-5)


def test_padded_clip_has_the_logits_it_has_alone():
    model, x = classifier(), clips(12, 8)
    alone = run(lambda: model(x[1:, : 400 + 7 * 160]), model)
    np.testing.assert_allclose(run(lambda: model(x), model)[1:], alone, 2e-5, 2e-5)


def test_first_token():
    model, x = classifier(pooling="first"), clips(12)
    tokens = run(lambda: model.backbone(x), model.backbone)
    kernel, bias = map(to_numpy, (model.head.kernel, model.head.bias))
    found = run(lambda: model(x), model)
    np.testing.assert_allclose(found, tokens[:, 0] @ kernel + bias, 1e-5, 1e-5)
    assert model.fc_norm is None
    assert model.backbone.norm.trainable


def test_masked_tokens_are_left_out_in_training_alone():
    model, x = classifier(token_mask=RandomMask(0.5)), clips(12, 4)
    features, mask = model.backbone.features(x)
    noise = np.float32([[5, 0, 3, 1, 4, 2], [1, 0, 2, 3, 4, 5]])

    def logits(training):
        return model.classify(features, mask, noise=noise, training=training)

    visible = np.int32([[1, 3, 5], [1, 0, 2]])
    tokens = run(
        lambda: model.backbone.encode(features, mask, visible, normalize=False),
        model.backbone,
    ).astype("float64")
    # Of the second clip only the first row, patches 0 and 1, is real.
    means = np.stack([tokens[0, 1:].mean(0), tokens[1, 1:3].mean(0)])
    found = run(lambda: logits(True), model)
    np.testing.assert_allclose(found, head(model, means), 2e-5, 2e-5)
    whole = run(lambda: logits(False), model)
    np.testing.assert_allclose(whole, run(lambda: model(x), model), 1e-5, 1e-5)
    assert np.abs(whole - found).max() > 1e-2


def test_masks_are_drawn_anew_in_training():
    mask = TimeFrequencyMask(0.5, 0.5, seed=1)
    model, x = classifier(token_mask=mask), clips(12)
    first, second = (to_numpy(model(x, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3


@keras.saving.register_keras_serializable(package="keras_bridle_tests")
class Louder(keras.layers.Layer):
    def call(self, features, training=None):
        return features + 1.0 if training else features


def test_features_are_augmented_in_training_alone():
    model, x = classifier(feature_augmentation=Louder()), clips(12)
    features, mask = model.backbone.features(x)
    plain = classifier()
    louder = run(lambda: plain.classify(features + 1.0, mask), plain)
    np.testing.assert_allclose(to_numpy(model(x, training=True)), louder, 1e-5, 1e-5)
    expected = run(lambda: plain(x), plain)
    np.testing.assert_allclose(run(lambda: model(x), model), expected, 1e-5, 1e-5)


def test_blocks_are_dropped_in_training_alone():
    model, x = classifier(backbone(num_layers=2, drop_path_rate=0.9)), clips(12, 12)
    plain = classifier(backbone(num_layers=2))
    expected = run(lambda: plain(x), plain)
    np.testing.assert_allclose(run(lambda: model(x), model), expected, 1e-5, 1e-5)
    drawn = [to_numpy(model(x, training=True)) for _ in range(3)]
    assert max(np.abs(logits - expected).max() for logits in drawn) > 1e-2
    # Without a call around them, as trainers have one, too.
    features, mask = model.backbone.features(x)
    drawn = [to_numpy(model.classify(features, mask, training=True)) for _ in range(3)]
    assert max(np.abs(logits - expected).max() for logits in drawn) > 1e-2


def tones(frequencies):
    """Clips of unequal lengths of a tone in noise."""
    rng = np.random.default_rng(1)
    made = []
    for index, frequency in enumerate(frequencies):
        time = np.arange(1600 + 100 * (index % 5)) / RATE
        clip = 0.5 * np.sin(2 * np.pi * frequency * time)
        made.append((clip + rng.normal(scale=0.1, size=len(time))).astype("float32"))
    return made


def test_fit_raw_clips_and_name_their_classes(tmp_path):
    backbone().save_to_preset(str(tmp_path))
    model = BridleAudioClassifier.from_preset(
        str(tmp_path), class_names=["low", "middle", "high"]
    )
    labels = [0, 1, 2] * 4
    heard = tones([(200.0, 1000.0, 5000.0)[label] for label in labels])
    model.optimizer.learning_rate = 5e-3
    history = model.fit(
        heard,
        labels,
        batch_size=6,
        epochs=25,
        validation_data=(heard, labels),
        verbose=0,
    ).history
    assert history["loss"][-1] < 0.3 < history["loss"][0], history["loss"]
    assert history["val_accuracy"][-1] == 1.0
    assert model.evaluate(heard, labels, verbose=0, return_dict=True)["accuracy"] == 1.0
    named = model.predict_classes(heard, top=2, batch_size=5)
    names = [model.class_names[label] for label in labels]
    assert [best.name for best, _ in named] == names
    logits = model.predict(heard, verbose=0).astype("float64")
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, scores in zip(shares, named, strict=True):
        assert all(isinstance(score, ClassScore) for score in scores)
        order = np.argsort(-row)[:2]
        assert [score.number for score in scores] == order.tolist()
        probabilities = [score.probability for score in scores]
        # Batches of other sizes may be summed in another order.
        assert probabilities == pytest.approx(row[order].tolist(), rel=1e-4)


def test_data_sets_are_preprocessed_batch_by_batch():
    model = classifier(
        preprocessor=BridleAudioPreprocessor(BridleAudioConverter(num_samples=1200)),
        compile=True,
    )
    x, labels = clips(12, 8, 5), np.int32([0, 1, 2])
    # 2,160 samples, then two clips of 1,520 and 1,040.
    cut = np.stack([x[0, 480:1680], x[1, 160:1360], x[2, :1200]])
    data = tf.data.Dataset.from_tensor_slices((x, labels)).batch(2)
    expected = run(lambda: model(cut), model)
    np.testing.assert_allclose(model.predict(data, verbose=0), expected, 1e-5, 1e-5)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, 1e-5, 1e-5)
    named = model.predict_classes(data)
    assert [scores[0].name for scores in named] == [
        str(index) for index in expected.argmax(axis=1)
    ]
    right = float(np.mean(expected.argmax(axis=1) == labels))
    found = model.evaluate(data, verbose=0, return_dict=True)
    assert found["accuracy"] == pytest.approx(right)
    history = model.fit(data, validation_data=data, verbose=0).history
    assert np.isfinite([history["loss"], history["val_loss"]]).all()


def test_arrays_are_shuffled():
    if keras.backend.backend() == "jax":
        pytest.skip("layers see tracers, no numbers")
    seen = []

    class Front(LogMelSpectrogram):
        def call(self, waveforms):
            seen.append(to_numpy(waveforms)[:, 0].tolist())
            return super().call(waveforms)

    model = classifier(backbone(front_end=Front(num_mel_bins=16)))
    model.compile(run_eagerly=True)
    x = clips(*[4] * 8, longest=4)
    model.fit(x, np.arange(8) % 3, batch_size=8, verbose=0)
    order = x[:, 0].tolist()
    assert sorted(seen[-1]) == sorted(order)
    assert seen[-1] != order


def test_defaults_of_compile():
    model = classifier()
    model.compile()
    assert isinstance(model.optimizer, keras.optimizers.AdamW)
    x, labels = clips(12, 8), np.int32([2, 0])
    logits = run(lambda: model(x), model).astype("float64")
    log_shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = model.evaluate(x, labels, verbose=0)[0]
    assert loss == pytest.approx(-log_shares[[0, 1], labels].mean(), rel=1e-5)
    decayed = {
        v.name
        for v in model.trainable_variables
        if model.optimizer._use_weight_decay(v)
    }
    assert decayed == {"kernel"}


def test_several_labels():
    model = classifier(multi_label=True, class_names=["a", "b", "c"])
    model.compile()
    x, labels = clips(12, 8), np.float32([[1, 0, 1], [0, 0, 0]])
    logits = run(lambda: model(x), model).astype("float64")
    shares = 1.0 / (1.0 + np.exp(-logits))
    right = -np.log(np.where(labels, shares, 1 - shares)).mean()
    assert model.evaluate(x, labels, verbose=0)[0] == pytest.approx(right, rel=1e-5)
    found = model.predict_classes(x, top=3)
    assert [s.probability for s in found[0]] == pytest.approx(-np.sort(-shares[0]))


def test_unused_norm_gets_no_training():
    model = classifier()
    assert not model.backbone.norm.trainable
    assert not any("backbone/norm" in v.path for v in model.trainable_variables)
    model.backbone.trainable = True
    model.compile()
    assert not model.backbone.norm.trainable
    assert len(model.trainable_variables) == len(model.weights) - 2


def saved_encoder(folder, **settings):
    encoder = backbone(**settings)
    perturb(encoder.weights)
    encoder.save_to_preset(str(folder))
    return encoder


def test_from_the_preset_of_a_run(tmp_path):
    encoder = saved_encoder(tmp_path / "runs" / "preset")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "preset"):
        model = BridleAudioClassifier.from_preset(
            str(folder), num_classes=5, drop_path_rate=0.2, dropout=0.1
        )
        assert model.backbone.drop_path_rate == 0.2
        assert model.dropout == 0.1
        assert isinstance(model.preprocessor, BridleAudioPreprocessor)
        for ours, right in zip(model.backbone.weights, encoder.weights, strict=True):
            np.testing.assert_array_equal(to_numpy(ours), to_numpy(right))
        assert model.predict(tones([100.0, 200.0]), verbose=0).shape == (2, 5)
    fresh = BridleAudioClassifier.from_preset(
        str(tmp_path / "runs"), load_weights=False, num_classes=5
    )
    kernel = to_numpy(fresh.backbone.blocks[0].qkv.kernel)
    assert np.abs(kernel - to_numpy(encoder.blocks[0].qkv.kernel)).max() > 0.1


def test_run_without_a_preset_yet(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    for kind in (BridleAudioClassifier, BridleBackbone):
        with pytest.raises(
            FileNotFoundError, match="There is no preset in this folder"
        ):
            kind.from_preset(str(tmp_path))


def test_named_sizes():
    model = BridleAudioClassifier.from_preset(
        "bridle_audio_tiny", load_weights=False, num_classes=2
    )
    assert model.preprocessor.audio_converter.sampling_rate == 16000
    with pytest.raises(ValueError, match="a size without weights"):
        BridleAudioClassifier.from_preset("bridle_audio_tiny", num_classes=2)
    with pytest.raises(ValueError, match=r"needs an encoder for audio.* for image"):
        BridleAudioClassifier.from_preset(
            "bridle_image_tiny", load_weights=False, num_classes=2
        )


def test_preset_of_a_classifier(tmp_path):
    settings = {
        "class_names": ["a", "b", "c"],
        "token_mask": TimeFrequencyMask(0.5, 0.5, seed=1),
        "feature_augmentation": Louder(),
        "dropout": 0.1,
        "multi_label": True,
        "preprocessor": BridleAudioPreprocessor(BridleAudioConverter(num_samples=1500)),
    }
    model, x = classifier(**settings, compile=True), clips(12, 8)
    # Its optimizer's state is no business of a preset.
    model.fit(x, np.zeros((2, 3)), verbose=0)
    model.save_to_preset(str(tmp_path))
    with (tmp_path / "task.json").open() as file:
        assert json.load(file)["config"]["class_names"] == ["a", "b", "c"]
    loaded = BridleAudioClassifier.from_preset(str(tmp_path))
    assert loaded.class_names == ["a", "b", "c"]
    assert loaded.multi_label
    assert loaded.dropout == 0.1
    assert loaded.token_mask.time_mask_ratio == 0.5
    assert isinstance(loaded.feature_augmentation, Louder)
    assert loaded.preprocessor.audio_converter.num_samples == 1500
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, 1e-6, 1e-6)
    for names in (["x", "y", "z"], ["a", "b", "c", "d"]):
        with pytest.raises(ValueError, match=f"pass num_classes={len(names)} as well"):
            BridleAudioClassifier.from_preset(str(tmp_path), class_names=names)
    same = BridleAudioClassifier.from_preset(
        str(tmp_path), class_names=["a", "b", "c"], dropout=0.0
    )
    np.testing.assert_allclose(same.predict(x, verbose=0), expected, 1e-6, 1e-6)
    other = BridleAudioClassifier.from_preset(
        str(tmp_path), num_classes=4, token_mask=None, drop_path_rate=0.3
    )
    assert (other.num_classes, other.class_names) == (4, None)
    assert other.token_mask is None
    assert other.backbone.drop_path_rate == 0.3
    np.testing.assert_array_equal(
        to_numpy(other.backbone.blocks[0].qkv.kernel),
        to_numpy(model.backbone.blocks[0].qkv.kernel),
    )
    converter = BridleAudioConverter.from_preset(str(tmp_path))
    assert converter.num_samples == 1500
    encoder = BridleBackbone.from_preset(str(tmp_path))
    features = run(lambda: encoder(x), encoder)
    expected = run(lambda: model.backbone(x), model.backbone)
    np.testing.assert_allclose(features, expected, 1e-6, 1e-6)


def test_file_of_a_compiled_classifier(tmp_path):
    model, x = classifier(activation="softmax"), clips(12, 8)
    model.compile(keras.optimizers.SGD(0.5), metrics=[])
    model.fit(x, np.int32([0, 1]), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, keras.optimizers.SGD)
    expected = run(lambda: model(x), model)
    np.testing.assert_allclose(expected.sum(axis=1), 1.0, 1e-5)
    np.testing.assert_allclose(run(lambda: loaded(x), loaded), expected, 1e-6, 1e-6)
    scores = loaded.predict_classes(x)
    assert [s[0].probability for s in scores] == pytest.approx(expected.max(axis=1))


def test_waveforms_reach_the_front_end_in_float32():
    model = classifier(backbone(dtype="mixed_float16"))
    quiet = 1e-6 * clips(12)
    plain = classifier()
    assert model.backbone.blocks[0].compute_dtype == "float16"
    found, expected = to_numpy(model(quiet)), run(lambda: plain(quiet), plain)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, 0.02, 0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": None}, "`num_classes` must be 1 or more, or `class_names`"),
        ({"num_classes": 0}, "Received: num_classes=0"),
        ({"class_names": ["a"]}, "num_classes=3 and 1 names"),
        ({"pooling": "max"}, "`pooling` must be one of .*pooling='max'"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        classifier(**settings)


def test_more_classes_than_there_are():
    with pytest.raises(ValueError, match=r"`top` must lie between 1 and 3.*top=4"):
        classifier(compile=True).predict_classes(clips(12), top=4)


def test_exported_classifier_takes_waveforms(tmp_path):
    model, x = classifier(), clips(12, 8)
    spec = [keras.InputSpec(shape=(2, x.shape[1]), dtype="float32")]
    if keras.backend.backend() == "torch":
        import torch

        path = tmp_path / "exported.pt2"
        model.export(path, format="torch", input_signature=spec, verbose=False)
        served = torch.export.load(path).module()(torch.from_numpy(x))
        served = to_numpy(served)
    else:
        path = tmp_path / "exported"
        model.export(path, input_signature=spec, verbose=False)
        loaded = tf.saved_model.load(str(path))
        served = loaded.serve(x).numpy()
    np.testing.assert_allclose(served, run(lambda: model(x), model), 1e-4, 1e-4)


def test_pooled_features_are_in_float32():
    model = classifier(backbone(dtype="mixed_bfloat16"))
    features, mask = model.backbone.features(clips(12))
    pooled = model.pooled(features, mask)
    assert keras.backend.standardize_dtype(pooled.dtype) == "float32"
    assert ops.shape(pooled) == (1, 16)
