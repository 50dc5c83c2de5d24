import numpy as np
import pytest
from harness import perturb, run, to_numpy

from keras_bridle.conversion.published_weights import (
    load_published_classifier,
    published_weights,
)
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import BridleAudioClassifier


def made(seed=0, rows=8, pooling="mean", **settings):
    backbone = BridleBackbone(4, 16, 2, 2, 32, input_dims=(rows, 12, 1), **settings)
    classifier = BridleAudioClassifier(
        backbone, num_classes=3, pooling=pooling, compile=False
    )
    perturb(classifier.weights, seed)
    return classifier


def state_of(classifier, prefix=""):
    return {
        prefix + name: np.array(weight.to_published(to_numpy(weight.variable)))
        for name, weight in published_weights(classifier).items()
    }


def logits(classifier):
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 1)).astype("float32")
    return run(lambda: classifier(x), classifier)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_loads_every_weight(pooling):
    original, loaded = made(pooling=pooling), made(1, pooling=pooling)
    state = state_of(original, "model.")
    positions = original.backbone.position_encoding.table((2, 3), 16)
    table = np.concatenate([np.zeros((1, 16)), to_numpy(positions)])
    state["model.pos_embed"] = table[None]
    names = load_published_classifier(loaded, state, "model.")
    assert names == set(state) - {"model.pos_embed"}
    np.testing.assert_array_equal(logits(loaded), logits(original))
    assert ("model.fc_norm.bias" in names) == (pooling == "mean")
    assert ("model.norm.bias" in names) == (pooling == "first")


def test_learned_positions():
    original = made(position_layout="learned")
    loaded = made(1, position_layout="learned")
    state = state_of(original)
    # Published ones have a row of their own for the class token.
    row = np.full((1, 1, 16), 0.5, "float32")
    state["pos_embed"] = np.concatenate([row, state["pos_embed"]], axis=1)
    state["cls_token"] = state["cls_token"] - row
    assert load_published_classifier(loaded, state) == set(state)
    np.testing.assert_allclose(logits(loaded), logits(original), 1e-5, 1e-5)


@pytest.mark.parametrize(
    "layout, rows", [("transposed_grid", 8), ("grid", 12), ("sequence", 8)]
)
def test_other_positions_are_an_error(layout, rows):
    loaded = made()
    other = made(rows=rows, position_layout=layout).backbone
    table = to_numpy(other.position_encoding.table((rows // 4, 3), 16))
    table = np.concatenate([np.zeros((1, 16)), table])
    state = state_of(loaded) | {"pos_embed": table[None]}
    with pytest.raises(ValueError, match=r"positions in `state` are not.*='grid'"):
        load_published_classifier(loaded, state)


def test_wrong_part():
    with pytest.raises(ValueError, match="Expected a BridleClassifier"):
        load_published_classifier(made().backbone, {})
