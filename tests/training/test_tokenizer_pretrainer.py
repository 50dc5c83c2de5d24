"""The tokenizer phase, really trained."""

import types

import keras
import numpy as np
import pytest
from harness import gradients, run
from keras import ops
from tiny_pretraining import (
    EpochEnds,
    PaddedMap,
    assert_metrics,
    assert_same_bits,
    code_vectors,
    fit,
    maps,
    num_changed,
    padded_maps,
    reference_cosine,
    reference_usage,
    tokenizer_pretrainer,
    trainable_weights_of,
    weights_of,
)


def outputs_of(trainer, inputs):
    return run(lambda: trainer(ops.convert_to_tensor(inputs)), trainer)


def expected_metrics(outputs):
    cosine = reference_cosine(
        outputs["estimate"], outputs["teacher"], outputs["weights"]
    )
    return {
        "loss": 1 - cosine + outputs["quantizer_loss"],
        "cosine": cosine,
        "quantizer_loss": outputs["quantizer_loss"],
        **reference_usage(outputs["codes"], outputs["weights"]),
    }


@pytest.fixture(scope="module")
def trained():
    """A trainer that fit one batch, and what it was like before."""
    keras.utils.set_random_seed(0)
    trainer = tokenizer_pretrainer()
    trainer.set_trained_parts()
    frozen = weights_of(trainer.teacher)
    moving = trainable_weights_of(trainer.tokenizer, trainer.estimator)
    codebooks = EpochEnds(code_vectors)
    start = code_vectors(trainer)
    trainer.compile(keras.optimizers.AdamW(1e-2))
    history = fit(trainer, maps(), epochs=25, callbacks=[codebooks])
    return types.SimpleNamespace(
        trainer=trainer,
        history=history,
        frozen=frozen,
        moving=moving,
        codebooks=[start, *codebooks.values],
    )


def test_learns_one_batch_by_heart(trained):
    assert trained.history["loss"][-1] < 0.5 * trained.history["loss"][0]
    assert trained.history["cosine"][-1] > 0.5 > trained.history["cosine"][0]
    trainer = trained.trainer
    assert_same_bits(weights_of(trainer.teacher), trained.frozen)
    now = trainable_weights_of(trainer.tokenizer, trainer.estimator)
    # The class token's own output goes nowhere, but the patches look at it.
    assert num_changed(now, trained.moving) == len(now) > 20
    assert len(trainer.trainable_variables) == len(now)
    # Codebooks move at every step.
    assert len(trained.codebooks) == 26
    for before, after in zip(trained.codebooks, trained.codebooks[1:], strict=False):
        assert (before != after).any()


def test_evaluate_equals_recomputation_and_moves_nothing(trained):
    trainer, inputs = trained.trainer, maps(4, seed=2)
    before = weights_of(trainer)
    found = trainer.evaluate(inputs, batch_size=4, return_dict=True, verbose=0)
    outputs = outputs_of(trainer, inputs)
    assert outputs["teacher"].shape == (4, 8, 16)
    assert_metrics(found, expected_metrics(outputs))
    assert_same_bits(weights_of(trainer), before)
    # The teacher's features are those that users get, less the class token.
    features = run(lambda: trainer.teacher(ops.convert_to_tensor(inputs)), trainer)
    np.testing.assert_allclose(outputs["teacher"], features[:, 1:], 1e-5, 1e-5)


def test_saved_trainer_goes_on(trained, tmp_path):
    trained.trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    assert_same_bits(weights_of(loaded), weights_of(trained.trainer))
    before = weights_of(loaded.teacher)
    history = fit(loaded, maps())
    assert history["loss"][0] < 0.6 * trained.history["loss"][0]
    assert_same_bits(weights_of(loaded.teacher), before)


def test_padding_has_no_say():
    """Padded rows may hold anything; nothing that is learned or shown depends on it."""
    trainer = tokenizer_pretrainer(PaddedMap())
    trainer.set_trained_parts()
    tables = trainer.tokenizer.quantizer
    state = [tables.code_vectors, tables.counts, tables.sums, tables.code_histogram]
    start, found = weights_of(tables), []
    for padding in (-100.0, -900.0):
        inputs = ops.convert_to_tensor(padded_maps(padding))

        def loss(inputs=inputs):
            outputs = trainer(inputs, training=True)
            return trainer.compute_loss(y_pred=outputs)

        tables.set_weights(start)
        values = gradients(loss, trainer.trainable_variables, state)
        found.append((*values, weights_of(tables)))
    np.testing.assert_allclose(found[0][0], found[1][0], 1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(one, other, 1e-4, 1e-6)
    for one, other in zip(found[0][2], found[1][2], strict=True):
        np.testing.assert_allclose(one, other, 1e-5, 1e-6)
    if keras.backend.backend() == "jax":
        assert num_changed(found[0][2], start) == 4
    tables.set_weights(start)
    outputs = outputs_of(trainer, padded_maps(-100.0))
    np.testing.assert_array_equal(outputs["weights"][::2], [[1] * 4 + [0] * 4] * 2)
    np.testing.assert_array_equal(outputs["weights"][1::2], np.ones((2, 8)))
    trainer.compile()
    metrics = trainer.evaluate(
        padded_maps(-500.0), batch_size=4, return_dict=True, verbose=0
    )
    assert_metrics(metrics, expected_metrics(outputs))


@pytest.mark.parametrize("options", [{"top_k": 2}, {"codebook_update": "gradient"}])
def test_quantizer_options(options):
    trainer = tokenizer_pretrainer(**options)
    before = code_vectors(trainer)
    trainer.compile(keras.optimizers.SGD(1e-2))
    history = fit(trainer, maps(), epochs=2)
    assert np.isfinite(history["loss"]).all()
    assert 0 < history["usage_1"][0] <= 1
    assert (code_vectors(trainer) != before).any()
