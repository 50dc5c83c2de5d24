"""Networks and losses of the published video code, through the layers of all inputs."""

import types

import numpy as np
import pytest
from golden_files import golden_files, load
from harness import gradients, run, to_numpy
from keras import ops
from published_models import (
    ENCODER,
    TOKENIZER,
    channels_last,
    check_codebooks,
    check_gradients,
    gradients_of,
    step_of,
    weights_by_name,
    weights_of,
)

from keras_bridle.conversion.published_quantizer import PublishedResidualQuantizer
from keras_bridle.conversion.published_video import from_published_video
from keras_bridle.conversion.published_weights import (
    load_published_backbone,
    load_published_decoder,
    load_published_estimator,
    load_published_random_projection,
    load_published_tokenizer,
)
from keras_bridle.layers.masks import PatchMask
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.training.losses import code_prediction_loss
from keras_bridle.training.trainers import TokenizerPretrainer

FILES = golden_files("video_*.npz", lambda config: "codebook_type" in config)
EMBEDDING, LOSS = 2e-5, 5e-6


class Golden:
    """A file, with our networks made from it, with fresh weights each time."""

    def __init__(self, path):
        self.config, self.arrays = load(path)
        self.state = from_published_video(weights_of(self.arrays))
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

    def backbone(self, prefix=ENCODER):
        backbone = BridleBackbone(
            patch_size=self.patch_size,
            input_dims=self.x.shape[1:],
            use_class_token=False,
            **self.settings("encoder"),
        )
        load_published_backbone(backbone, self.state, prefix)
        return backbone

    def decoder(self):
        decoder = CodeDecoder(
            self.num_levels,
            self.config["code_num"],
            use_class_token=False,
            **self.settings("decoder"),
        )
        decoder.build((None, None, self.dims["encoder"][0]))
        load_published_decoder(decoder, self.state, ENCODER)
        return decoder

    def tokenizer(self):
        tokenizer = BridleTokenizer(self.backbone(TOKENIZER), self.quantizer())
        load_published_tokenizer(tokenizer, self.state, TOKENIZER)
        return tokenizer

    def random_projection(self):
        tokenizer = RandomProjectionTokenizer(
            self.patch_size,
            self.dims["encoder"][0],
            self.quantizer(),
            position_layout="sequence",
        )
        tokenizer.build(self.x.shape)
        load_published_random_projection(tokenizer, self.state, TOKENIZER)
        return tokenizer

    def estimator(self):
        dim = self.dims["encoder"][0]
        estimator = FeatureEstimator(dim, **self.settings("estimator"))
        estimator.build((None, None, self.config["code_dim"]))
        load_published_estimator(estimator, self.state, TOKENIZER)
        return estimator

    def parts(self):
        """All networks by the names that trainers give them."""
        return types.SimpleNamespace(
            backbone=self.backbone(),
            decoder=self.decoder(),
            tokenizer=self.tokenizer(),
            estimator=self.estimator(),
        )

    def codes(self, name):
        codes = self.arrays[name]
        return codes.reshape(*codes.shape[:2], self.num_levels)

    def gradients_of(self, block):
        expected = from_published_video(gradients_of(self.arrays, block))
        # Biases that the published networks lack come out as zeros; ours get gradients.
        return {name: array for name, array in expected.items() if array.any()}


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request):
    return Golden(request.param)


def test_every_weight_has_a_place(golden):
    ours = set(weights_by_name(golden.parts()))
    cold = types.SimpleNamespace(tokenizer=golden.random_projection())
    ours |= set(weights_by_name(cold))
    published = {name for name in golden.state if ".quantizer." not in name}
    assert ours == {name for name in published if not name.endswith("pos_embed")}


def test_positions_are_the_published_ones(golden):
    parts = golden.parts()
    grid = parts.backbone.grid(golden.x)
    for name, part in (
        ("encoder", parts.backbone),
        ("decoder", parts.decoder),
        ("estimator", parts.estimator),
    ):
        expected = golden.arrays[f"aux.pos_embed_{name}"][0]
        table = part.position_encoding.table(grid, expected.shape[1])
        np.testing.assert_allclose(to_numpy(table), expected, atol=1e-6)


def test_embeddings_and_logits(golden):
    arrays, x, mask = golden.arrays, golden.x, golden.mask
    backbone, decoder = golden.backbone(), golden.decoder()

    def values():
        patches = backbone.patch_embedding(x)
        visible = backbone.encode(x, visible=mask.visible)
        return {
            "out.patch_tokens": ops.reshape(patches, (len(x), -1, patches.shape[-1])),
            "out.emb_full": backbone.encode(x),
            "out.emb_visible": visible,
            "out.logits": decoder(visible, mask, grid=backbone.grid(x)),
        }

    found = run(values, backbone, decoder)
    for name, value in found.items():
        right = arrays[name].reshape(value.shape)
        np.testing.assert_allclose(value, right, EMBEDDING, EMBEDDING, err_msg=name)


def test_codes(golden):
    x, masked = golden.x, golden.mask.masked
    cold, tokenizer = golden.random_projection(), golden.tokenizer()
    cold.trainable = tokenizer.trainable = False
    found = run(
        lambda: {
            "out.codes_cold_masked": cold(x, visible=masked).codes,
            "out.codes_full_masked": tokenizer(x, visible=masked).codes,
            "out.codes_full_all": tokenizer(x).codes,
        },
        cold,
        tokenizer,
    )
    for name, codes in found.items():
        np.testing.assert_array_equal(codes, golden.codes(name), err_msg=name)
    # The random projection lets no patch see another.
    every = to_numpy(cold(x).codes)
    every = np.take_along_axis(every, masked[:, :, None], axis=1)
    np.testing.assert_array_equal(every, golden.codes("out.codes_cold_masked"))


@pytest.mark.parametrize("kind", ["cold", "full"])
def test_encoder_phase(golden, kind):
    x, mask = golden.x, golden.mask
    backbone, decoder = golden.backbone(), golden.decoder()
    tokenizer = golden.random_projection() if kind == "cold" else golden.tokenizer()
    tokenizer.trainable = False
    parts = types.SimpleNamespace(backbone=backbone, decoder=decoder)
    weights = weights_by_name(parts)
    expected = golden.gradients_of(f"encoder_{kind}")
    assert expected

    def loss():
        codes = tokenizer(x, visible=mask.masked).codes
        tokens = backbone.encode(x, visible=mask.visible)
        logits = decoder(tokens, mask, grid=backbone.grid(x))
        return code_prediction_loss(ops.stop_gradient(codes), logits)

    value, found = gradients(loss, [weights[name].variable for name in expected])
    right = float(golden.arrays[f"encoder_{kind}.loss"])
    assert value == pytest.approx(right, rel=LOSS)
    check_gradients(weights, dict(zip(expected, found, strict=True)), expected)


def tokenizer_trainer(golden):
    trainer = TokenizerPretrainer(
        golden.tokenizer(), golden.estimator(), golden.backbone()
    )
    trainer.set_trained_parts()
    return trainer


def test_tokenizer_phase(golden):
    arrays, trainer = golden.arrays, tokenizer_trainer(golden)
    weights = weights_by_name(trainer)
    expected = golden.gradients_of("tokenizer")
    assert expected
    value, found = step_of(trainer, golden.x, weights, list(expected))
    assert value == pytest.approx(float(arrays["tokenizer.loss"]), rel=LOSS)
    check_gradients(weights, found, expected)
    # Fresh codebooks of the video code jump to about 1e5, with errors in proportion.
    stem = "tokenizer.after.quantizer."
    largest = max(
        np.abs(array).max() for name, array in arrays.items() if name.startswith(stem)
    )
    check_codebooks(arrays, stem, trainer.tokenizer.quantizer, 1e-5 * largest)


def test_outputs_of_the_tokenizer_phase(golden):
    arrays, trainer = golden.arrays, tokenizer_trainer(golden)

    def outputs():
        quantized = trainer.tokenizer(golden.x, training=True)
        estimate = trainer.estimator(
            quantized.quantized, grid=trainer.teacher.grid(golden.x)
        )
        return {
            "tokenizer.codes": quantized.codes,
            "tokenizer.z_q": quantized.quantized,
            "tokenizer.embed_loss": quantized.loss,
            "tokenizer.estimator_emb": estimate,
            "tokenizer.teacher": trainer.teacher(golden.x),
        }

    found = run(outputs, trainer)
    codes = found.pop("tokenizer.codes")
    np.testing.assert_array_equal(codes, golden.codes("tokenizer.codes"))
    for name, value in found.items():
        right = arrays[name]
        absolute = EMBEDDING * max(1.0, np.abs(right).max())
        np.testing.assert_allclose(value, right, EMBEDDING, absolute, err_msg=name)
