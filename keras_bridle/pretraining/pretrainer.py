"""What the trainers of all phases share."""

import keras
from keras import ops

from keras_bridle.layers.replicas import logs_of_replica, sum_gradients
from keras_bridle.pretraining.model_of_parts import ModelOfParts


class Pretrainer(ModelOfParts):
    """Base of the phase trainers: a model made of parts, some of which it trains.

    Subclasses name their constructor's arguments in `parts`, and which of them the
    phase trains in `trained_parts`.
    """

    trained_parts: tuple[str, ...] = ()

    def build_parts(self, input_shape, *parts):
        """Builds parts now: TensorFlow never trains what was frozen when built."""
        for part in parts:
            if not part.built:
                part.build(input_shape)
        self.built = True

    def set_trained_parts(self):
        """Makes the phase's own parts trainable and freezes all others.

        `compile()` does it too. Call it to see the right `trainable_variables` before,
        as an optimizer does that treats some of them in another way.
        """
        for name in self.parts:
            part = getattr(self, name)
            if part is not None:
                is_trained = name in self.trained_parts
                # On TensorFlow, setting what is set already does nothing, not even to
                # the parts' own layers, which after loading may differ.
                part.trainable = not is_trained
                part.trainable = is_trained

    def compile(self, *args, **kwargs):
        self.set_trained_parts()
        super().compile(*args, **kwargs)
        if self.optimizer is not None:
            sum_gradients(self.optimizer)

    def compile_from_config(self, config):
        """Compiles a loaded trainer as the saved one was.

        Args:
            config: dict that `get_compile_config()` made.
        """
        # Keras leaves it out for models with a `compile()` of their own.
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def zero_grad(self, set_to_none=True):
        """Forgets the last step's gradients; Keras calls it on torch alone.

        Keras finds a model's torch parameters by their paths, which are the same in
        parts of one kind, such as the encoder and the tokenizer's own. It would miss
        all but one of them, and their gradients would add up from step to step.
        """
        for variable in self.trainable_variables:
            gradient = getattr(variable.value, "grad", None)
            if gradient is not None and not set_to_none:
                gradient.zero_()
            elif gradient is not None:
                variable.value.grad = None

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Builds the optimizer; Keras calls it on TensorFlow's strategies alone.

        Keras would also look at a batch, which fails with several workers. The model
        is built.
        """
        if self._distribute_strategy is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    def get_metrics_result(self):
        return logs_of_replica(super().get_metrics_result())

    def prepare(self, backbone, inputs, training):
        """Augments raw input and turns it into the maps that are cut into patches."""
        if self.augmentation is not None:
            inputs = self.augmentation(inputs, training=training)
        return backbone.features(inputs)

    def count_codes(self, codes, weights):
        """Updates `self.code_usage` with the codes of real patches."""
        real = ops.cast(weights, "bool")
        if len(codes.shape) == 4:
            # Several codes of a level, which all count.
            codes = ops.swapaxes(codes, 2, 3)
            real = ops.broadcast_to(ops.expand_dims(real, 2), ops.shape(codes)[:3])
        self.code_usage.update_state(codes, real)
