import keras
import numpy as np
import pytest
from harness import to_numpy
from keras import ops

from keras_bridle.config import ArgumentError
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import BridleImageClassifier
from keras_bridle.training.optimizers import LayerDecayAdamW, layer_decay_optimizer

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

    def __init__(self, variables):
        self.values = [to_numpy(v).astype("float64") for v in variables]
        self.rates = [RATE * DECAY ** (4 - layer_of(v.path)) for v in variables]
        self.decays = [v.ndim > 1 and "class_token" not in v.path for v in variables]
        self.means = [np.zeros_like(value) for value in self.values]
        self.squares = [np.zeros_like(value) for value in self.values]
        self.steps = 0

    def step(self, gradients):
        self.steps += 1
        beta_1, beta_2 = BETAS
        for i, gradient in enumerate(gradients):
            if self.decays[i]:
                self.values[i] *= 1.0 - self.rates[i] * WEIGHT_DECAY
            self.means[i] += (1 - beta_1) * (gradient - self.means[i])
            self.squares[i] += (1 - beta_2) * (gradient**2 - self.squares[i])
            mean = self.means[i] / (1 - beta_1**self.steps)
            root = np.sqrt(self.squares[i] / (1 - beta_2**self.steps))
            self.values[i] -= self.rates[i] * mean / (root + EPSILON)

    def check(self, variables):
        for variable, value in zip(variables, self.values, strict=True):
            np.testing.assert_allclose(
                to_numpy(variable), value, 2e-5, 1e-6, err_msg=variable.path
            )


def random_gradients(variables, seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=v.shape).astype("float32") for v in variables]


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
        scale = ops.mean(x)
        return (
            sum(
                ops.sum(ops.multiply(ops.convert_to_tensor(v), g))
                for v, g in zip(
                    self.model.trainable_variables,
                    random_gradients(self.model.trainable_variables, 0),
                    strict=True,
                )
            )
            * scale
        )


@pytest.mark.parametrize("accumulation", [None, 2])
def test_compiled_steps_are_those_of_parameter_groups(accumulation):
    model = classifier()
    variables = model.trainable_variables
    assert len({layer_of(v.path) for v in variables}) == 5
    gradients, reference = random_gradients(variables, 0), Reference(variables)
    scales = np.float32([1.0, 3.0, -1.0, 0.5])
    trainer = Sums(model)
    optimizer = optimizer_of(trainer, gradient_accumulation_steps=accumulation)
    # Compiling takes torch a minute.
    trainer.compile(optimizer, jit_compile=keras.backend.backend() != "torch")
    trainer.fit(scales[:, None], batch_size=1, shuffle=False, verbose=0)
    for group in scales.reshape(-1, accumulation or 1):
        reference.step([g * group.mean() for g in gradients])
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
        assert copy.decays(variable) == optimizer.decays(variable)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    x, y = np.ones((2, 8, 8, 1), "float32"), np.int32([0, 2])
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").optimizer
    assert type(loaded) is LayerDecayAdamW
    for ours, right in zip(loaded.variables, optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(right))


def test_arguments_that_cannot_work():
    for settings in ({"num_layers": 0}, {"layer_decay": 1.5}):
        with pytest.raises(ArgumentError):
            LayerDecayAdamW(1e-3, **{"num_layers": 3, **settings})
    kernel = backbone().blocks[2].qkv.kernel
    with pytest.raises(ValueError):
        LayerDecayAdamW(1e-3, num_layers=2).multiplier(kernel)
