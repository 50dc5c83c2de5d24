"""Fine-tuned networks against the published ones."""

import numpy as np
import pytest
from golden_files import golden_files, load
from harness import run, to_numpy
from keras import losses, ops
from published_models import (
    backbone_of,
    channels_last,
    check_loss_and_gradients,
    gradients_of,
    mask_of,
    weights_of,
)

from keras_bridle.conversion.published_video import from_published_video
from keras_bridle.conversion.published_weights import load_published, published_weights
from keras_bridle.layers.masks import gather_patches
from keras_bridle.layers.positions import SineCosinePositionEncoding
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import BridleAudioClassifier, BridleVideoClassifier

MAPS = golden_files("finetune_vit*.npz")
CLIPS = golden_files("video_finetune_vit*.npz")
# No config names the norms' epsilon of the video code.
EPSILON, VALUE = 1e-6, 2e-5


def layout_of(grid, positions):
    """The layout that the published positions have, which no config names."""
    if not positions[0].any():
        for layout in ("transposed_grid", "grid"):
            encoding = SineCosinePositionEncoding(layout)
            table = to_numpy(encoding.table(grid, positions.shape[1]))
            if np.abs(table - positions[1:]).max() <= 1e-6:
                return layout
    return "learned"


class Maps:
    """A file of the audio and image code, with our classifier made from it."""

    def __init__(self, path):
        self.config, self.arrays = load(path)
        config, state = self.config, weights_of(self.arrays)
        self.x = ops.convert_to_tensor(channels_last(self.arrays["in.x"]))
        self.grid = tuple(x // config["patch_size"] for x in self.x.shape[1:3])
        layout = layout_of(self.grid, state["pos_embed"][0])
        dims, epsilon = self.x.shape[1:], config["layer_norm_eps"]
        mask, self.noise = mask_of(config, self.arrays, self.grid)
        self.classifier = BridleAudioClassifier(
            backbone_of(config, state, None, dims, epsilon, layout),
            num_classes=len(state["head.weight"]),
            pooling="mean" if config["global_pool"] else "first",
            token_mask=mask,
            compile=False,
        )
        load_published(self.classifier, state)


@pytest.fixture(scope="module", params=MAPS, ids=lambda path: path.stem)
def maps(request):
    return Maps(request.param)


def test_features_and_logits(maps):
    classifier, arrays = maps.classifier, maps.arrays

    def values():
        return {
            "out.features": classifier.pooled(maps.x),
            "called": classifier(maps.x),
            "out.logits": classifier.classify(maps.x),
            "masked": classifier.classify(maps.x, noise=maps.noise, training=True),
        }

    found = run(values, classifier)
    np.testing.assert_allclose(found["called"], found["out.logits"], 1e-6, 1e-6)
    # The file of whole rows and columns has logits of nothing but the masked run.
    is_2d = "in.noise_t" in arrays
    found["out.logits" if is_2d else "out.logits_masked"] = found["masked"]
    checked = [name for name in arrays if name.startswith("out.") and name in found]
    assert checked
    for name in checked:
        np.testing.assert_allclose(found[name], arrays[name], VALUE, VALUE, name)


def test_loss_and_gradients(maps):
    if "out.bce_loss" not in maps.arrays:
        pytest.skip("the file has no loss")
    weights = published_weights(maps.classifier)
    cross_entropy = losses.BinaryCrossentropy(from_logits=True)

    def loss():
        return cross_entropy(maps.arrays["in.labels"], maps.classifier(maps.x))

    right, expected = maps.arrays["out.bce_loss"], gradients_of(maps.arrays)
    check_loss_and_gradients(loss, right, weights, expected)


def test_kept_tokens(maps):
    if "out.kept_tokens" not in maps.arrays:
        pytest.skip("the file has no tokens")
    tokens, right = maps.arrays["in.tokens"], maps.arrays["out.kept_tokens"]
    mask = maps.classifier.token_mask(tokens, grid=maps.grid, noise=maps.noise)
    kept = to_numpy(gather_patches(ops.convert_to_tensor(tokens), mask.visible))
    # Ours are in natural order, the published ones in that of the noise.
    for ours, published in zip(kept, right, strict=True):
        np.testing.assert_array_equal(in_order(ours), in_order(published))


def in_order(rows):
    return rows[np.lexsort(rows.T)]


class Clips:
    """A file of the video code, with our classifier made from it."""

    def __init__(self, path):
        self.config, self.arrays = load(path)
        config = self.config
        state = from_published_video(weights_of(self.arrays))
        self.x = ops.convert_to_tensor(channels_last(self.arrays["in.x"]))
        backbone = BridleBackbone(
            patch_size=state["patch_embed.proj.weight"].shape[2:],
            hidden_dim=config["dim"],
            num_layers=config["depth"],
            num_heads=config["heads"],
            mlp_dim=int(config["mlp_ratio"] * config["dim"]),
            input_dims=self.x.shape[1:],
            use_class_token=False,
            position_layout="sequence",
            layer_norm_epsilon=config.get("layer_norm_eps", EPSILON),
        )
        self.classifier = BridleVideoClassifier(
            backbone,
            num_classes=len(state["head.weight"]),
            pooling="mean" if config["mean_pooling"] else "first",
            compile=False,
        )
        load_published(self.classifier, state)


@pytest.fixture(scope="module", params=CLIPS, ids=lambda path: path.stem)
def clips(request):
    return Clips(request.param)


def test_features_and_logits_of_clips(clips):
    classifier = clips.classifier
    found = run(
        lambda: {
            "out.features": classifier.pooled(clips.x),
            "out.logits": classifier(clips.x),
        },
        classifier,
    )
    for name, value in found.items():
        np.testing.assert_allclose(value, clips.arrays[name], VALUE, VALUE, name)
