"""Tokenizers, estimator and the trainers of all phases against the published code."""

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
    mask_of,
    step_of,
    weights_by_name,
)

import keras_bridle as kb
from keras_bridle.conversion.published_quantizer import PublishedResidualQuantizer
from keras_bridle.conversion.published_video import from_published_video
from keras_bridle.conversion.published_weights import load_published

MAPS = [*golden_files("audio_bridle*.npz"), *golden_files("image_bridle*.npz")]
CLIPS = golden_files("video_*.npz", lambda config: "codebook_type" in config)
JOINT = golden_files("*_joint*.npz")
EMBEDDING, QUANTIZER, LOSS, TRAJECTORY = 2e-5, 1e-5, 5e-6, 1e-4


class MaskOfFile(kb.RandomMask):
    """Hides the same patches at every call."""

    def __init__(self, patch_mask):
        super().__init__()
        self.patch_mask = patch_mask

    def call(self, patches, grid=None):
        return kb.PatchMask(*map(ops.convert_to_tensor, self.patch_mask))


class Golden(GoldenNetworks):
    """What files of all inputs have in common.

    Subclasses tell the `layout` and which patches the tokenizer sees.
    """

    def __init__(self, path):
        super().__init__(path)
        self.x = channels_last(self.arrays["in.x"])
        self.tokenizer_config = self.config.get("tokenizer", self.config)
        # VQ: one level whose codes have no axis of levels.
        self.is_vq = self.config.get("codebook_type") == "legacy"
        self.num_levels = self.tokenizer_config.get("codebook_set", 1)

    def quantizer(self):
        return PublishedResidualQuantizer(
            flavor="vq" if self.is_vq else self.flavor,
            num_levels=self.num_levels,
            codebook_size=self.tokenizer_config["code_num"],
            dim=self.tokenizer_config["code_dim"],
            # Not every file names them: the published defaults.
            decay=self.config.get("decay", 0.99),
            commitment_weight=self.config.get("commitment", 0.25),
        )

    def loaded(self, part, prefix, *shape):
        if not part.built:
            part.build(shape)
        load_published(part, self.state, prefix)
        return part

    def make_tokenizer(self):
        tokenizer = kb.BridleTokenizer(self.make_backbone(TOKENIZER), self.quantizer())
        return self.loaded(tokenizer, TOKENIZER)

    def make_random_projection(self):
        tokenizer = kb.RandomProjectionTokenizer(
            self.backbone.patch_size,
            self.backbone.hidden_dim,
            self.quantizer(),
            position_layout=self.backbone.position_layout,
        )
        return self.loaded(tokenizer, TOKENIZER, *self.x.shape)

    def make_estimator(self):
        settings = self.settings_of_estimator()
        estimator = kb.FeatureEstimator(self.backbone.hidden_dim, **settings)
        code_dim = self.tokenizer_config["code_dim"]
        return self.loaded(estimator, TOKENIZER, None, None, code_dim)

    def trainer(self, phase):
        if phase == "tokenizer":
            trainer = kb.TokenizerPretrainer(
                self.tokenizer, self.estimator, self.backbone
            )
        elif phase == "joint":
            trainer = kb.JointPretrainer(
                self.backbone,
                self.decoder,
                self.tokenizer,
                self.estimator,
                tokenizer_loss_ratio=self.config["tokenizer_loss_ratio"],
                mask=MaskOfFile(self.mask),
            )
        else:
            is_cold = phase == "encoder_cold"
            trainer = kb.EncoderPretrainer(
                self.backbone,
                self.decoder,
                self.random_projection if is_cold else self.tokenizer,
                MaskOfFile(self.mask),
                tokenize=self.tokenize,
            )
        trainer.set_trained_parts()
        return trainer

    def check_step(self, trainer, block, gradients=True):
        """Compares loss and gradients of a step, and returns loss and outputs."""
        weights = weights_by_name(trainer)
        expected = self.gradients_of(block) if gradients else {}
        assert bool(expected) == gradients
        value, found, outputs = step_of(trainer, self.x, weights, list(expected))
        right = float(self.arrays[f"{block}.loss"])
        assert value == pytest.approx(right, rel=LOSS)
        if gradients:
            check_gradients(weights, found, expected)
        return value, outputs

    def codes(self, name):
        codes = self.arrays[name]
        return codes.reshape(*codes.shape[:2], self.num_levels)


class Maps(Golden):
    """A file of the audio and image code."""

    flavor, tokenize = "audio", "all"

    def __init__(self, path):
        super().__init__(path)
        self.epsilon = self.config["layer_norm_eps"]
        self.encoder_config = self.config["encoder_decoder"]
        self.patches = self.arrays["in.noise"].shape[1]
        mask, noise = mask_of(self.config, self.arrays, (self.patches, 1))
        self.mask = to_numpy(mask(np.zeros((*noise.shape, 1)), noise=noise))

    def make_backbone(self, prefix=ENCODER):
        config = self.encoder_config if prefix == ENCODER else self.tokenizer_config
        return backbone_of(config, self.state, prefix, self.x.shape[1:], self.epsilon)

    def make_decoder(self):
        levels, codes = self.num_levels, self.tokenizer_config["code_num"]
        config, state, epsilon = self.encoder_config, self.state, self.epsilon
        return decoder_of(config, state, ENCODER, levels, codes, epsilon)

    def settings_of_estimator(self):
        config = self.tokenizer_config
        names = ("embed_dim", "num_heads", "depth")
        sizes = [config[f"estimator_{name}"] for name in names]
        stem = f"{TOKENIZER}estimator_blocks"
        return block_settings(config, self.state, stem, *sizes, self.epsilon)

    def gradients_of(self, block):
        return gradients_of(self.arrays, f"{block}.")


class Clips(Golden):
    """A file of the video code."""

    flavor, tokenize = "video", "masked"

    def __init__(self, path):
        super().__init__(path)
        self.state = from_published_video(self.state)
        self.dims = self.config["dims"]
        masked = self.arrays["in.mask"].astype(bool)
        indices = [
            np.stack([np.flatnonzero(row) for row in rows]).astype("int32")
            for rows in (~masked, masked)
        ]
        self.mask = kb.PatchMask(*indices)

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

    def make_backbone(self, prefix=ENCODER):
        side = self.config["patch_size"]
        backbone = kb.BridleBackbone(
            patch_size=(self.config["tubelet"], side, side),
            input_dims=self.x.shape[1:],
            use_class_token=False,
            **self.settings("encoder"),
        )
        return self.loaded(backbone, prefix)

    def make_decoder(self):
        decoder = kb.CodeDecoder(
            self.num_levels,
            self.config["code_num"],
            use_class_token=False,
            **self.settings("decoder"),
        )
        return self.loaded(decoder, ENCODER, None, None, self.dims["encoder"][0])

    def settings_of_estimator(self):
        return self.settings("estimator")

    def gradients_of(self, block):
        expected = from_published_video(gradients_of(self.arrays, f"{block}."))
        # Biases that the published networks lack come out as zeros; ours get gradients.
        return {name: array for name, array in expected.items() if array.any()}


def files(kind, paths):
    """Pytest parameters that make the networks of a file once."""
    return [pytest.param((kind, path), id=path.stem) for path in paths]


@pytest.fixture(scope="module", params=files(Maps, MAPS) + files(Clips, CLIPS))
def file_of_phases(request):
    kind, path = request.param
    return kind(path)


@pytest.fixture
def phases(file_of_phases):
    return file_of_phases.restore()


@pytest.fixture(scope="module", params=files(Maps, JOINT))
def joint_file(request):
    kind, path = request.param
    return kind(path)


@pytest.fixture
def joint(joint_file):
    return joint_file.restore()


def values_of_maps(golden, x):
    """Codes and vectors of both tokenizers, outputs of estimator and teacher."""
    tokenizer, estimator, teacher = golden.tokenizer, golden.estimator, golden.backbone
    random = ops.convert_to_tensor(golden.arrays["in.estimator_random"])
    grid, full = teacher.grid(x), tokenizer(x)
    floats = {
        "out.embed_loss_eval": full.loss,
        "out.quantizer_input": tokenizer.vectors(x),
        "out.quantizer_output": full.quantized,
        "out.estimator_of_random": estimator(random, grid=grid),
        "out.estimator_emb_eval": estimator(full.quantized, grid=grid),
        "out.teacher": teacher(x),
    }
    codes = {
        "out.codes_cold": golden.random_projection(x).codes,
        "out.codes_full": full.codes,
        "out.eval_codebooks_codes": full.codes,
    }
    return floats, codes


def values_of_clips(golden, x):
    """Embeddings, logits, and the codes of both tokenizers."""
    backbone, tokenizer, mask = golden.backbone, golden.tokenizer, golden.mask
    patches = backbone.patch_embedding(x)
    visible = backbone.encode(x, visible=mask.visible)
    floats = {
        "out.patch_tokens": ops.reshape(patches, (len(x), -1, patches.shape[-1])),
        "out.emb_full": backbone.encode(x),
        "out.emb_visible": visible,
        "out.logits": golden.decoder(visible, mask, grid=backbone.grid(x)),
    }
    cold = golden.random_projection
    codes = {
        "out.codes_cold_masked": cold(x, visible=mask.masked).codes,
        "out.codes_full_masked": tokenizer(x, visible=mask.masked).codes,
        "out.codes_full_all": tokenizer(x).codes,
    }
    return floats, codes


def test_values(phases):
    parts = (phases.backbone, phases.decoder, phases.estimator)
    tokenizers = (phases.random_projection, phases.tokenizer)
    for tokenizer in tokenizers:
        tokenizer.trainable = False
    values = values_of_maps if isinstance(phases, Maps) else values_of_clips
    x = ops.convert_to_tensor(phases.x)
    floats, codes = run(lambda: values(phases, x), *parts, *tokenizers)
    for name, value in floats.items():
        limits = {"out.quantizer_output": QUANTIZER, "out.embed_loss_eval": LOSS}
        limit = limits.get(name, EMBEDDING)
        absolute = 0.0 if limit == LOSS else limit
        right = phases.arrays[name].reshape(value.shape)
        np.testing.assert_allclose(value, right, limit, absolute, err_msg=name)
    for name, value in codes.items():
        np.testing.assert_array_equal(value, phases.codes(name), err_msg=name)
    if "out.eval_codebooks_z" not in phases.arrays:
        return
    found = codes["out.eval_codebooks_codes"]
    each = phases.arrays["out.eval_codebooks_z"]
    each = each.reshape(*found.shape[:2], -1, phases.num_levels)
    for level, table in enumerate(to_numpy(phases.tokenizer.quantizer.codebooks)):
        chosen = table[found[..., level]]
        np.testing.assert_allclose(chosen, each[..., level], QUANTIZER, QUANTIZER)


@pytest.mark.parametrize("phase", ["encoder_cold", "encoder_full"])
def test_encoder_phase(phases, phase):
    trainer, mask = phases.trainer(phase), phases.mask
    before = to_numpy(trainer.tokenizer.weights)
    _, outputs = phases.check_step(trainer, phase)
    for old, weight in zip(before, trainer.tokenizer.weights, strict=True):
        np.testing.assert_array_equal(old, to_numpy(weight))
    if f"{phase}.mask" not in phases.arrays:
        return
    hidden = hidden_of(mask, phases.patches)
    np.testing.assert_array_equal(hidden, phases.arrays[f"{phase}.mask"])
    logits = phases.arrays[f"{phase}.logits"]
    logits = logits.reshape(*logits.shape[:2], *outputs["logits"].shape[2:])
    logits = np.take_along_axis(logits, mask.masked[:, :, None, None], axis=1)
    np.testing.assert_allclose(outputs["logits"], logits, EMBEDDING, EMBEDDING)
    codes = phases.codes("out.codes_full")
    codes = np.take_along_axis(codes, mask.masked[:, :, None], axis=1)
    np.testing.assert_array_equal(outputs["codes"], codes)


def test_tokenizer_phase(phases):
    arrays, is_clips = phases.arrays, isinstance(phases, Clips)
    value, outputs = phases.check_step(phases.trainer("tokenizer"), "tokenizer")
    # Fresh codebooks of the video code jump to about 1e5, with errors in proportion.
    stem = "tokenizer.after.quantizer."
    after = [array for name, array in arrays.items() if name.startswith(stem)]
    largest = max(np.abs(array).max() for array in after) if is_clips else 1.0
    quantizer = phases.tokenizer.quantizer
    check_codebooks(arrays, stem, quantizer, QUANTIZER * largest)
    for name, found in (
        ("tokenizer.estimator_emb", outputs["estimate"]),
        ("tokenizer.teacher", outputs["teacher"]),
    ):
        if name in arrays:
            right = arrays[name]
            largest = max(1.0, np.abs(right).max()) if is_clips else 1.0
            np.testing.assert_allclose(found, right, EMBEDDING, EMBEDDING * largest)
    if "tokenizer.codes" in arrays:
        codes = phases.codes("tokenizer.codes")
        np.testing.assert_array_equal(outputs["codes"], codes)
    loss = float(arrays["tokenizer.embed_loss"])
    assert outputs["quantizer_loss"] == pytest.approx(loss, rel=LOSS)
    if not is_clips:
        loss = float(arrays["tokenizer.cosine_loss"])
        assert value - outputs["quantizer_loss"] == pytest.approx(loss, rel=LOSS)


@pytest.mark.parametrize(("step", "block"), [(0, "both"), (1, "encoder_only")])
def test_joint_step(joint, step, block):
    trainer = joint.trainer("joint")
    trainer.step.assign(step)
    joint.check_step(trainer, block, gradients=block == "both")
    stem = f"{block}.after.quantizer."
    check_codebooks(joint.arrays, stem, joint.tokenizer.quantizer)


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
