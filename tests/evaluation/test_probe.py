import keras
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import keras_bridle as kb
from keras_bridle.evaluation.features import (
    PatchFeatures,
    extract_features,
    extract_patches,
)
from keras_bridle.evaluation.probes import (
    AttentivePooling,
    knn_probe,
    linear_probe,
    probe,
)


def _blobs(rows, seed, classes=4, dim=12):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(classes, dim))
    labels = rng.integers(0, classes, rows)
    # Offsets and scales that only a normalization evens out.
    scale = np.geomspace(0.01, 10, dim)
    features = (centers[labels] + rng.normal(size=(rows, dim))) * scale + 5 * scale
    return features.astype("float32"), labels


TRAIN, TEST = _blobs(300, 0), _blobs(200, 1)


def _patches(rows, seed, places=9, dim=8, classes=3):
    """One patch in nine tells the class; padding holds what would mislead."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    patches = rng.normal(size=(rows, places, dim))
    place = rng.integers(0, 5, rows)
    sign = np.eye(classes, dim - 1)[labels]
    patches[np.arange(rows), place] = np.concatenate(
        [6 * np.ones((rows, 1)), 4 * sign], axis=1
    )
    is_real = np.arange(places) < rng.integers(5, places + 1, rows)[:, None]
    patches[~is_real] = [6, 0, 0, 0, 4, 4, 4, 4]
    return PatchFeatures(patches.astype("float16"), is_real), labels


def test_linear_is_the_linear_probe():
    options = {"regularizations": [0.1, 1.0], "folds": 2}
    expected = linear_probe(*TRAIN, *TEST, **options)
    found = probe("linear", *TRAIN, *TEST, **options)
    assert found.accuracy == expected.accuracy
    assert found.mean_average_precision == pytest.approx(
        average_precision_score(np.eye(4)[TEST[1]], expected.scores), rel=1e-12
    )


def test_knn_is_the_knn_probe():
    for options in ({}, {"neighbors": 3, "temperature": None}):
        expected = knn_probe(*TRAIN, *TEST, **options)
        assert probe("knn", *TRAIN, *TEST, **options).accuracy == expected
    few = probe("knn", TRAIN[0][:4], TRAIN[1][:4], *TEST, class_names=list("abcd"))
    assert [row["name"] for row in few.per_class] == list("abcd")


def test_dense_agrees_with_logistic_regression():
    expected = linear_probe(*TRAIN, *TEST, regularizations=[1.0])
    found = probe("dense", *TRAIN, *TEST, epochs=12, learning_rate=0.05)
    assert 0.6 < expected.accuracy < 0.95
    assert abs(found.accuracy - expected.accuracy) < 0.04
    short = [probe("dense", *TRAIN, *TEST, epochs=1, seed=5) for _ in range(2)]
    assert short[0].summary() == short[1].summary() != found.summary()


def test_attentive_finds_what_the_mean_hides():
    train, test = _patches(300, 0), _patches(200, 1)
    found = probe("attentive", *train, *test, epochs=12, learning_rate=0.01)
    assert found.accuracy > 0.9
    mean = probe("linear", *train, *test, regularizations=[1.0])
    assert mean.accuracy < found.accuracy - 0.03


def test_attentive_does_not_look_at_padding():
    train, test = _patches(60, 0), _patches(60, 1)
    other = PatchFeatures(
        np.where(test[0].is_real[..., None], test[0].patches, np.float16(-9)),
        test[0].is_real,
    )
    options = {"epochs": 2, "learning_rate": 0.01}
    found = probe("attentive", *train, *test, **options)
    assert (
        found.summary()
        == probe("attentive", *train, other, test[1], **options).summary()
    )
    np.testing.assert_allclose(test[0].mean(), other.mean(), rtol=1e-6, atol=1e-6)
    assert len(test[0].take([3, 5]).patches) == 2


def test_multi_label():
    hot = [np.eye(4)[labels] for _, labels in (TRAIN, TEST)]
    # The second class comes with the first.
    for rows in hot:
        rows[:, 1] = np.maximum(rows[:, 0], rows[:, 1])
    for kind, options in (
        ("knn", {}),
        ("dense", {"epochs": 8, "learning_rate": 0.05}),
    ):
        found = probe(kind, TRAIN[0], hot[0], TEST[0], hot[1], **options)
        assert found.accuracy is None and found.mean_average_precision > 0.6
    with pytest.raises(ValueError, match='"dense" is a linear probe for multi-label'):
        probe("linear", TRAIN[0], hot[0], TEST[0], hot[1])
    with pytest.raises(ValueError, match="must be of one kind"):
        probe("knn", TRAIN[0], hot[0], *TEST)


def test_a_class_that_training_lacks():
    known = TRAIN[1] != 2
    for kind in ("linear", "dense", "knn"):
        options = {"dense": {"epochs": 1}, "linear": {"regularizations": [1.0]}}
        options = options.get(kind, {})
        found = probe(kind, TRAIN[0][known], TRAIN[1][known], *TEST, **options)
        assert len(found.per_class) == 4
        if kind != "dense":
            assert found.per_class[2]["accuracy"] == 0
    found = probe("knn", *TRAIN, *TEST, class_names=list("abcde"))
    assert found.excluded == ("e",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("svm", *TRAIN, *TEST), "kind must be one of"),
        (("attentive", *TRAIN, *TEST), r"\(rows, patches, dim\)"),
        (("knn", TRAIN[0], TRAIN[1][:5], *TEST), "300 ints, one for each row"),
        (("knn", TRAIN[0][:, :3], TRAIN[1], *TEST), "the same dim; received 3 and 12"),
        (("knn", TRAIN[0] * np.nan, TRAIN[1], *TEST), "must be finite"),
        (("knn", TRAIN[0], ["a"] * 300, *TEST), "labels must be ints"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        probe(*arguments)


def test_attentive_pooling_against_numpy(tmp_path):
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(3, 5, 8)).astype("float32")
    is_real = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 0, 0, 0, 0]], bool)
    layer = AttentivePooling(2, seed=3)
    found = keras.ops.convert_to_numpy(layer(patches, is_real))
    weights = {
        w.path.split("/", 1)[1]: keras.ops.convert_to_numpy(w) for w in layer.weights
    }
    query = weights["query"].astype("float64") * 50  # to be far from the plain mean
    layer.query.assign(query)
    found = keras.ops.convert_to_numpy(layer(patches, is_real))

    def dense(name, x):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    keys, values = dense("key", patches), dense("value", patches)
    pooled = np.zeros((3, 8))
    for row in range(3):
        for head, part in enumerate((slice(0, 4), slice(4, 8))):
            scores = keys[row][is_real[row]][:, part] @ query[head] / 2
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            pooled[row, part] = shares @ values[row][is_real[row]][:, part]
    np.testing.assert_allclose(found, dense("output", pooled), rtol=1e-4, atol=1e-5)

    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, AttentivePooling(2, seed=3)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.predict(patches, verbose=0), model.predict(patches, verbose=0)
    )
    with pytest.raises(ValueError, match="multiple of `num_heads`"):
        AttentivePooling(3)(patches)
    with pytest.raises(ValueError, match="must be positive"):
        AttentivePooling(0)


def test_patches_of_waveforms_leave_out_padding():
    backbone = kb.BridleBackbone(
        patch_size=(16, 64),
        hidden_dim=8,
        num_layers=1,
        num_heads=2,
        mlp_dim=16,
        input_dims=(None,),
        front_end=kb.LogMelSpectrogram(),
    )
    waveforms = np.random.default_rng(0).normal(size=(3, 16000)).astype("float32")
    waveforms[1, 8000:] = 0
    found = extract_patches(backbone, 0.1 * waveforms, batch_size=2)
    assert found.patches.dtype == np.float16 and found.patches.shape[2] == 8
    real = found.is_real.sum(axis=1)
    assert real[0] == real[2] == found.is_real.shape[1] > real[1] > 0
    expected = extract_features(backbone, 0.1 * waveforms, batch_size=2)
    # All but the patch that holds sound and padding.
    np.testing.assert_allclose(found.mean()[[0, 2]], expected[[0, 2]], atol=2e-3)
