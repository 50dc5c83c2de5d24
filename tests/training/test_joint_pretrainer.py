"""Joint mode, really trained."""

import types

import keras
import numpy as np
import pytest
from harness import run
from keras import ops
from tiny_pretraining import (
    EpochEnds,
    assert_metrics,
    assert_same_bits,
    code_vectors,
    fit,
    joint_pretrainer,
    maps,
    num_changed,
    reference_code_loss,
    trainable_weights_of,
    weights_of,
)


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
def trained():
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


def test_tokenizer_and_codebooks_move_every_third_step_alone(trained):
    pairs = zip(trained.states, trained.states[1:], strict=False)
    for step, (before, after) in enumerate(pairs):
        is_due = step in (0, 3, 6)
        assert (before.codebooks != after.codebooks).any() == is_due
        counted = after.histogram.sum() - before.histogram.sum()
        assert counted == (4 * 8 * 2 if is_due else 0)
        moved = num_changed(before.tokenizer, after.tokenizer)
        assert moved == (len(after.tokenizer) if is_due else 0)
        assert num_changed(before.encoder, after.encoder) == len(after.encoder)


def test_tokenizer_metrics_are_those_of_the_steps_that_train_it(trained):
    cosines = np.array(trained.history["cosine"])
    assert (cosines[[0, 3, 6]] != 0).all()
    assert (cosines[[1, 2, 4, 5]] == 0).all()
    assert trained.history["loss"][2] < trained.history["loss"][1]


def test_evaluate_equals_recomputation(trained):
    trainer, inputs = trained.trainer, maps(4, seed=2)
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


def test_saved_trainer_knows_its_step(trained, tmp_path):
    trained.trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    assert (loaded.tokenizer_every, loaded.tokenizer_loss_ratio) == (3, 0.2)
    assert int(ops.convert_to_numpy(loaded.step)) == 7
    assert_same_bits(weights_of(loaded), weights_of(trained.trainer))


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
    for _ in range(8):
        for weight, value in zip(weights, start, strict=True):
            weight.assign(value)
        losses.append(fit(trainer, maps(), epochs=3)["loss"])
    np.testing.assert_array_equal(losses, losses[:1] * len(losses))
