"""Optimizers and schedules."""

import functools
import re

import keras
from keras import ops

from keras_bridle.config import ArgumentError, check
from keras_bridle.replicas import summing

# Weights before the first block, and the number of a block, by the names that
# `BridleBackbone` gives to its parts.
_FIRST = re.compile(
    r"(^|/)(patch_(embedding|norm|projection)|class_token|position_(encoding|norm))(/|$)"
)
_BLOCK = re.compile(r"(^|/)(?:transformer_block|position_bias)_(\d+)(/|$)")
_LEARNED_VECTORS = ("class_token", "mask_token", "code_vectors", "positions")


def warmup_cosine(learning_rate, total_steps, warmup_steps=0, min_learning_rate=0.0):
    """Returns a schedule of linear warm-up from zero, then cosine decay."""
    expected = f"at least 0 and below {total_steps}"
    check(0 <= warmup_steps < total_steps, "warmup_steps", expected, warmup_steps)
    schedule = functools.partial(
        keras.optimizers.schedules.CosineDecay,
        decay_steps=total_steps - warmup_steps,
        alpha=min_learning_rate / learning_rate,
    )
    if warmup_steps == 0:
        return schedule(learning_rate)
    # The dtype of the rate decides the dtype of the computation.
    return schedule(
        learning_rate * 0.0, warmup_target=learning_rate, warmup_steps=warmup_steps
    )


def check_accumulation(options, num_batches):
    """Raises an `ArgumentError` if an epoch has too few batches for one step."""
    steps = options.gradient_accumulation_steps
    if steps is not None and steps > num_batches:
        expected = f"at most {num_batches}, the batches of an epoch"
        raise ArgumentError("gradient_accumulation_steps", expected, steps)


def shared_options(options):
    """Returns the arguments of Keras' optimizers for `OptimizerOptions`."""
    steps = options.gradient_accumulation_steps
    return {
        "weight_decay": options.weight_decay,
        "global_clipnorm": options.clip_norm,
        "gradient_accumulation_steps": None if steps == 1 else steps,
        "use_ema": options.ema_momentum is not None,
        "ema_momentum": options.ema_momentum,
    }


def decays(variable):
    """Returns whether weight decay applies: not to biases, norms and vectors."""
    return len(variable.shape) >= 2 and variable.name not in _LEARNED_VECTORS


def adamw(model, learning_rate, weight_decay=1e-4, **kwargs):
    """Returns BRIDLE's AdamW, see `decays()`; Keras does not save exclusions."""
    optimizer = summing(keras.optimizers.AdamW)(
        learning_rate, weight_decay=weight_decay, **{"beta_2": 0.95, **kwargs}
    )
    optimizer.exclude_from_weight_decay(
        [variable for variable in model.trainable_variables if not decays(variable)]
    )
    return optimizer


@keras.saving.register_keras_serializable(package="keras_bridle")
class LayerDecayAdamW(keras.optimizers.Adam):
    """AdamW with a learning rate that decays from the head to the first layer.

    The rate, also of weight decay, is multiplied by `layer_decay` once for each layer
    above a weight; the head and the last norms have none above. Names of weights
    determine layers. Reference: BEiT, https://arxiv.org/abs/2106.08254.
    """

    def __init__(
        self,
        learning_rate,
        num_layers,
        layer_decay=0.75,
        weight_decay=0.05,
        epsilon=1e-8,
        **kwargs,
    ):
        check(num_layers >= 1, "num_layers", "at least 1", num_layers)
        if not 0.0 < layer_decay <= 1.0:
            raise ArgumentError("layer_decay", "above 0 and at most 1", layer_decay)
        # Keras' own weight decay uses a single rate.
        super().__init__(learning_rate, epsilon=epsilon, weight_decay=None, **kwargs)
        self.num_layers = num_layers
        self.layer_decay = layer_decay
        self.decoupled_weight_decay = weight_decay

    def multiplier(self, variable):
        """Returns the multiplier of a weight's learning rate."""
        layer = self.num_layers + 1
        block = _BLOCK.search(variable.path)
        if _FIRST.search(variable.path):
            layer = 0
        elif block is not None:
            layer = int(block.group(2)) + 1
            if layer > self.num_layers:
                raise ValueError(
                    f"{variable.path!r} belongs to block {layer} of an encoder. "
                    f"Received: num_layers={self.num_layers}"
                )
        return self.layer_decay ** (self.num_layers + 1 - layer)

    def build(self, variables):
        if self.built:
            return
        self._rates = {}
        for variable in variables:
            rates = self.multiplier(variable), decays(variable)
            # TensorFlow passes values to `update_step()`, which have no path.
            self._rates[id(variable)] = self._rates[id(variable.value)] = rates
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        multiplier, is_decayed = self._rates[id(variable)]
        learning_rate = learning_rate * multiplier
        if self.decoupled_weight_decay and is_decayed:
            rate = ops.cast(learning_rate * self.decoupled_weight_decay, variable.dtype)
            self.assign_sub(variable, ops.multiply(variable, rate))
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "layer_decay": self.layer_decay,
            "weight_decay": self.decoupled_weight_decay,
        }


def layer_decay_optimizer(model, learning_rate, layer_decay=0.75, **kwargs):
    """Returns a `LayerDecayAdamW` for a model with a `backbone`, or an encoder."""
    num_layers = getattr(model, "backbone", model).num_layers
    return LayerDecayAdamW(learning_rate, num_layers, layer_decay, **kwargs)
