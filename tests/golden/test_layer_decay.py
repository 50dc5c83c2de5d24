"""Learning rates and weight decay of each weight against the published ones."""

import json

import pytest
from golden_files import GOLDEN_FOLDER

from keras_bridle.conversion.published_weights import published_weights
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import BridleAudioClassifier
from keras_bridle.training.optimizers import decays, layer_decay_optimizer

TOLERANCE = 1e-12


def cases():
    return [
        pytest.param(path, name, id=f"{path.stem}-{name}")
        for path in sorted(GOLDEN_FOLDER.glob("lr_decay*.json"))
        for name in json.loads(path.read_text())["cases"]
    ]


@pytest.mark.parametrize(("path", "name"), cases())
def test_multipliers_and_weight_decay(path, name):
    file = json.loads(path.read_text())
    expected = file["cases"][name]["params"]
    backbone = BridleBackbone(
        patch_size=4,
        hidden_dim=8,
        num_layers=file["depth"],
        num_heads=1,
        mlp_dim=8,
        input_dims=(8, 8, 1),
        position_layout="learned" if "pos_embed" in expected else "grid",
    )
    pooling = "mean" if "fc_norm.weight" in expected else "first"
    classifier = BridleAudioClassifier(
        backbone, num_classes=2, pooling=pooling, compile=False
    )
    # Only the names of cases tell the decay.
    decay = float(name.removeprefix("decay").partition("_")[0])
    optimizer = layer_decay_optimizer(
        classifier, 1e-3, decay, weight_decay=file["weight_decay"]
    )
    found = {}
    for key, weight in published_weights(classifier).items():
        found[key] = [
            optimizer.multiplier(weight.variable),
            optimizer.decoupled_weight_decay * decays(weight.variable),
        ]
    assert set(found) == set(expected)
    for key, right in expected.items():
        assert found[key] == pytest.approx(right, rel=TOLERANCE), key
