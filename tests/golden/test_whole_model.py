"""Tokenizers, estimator and the trainers of all phases against the published code."""

import types

import keras
import numpy as np
import pytest
from golden_files import golden_files, load
from harness import run, to_numpy
from keras import ops
from published_models import (
    ENCODER,
    TOKENIZER,
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
    weights_of,
)

from keras_bridle.conversion.published_quantizer import PublishedResidualQuantizer
from keras_bridle.conversion.published_weights import (
    load_published_estimator,
    load_published_random_projection,
    load_published_tokenizer,
    published_weights,
)
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


class Golden:
    """A file, with our networks made from it, with fresh weights each time."""

    def __init__(self, path):
        self.config, self.arrays = load(path)
        self.state = weights_of(self.arrays)
        self.x = channels_last(self.arrays["in.x"])
        self.epsilon = self.config["layer_norm_eps"]
        self.encoder_config = self.config["encoder_decoder"]
        self.tokenizer_config = self.config["tokenizer"]
        # VQ: one level whose codes have no axis of levels.
        self.is_vq = self.config.get("codebook_type") == "legacy"
        self.num_levels = self.tokenizer_config.get("codebook_set", 1)
        self.patches = self.arrays["in.noise"].shape[1]

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

    def backbone(self, prefix=ENCODER):
        config = self.encoder_config if prefix == ENCODER else self.tokenizer_config
        return backbone_of(config, self.state, prefix, self.x.shape[1:], self.epsilon)

    def decoder(self):
        return decoder_of(
            self.encoder_config,
            self.state,
            ENCODER,
            self.num_levels,
            self.tokenizer_config["code_num"],
            self.epsilon,
        )

    def tokenizer(self):
        tokenizer = BridleTokenizer(self.backbone(TOKENIZER), self.quantizer())
        load_published_tokenizer(tokenizer, self.state, TOKENIZER)
        return tokenizer

    def random_projection(self):
        tokenizer = RandomProjectionTokenizer(
            self.tokenizer_config["patch_size"],
            self.tokenizer_config["embed_dim"],
            self.quantizer(),
            position_layout=layout_of(self.tokenizer_config),
        )
        tokenizer.build(self.x.shape)
        load_published_random_projection(tokenizer, self.state, TOKENIZER)
        return tokenizer

    def estimator(self):
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
        load_published_estimator(estimator, self.state, TOKENIZER)
        return estimator

    def mask(self):
        ratio = ratio_that_keeps(self.config["mask_ratio"], self.patches)
        return MaskOfNoise(ratio, self.arrays["in.noise"])

    def encoder_trainer(self, tokenizer):
        backbone, decoder = self.backbone(), self.decoder()
        trainer = EncoderPretrainer(backbone, decoder, tokenizer, self.mask())
        trainer.set_trained_parts()
        return trainer

    def tokenizer_trainer(self):
        trainer = TokenizerPretrainer(
            self.tokenizer(), self.estimator(), self.backbone()
        )
        trainer.set_trained_parts()
        return trainer

    def joint_trainer(self):
        trainer = JointPretrainer(
            self.backbone(),
            self.decoder(),
            self.tokenizer(),
            self.estimator(),
            tokenizer_loss_ratio=self.config["tokenizer_loss_ratio"],
            mask=self.mask(),
        )
        trainer.set_trained_parts()
        return trainer

    def codes(self, name):
        codes = self.arrays[name]
        return codes[..., None] if self.is_vq else codes

    def check_codebooks(self, block, quantizer):
        """Compares codebooks and counts with those after a step."""
        check_codebooks(self.arrays, f"{block}.after.quantizer.", quantizer)


@pytest.fixture(scope="module", params=PHASES, ids=lambda path: path.stem)
def phases(request):
    return Golden(request.param)


@pytest.fixture(scope="module", params=JOINT, ids=lambda path: path.stem)
def joint(request):
    return Golden(request.param)


def test_every_weight_has_a_place(phases):
    trainer = phases.encoder_trainer(phases.tokenizer())
    ours = set(weights_by_name(trainer))
    ours |= {TOKENIZER + name for name in published_weights(phases.random_projection())}
    ours |= {TOKENIZER + name for name in published_weights(phases.estimator())}
    fixed = {name for name in phases.state if name.endswith("pos_embed")}
    codebooks = {name for name in phases.state if ".quantizer." in name}
    assert ours == set(phases.state) - fixed - codebooks


def test_codes_and_vectors(phases):
    arrays, x = phases.arrays, phases.x
    cold, tokenizer = phases.random_projection(), phases.tokenizer()
    for part in (cold, tokenizer):
        part.trainable = False
    found = run(
        lambda: {
            "cold": cold(x).codes,
            "vectors": tokenizer.vectors(x),
            "full": tokenizer(x)._asdict(),
        },
        cold,
        tokenizer,
    )
    np.testing.assert_array_equal(found["cold"], phases.codes("out.codes_cold"))
    full = found["full"]
    np.testing.assert_array_equal(full["codes"], phases.codes("out.codes_full"))
    np.testing.assert_allclose(
        found["vectors"], arrays["out.quantizer_input"], EMBEDDING, EMBEDDING
    )
    np.testing.assert_allclose(
        full["quantized"], arrays["out.quantizer_output"], QUANTIZER, QUANTIZER
    )
    assert full["loss"] == pytest.approx(float(arrays["out.embed_loss_eval"]), rel=LOSS)
    codes = phases.codes("out.eval_codebooks_codes")
    np.testing.assert_array_equal(full["codes"], codes)
    each = arrays["out.eval_codebooks_z"].reshape(*codes.shape[:2], -1, codes.shape[2])
    tables = to_numpy(tokenizer.quantizer.codebooks)
    for level, table in enumerate(tables):
        chosen = table[full["codes"][..., level]]
        np.testing.assert_allclose(chosen, each[..., level], QUANTIZER, QUANTIZER)


def test_estimator_and_teacher(phases):
    arrays, x = phases.arrays, phases.x
    estimator, teacher, tokenizer = (
        phases.estimator(),
        phases.backbone(),
        phases.tokenizer(),
    )
    tokenizer.trainable = False
    grid = teacher.grid(x)
    found = run(
        lambda: {
            "out.estimator_of_random": estimator(
                ops.convert_to_tensor(arrays["in.estimator_random"]), grid=grid
            ),
            "out.estimator_emb_eval": estimator(tokenizer(x).quantized, grid=grid),
            "out.teacher": teacher(x),
        },
        estimator,
        teacher,
        tokenizer,
    )
    for name, value in found.items():
        np.testing.assert_allclose(
            value, arrays[name], EMBEDDING, EMBEDDING, err_msg=name
        )


@pytest.mark.parametrize("kind", ["cold", "full"])
def test_encoder_phase(phases, kind):
    tokenizer = phases.random_projection() if kind == "cold" else phases.tokenizer()
    trainer = phases.encoder_trainer(tokenizer)
    weights = weights_by_name(trainer)
    expected = gradients_of(phases.arrays, f"encoder_{kind}")
    before = [to_numpy(weight) for weight in tokenizer.weights]
    value, found = step_of(trainer, phases.x, weights, list(expected))
    right = float(phases.arrays[f"encoder_{kind}.loss"])
    assert value == pytest.approx(right, rel=LOSS)
    check_gradients(weights, found, expected)
    for old, weight in zip(before, tokenizer.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(weight))


def test_encoder_phase_logits(phases):
    trainer = phases.encoder_trainer(phases.tokenizer())
    mask = phases.mask()(ops.zeros((len(phases.x), phases.patches, 1)))
    mask = types.SimpleNamespace(**{k: to_numpy(v) for k, v in mask._asdict().items()})
    hidden = hidden_of(mask, phases.patches)
    np.testing.assert_array_equal(hidden, phases.arrays["encoder_full.mask"])
    outputs = run(lambda: trainer(phases.x, training=True), trainer)
    logits = phases.arrays["encoder_full.logits"]
    logits = logits.reshape(*logits.shape[:2], *outputs["logits"].shape[2:])
    logits = np.take_along_axis(logits, mask.masked[:, :, None, None], axis=1)
    np.testing.assert_allclose(outputs["logits"], logits, EMBEDDING, EMBEDDING)
    codes = phases.codes("out.codes_full")
    codes = np.take_along_axis(codes, mask.masked[:, :, None], axis=1)
    np.testing.assert_array_equal(outputs["codes"], codes)


def test_tokenizer_phase(phases):
    arrays, trainer = phases.arrays, phases.tokenizer_trainer()
    weights = weights_by_name(trainer)
    expected = gradients_of(phases.arrays, "tokenizer")
    value, found = step_of(trainer, phases.x, weights, list(expected))
    assert value == pytest.approx(float(arrays["tokenizer.loss"]), rel=LOSS)
    check_gradients(weights, found, expected)
    phases.check_codebooks("tokenizer", trainer.tokenizer.quantizer)

    # The outputs are those of the same, first, step.
    trainer = phases.tokenizer_trainer()
    outputs = run(lambda: trainer(phases.x, training=True), trainer)
    np.testing.assert_allclose(
        outputs["estimate"], arrays["tokenizer.estimator_emb"], EMBEDDING, EMBEDDING
    )
    loss = float(arrays["tokenizer.embed_loss"])
    assert outputs["quantizer_loss"] == pytest.approx(loss, rel=LOSS)
    loss = float(arrays["tokenizer.cosine_loss"])
    assert value - outputs["quantizer_loss"] == pytest.approx(loss, rel=LOSS)


def test_joint_step(joint):
    trainer = joint.joint_trainer()
    weights = weights_by_name(trainer)
    expected = gradients_of(joint.arrays, "both")
    value, found = step_of(trainer, joint.x, weights, list(expected))
    assert value == pytest.approx(float(joint.arrays["both.loss"]), rel=LOSS)
    check_gradients(weights, found, expected)
    joint.check_codebooks("both", trainer.tokenizer.quantizer)


def test_joint_step_of_the_encoder_alone(joint):
    trainer = joint.joint_trainer()
    trainer.step.assign(1)
    value, _ = step_of(trainer, joint.x, weights_by_name(trainer), [])
    assert value == pytest.approx(float(joint.arrays["encoder_only.loss"]), rel=LOSS)
    joint.check_codebooks("encoder_only", trainer.tokenizer.quantizer)


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
    name = f"trajectory.{phase}_loss"
    if name not in phases.arrays:
        pytest.skip(f"the file has no {name}")
    if phase == "encoder":
        trainer = phases.encoder_trainer(phases.tokenizer())
    else:
        trainer = phases.tokenizer_trainer()
    expected = phases.arrays[name]
    losses = trajectory(trainer, phases.x, len(expected))
    np.testing.assert_allclose(losses, expected, TRAJECTORY)
