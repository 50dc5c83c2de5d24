"""Learning rates, AdamW and decay by layers against float64 NumPy."""

import keras
import numpy as np
import pytest
from harness import to_numpy
from keras import ops
from tiny_pretraining import encoder_pretrainer, tokenizer_pretrainer

from keras_bridle.config import ArgumentError
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import BridleImageClassifier
from keras_bridle.training.optimizers import (
    LayerDecayAdamW,
    adamw,
    decays,
    layer_decay_optimizer,
    warmup_cosine,
)

RATE, DECAY, WEIGHT_DECAY, BETAS, EPSILON = 1e-2, 0.6, 0.3, (0.8, 0.9), 1e-8


def backbone(num_layers=3):
    return BridleBackbone(4, 8, num_layers, 2, 8, input_dims=(8, 8, 1), name="encoder")


def classifier(num_layers=3):
    made = BridleImageClassifier(backbone(num_layers), num_classes=3, compile=False)
    rng = np.random.default_rng(0)
    for weight in made.weights:
        weight.assign(rng.normal(size=weight.shape, scale=0.3).astype("float32"))
    return made


def optimizer_of(model, **kwargs):
    beta_1, beta_2 = BETAS
    settings = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": EPSILON, **kwargs}
    return layer_decay_optimizer(
        model, RATE, DECAY, weight_decay=WEIGHT_DECAY, **settings
    )


def layer_of(name):
    """What the published code says, by our names."""
    if "patch_embedding" in name or "class_token" in name:
        return 0
    blocks = [i for i in range(3) if f"transformer_block_{i}/" in name]
    return blocks[0] + 1 if blocks else 4


class Reference:
    """AdamW in float64, as it is in PyTorch, a group for each weight."""

    def __init__(self, variables, decays, weight_decay, betas, epsilon):
        self.values = [to_numpy(v).astype("float64") for v in variables]
        self.decays, self.weight_decay = decays, weight_decay
        self.betas, self.epsilon = betas, epsilon
        self.means = [np.zeros_like(value) for value in self.values]
        self.squares = [np.zeros_like(value) for value in self.values]
        self.steps = 0

    def step(self, gradients, rates):
        self.steps += 1
        beta_1, beta_2 = self.betas
        for i, (gradient, rate) in enumerate(zip(gradients, rates, strict=True)):
            if self.decays[i]:
                self.values[i] *= 1.0 - rate * self.weight_decay
            self.means[i] += (1 - beta_1) * (gradient - self.means[i])
            self.squares[i] += (1 - beta_2) * (gradient**2 - self.squares[i])
            mean = self.means[i] / (1 - beta_1**self.steps)
            root = np.sqrt(self.squares[i] / (1 - beta_2**self.steps))
            self.values[i] -= rate * mean / (root + self.epsilon)

    def check(self, variables):
        for variable, value in zip(variables, self.values, strict=True):
            np.testing.assert_allclose(
                to_numpy(variable), value, 2e-5, 1e-6, err_msg=variable.path
            )


def random_gradients(variables, seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=v.shape).astype("float32") for v in variables]


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
    with pytest.raises(ValueError):
        warmup_cosine(1e-3, 10, warmup_steps)


@pytest.mark.parametrize(
    ("make", "options"),
    [(encoder_pretrainer, {}), (tokenizer_pretrainer, {"codebook_update": "gradient"})],
)
def test_no_decay_of_biases_norms_and_learned_vectors(make, options):
    """Decay of 1 at a rate of 1 with gradients of zero takes a weight away."""
    trainer = make(**options)
    trainer.set_trained_parts()
    variables = trainer.trainable_variables
    optimizer = adamw(trainer, 1.0, weight_decay=1.0)
    optimizer.build(variables)
    before = to_numpy([variable.value for variable in variables])
    optimizer.apply([ops.zeros(variable.shape) for variable in variables])
    for old, variable in zip(before, variables, strict=True):
        expected = 0 * old if variable.name == "kernel" else old
        np.testing.assert_allclose(to_numpy(variable.value), expected, atol=1e-7)
    names = {variable.name for variable in variables}
    assert ("code_vectors" in names) == bool(options)


@pytest.mark.parametrize("batches", [1, 2])
def test_adamw_with_clipping_and_accumulation(batches):
    """Several batches make one step with their mean gradient, clipped as one."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    variables = model.trainable_variables
    reference = Reference(variables, [True, False], 0.3, (0.9, 0.95), 1e-7)
    gradients = [random_gradients(variables, seed) for seed in range(4)]
    schedule = warmup_cosine(0.1, 4, 1)
    steps = None if batches == 1 else batches
    options = {"global_clipnorm": 1.5, "gradient_accumulation_steps": steps}
    optimizer = adamw(model, schedule, weight_decay=0.3, **options)
    optimizer.build(variables)
    for step, parts in enumerate(gradients):
        optimizer.apply([ops.convert_to_tensor(gradient) for gradient in parts])
        if (step + 1) % batches == 0:
            group = gradients[step + 1 - batches : step + 1]
            means = [np.mean(x, axis=0) for x in zip(*group, strict=True)]
            norm = np.sqrt(sum(np.square(x, dtype="float64").sum() for x in means))
            means = [x * min(1.0, 1.5 / norm) for x in means]
            # The schedule counts batches: the rate is that of the one that ends a step.
            reference.step(means, 2 * [float(schedule(step))])
    reference.check(variables)


@keras.saving.register_keras_serializable(package="keras_bridle_tests")
class Sums(keras.Model):
    """Loss: each weight times numbers of the batch, which are its gradient then."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.backbone = model.backbone
        self.built = True

    def call(self, inputs):
        return inputs

    def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
        variables = self.model.trainable_variables
        pairs = zip(variables, random_gradients(variables, 0), strict=True)
        sums = [ops.sum(ops.multiply(ops.convert_to_tensor(v), g)) for v, g in pairs]
        return sum(sums) * ops.mean(x)


@pytest.mark.every_backend
@pytest.mark.parametrize(
    "accumulation", [pytest.param(None, marks=pytest.mark.full_matrix), 2]
)
def test_compiled_steps_are_those_of_parameter_groups(accumulation):
    model = classifier()
    variables = model.trainable_variables
    assert len({layer_of(v.path) for v in variables}) == 5
    gradients = random_gradients(variables, 0)
    rates = [RATE * DECAY ** (4 - layer_of(v.path)) for v in variables]
    decays = [v.ndim > 1 and "class_token" not in v.path for v in variables]
    reference = Reference(variables, decays, WEIGHT_DECAY, BETAS, EPSILON)
    scales = np.float32([1.0, 3.0, -1.0, 0.5])
    trainer = Sums(model)
    optimizer = optimizer_of(trainer, gradient_accumulation_steps=accumulation)
    # Compiling takes torch a minute.
    trainer.compile(optimizer, jit_compile=keras.backend.backend() != "torch")
    trainer.fit(scales[:, None], batch_size=1, shuffle=False, verbose=0)
    for group in scales.reshape(-1, accumulation or 1):
        reference.step([g * group.mean() for g in gradients], rates)
    reference.check(variables)


def test_configuration(tmp_path):
    model = classifier(num_layers=1)
    optimizer = optimizer_of(model, use_ema=True, ema_momentum=0.5, clipnorm=1.0)
    config = keras.saving.serialize_keras_object(optimizer)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is LayerDecayAdamW
    assert keras.saving.serialize_keras_object(copy)["config"] == config["config"]
    for variable in model.trainable_variables:
        assert copy.multiplier(variable) == optimizer.multiplier(variable)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    x, y = np.ones((2, 8, 8, 1), "float32"), np.int32([0, 2])
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert type(loaded) is LayerDecayAdamW
    for ours, right in zip(loaded.variables, optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(right))


@pytest.mark.parametrize("layout", ["relative", "shared_relative"])
def test_biases_of_attention_move_with_their_blocks(layout):
    encoder = BridleBackbone(
        4, 8, 2, 1, 8, (8, 8, 1), position_layout=layout, layer_scale=0.1
    )
    optimizer = layer_decay_optimizer(encoder, 1e-3, DECAY)
    biases = [bias.positions for bias in encoder.position_biases]
    scales = [block.mlp_scale for block in encoder.blocks]
    found = [optimizer.multiplier(weight) for weight in (*biases, *scales)]
    # One that all blocks share moves as the last norm does.
    layers = [1, 2] if layout == "relative" else [3]
    assert found == pytest.approx([DECAY ** (3 - x) for x in (*layers, 1, 2)])
    assert not any(decays(weight) for weight in (*biases, *scales))


def test_arguments_that_cannot_work():
    for settings in ({"num_layers": 0}, {"layer_decay": 1.5}):
        with pytest.raises(ArgumentError):
            LayerDecayAdamW(1e-3, **{"num_layers": 3, **settings})
    kernel = backbone().blocks[2].qkv.kernel
    with pytest.raises(ValueError):
        LayerDecayAdamW(1e-3, num_layers=2).multiplier(kernel)
