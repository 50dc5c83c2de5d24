"""Tokenizers, estimator and the trainers of all phases against the published code."""

import types

import keras
import numpy as np
import pytest
from golden_files import golden_files
from harness import run, to_numpy
from keras import ops
from published_models import (
    ENCODER,
    TOKENIZER,
    GoldenNetworks,
    backbone_of,
    block_settings,
    channels_last,
    check_codebooks,
    check_gradients,
    decoder_of,
    gradients_of,
    hidden_of,
    layout_of,
    ratio_that_keeps,
    step_of,
    weights_by_name,
)

from keras_bridle.conversion.published_quantizer import PublishedResidualQuantizer
from keras_bridle.conversion.published_weights import load_published
from keras_bridle.layers.masks import RandomMask
from keras_bridle.models.heads import FeatureEstimator
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.training.trainers import (
    EncoderPretrainer,
    JointPretrainer,
    TokenizerPretrainer,
)

PHASES = [*golden_files("audio_bridle*.npz"), *golden_files("image_bridle*.npz")]
JOINT = golden_files("*_joint*.npz")
EMBEDDING, QUANTIZER, LOSS, TRAJECTORY = 2e-5, 1e-5, 5e-6, 1e-4


class MaskOfNoise(RandomMask):
    """Hides the same patches at every call."""

    def __init__(self, mask_ratio, noise):
        super().__init__(mask_ratio)
        self.noise = noise

    def call(self, patches, grid=None):
        return super().call(patches, grid, noise=self.noise)


class Golden(GoldenNetworks):
    """A file of the audio and image code."""

    def __init__(self, path):
        super().__init__(path)
        self.x = channels_last(self.arrays["in.x"])
        self.epsilon = self.config["layer_norm_eps"]
        self.encoder_config = self.config["encoder_decoder"]
        self.tokenizer_config = self.config["tokenizer"]
        # VQ: one level whose codes have no axis of levels.
        self.is_vq = self.config.get("codebook_type") == "legacy"
        self.num_levels = self.tokenizer_config.get("codebook_set", 1)
        self.patches = self.arrays["in.noise"].shape[1]
        ratio = ratio_that_keeps(self.config["mask_ratio"], self.patches)
        self.mask = MaskOfNoise(ratio, self.arrays["in.noise"])

    def quantizer(self):
        return PublishedResidualQuantizer(
            flavor="vq" if self.is_vq else "audio",
            num_levels=self.num_levels,
            codebook_size=self.tokenizer_config["code_num"],
            dim=self.tokenizer_config["code_dim"],
            # The joint files do not name them: the published defaults.
            decay=self.config.get("decay", 0.99),
            commitment_weight=self.config.get("commitment", 0.25),
        )

    def make_backbone(self, prefix=ENCODER):
        config = self.encoder_config if prefix == ENCODER else self.tokenizer_config
        return backbone_of(config, self.state, prefix, self.x.shape[1:], self.epsilon)

    def make_decoder(self):
        levels, codes = self.num_levels, self.tokenizer_config["code_num"]
        config, state, epsilon = self.encoder_config, self.state, self.epsilon
        return decoder_of(config, state, ENCODER, levels, codes, epsilon)

    def make_tokenizer(self):
        tokenizer = BridleTokenizer(self.make_backbone(TOKENIZER), self.quantizer())
        load_published(tokenizer, self.state, TOKENIZER)
        return tokenizer

    def make_random_projection(self):
        tokenizer = RandomProjectionTokenizer(
            self.tokenizer_config["patch_size"],
            self.tokenizer_config["embed_dim"],
            self.quantizer(),
            position_layout=layout_of(self.tokenizer_config),
        )
        tokenizer.build(self.x.shape)
        load_published(tokenizer, self.state, TOKENIZER)
        return tokenizer

    def make_estimator(self):
        config = self.tokenizer_config
        settings = block_settings(
            config,
            self.state,
            f"{TOKENIZER}estimator_blocks",
            config["estimator_embed_dim"],
            config["estimator_num_heads"],
            config["estimator_depth"],
            self.epsilon,
        )
        estimator = FeatureEstimator(self.encoder_config["embed_dim"], **settings)
        estimator.build((None, None, config["code_dim"]))
        load_published(estimator, self.state, TOKENIZER)
        return estimator

    def trainer(self, phase):
        if phase == "tokenizer":
            trainer = TokenizerPretrainer(self.tokenizer, self.estimator, self.backbone)
        elif phase == "joint":
            trainer = JointPretrainer(
                self.backbone,
                self.decoder,
                self.tokenizer,
                self.estimator,
                tokenizer_loss_ratio=self.config["tokenizer_loss_ratio"],
                mask=self.mask,
            )
        else:
            is_cold = phase == "encoder_cold"
            tokenizer = self.random_projection if is_cold else self.tokenizer
            trainer = EncoderPretrainer(
                self.backbone, self.decoder, tokenizer, self.mask
            )
        trainer.set_trained_parts()
        return trainer

    def check_step(self, trainer, block, gradients=True):
        """Compares loss and gradients of a step, and returns loss and outputs."""
        weights = weights_by_name(trainer)
        expected = gradients_of(self.arrays, f"{block}.") if gradients else {}
        assert bool(expected) == gradients
        value, found, outputs = step_of(trainer, self.x, weights, list(expected))
        right = float(self.arrays[f"{block}.loss"])
        assert value == pytest.approx(right, rel=LOSS)
        if gradients:
            check_gradients(weights, found, expected)
        return value, outputs

    def check_codebooks(self, block):
        """Compares codebooks and counts with those after a step."""
        stem = f"{block}.after.quantizer."
        check_codebooks(self.arrays, stem, self.tokenizer.quantizer)

    def codes(self, name):
        codes = self.arrays[name]
        return codes[..., None] if self.is_vq else codes


@pytest.fixture(scope="module", params=PHASES, ids=lambda path: path.stem)
def file_of_phases(request):
    return Golden(request.param)


@pytest.fixture
def phases(file_of_phases):
    return file_of_phases.restore()


@pytest.fixture(scope="module", params=JOINT, ids=lambda path: path.stem)
def joint_file(request):
    return Golden(request.param)


@pytest.fixture
def joint(joint_file):
    return joint_file.restore()


def test_values(phases):
    """Codes and vectors of both tokenizers, outputs of estimator and teacher."""
    arrays, x = phases.arrays, ops.convert_to_tensor(phases.x)
    cold, tokenizer = phases.random_projection, phases.tokenizer
    estimator, teacher = phases.estimator, phases.backbone
    cold.trainable = tokenizer.trainable = False
    grid = teacher.grid(x)
    random = ops.convert_to_tensor(arrays["in.estimator_random"])

    def values():
        full = tokenizer(x)
        return {
            "cold": cold(x).codes,
            "full": full._asdict(),
            "out.quantizer_input": tokenizer.vectors(x),
            "out.quantizer_output": full.quantized,
            "out.estimator_of_random": estimator(random, grid=grid),
            "out.estimator_emb_eval": estimator(full.quantized, grid=grid),
            "out.teacher": teacher(x),
        }

    found = run(values, cold, tokenizer, estimator, teacher)
    np.testing.assert_array_equal(found.pop("cold"), phases.codes("out.codes_cold"))
    full = found.pop("full")
    np.testing.assert_array_equal(full["codes"], phases.codes("out.codes_full"))
    assert full["loss"] == pytest.approx(float(arrays["out.embed_loss_eval"]), rel=LOSS)
    for name, value in found.items():
        limit = QUANTIZER if name == "out.quantizer_output" else EMBEDDING
        np.testing.assert_allclose(value, arrays[name], limit, limit, err_msg=name)
    codes = phases.codes("out.eval_codebooks_codes")
    np.testing.assert_array_equal(full["codes"], codes)
    each = arrays["out.eval_codebooks_z"].reshape(*codes.shape[:2], -1, codes.shape[2])
    for level, table in enumerate(to_numpy(tokenizer.quantizer.codebooks)):
        chosen = table[full["codes"][..., level]]
        np.testing.assert_allclose(chosen, each[..., level], QUANTIZER, QUANTIZER)


@pytest.mark.parametrize("phase", ["encoder_cold", "encoder_full"])
def test_encoder_phase(phases, phase):
    trainer = phases.trainer(phase)
    before = to_numpy(trainer.tokenizer.weights)
    _, outputs = phases.check_step(trainer, phase)
    for old, weight in zip(before, trainer.tokenizer.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(weight))
    if phase == "encoder_cold":
        return
    mask = phases.mask(ops.zeros((len(phases.x), phases.patches, 1)))
    mask = types.SimpleNamespace(**{k: to_numpy(v) for k, v in mask._asdict().items()})
    hidden = hidden_of(mask, phases.patches)
    np.testing.assert_array_equal(hidden, phases.arrays["encoder_full.mask"])
    logits = phases.arrays["encoder_full.logits"]
    logits = logits.reshape(*logits.shape[:2], *outputs["logits"].shape[2:])
    logits = np.take_along_axis(logits, mask.masked[:, :, None, None], axis=1)
    np.testing.assert_allclose(outputs["logits"], logits, EMBEDDING, EMBEDDING)
    codes = phases.codes("out.codes_full")
    codes = np.take_along_axis(codes, mask.masked[:, :, None], axis=1)
    np.testing.assert_array_equal(outputs["codes"], codes)


def test_tokenizer_phase(phases):
    arrays = phases.arrays
    value, outputs = phases.check_step(phases.trainer("tokenizer"), "tokenizer")
    phases.check_codebooks("tokenizer")
    np.testing.assert_allclose(
        outputs["estimate"], arrays["tokenizer.estimator_emb"], EMBEDDING, EMBEDDING
    )
    loss = float(arrays["tokenizer.embed_loss"])
    assert outputs["quantizer_loss"] == pytest.approx(loss, rel=LOSS)
    loss = float(arrays["tokenizer.cosine_loss"])
    assert value - outputs["quantizer_loss"] == pytest.approx(loss, rel=LOSS)


@pytest.mark.parametrize(("step", "block"), [(0, "both"), (1, "encoder_only")])
def test_joint_step(joint, step, block):
    trainer = joint.trainer("joint")
    trainer.step.assign(step)
    joint.check_step(trainer, block, gradients=block == "both")
    joint.check_codebooks(block)


def trajectory(trainer, x, steps):
    """The losses of successive AdamW steps on one batch, as published."""
    optimizer = keras.optimizers.AdamW(
        5e-4, weight_decay=1e-4, beta_1=0.9, beta_2=0.95, epsilon=1e-8
    )
    optimizer.exclude_from_weight_decay(
        [v for v in trainer.trainable_variables if len(v.shape) < 2]
    )
    trainer.compile(optimizer, jit_compile=keras.backend.backend() == "jax")
    history = trainer.fit(x, batch_size=len(x), epochs=steps, shuffle=False, verbose=0)
    return history.history["loss"]


@pytest.mark.parametrize("phase", ["encoder", "tokenizer"])
def test_trajectory(phases, phase):
    expected = phases.arrays.get(f"trajectory.{phase}_loss")
    if expected is None:
        pytest.skip("the file has no trajectory")
    losses = trajectory(phases.trainer(phase), phases.x, len(expected))
    np.testing.assert_allclose(losses, expected, TRAJECTORY)
