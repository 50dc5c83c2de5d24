"""The encoder phase, really trained."""

import types

import keras
import numpy as np
import pytest
from harness import gradients, run
from keras import ops
from tiny_pretraining import (
    CODES,
    FixedMask,
    PaddedMap,
    assert_metrics,
    assert_same_bits,
    backbone,
    decoder,
    encoder_pretrainer,
    fit,
    maps,
    num_changed,
    padded_maps,
    quantizer,
    reference_code_loss,
    reference_usage,
    set_codebooks,
    trainable_weights_of,
    weights_of,
)

from keras_bridle.config import ArgumentError
from keras_bridle.layers.masks import RandomMask
from keras_bridle.models.heads import CodeDecoder
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
from keras_bridle.training.trainers import EncoderPretrainer


def outputs_of(trainer, inputs):
    return run(lambda: trainer(ops.convert_to_tensor(inputs)), trainer)


def expected_metrics(outputs):
    codes, logits, weights = (outputs[name] for name in ("codes", "logits", "weights"))
    right = codes.reshape(*logits.shape[:3], -1) == logits.argmax(-1)[..., None]
    right = (right.any(-1) * weights[..., None]).sum(axis=(0, 1)) / weights.sum()
    return {
        "loss": reference_code_loss(codes, logits, weights),
        "accuracy_1": right[0],
        "accuracy_2": right[1],
        **reference_usage(codes, weights),
    }


@pytest.fixture(scope="module")
def trained():
    """A trainer that fit one batch, and what it was like before."""
    keras.utils.set_random_seed(0)
    trainer = encoder_pretrainer()
    trainer.set_trained_parts()
    frozen = weights_of(trainer.tokenizer)
    moving = trainable_weights_of(trainer.backbone, trainer.decoder)
    trainer.compile(keras.optimizers.AdamW(1e-2))
    history = fit(trainer, maps(), epochs=25)
    return types.SimpleNamespace(
        trainer=trainer, history=history, frozen=frozen, moving=moving
    )


def test_learns_one_batch_by_heart(trained):
    loss = trained.history["loss"]
    assert loss[0] == pytest.approx(np.log(8), abs=0.6)
    assert loss[-1] < 0.25 * loss[0]
    assert trained.history["accuracy_1"][-1] > 0.8 > trained.history["accuracy_1"][0]
    trainer = trained.trainer
    assert_same_bits(weights_of(trainer.tokenizer), trained.frozen)
    now = trainable_weights_of(trainer.backbone, trainer.decoder)
    assert num_changed(now, trained.moving) == len(now) > 20
    assert len(trainer.trainable_variables) == len(now)


def test_evaluate_equals_recomputation(trained):
    inputs = maps(8, seed=2)
    found = trained.trainer.evaluate(inputs, batch_size=4, return_dict=True, verbose=0)
    halves = [outputs_of(trained.trainer, half) for half in np.split(inputs, 2)]
    both = {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
    assert both["weights"].shape == (8, 4)
    assert_metrics(found, expected_metrics(both))
    assert_same_bits(weights_of(trained.trainer.tokenizer), trained.frozen)


def test_saved_trainer_goes_on(trained, tmp_path):
    trained.trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    assert loaded.mask.mask_ratio == 0.5
    assert_same_bits(weights_of(loaded), weights_of(trained.trainer))
    inputs = maps(4, seed=2)
    for name, output in outputs_of(loaded, inputs).items():
        expected = outputs_of(trained.trainer, inputs)[name]
        np.testing.assert_allclose(output, expected, 1e-5, 1e-5)
    frozen = weights_of(loaded.tokenizer)
    history = fit(loaded, maps())
    assert history["loss"][0] < 0.3 * trained.history["loss"][0]
    assert_same_bits(weights_of(loaded.tokenizer), frozen)


def test_padding_has_no_say():
    """Padded rows may hold anything; nothing that is learned or shown depends on it."""
    trainer = encoder_pretrainer(PaddedMap())
    trainer.set_trained_parts()
    found = []
    for padding in (-100.0, -900.0):
        inputs = ops.convert_to_tensor(padded_maps(padding))

        def loss(inputs=inputs):
            outputs = trainer(inputs, training=True)
            return trainer.compute_loss(y_pred=outputs)

        found.append(gradients(loss, trainer.trainable_variables))
    np.testing.assert_allclose(found[0][0], found[1][0], 1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(one, other, 1e-4, 1e-6)
    outputs = outputs_of(trainer, padded_maps(-100.0))
    # Half of the patches of every other example are padding, and half are masked.
    assert 0 < outputs["weights"][::2].sum() < 8
    assert outputs["weights"][1::2].sum() == 8
    assert ((outputs["codes"] == -1).all(-1) == (outputs["weights"] == 0)).all()
    trainer.compile()
    metrics = trainer.evaluate(
        padded_maps(-500.0), batch_size=4, return_dict=True, verbose=0
    )
    assert_metrics(metrics, expected_metrics(outputs))


def test_several_codes_a_level_and_frozen_codebooks():
    """With options that would act in the tokenizer's own training; the rate is zero."""
    trainer = encoder_pretrainer(top_k=2, restart_threshold=0.5)
    trainer.compile(keras.optimizers.SGD(0.0))
    before = weights_of(trainer.tokenizer)
    outputs = outputs_of(trainer, maps())
    assert outputs["codes"].shape == (4, 4, 2, 2)
    found = fit(trainer, maps(), epochs=2)
    codes, weights = outputs["codes"], outputs["weights"]
    flat = codes.transpose(0, 1, 3, 2).reshape(4, 8, 2)
    expected = expected_metrics(outputs)
    expected |= reference_usage(flat, np.repeat(weights, 2, axis=1))
    for epoch in (0, 1):
        assert_metrics({n: values[epoch] for n, values in found.items()}, expected)
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
    second = RandomProjectionTokenizer(
        8, 16, ResidualQuantizer(1, CODES, dim=3, seed=1)
    )

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
