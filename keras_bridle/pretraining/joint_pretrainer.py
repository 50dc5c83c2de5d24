"""Joint mode: encoder and tokenizer in one run."""

import keras
from keras import ops

from keras_bridle.layers.engine import after
from keras_bridle.layers.replicas import cond, sum_over_replicas, with_value_of_batch
from keras_bridle.pretraining.encoder_pretrainer import EncoderPretrainer, encoder_loss
from keras_bridle.pretraining.finite_mean import FiniteMean
from keras_bridle.pretraining.tokenizer_pretrainer import (
    check_estimator,
    estimate_teacher,
    teacher_cosine,
    tokenizer_loss,
)


@keras.saving.register_keras_serializable(package="keras_bridle")
class JointPretrainer(EncoderPretrainer):
    """Trains the encoder at every step, and the tokenizer at every few.

    At those steps the loss is the encoder's plus a share of the tokenizer's, whose
    teacher is the encoder as it is. Codebooks move at those steps alone; the others
    cost no more than those of an encoder phase.

    At the steps between, the tokenizer's gradients are zeros, not missing: an optimizer
    with momentum or weight decay goes on moving its networks a little, so that the
    codes drift between two of its trainings. Where they must not, train with
    `tokenizer_every=1`, or in phases.

    Args:
        backbone: `BridleBackbone`, the encoder.
        decoder: `CodeDecoder` with the levels and codes of the tokenizer's quantizer.
        tokenizer: `BridleTokenizer`.
        estimator: `FeatureEstimator` whose `output_dim` is the encoder's size.
        tokenizer_every: int, steps from one training of the tokenizer to the next.
        tokenizer_loss_ratio: float, the weight of the tokenizer's loss.
        mask: mask layer. Defaults to `RandomMask()`.
        augmentation: optional Keras layer applied to raw input in training.
        earlier_tokenizer: optional, as of `EncoderPretrainer`; it is not trained.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        inputs: raw input, of shape `(batch, *input_dims)`.
        training: bool, whether to augment and to move the codebooks.

    Returns:
        The dict of `EncoderPretrainer`, with the scalars `tokenizer_loss`, `cosine`,
        `quantizer_loss` and `is_due`, 1 where the step trains the tokenizer.

    Raises:
        ValueError: if the parts do not fit each other.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.layers import ResidualQuantizer
    from keras_bridle.models import (
        BridleBackbone, BridleTokenizer, CodeDecoder, FeatureEstimator,
    )
    from keras_bridle.pretraining import JointPretrainer

    def encoder():
        return BridleBackbone(
            patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
            input_dims=(32, 32, 1),
        )

    trainer = JointPretrainer(
        encoder(),
        CodeDecoder(2, 16, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64),
        BridleTokenizer(encoder(), ResidualQuantizer(2, 16, dim=8)),
        FeatureEstimator(32, 32, num_layers=1, num_heads=2, mlp_dim=64),
    )
    trainer.compile(keras.optimizers.AdamW(1e-3))
    history = trainer.fit(np.random.rand(8, 32, 32, 1), batch_size=4, verbose=0)
    print(sorted(history.history))
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
    """

    parts = (*EncoderPretrainer.parts, "estimator")
    trained_parts = ("backbone", "decoder", "tokenizer", "estimator")

    def __init__(
        self,
        backbone,
        decoder,
        tokenizer,
        estimator,
        tokenizer_every=4,
        tokenizer_loss_ratio=0.2,
        mask=None,
        augmentation=None,
        earlier_tokenizer=None,
        **kwargs,
    ):
        check_estimator(estimator, backbone)
        if tokenizer_every < 1:
            raise ValueError(
                "`tokenizer_every` must be a positive int. "
                f"Received: tokenizer_every={tokenizer_every}"
            )
        super().__init__(
            backbone,
            decoder,
            tokenizer,
            mask=mask,
            augmentation=augmentation,
            # The tokenizer learns from all patches, so it sees them all.
            tokenize="all",
            earlier_tokenizer=earlier_tokenizer,
            **kwargs,
        )
        self.estimator = estimator
        self.tokenizer_every = tokenizer_every
        self.tokenizer_loss_ratio = tokenizer_loss_ratio
        self.build_parts((None, None, tokenizer.quantizer.dim), estimator)
        self.step = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False, name="step"
        )
        self.cosine_tracker = FiniteMean(name="cosine")
        self.quantizer_loss_tracker = FiniteMean(name="quantizer_loss")

    def call(self, inputs, training=False):
        features, padding_mask = self.prepare(self.backbone, inputs, training)
        patch_mask = self.draw_mask(features)
        codes = self._masked_codes(features, padding_mask, patch_mask)
        outputs = self.predict_codes(
            features, padding_mask, patch_mask, codes, training
        )
        if not training:
            losses, _ = self._tokenizer_step(features, padding_mask, training=False)
            return {**outputs, **losses}
        quantizer = self.tokenizer.quantizer
        # Inside a branch nothing may be assigned and no random number drawn.
        state, draws = quantizer.state(), quantizer.draws()
        step = ops.convert_to_tensor(self.step)
        # Codes are those of the tokenizer before this step trains it.
        is_due = after(ops.equal(step % self.tokenizer_every, 0), codes)
        losses, state = cond(
            is_due,
            lambda: self._tokenizer_step(features, padding_mask, True, state, draws),
            lambda: ({name: ops.zeros(()) for name in _LOSSES}, state),
        )
        quantizer.assign_state(state)
        self.step.assign(step + 1)
        return {**outputs, **losses}

    def zero_grad(self, set_to_none=True):
        """Sets gradients to zeros; Keras calls it on torch alone.

        At steps without the tokenizer its gradients are zeros on the other backends,
        where the optimizer's averages go on. On torch they would be missing, and the
        optimizer would leave the tokenizer out.
        """
        for variable in self.trainable_variables:
            variable.value.grad = ops.zeros_like(variable.value)

    def _tokenizer_step(self, features, padding_mask, training, state=None, draws=None):
        """The tokenizer's losses, and the state that its quantizer comes to."""
        is_real = self.backbone.patch_padding_mask(features, padding_mask)
        # Its own encoder skips no blocks, which would draw random numbers.
        quantized, state = self.tokenizer.quantizer.stateless_step(
            self.tokenizer.vectors(features, padding_mask),
            is_real,
            training=training,
            draws=draws,
            state=state,
        )
        outputs = estimate_teacher(
            self.estimator, self.backbone, features, padding_mask, quantized
        )
        losses = {
            "tokenizer_loss": tokenizer_loss(outputs),
            "cosine": teacher_cosine(outputs),
            "quantizer_loss": ops.cast(outputs["quantizer_loss"], "float32"),
            "is_due": ops.ones(()),
        }
        return losses, state

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        loss = self.tokenizer_loss_ratio * y_pred["tokenizer_loss"]
        return with_value_of_batch(encoder_loss(y_pred) + loss)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        is_due = y_pred["is_due"]
        cosine, quantizer_loss = sum_over_replicas(
            (y_pred["cosine"], y_pred["quantizer_loss"])
        )
        self.cosine_tracker.update_state(cosine, is_due)
        self.quantizer_loss_tracker.update_state(quantizer_loss, is_due)
        return super().compute_metrics(x, y, y_pred)

    def get_config(self):
        config = super().get_config()
        del config["tokenize"]
        return {
            **config,
            "tokenizer_every": self.tokenizer_every,
            "tokenizer_loss_ratio": self.tokenizer_loss_ratio,
        }


_LOSSES = ("tokenizer_loss", "cosine", "quantizer_loss", "is_due")
