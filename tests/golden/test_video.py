"""Networks and losses of the published video code, through the layers of all inputs."""

import types

import keras
import numpy as np
import pytest
from golden_files import golden_files
from harness import run
from keras import ops
from published_models import (
    ENCODER,
    TOKENIZER,
    GoldenNetworks,
    channels_last,
    check_codebooks,
    check_gradients,
    check_loss_and_gradients,
    gradients_of,
    step_of,
    weights_by_name,
)

from keras_bridle.conversion.published_quantizer import PublishedResidualQuantizer
from keras_bridle.conversion.published_video import from_published_video
from keras_bridle.conversion.published_weights import load_published
from keras_bridle.layers.masks import PatchMask
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.training.losses import code_prediction_loss
from keras_bridle.training.trainers import TokenizerPretrainer

FILES = golden_files("video_*.npz", lambda config: "codebook_type" in config)
EMBEDDING, LOSS = 2e-5, 5e-6


class Golden(GoldenNetworks):
    """A file of the video code."""

    def __init__(self, path):
        super().__init__(path)
        self.state = from_published_video(self.state)
        self.x = ops.convert_to_tensor(channels_last(self.arrays["in.x"]))
        side = self.config["patch_size"]
        self.patch_size = (self.config["tubelet"], side, side)
        self.dims = self.config["dims"]
        self.is_vq = self.config["codebook_type"] != "rq"
        self.num_levels = 1 if self.is_vq else self.config["codebook_set"]
        masked = self.arrays["in.mask"].astype(bool)
        self.mask = PatchMask(
            *(
                np.stack([np.flatnonzero(row) for row in rows]).astype("int32")
                for rows in (~masked, masked)
            )
        )

    def settings(self, name):
        """The arguments that all networks of blocks share."""
        dim, depth, heads = self.dims[name]
        return {
            "hidden_dim": dim,
            "num_layers": depth,
            "num_heads": heads,
            "mlp_dim": int(self.dims["mlp"] * dim),
            "position_layout": "sequence",
            "layer_norm_epsilon": self.config["layer_norm_eps"],
        }

    def quantizer(self):
        return PublishedResidualQuantizer(
            flavor="vq" if self.is_vq else "video",
            num_levels=self.num_levels,
            codebook_size=self.config["code_num"],
            dim=self.config["code_dim"],
        )

    def loaded(self, part, prefix, *shape):
        if not part.built:
            part.build(shape)
        load_published(part, self.state, prefix)
        return part

    def make_backbone(self, prefix=ENCODER):
        backbone = BridleBackbone(
            patch_size=self.patch_size,
            input_dims=self.x.shape[1:],
            use_class_token=False,
            **self.settings("encoder"),
        )
        return self.loaded(backbone, prefix)

    def make_decoder(self):
        decoder = CodeDecoder(
            self.num_levels,
            self.config["code_num"],
            use_class_token=False,
            **self.settings("decoder"),
        )
        return self.loaded(decoder, ENCODER, None, None, self.dims["encoder"][0])

    def make_tokenizer(self):
        tokenizer = BridleTokenizer(self.make_backbone(TOKENIZER), self.quantizer())
        return self.loaded(tokenizer, TOKENIZER)

    def make_random_projection(self):
        tokenizer = RandomProjectionTokenizer(
            self.patch_size,
            self.dims["encoder"][0],
            self.quantizer(),
            position_layout="sequence",
        )
        return self.loaded(tokenizer, TOKENIZER, *self.x.shape)

    def make_estimator(self):
        dim = self.dims["encoder"][0]
        estimator = FeatureEstimator(dim, **self.settings("estimator"))
        return self.loaded(estimator, TOKENIZER, None, None, self.config["code_dim"])

    def codes(self, name):
        codes = self.arrays[name]
        return codes.reshape(*codes.shape[:2], self.num_levels)

    def gradients_of(self, block):
        expected = from_published_video(gradients_of(self.arrays, f"{block}."))
        # Biases that the published networks lack come out as zeros; ours get gradients.
        return {name: array for name, array in expected.items() if array.any()}


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def file(request):
    return Golden(request.param)


@pytest.fixture
def golden(file):
    return file.restore()


def test_values(golden):
    """Embeddings, logits, and the codes of both tokenizers."""
    arrays, x, mask = golden.arrays, golden.x, golden.mask
    backbone, decoder = golden.backbone, golden.decoder
    cold, tokenizer = golden.random_projection, golden.tokenizer
    cold.trainable = tokenizer.trainable = False

    def values():
        patches = backbone.patch_embedding(x)
        visible = backbone.encode(x, visible=mask.visible)
        floats = {
            "out.patch_tokens": ops.reshape(patches, (len(x), -1, patches.shape[-1])),
            "out.emb_full": backbone.encode(x),
            "out.emb_visible": visible,
            "out.logits": decoder(visible, mask, grid=backbone.grid(x)),
        }
        codes = {
            "out.codes_cold_masked": cold(x, visible=mask.masked).codes,
            "out.codes_full_masked": tokenizer(x, visible=mask.masked).codes,
            "out.codes_full_all": tokenizer(x).codes,
        }
        return floats, codes, cold(x).codes

    floats, codes, every = run(values, backbone, decoder, cold, tokenizer)
    for name, value in floats.items():
        right = arrays[name].reshape(value.shape)
        np.testing.assert_allclose(value, right, EMBEDDING, EMBEDDING, err_msg=name)
    for name, value in codes.items():
        np.testing.assert_array_equal(value, golden.codes(name), err_msg=name)
    # In the random projection no patch sees another.
    every = np.take_along_axis(every, mask.masked[:, :, None], axis=1)
    np.testing.assert_array_equal(every, golden.codes("out.codes_cold_masked"))


@pytest.mark.parametrize("kind", ["cold", "full"])
def test_encoder_phase(golden, kind):
    x, mask = golden.x, golden.mask
    backbone, decoder = golden.backbone, golden.decoder
    parts = types.SimpleNamespace(backbone=backbone, decoder=decoder)
    weights = weights_by_name(parts)
    # A variable, so that both kinds of codes have the same compiled step.
    codes = keras.Variable(
        golden.codes(f"out.codes_{kind}_masked"), trainable=False, dtype="int32"
    )

    def loss():
        tokens = backbone.encode(x, visible=mask.visible)
        logits = decoder(tokens, mask, grid=backbone.grid(x))
        return code_prediction_loss(ops.convert_to_tensor(codes), logits)

    right = golden.arrays[f"encoder_{kind}.loss"]
    expected = golden.gradients_of(f"encoder_{kind}")
    check_loss_and_gradients(loss, right, weights, expected, [codes])


def test_tokenizer_phase(golden):
    arrays = golden.arrays
    trainer = TokenizerPretrainer(golden.tokenizer, golden.estimator, golden.backbone)
    trainer.set_trained_parts()
    weights = weights_by_name(trainer)
    expected = golden.gradients_of("tokenizer")
    assert expected
    value, found, outputs = step_of(trainer, golden.x, weights, list(expected))
    assert value == pytest.approx(float(arrays["tokenizer.loss"]), rel=LOSS)
    check_gradients(weights, found, expected)
    # Fresh codebooks of the video code jump to about 1e5, with errors in proportion.
    stem = "tokenizer.after.quantizer."
    largest = max(
        np.abs(array).max() for name, array in arrays.items() if name.startswith(stem)
    )
    check_codebooks(arrays, stem, golden.tokenizer.quantizer, 1e-5 * largest)
    for name, ours in (
        ("tokenizer.embed_loss", outputs["quantizer_loss"]),
        ("tokenizer.estimator_emb", outputs["estimate"]),
        ("tokenizer.teacher", run(lambda: golden.backbone(golden.x), golden.backbone)),
    ):
        right = arrays[name]
        absolute = EMBEDDING * max(1.0, np.abs(right).max())
        np.testing.assert_allclose(ours, right, EMBEDDING, absolute, err_msg=name)


def test_outputs_of_the_tokenizer(golden):
    found = run(
        lambda: golden.tokenizer(golden.x, training=True)._asdict(), golden.tokenizer
    )
    codes = golden.codes("tokenizer.codes")
    np.testing.assert_array_equal(found["codes"], codes)
    right = golden.arrays["tokenizer.z_q"]
    absolute = EMBEDDING * max(1.0, np.abs(right).max())
    np.testing.assert_allclose(found["quantized"], right, EMBEDDING, absolute)
