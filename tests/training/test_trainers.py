"""The trainers of single phases, really trained, and what all trainers share."""

import types

import keras
import numpy as np
import pytest
from harness import gradients, run
from keras import ops
from tiny_pretraining import (
    CODES,
    EpochEnds,
    FixedMask,
    PaddedMap,
    assert_metrics,
    assert_same_bits,
    backbone,
    code_vectors,
    decoder,
    encoder_pretrainer,
    estimator,
    fit,
    joint_pretrainer,
    maps,
    num_changed,
    padded_maps,
    quantizer,
    reference_code_loss,
    reference_cosine,
    reference_usage,
    set_codebooks,
    tokenizer_pretrainer,
    trainable_weights_of,
    weights_of,
)

from keras_bridle.config import ArgumentError
from keras_bridle.layers.masks import RandomMask
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
from keras_bridle.training.trainers import (
    EncoderPretrainer,
    JointPretrainer,
    TokenizerPretrainer,
)

TRAINERS = {
    "encoder": encoder_pretrainer,
    "tokenizer": tokenizer_pretrainer,
    "joint": joint_pretrainer,
}
each_phase = pytest.mark.parametrize("kind", ["encoder", "tokenizer"])


def outputs_of(trainer, inputs):
    return run(lambda: trainer(ops.convert_to_tensor(inputs)), trainer)


def expected_metrics(outputs):
    """What a trainer of either phase should report, from what it computes."""
    codes, weights = outputs["codes"], outputs["weights"]
    if "estimate" in outputs:
        cosine = reference_cosine(outputs["estimate"], outputs["teacher"], weights)
        found = {
            "loss": 1 - cosine + outputs["quantizer_loss"],
            "cosine": cosine,
            "quantizer_loss": outputs["quantizer_loss"],
        }
        return found | reference_usage(codes, weights)
    logits = outputs["logits"]
    right = codes.reshape(*logits.shape[:3], -1) == logits.argmax(-1)[..., None]
    right = (right.any(-1) * weights[..., None]).sum(axis=(0, 1)) / weights.sum()
    found = {"accuracy_1": right[0], "accuracy_2": right[1]}
    found["loss"] = reference_code_loss(codes, logits, weights)
    if codes.ndim == 4:
        codes = codes.transpose(0, 1, 3, 2).reshape(len(codes), -1, 2)
        weights = np.repeat(weights, 2, axis=1)
    return found | reference_usage(codes, weights)


@pytest.fixture(scope="module", params=["encoder", "tokenizer"])
def trained(request):
    """A trainer that fit one batch, and what it was like before."""
    keras.utils.set_random_seed(0)
    trainer = TRAINERS[request.param]()
    trainer.set_trained_parts()
    is_encoder = request.param == "encoder"
    frozen = trainer.tokenizer if is_encoder else trainer.teacher
    parts = [getattr(trainer, name) for name in trainer.trained_parts]
    found = types.SimpleNamespace(
        trainer=trainer,
        is_encoder=is_encoder,
        frozen=frozen,
        frozen_weights=weights_of(frozen),
        parts=parts,
        start=trainable_weights_of(*parts),
        codebooks=[code_vectors(trainer)],
    )
    codebooks = EpochEnds(code_vectors)
    trainer.compile(keras.optimizers.AdamW(1e-2))
    found.history = fit(trainer, maps(), epochs=25, callbacks=[codebooks])
    found.codebooks += codebooks.values
    return found


def test_learns_one_batch_by_heart(trained):
    loss, name = trained.history["loss"], "cosine"
    if trained.is_encoder:
        assert loss[0] == pytest.approx(np.log(8), abs=0.6)
        name = "accuracy_1"
    assert loss[-1] < (0.25 if trained.is_encoder else 0.5) * loss[0]
    border = 0.8 if trained.is_encoder else 0.5
    assert trained.history[name][-1] > border > trained.history[name][0]
    assert_same_bits(weights_of(trained.frozen), trained.frozen_weights)
    # The class token's own output goes nowhere, but the patches look at it.
    now = trainable_weights_of(*trained.parts)
    assert num_changed(now, trained.start) == len(now) > 20
    assert len(trained.trainer.trainable_variables) == len(now)
    # Codebooks move at every step of the tokenizer phase.
    assert len(trained.codebooks) == 26
    for before, after in zip(trained.codebooks, trained.codebooks[1:], strict=False):
        assert (before == after).all() == trained.is_encoder


def test_evaluate_equals_recomputation_and_moves_nothing(trained):
    trainer, inputs = trained.trainer, maps(4, seed=2)
    before = weights_of(trainer)
    found = trainer.evaluate(inputs, batch_size=4, return_dict=True, verbose=0)
    outputs = outputs_of(trainer, inputs)
    assert_metrics(found, expected_metrics(outputs))
    assert_same_bits(weights_of(trainer), before)
    if not trained.is_encoder:
        # The teacher's features are those that users get, less the class token.
        features = run(lambda: trainer.teacher(ops.convert_to_tensor(inputs)), trainer)
        np.testing.assert_allclose(outputs["teacher"], features[:, 1:], 1e-5, 1e-5)


def test_saved_trainer_goes_on(trained, tmp_path):
    trained.trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    assert_same_bits(weights_of(loaded), weights_of(trained.trainer))
    frozen = loaded.tokenizer if trained.is_encoder else loaded.teacher
    history = fit(loaded, maps())
    assert history["loss"][0] < 0.6 * trained.history["loss"][0]
    assert_same_bits(weights_of(frozen), trained.frozen_weights)


@each_phase
def test_padding_has_no_say(kind):
    """Padded rows may hold anything; nothing that is learned or shown depends on it."""
    trainer, found = TRAINERS[kind](PaddedMap()), []
    trainer.set_trained_parts()
    tables = trainer.tokenizer.quantizer
    state = [tables.code_vectors, tables.counts, tables.sums, tables.code_histogram]
    start = weights_of(tables)
    for padding in (-100.0, -900.0):
        inputs = ops.convert_to_tensor(padded_maps(padding))

        def loss(inputs=inputs):
            outputs = trainer(inputs, training=True)
            return trainer.compute_loss(y_pred=outputs)

        tables.set_weights(start)
        value, slopes = gradients(loss, trainer.trainable_variables, state)
        found.append([value, *slopes, *weights_of(tables)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, 1e-4, 1e-6)
    tables.set_weights(start)
    outputs = outputs_of(trainer, padded_maps(-100.0))
    # Half of the patches of every other example are padding.
    weights = outputs["weights"]
    if kind == "encoder":
        assert 0 < weights[::2].sum() < 8 == weights[1::2].sum()
        assert ((outputs["codes"] == -1).all(-1) == (weights == 0)).all()
    else:
        np.testing.assert_array_equal(weights[::2], [[1] * 4 + [0] * 4] * 2)
        np.testing.assert_array_equal(weights[1::2], np.ones((2, 8)))
    trainer.compile()
    metrics = trainer.evaluate(
        padded_maps(-500.0), batch_size=4, return_dict=True, verbose=0
    )
    assert_metrics(metrics, expected_metrics(outputs))


def test_subclasses_freeze_what_they_do_not_train():
    class Mine(EncoderPretrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    trainer = encoder_pretrainer()
    mine = Mine(trainer.backbone, trainer.decoder, trainer.tokenizer, mask=trainer.mask)
    mine.set_trained_parts()
    assert mine.parts.keys() == trainer.parts.keys()
    assert not mine.tokenizer.trainable and mine.backbone.trainable


def test_compile_trains_what_was_frozen():
    """As parts are handed from phase to phase, frozen by the one before."""
    trainer = encoder_pretrainer()
    trainer.backbone.trainable = False
    trainer.tokenizer.trainable = True
    trainer.compile("sgd")
    assert trainer.backbone.trainable
    assert not trainer.tokenizer.trainable_variables
    before = trainable_weights_of(trainer)
    fit(trainer, maps())
    assert num_changed(trainable_weights_of(trainer), before) == len(before)


def test_raw_input_is_not_rounded():
    """Half precision begins behind the front end."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    seen = []

    class FrontEnd(keras.layers.Layer):
        def call(self, inputs):
            seen.append(keras.backend.standardize_dtype(inputs.dtype))
            return inputs

    trainer = encoder_pretrainer(FrontEnd(dtype="float32"))
    trainer(keras.Input(shape=maps().shape[1:], batch_size=4))
    assert set(seen) == {"float32"}


@each_phase
def test_blocks_are_skipped_in_training_alone(kind):
    def encoder():
        return backbone(drop_path_rate=0.9, num_layers=2)

    if kind == "encoder":
        tokenizer = RandomProjectionTokenizer(8, 16, quantizer())
        mask = FixedMask(0.5)
        trainer = EncoderPretrainer(encoder(), decoder(), tokenizer, mask=mask)
    else:
        tokenizer = BridleTokenizer(encoder(), quantizer())
        trainer = TokenizerPretrainer(tokenizer, estimator(), teacher=encoder())
    inputs = ops.convert_to_tensor(maps(16))

    def twice(name, training):
        outputs = [trainer(inputs, training=training)[name] for _ in range(2)]
        return map(ops.convert_to_numpy, outputs)

    name = "logits" if kind == "encoder" else "estimate"
    first, second = twice(name, training=True)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(*twice(name, training=False))
    if kind == "tokenizer":
        np.testing.assert_array_equal(*twice("teacher", training=True))


def test_parts_must_fit():
    shared, size = backbone(), {"num_layers": 1, "num_heads": 2, "mlp_dim": 32}
    cold, own = RandomProjectionTokenizer(8, 16, quantizer()), BridleTokenizer
    tokenizer = own(backbone(), quantizer())
    other = FeatureEstimator(24, 16, **size)
    plain = CodeDecoder(2, 8, 16, use_class_token=False, **size)
    for name, trainer, *parts in (
        ("num_levels", EncoderPretrainer, CodeDecoder(3, 8, 16, **size), cold),
        ("codebook_size", EncoderPretrainer, CodeDecoder(2, 9, 16, **size), cold),
        ("use_class_token", EncoderPretrainer, plain, cold),
        ("backbone", EncoderPretrainer, decoder(), own(shared, quantizer())),
        ("output_dim", JointPretrainer, decoder(), tokenizer, other),
        ("tokenizer_every", JointPretrainer, decoder(), tokenizer, estimator(), 0),
    ):
        with pytest.raises(ArgumentError) as caught:
            trainer(shared, *parts)
        assert caught.value.argument.endswith(name)
    for wrong in (
        lambda: TokenizerPretrainer(tokenizer, other, backbone()),
        lambda: TokenizerPretrainer(own(shared, quantizer()), estimator(), shared),
        lambda: EncoderPretrainer(backbone(), decoder(), cold, tokenize="some"),
    ):
        with pytest.raises(ArgumentError):
            wrong()


# The encoder phase.


def test_several_codes_a_level_and_frozen_codebooks():
    """With options that would act in the tokenizer's own training; the rate is zero."""
    trainer = encoder_pretrainer(top_k=2, restart_threshold=0.5)
    trainer.compile(keras.optimizers.SGD(0.0))
    before = weights_of(trainer.tokenizer)
    outputs = outputs_of(trainer, maps())
    assert outputs["codes"].shape == (4, 4, 2, 2)
    found = fit(trainer, maps(), epochs=2)
    for epoch in (0, 1):
        logs = {name: values[epoch] for name, values in found.items()}
        assert_metrics(logs, expected_metrics(outputs))
    assert_same_bits(weights_of(trainer.tokenizer), before)


def test_masks_are_drawn_anew():
    """The rate is zero, so that only what is drawn can change the loss."""
    trainer = encoder_pretrainer(mask=RandomMask(0.5, seed=1))
    trainer.compile(keras.optimizers.SGD(0.0))
    assert len(set(fit(trainer, maps(), epochs=3)["loss"])) == 3


def test_augmentation_acts_in_training_alone():
    noise = keras.layers.GaussianNoise(1.0, seed=1)
    trainer = encoder_pretrainer(augmentation=noise)
    inputs = ops.convert_to_tensor(maps())
    found = {
        training: run(lambda t=training: trainer(inputs, training=t)["logits"], trainer)
        for training in (True, False)
    }
    trainer.augmentation = None
    plain = outputs_of(trainer, maps())["logits"]
    np.testing.assert_allclose(found[False], plain, 1e-6, 1e-6)
    assert np.abs(found[True] - plain).max() > 0.01


@pytest.mark.parametrize("tokenize", ["all", "masked"])
def test_codes_of_two_tokenizers(tmp_path, tokenize):
    first = RandomProjectionTokenizer(8, 16, quantizer())
    second = ResidualQuantizer(1, CODES, dim=3, seed=1)
    second = RandomProjectionTokenizer(8, 16, second)

    def trainer_of(levels, tokenizer, earlier=None):
        return EncoderPretrainer(
            backbone(),
            CodeDecoder(levels, CODES, 16, 1, 2, 32),
            tokenizer,
            mask=FixedMask(0.5),
            tokenize=tokenize,
            earlier_tokenizer=earlier,
        )

    trainer, inputs = trainer_of(3, first, second), maps()
    codes = outputs_of(trainer, inputs)["codes"]
    each = [outputs_of(trainer_of(2, first), inputs)["codes"]]
    each.append(outputs_of(trainer_of(1, second), inputs)["codes"])
    np.testing.assert_array_equal(codes, np.concatenate(each, axis=2))
    with pytest.raises(ArgumentError):
        trainer_of(2, first, second)

    trainer.compile(keras.optimizers.AdamW(1e-2))
    start = weights_of(first, second)
    history = fit(trainer, inputs, epochs=3)
    assert history["loss"][2] < history["loss"][0]
    assert {"accuracy_3", "usage_3", "perplexity_3"} < set(history)
    assert_same_bits(weights_of(first, second), start)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    assert loaded.tokenize == tokenize
    np.testing.assert_array_equal(outputs_of(loaded, inputs)["codes"], codes)
    # What is frozen is so after loading, down to the layers within.
    assert len(loaded.trainable_variables) == len(trainer.trainable_variables)
    assert loaded.optimizer.iterations == trainer.optimizer.iterations


def test_tokenizer_that_sees_masked_patches_alone():
    tokenizer, inputs, found = BridleTokenizer(backbone(), quantizer()), maps(), []
    set_codebooks(tokenizer)
    for name in ("all", "masked"):
        trainer = EncoderPretrainer(
            backbone(), decoder(), tokenizer, mask=FixedMask(0.5), tokenize=name
        )
        outputs = outputs_of(trainer, inputs)
        features, padding_mask = trainer.backbone.maps(inputs)
        masked = ops.convert_to_numpy(trainer.draw_mask(features).masked)
        visible = masked if name == "masked" else None
        codes = tokenizer(features, padding_mask, visible=visible).codes
        codes = ops.convert_to_numpy(codes)
        if name == "all":
            codes = codes[np.arange(4)[:, None], masked]
        # Rounding in other shapes may tip the balance between two codes.
        assert (outputs["codes"] == codes).mean() > 0.95
        found.append(codes)
    assert (found[0] != found[1]).any()


# The tokenizer phase.


def test_codebooks_that_are_weights():
    trainer = tokenizer_pretrainer(codebook_update="gradient")
    before = code_vectors(trainer)
    trainer.compile(keras.optimizers.SGD(1e-2))
    history = fit(trainer, maps(), epochs=2)
    assert np.isfinite(history["loss"]).all()
    assert 0 < history["usage_1"][0] <= 1
    assert (code_vectors(trainer) != before).any()


# Joint mode.


def state_of(trainer):
    return types.SimpleNamespace(
        codebooks=code_vectors(trainer),
        histogram=np.copy(
            ops.convert_to_numpy(trainer.tokenizer.quantizer.code_histogram)
        ),
        tokenizer=trainable_weights_of(trainer.tokenizer, trainer.estimator),
        encoder=trainable_weights_of(trainer.backbone, trainer.decoder),
    )


@pytest.fixture(scope="module")
def joint():
    """A trainer after 7 epochs of one batch each, by plain gradient descent."""
    keras.utils.set_random_seed(0)
    trainer = joint_pretrainer(tokenizer_every=3)
    trainer.compile(keras.optimizers.SGD(0.1))
    states = EpochEnds(state_of)
    start = state_of(trainer)
    history = fit(trainer, maps(), epochs=7, callbacks=[states])
    return types.SimpleNamespace(
        trainer=trainer, history=history, states=[start, *states.values]
    )


@pytest.mark.every_backend
def test_tokenizer_and_codebooks_move_every_third_step_alone(joint):
    pairs = zip(joint.states, joint.states[1:], strict=False)
    for step, (before, after) in enumerate(pairs):
        is_due = step in (0, 3, 6)
        assert (before.codebooks != after.codebooks).any() == is_due
        counted = after.histogram.sum() - before.histogram.sum()
        assert counted == (4 * 8 * 2 if is_due else 0)
        moved = num_changed(before.tokenizer, after.tokenizer)
        assert moved == (len(after.tokenizer) if is_due else 0)
        assert num_changed(before.encoder, after.encoder) == len(after.encoder)


def test_tokenizer_metrics_are_those_of_the_steps_that_train_it(joint):
    cosines = np.array(joint.history["cosine"])
    assert (cosines[[0, 3, 6]] != 0).all()
    assert (cosines[[1, 2, 4, 5]] == 0).all()
    assert joint.history["loss"][2] < joint.history["loss"][1]


def test_evaluate_equals_recomputation(joint):
    trainer, inputs = joint.trainer, maps(4, seed=2)
    before = weights_of(trainer)
    found = trainer.evaluate(inputs, batch_size=4, return_dict=True, verbose=0)
    outputs = run(lambda: trainer(ops.convert_to_tensor(inputs)), trainer)
    loss = reference_code_loss(outputs["codes"], outputs["logits"], outputs["weights"])
    tokenizer_loss = 1 - outputs["cosine"] + outputs["quantizer_loss"]
    np.testing.assert_allclose(outputs["tokenizer_loss"], tokenizer_loss, 1e-5)
    expected = {
        "loss": loss + 0.2 * tokenizer_loss,
        "cosine": outputs["cosine"],
        "quantizer_loss": outputs["quantizer_loss"],
    }
    assert_metrics(found, expected)
    assert_same_bits(weights_of(trainer), before)


def test_saved_trainer_knows_its_step(joint, tmp_path):
    joint.trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    assert (loaded.tokenizer_every, loaded.tokenizer_loss_ratio) == (3, 0.2)
    assert int(ops.convert_to_numpy(loaded.step)) == 7
    assert_same_bits(weights_of(loaded), weights_of(joint.trainer))


@pytest.mark.every_backend
def test_codes_are_those_of_the_tokenizer_before_the_step():
    """Without XLA, TensorFlow once let a step move weights before they were read."""
    keras.utils.set_random_seed(0)
    trainer = joint_pretrainer(tokenizer_every=2)
    optimizer = keras.optimizers.Adam(1e-2)
    trainer.compile(optimizer, jit_compile=keras.backend.backend() == "jax")
    optimizer.build(trainer.trainable_variables)
    weights = [*trainer.weights, *optimizer.variables]
    start = [np.copy(ops.convert_to_numpy(weight)) for weight in weights]
    losses = []
    for _ in range(5):
        for weight, value in zip(weights, start, strict=True):
            weight.assign(value)
        losses.append(fit(trainer, maps(), epochs=3)["loss"])
    np.testing.assert_array_equal(losses, losses[:1] * len(losses))


@pytest.mark.every_backend
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="traces its steps")
@pytest.mark.parametrize("kind", TRAINERS)
def test_a_step_is_traced_once(kind, monkeypatch):
    trainer, calls = TRAINERS[kind](), []
    compute_loss = trainer.compute_loss

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return compute_loss(*args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", counted)
    trainer.compile("adamw")
    trainer.fit(maps(), batch_size=2, verbose=0)
    assert len(calls) == 1
