"""Every phase in half precision: float32 where it decides, and nothing blows up."""

import keras
import numpy as np
import pytest
import tiny_pretraining as tiny
from keras import ops

from keras_bridle.training.optimizers import adamw

POLICIES = ("mixed_bfloat16", "mixed_float16")
MAKERS = {
    "encoder": tiny.encoder_pretrainer,
    "tokenizer": tiny.tokenizer_pretrainer,
    "joint": tiny.joint_pretrainer,
}


class Losses(keras.callbacks.Callback):
    """Collects the loss of each step."""

    def on_train_begin(self, logs=None):
        self.values, self._total = [], 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self._total = 0.0

    def on_train_batch_end(self, batch, logs=None):
        # The logs are means from the start of the epoch on.
        total = float(logs["loss"]) * (batch + 1)
        self.values.append(total - self._total)
        self._total = total


def all_finite(model):
    return all(
        np.isfinite(ops.convert_to_numpy(ops.cast(weight, "float32"))).all()
        for weight in [*model.weights, *model.optimizer.variables]
    )


@pytest.mark.parametrize(
    ("phase", "policy"),
    [
        ("encoder", "mixed_float16"),
        ("tokenizer", "mixed_float16"),
        ("joint", "mixed_bfloat16"),
    ],
)
def test_steps_are_those_of_float32_but_for_rounding(phase, policy):
    def losses():
        keras.utils.set_random_seed(1)
        trainer = MAKERS[phase](restart_threshold=0.1)
        trainer.compile(keras.optimizers.AdamW(1e-3))
        before, collected = tiny.trainable_weights_of(trainer), Losses()
        tiny.fit(trainer, tiny.maps(12), callbacks=[collected])
        # float16's small gradients may be none at all.
        moved = tiny.num_changed(tiny.trainable_weights_of(trainer), before)
        assert moved > 0.8 * len(before)
        return trainer, np.array(collected.values)

    _, expected = losses()
    keras.config.set_dtype_policy(policy)
    trainer, found = losses()
    is_scaled = isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")
    assert trainer.tokenizer.quantizer.code_vectors.dtype == "float32"
    assert {weight.dtype for weight in trainer.trainable_variables} == {"float32"}
    assert all_finite(trainer)
    assert len(found) == 3
    np.testing.assert_allclose(found[0], expected[0], 0.01)
    # In float16 a first step may be left out, until the scale of the loss fits.
    np.testing.assert_allclose(found, expected, 0.1)


@pytest.mark.parametrize("policy", POLICIES)
def test_codes_are_the_nearest_in_float32(policy):
    """Vectors are rounded, but distances from what they are rounded to are not."""
    keras.config.set_dtype_policy(policy)
    trainer = tiny.tokenizer_pretrainer()
    tokenizer = trainer.tokenizer
    features, _ = trainer.teacher.features(tiny.maps(8))
    vectors = tokenizer.vectors(features)
    assert keras.backend.standardize_dtype(vectors.dtype) == policy.removeprefix(
        "mixed_"
    )
    codes = ops.convert_to_numpy(tokenizer(features).codes)
    residual = ops.convert_to_numpy(ops.cast(vectors, "float32")).astype("float64")
    residual /= np.linalg.norm(residual, axis=-1, keepdims=True)
    tables = ops.convert_to_numpy(tokenizer.quantizer.codebooks).astype("float64")
    for level, table in enumerate(tables):
        distances = np.square(residual[..., None, :] - table).sum(axis=-1)
        chosen = np.take_along_axis(distances, codes[..., level, None], axis=-1)[..., 0]
        # float32 cannot tell apart what differs less.
        assert (chosen - distances.min(axis=-1)).max() < 1e-6
        residual = residual - table[codes[..., level]]
    assert len(np.unique(codes)) > 3


def test_overflow_skips_the_step_and_leaves_codebooks():
    """A loss scale too large for float16 is halved until gradients fit."""
    keras.config.set_dtype_policy("mixed_float16")
    trainer = tiny.tokenizer_pretrainer()
    inner = keras.optimizers.AdamW(1e-3)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**40)
    trainer.compile(optimizer, auto_scale_loss=False)
    before = tiny.trainable_weights_of(trainer.estimator)
    tiny.fit(trainer, tiny.maps(4), epochs=2)
    tiny.assert_same_bits(before, tiny.trainable_weights_of(trainer.estimator))
    assert float(ops.convert_to_numpy(optimizer.dynamic_scale)) == 2.0**38
    tiny.fit(trainer, tiny.maps(4), epochs=40)
    assert tiny.num_changed(before, tiny.trainable_weights_of(trainer.estimator))
    assert all_finite(trainer)


@pytest.mark.slow
@pytest.mark.parametrize("phase", MAKERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_200_steps_stay_finite(policy, phase):
    keras.config.set_dtype_policy(policy)
    trainer = MAKERS[phase](restart_threshold=0.1)
    trainer.set_trained_parts()
    trainer.compile(adamw(trainer, 1e-3))
    collected = Losses()
    tiny.fit(trainer, tiny.maps(400), epochs=2, callbacks=[collected])
    assert len(collected.values) == 200
    assert np.isfinite(collected.values).all()
    assert np.mean(collected.values[-50:]) < np.mean(collected.values[:50])
    assert all_finite(trainer)
