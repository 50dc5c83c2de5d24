"""Encoder and decoder of the pretraining against the published ones."""

import numpy as np
import pytest
from golden_files import golden_files, load
from harness import run, to_numpy
from keras import ops
from published_models import (
    backbone_of,
    channels_last,
    check_loss_and_gradients,
    decoder_of,
    gradients_of,
    hidden_of,
    mask_of,
    weights_of,
)

from keras_bridle.conversion.published_weights import published_weights
from keras_bridle.layers.masks import gather_patches, restore_order
from keras_bridle.training.losses import code_prediction_loss

FILES = [*golden_files("audio_encdec*.npz"), *golden_files("image_encdec*.npz")]
VALUE = 2e-5


class Golden:
    """A file, with our networks made from it."""

    def __init__(self, path):
        self.config, self.arrays = load(path)
        config, state = self.config, weights_of(self.arrays)
        self.state = state
        self.x = ops.convert_to_tensor(channels_last(self.arrays["in.x"]))
        self.epsilon = config["layer_norm_eps"]
        self.backbone = backbone_of(config, state, "", self.x.shape[1:], self.epsilon)
        self.grid = self.backbone.grid(self.x)
        self.decoder = self.new_decoder()
        self.mask, self.noise = mask_of(config, self.arrays, self.grid)

    def new_decoder(self, **kwargs):
        levels, codes = self.config["codebook_set"], self.config["code_num"]
        return decoder_of(
            self.config, self.state, "", levels, codes, self.epsilon, **kwargs
        )

    def patch_mask(self):
        tokens = self.backbone.patch_tokens(self.x)
        return self.mask(tokens, grid=self.grid, noise=self.noise)

    def logits_of_hidden(self, name, mask):
        """Published logits at the masked patches, in our shape."""
        levels, codes = self.config["codebook_set"], self.config["code_num"]
        logits = self.arrays[name]
        logits = logits.reshape(*logits.shape[:2], levels, codes)
        return np.take_along_axis(logits, mask.masked[:, :, None, None], axis=1)


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request):
    return Golden(request.param)


def test_mask(golden):
    mask = to_numpy(golden.patch_mask())
    expected = golden.arrays["out.mask"]
    np.testing.assert_array_equal(hidden_of(mask, expected.shape[1]), expected)
    restore = to_numpy(restore_order(golden.patch_mask()))
    published = golden.arrays["out.ids_restore"]
    # The places of the visible patches count; the order of masked ones does not.
    seen = expected == 0
    np.testing.assert_array_equal(restore[seen], published[seen])


def test_values(golden):
    """Embeddings of all and of visible patches, and logits with either decoder."""
    arrays, backbone, x, grid = golden.arrays, golden.backbone, golden.x, golden.grid
    decoders = {"out.logits": golden.decoder}
    if "out.logits_mode2" in arrays:
        decoders["out.logits_mode2"] = golden.new_decoder(keep_class_token=False)

    def values():
        mask = golden.patch_mask()
        visible = backbone.encode(x, visible=mask.visible)
        patches = backbone.patch_embedding(x)
        found = {
            "out.patch_tokens": ops.reshape(patches, (len(x), -1, patches.shape[-1])),
            "out.emb_full": backbone.encode(x),
            "out.emb_visible": visible,
        }
        for name, decoder in decoders.items():
            found[name] = decoder(visible, mask, grid=grid)
        return mask, found

    mask, found = run(values, backbone, *decoders.values())
    assert "out.emb_visible" in arrays
    for name, value in found.items():
        if name in arrays:
            in_logits = name.startswith("out.logits")
            right = golden.logits_of_hidden(name, mask) if in_logits else arrays[name]
            np.testing.assert_allclose(value, right, VALUE, VALUE, err_msg=name)


def test_loss_and_gradients(golden):
    codes = ops.convert_to_tensor(golden.arrays["in.tokens"])
    weights = published_weights(golden.backbone) | published_weights(golden.decoder)

    def loss():
        mask = golden.patch_mask()
        tokens = golden.backbone.encode(golden.x, visible=mask.visible)
        logits = golden.decoder(tokens, mask, grid=golden.grid)
        return code_prediction_loss(gather_patches(codes, mask.masked), logits)

    right, expected = golden.arrays["out.loss"], gradients_of(golden.arrays)
    check_loss_and_gradients(loss, right, weights, expected)
