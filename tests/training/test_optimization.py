"""Learning rates and AdamW against float64 NumPy."""

import keras
import numpy as np
import pytest
from harness import to_numpy
from tiny_pretraining import encoder_pretrainer, tokenizer_pretrainer

from keras_bridle.training.optimizers import adamw, warmup_cosine


@pytest.mark.parametrize(
    ("rate", "total", "warmup", "lowest"),
    [(1e-3, 100, 10, 0.0), (2e-2, 7, 0, 0.0), (0.5, 50, 49, 0.01), (1e-3, 1, 0, 0.0)],
)
def test_warmup_cosine(rate, total, warmup, lowest):
    schedule = warmup_cosine(rate, total, warmup, lowest)
    for step in {0, 1, warmup, (warmup + total) // 2, total - 1, total, total + 3}:
        if step < warmup:
            expected = rate * step / warmup
        else:
            done = min((step - warmup) / (total - warmup), 1)
            expected = lowest + (rate - lowest) * 0.5 * (1 + np.cos(np.pi * done))
        found = to_numpy(schedule(step))
        np.testing.assert_allclose(found, expected, 1e-5, 1e-7 * rate)


@pytest.mark.parametrize("warmup_steps", [10, -1])
def test_warmup_must_be_shorter_than_the_run(warmup_steps):
    with pytest.raises(ValueError, match="warmup_steps"):
        warmup_cosine(1e-3, 10, warmup_steps)


def test_no_decay_of_biases_norms_and_learned_vectors():
    trainer = encoder_pretrainer()
    trainer.set_trained_parts()
    optimizer = adamw(trainer, 1e-3)
    optimizer.build(trainer.trainable_variables)
    decayed = [v for v in trainer.trainable_variables if optimizer._use_weight_decay(v)]
    assert {v.name for v in decayed} == {"kernel"}
    kernels = [v for v in trainer.trainable_variables if v.name == "kernel"]
    assert len(decayed) == len(kernels) == 11
    # Decay of 1 at a rate of 1 with gradients of zero takes a weight away.
    optimizer = adamw(trainer, 1.0, weight_decay=1.0)
    optimizer.build(trainer.trainable_variables)
    before = to_numpy([v.value for v in trainer.trainable_variables])
    optimizer.apply([keras.ops.zeros(v.shape) for v in trainer.trainable_variables])
    for old, variable in zip(before, trainer.trainable_variables, strict=True):
        expected = 0 * old if variable.name == "kernel" else old
        np.testing.assert_allclose(to_numpy(variable.value), expected, atol=1e-7)


def test_no_decay_of_code_vectors():
    trainer = tokenizer_pretrainer(codebook_update="gradient")
    trainer.set_trained_parts()
    optimizer = adamw(trainer, 1e-3)
    assert "code_vectors" in [v.name for v in trainer.trainable_variables]
    for variable in trainer.trainable_variables:
        assert optimizer._use_weight_decay(variable) == (variable.name == "kernel")


def reference_adamw(weights, gradients, rates, decay, clip):
    """AdamW with betas 0.9 and 0.95 in float64; decay for the first weight alone."""
    weights = [np.asarray(w, "float64") for w in weights]
    m, v = [0.0, 0.0], [0.0, 0.0]
    for step, (grads, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in grads))
        for i, gradient in enumerate(grads):
            gradient = gradient * min(1.0, clip / norm)
            m[i] = 0.9 * m[i] + 0.1 * gradient
            v[i] = 0.95 * v[i] + 0.05 * gradient**2
            if i == 0:
                weights[i] = weights[i] * (1 - rate * decay)
            root = np.sqrt(v[i] / (1 - 0.95**step))
            weights[i] = weights[i] - rate * (m[i] / (1 - 0.9**step)) / (root + 1e-7)
    return weights


def dense_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=(3, 2)), rng.normal(size=2)])
    return model


def random_gradients(count):
    rng = np.random.default_rng(1)
    shapes = ((3, 2), (2,))
    return [
        [rng.normal(0, 2, shape).astype("float32") for shape in shapes]
        for _ in range(count)
    ]


@pytest.mark.parametrize("batches", [1, 2])
def test_adamw_with_clipping_and_accumulation(batches):
    """Several batches make one step with their mean gradient, clipped as one."""
    model, gradients = dense_model(), random_gradients(4)
    groups = [gradients[i : i + batches] for i in range(0, 4, batches)]
    means = [[np.mean(parts, axis=0) for parts in zip(*x, strict=True)] for x in groups]
    schedule = warmup_cosine(0.1, 4, 1)
    # The schedule counts batches; the rate is that of the batch that ends a step.
    rates = [float(schedule(step)) for step in range(batches - 1, 4, batches)]
    expected = reference_adamw(model.get_weights(), means, rates, 0.3, clip=1.5)
    steps = None if batches == 1 else batches
    options = {"global_clipnorm": 1.5, "gradient_accumulation_steps": steps}
    optimizer = adamw(model, schedule, weight_decay=0.3, **options)
    optimizer.build(model.trainable_variables)
    for step in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in step])
    for found, right in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, right, 1e-5, 1e-6)
