"""Optimizers and schedules."""

import re

import keras
from keras import ops


def warmup_cosine(learning_rate, total_steps, warmup_steps=0, min_learning_rate=0.0):
    """Linear warm-up from zero, then half a cosine down.

    Args:
        learning_rate: float, the rate at the end of the warm-up.
        total_steps: int, steps of the whole run, warm-up included.
        warmup_steps: int, steps of the warm-up.
        min_learning_rate: float, the rate at the end.

    Returns:
        A `keras.optimizers.schedules.CosineDecay`.

    Raises:
        ValueError: if the warm-up is not shorter than the run, or the rate is not
            positive.

    Example:
    ```python
    from keras_bridle.training.layer_decay import warmup_cosine

    schedule = warmup_cosine(1e-3, total_steps=100, warmup_steps=10)
    print([round(float(schedule(step)), 6) for step in (0, 5, 10, 100)])
    ```

    Reference:
        - [Loshchilov and Hutter, 2016](https://arxiv.org/abs/1608.03983)
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            "`warmup_steps` must be less than `total_steps` and not negative. "
            f"Received: warmup_steps={warmup_steps}, total_steps={total_steps}"
        )
    if not learning_rate > 0.0:
        raise ValueError(
            f"`learning_rate` must be positive. Received: learning_rate={learning_rate}"
        )
    alpha = min_learning_rate / learning_rate
    if warmup_steps == 0:
        return keras.optimizers.schedules.CosineDecay(
            learning_rate, total_steps, alpha=alpha
        )
    return keras.optimizers.schedules.CosineDecay(
        # The type of the rate decides that of the whole computation.
        learning_rate * 0.0,
        total_steps - warmup_steps,
        alpha=alpha,
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
    )


def adamw(model, learning_rate, weight_decay=1e-4, **kwargs):
    """Makes AdamW as BRIDLE uses it: no decay of biases, norms and learned vectors.

    Keras keeps what is left out of the decay in no file: an optimizer that is loaded
    with a model decays everything.

    Args:
        model: a built model; its variables of fewer than 2 axes, class and mask tokens,
            and code vectors that learn by gradients are left out of the weight decay.
        learning_rate: float or schedule.
        weight_decay: float.
        **kwargs: keyword arguments of `keras.optimizers.AdamW`, such as
            `global_clipnorm`, `gradient_accumulation_steps`, `use_ema`, `ema_momentum`.

    Returns:
        A `keras.optimizers.AdamW`.

    Example:
    ```python
    import keras
    from keras_bridle.training.layer_decay import adamw

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(adamw(model, 1e-3), loss="mse")
    ```

    Reference:
        - [Loshchilov and Hutter, 2017](https://arxiv.org/abs/1711.05101)
    """
    optimizer = keras.optimizers.AdamW(
        learning_rate, weight_decay=weight_decay, **{"beta_2": 0.95, **kwargs}
    )
    optimizer.exclude_from_weight_decay(
        [
            variable
            for variable in model.trainable_variables
            if len(variable.shape) < 2 or variable.name in _LEARNED_VECTORS
        ]
    )
    return optimizer


_LEARNED_VECTORS = ("class_token", "mask_token", "code_vectors")


# Which weights come before the first block, and which number a block has. Names are
# those that `BridleBackbone` gives to its parts.
_FIRST = re.compile(r"(^|/)(patch_embedding|class_token|position_encoding)(/|$)")
_BLOCK = re.compile(r"(^|/)transformer_block_(\d+)(/|$)")


@keras.saving.register_keras_serializable(package="keras_bridle")
class LayerDecayAdamW(keras.optimizers.Adam):
    """AdamW whose learning rate falls from the head to the first layer of an encoder.

    The rate of a weight is the learning rate times `layer_decay` to the power of the
    number of layers above it: 0 for the head and the norms after the blocks, 1 for the
    last block, and so on down to the patch embedding, the class token and learned
    positions. It scales Adam's step and the decoupled weight decay alike. Biases,
    norms, the class token and positions are not decayed.

    All of it follows from the weights' names, so that a saved optimizer goes on as it
    was. `gradient_accumulation_steps`, clipping and `use_ema` work as in any Keras
    optimizer.

    Args:
        learning_rate: float or schedule, the rate of the head.
        num_layers: int, the encoder's transformer blocks.
        layer_decay: float in (0, 1]. 1 gives plain AdamW.
        weight_decay: float.
        beta_1: float, decay of the gradients' mean.
        beta_2: float, decay of the squared gradients' mean.
        epsilon: float, added to the root of the latter.
        **kwargs: keyword arguments of `keras.optimizers.Adam`.

    Raises:
        ValueError: for a number out of range, or, as it meets a weight, for a block
            beyond `num_layers`.

    Example:
    ```python
    from keras_bridle.training.layer_decay import LayerDecayAdamW
    from keras_bridle.models.classifier import BridleAudioClassifier

    classifier = BridleAudioClassifier.from_preset(
        "bridle_audio_tiny", load_weights=False, num_classes=10
    )
    optimizer = LayerDecayAdamW(1e-3, num_layers=classifier.backbone.num_layers)
    classifier.compile(optimizer)
    print(optimizer.multiplier(classifier.head.kernel))  # 1.0
    ```

    Reference:
        - [Bao et al., 2021](https://arxiv.org/abs/2106.08254), BEiT
        - [Loshchilov and Hutter, 2017](https://arxiv.org/abs/1711.05101)
    """

    def __init__(
        self,
        learning_rate,
        num_layers,
        layer_decay=0.75,
        weight_decay=0.05,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        **kwargs,
    ):
        if num_layers < 1:
            raise ValueError(
                f"`num_layers` must be 1 or more. Received: num_layers={num_layers}"
            )
        if not 0.0 < layer_decay <= 1.0:
            raise ValueError(
                f"`layer_decay` must lie in (0, 1]. Received: layer_decay={layer_decay}"
            )
        if weight_decay < 0.0:
            raise ValueError(
                "`weight_decay` must be 0 or more. "
                f"Received: weight_decay={weight_decay}"
            )
        # Keras' own weight decay would know one rate only.
        super().__init__(
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=None,
            **kwargs,
        )
        self.num_layers = num_layers
        self.layer_decay = layer_decay
        self.decoupled_weight_decay = weight_decay

    def layer(self, variable):
        """Tells which layer a weight belongs to.

        Args:
            variable: `keras.Variable`.

        Returns:
            Int: 0 for what comes before the blocks, `i + 1` for block `i`, and
            `num_layers + 1` for all that is not in the encoder's layers.

        Raises:
            ValueError: for a block beyond `num_layers`.
        """
        if _FIRST.search(variable.path):
            return 0
        found = _BLOCK.search(variable.path)
        if found is None:
            return self.num_layers + 1
        layer = int(found.group(2)) + 1
        if layer > self.num_layers:
            raise ValueError(
                f"{variable.path!r} belongs to block {layer} of an encoder. "
                f"Received: num_layers={self.num_layers}"
            )
        return layer

    def multiplier(self, variable):
        """Tells what the learning rate of a weight is multiplied by, a float."""
        return self.layer_decay ** (self.num_layers + 1 - self.layer(variable))

    def decays(self, variable):
        """Tells whether a weight is subject to weight decay, a bool."""
        learned_vectors = ("class_token", "positions")
        return len(variable.shape) >= 2 and variable.name not in learned_vectors

    def build(self, variables):
        if self.built:
            return
        # Now, as TensorFlow hands variables without their paths to `update_step()`.
        self._multipliers = tuple(self.multiplier(variable) for variable in variables)
        self._decays = tuple(self.decays(variable) for variable in variables)
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        learning_rate = learning_rate * self._multipliers[index]
        if self.decoupled_weight_decay and self._decays[index]:
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


def layer_decay_optimizer(
    model, learning_rate, layer_decay=0.75, weight_decay=0.05, **kwargs
):
    """Makes the optimizer that an encoder is fine-tuned with.

    Args:
        model: classifier, or any model with a `backbone`; or a `BridleBackbone` itself.
        learning_rate: float or schedule, the rate of the head.
        layer_decay: float in (0, 1], by how much each layer learns more slowly than the
            one above it.
        weight_decay: float.
        **kwargs: keyword arguments of `LayerDecayAdamW`, such as
            `gradient_accumulation_steps`, `use_ema`, `ema_momentum`, `global_clipnorm`.

    Returns:
        A `LayerDecayAdamW`.

    Raises:
        ValueError: for a model without an encoder, or a number out of range.

    Example:
    ```python
    from keras_bridle.training.layer_decay import layer_decay_optimizer
    from keras_bridle.models.classifier import BridleAudioClassifier
    from keras_bridle.training.layer_decay import warmup_cosine

    classifier = BridleAudioClassifier.from_preset(
        "bridle_audio_tiny", load_weights=False, num_classes=10
    )
    schedule = warmup_cosine(1e-3, total_steps=100, warmup_steps=10)
    classifier.compile(layer_decay_optimizer(classifier, schedule))
    ```

    Reference:
        - [Bao et al., 2021](https://arxiv.org/abs/2106.08254), BEiT
    """
    backbone = getattr(model, "backbone", model)
    num_layers = getattr(backbone, "num_layers", None)
    if num_layers is None:
        raise ValueError(
            "`model` must have a `backbone` with `num_layers`. "
            f"Received: {type(model).__name__}"
        )
    return LayerDecayAdamW(
        learning_rate, num_layers, layer_decay, weight_decay, **kwargs
    )
