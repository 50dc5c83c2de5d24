"""What the trainers of all phases share."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny_pretraining import (
    assert_same_bits,
    code_vectors,
    encoder_pretrainer,
    fit,
    joint_pretrainer,
    maps,
    num_changed,
    tokenizer_pretrainer,
    trainable_weights_of,
    weights_of,
)

from keras_bridle.training.optimizers import adamw

TRAINERS = {
    "encoder": encoder_pretrainer,
    "tokenizer": tokenizer_pretrainer,
    "joint": joint_pretrainer,
}


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("encoder", "mixed_float16"),
        ("tokenizer", "mixed_float16"),
        ("joint", "mixed_bfloat16"),
    ],
)
def test_half_precision(kind, policy):
    keras.config.set_dtype_policy(policy)
    trainer = TRAINERS[kind]()
    trainer.set_trained_parts()
    before, codebooks = trainable_weights_of(trainer), code_vectors(trainer)
    trainer.compile(adamw(trainer, 1e-3))
    scales_loss = isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scales_loss == (policy == "mixed_float16")
    history = fit(trainer, maps(12), epochs=2)
    for values in history.values():
        assert np.isfinite(values).all()
    assert all(np.isfinite(weight).all() for weight in weights_of(trainer))
    moved = num_changed(trainable_weights_of(trainer), before)
    # float16's small gradients may be none at all.
    assert moved > 0.8 * len(before)
    assert (code_vectors(trainer) != codebooks).any() == (kind != "encoder")
    assert {weight.dtype for weight in trainer.trainable_variables} == {"float32"}
    if scales_loss:
        scale = float(ops.convert_to_numpy(trainer.optimizer.dynamic_scale))
        # Not every step was thrown away.
        assert scale > 2.0**15 / 2**5


@pytest.mark.parametrize("kind", TRAINERS)
def test_parts_and_config(kind):
    trainer = TRAINERS[kind]()
    trainer.set_trained_parts()
    for name in trainer.parts:
        part = getattr(trainer, name)
        if part is not None and part.variables:
            assert part.trainable == (name in trainer.trained_parts), name
    copy = type(trainer).from_config(trainer.get_config())
    assert sorted(copy.get_config()) == sorted(trainer.get_config())
    shapes = [tuple(weight.shape) for weight in trainer.weights]
    assert [tuple(weight.shape) for weight in copy.weights] == shapes
    copy.set_weights(trainer.get_weights())
    assert_same_bits(weights_of(copy), weights_of(trainer))


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


def test_gradients_do_not_add_up():
    """Two steps from the same weights are the same, whatever came before."""
    trainer = tokenizer_pretrainer(codebook_update="gradient")
    trainer.compile(keras.optimizers.SGD(0.1))
    start, steps = weights_of(trainer), []
    for _ in range(2):
        trainer.set_weights(start)
        fit(trainer, maps())
        steps.append(trainable_weights_of(trainer))
    assert_same_bits(*steps)


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
