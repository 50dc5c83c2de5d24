"""The tokenizer phase: quantized vectors that tell the teacher's features."""

import keras
from keras import ops

from keras_bridle.layers.replicas import (
    num_replicas,
    sum_over_replicas,
    with_value_of_batch,
)
from keras_bridle.pretraining.code_usage import CodeUsage
from keras_bridle.pretraining.encoder_pretrainer import check_own_backbone
from keras_bridle.pretraining.finite_mean import FiniteMean
from keras_bridle.pretraining.losses import cosine_similarity
from keras_bridle.pretraining.pretrainer import Pretrainer


@keras.saving.register_keras_serializable(package="keras_bridle")
class TokenizerPretrainer(Pretrainer):
    """Trains tokenizer, codebooks and estimator towards a frozen teacher's features.

    Use it like any Keras model: `compile()` with an optimizer alone, `fit()` on raw
    input without targets. `compile()` freezes the teacher.

    Args:
        tokenizer: `BridleTokenizer`.
        estimator: `FeatureEstimator` whose `output_dim` is the teacher's size.
        teacher: `BridleBackbone`, the encoder of the phase before.
        augmentation: optional Keras layer applied to raw input in training.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        inputs: raw input, of shape `(batch, *input_dims)`.
        training: bool, whether to augment and to move the codebooks.

    Returns:
        A dict: `estimate` and `teacher` of shape `(batch, num_patches, dim)`, `codes`
        of shape `(batch, num_patches, num_levels)`, `weights` of shape
        `(batch, num_patches)`, 0 at padded patches, and the scalar `quantizer_loss`.

    Raises:
        ValueError: if the estimator does not fit the teacher.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.layers import ResidualQuantizer
    from keras_bridle.models import BridleBackbone, BridleTokenizer, FeatureEstimator
    from keras_bridle.pretraining import TokenizerPretrainer

    def encoder():
        return BridleBackbone(
            patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
            input_dims=(32, 32, 1),
        )

    tokenizer = BridleTokenizer(encoder(), ResidualQuantizer(2, 16, dim=8))
    estimator = FeatureEstimator(32, 32, num_layers=1, num_heads=2, mlp_dim=64)
    trainer = TokenizerPretrainer(tokenizer, estimator, teacher=encoder())
    trainer.compile(keras.optimizers.AdamW(1e-3))
    history = trainer.fit(np.random.rand(8, 32, 32, 1), batch_size=4, verbose=0)
    print(sorted(history.history))
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
    """

    parts = ("tokenizer", "estimator", "teacher", "augmentation")
    trained_parts = ("tokenizer", "estimator")

    def __init__(self, tokenizer, estimator, teacher, augmentation=None, **kwargs):
        super().__init__(**kwargs)
        check_estimator(estimator, teacher)
        check_own_backbone(tokenizer, teacher)
        self.tokenizer = tokenizer
        self.estimator = estimator
        self.teacher = teacher
        self.augmentation = augmentation
        quantizer = tokenizer.quantizer
        self.build_parts((None, None, quantizer.dim), estimator)
        self.cosine_tracker = FiniteMean(name="cosine")
        self.quantizer_loss_tracker = FiniteMean(name="quantizer_loss")
        self.code_usage = CodeUsage(quantizer.num_levels, quantizer.codebook_size)

    def call(self, inputs, training=False):
        features, padding_mask = self.prepare(self.teacher, inputs, training)
        quantized = self.tokenizer(features, padding_mask, training=training)
        return estimate_teacher(
            self.estimator, self.teacher, features, padding_mask, quantized
        )

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return with_value_of_batch(tokenizer_loss(y_pred))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        cosine, quantizer_loss = sum_over_replicas(
            (teacher_cosine(y_pred), y_pred["quantizer_loss"])
        )
        self.cosine_tracker.update_state(cosine)
        self.quantizer_loss_tracker.update_state(quantizer_loss)
        self.count_codes(y_pred["codes"], y_pred["weights"])
        return self.get_metrics_result()


def estimate_teacher(estimator, teacher, features, padding_mask, quantized):
    """Estimates a teacher's features from quantized vectors.

    Args:
        estimator: `FeatureEstimator`.
        teacher: `BridleBackbone`; it gets no gradient.
        features: tensor of shape `(batch, *sides, channels)`.
        padding_mask: bool tensor of shape `(batch, rows)`, or `None`.
        quantized: `ResidualQuantizerOutput`.

    Returns:
        The dict that `TokenizerPretrainer.call()` returns.
    """
    is_real = teacher.patch_padding_mask(features, padding_mask)
    estimate = estimator(
        quantized.quantized, grid=teacher.grid(features), padding_mask=is_real
    )
    target = teacher.drop_class_token(
        teacher.encode(features, padding_mask, training=False)
    )
    if is_real is None:
        is_real = ops.ones_like(estimate[..., 0])
    return {
        "estimate": estimate,
        "teacher": ops.stop_gradient(target),
        "codes": quantized.codes,
        "weights": ops.cast(is_real, "float32"),
        "quantizer_loss": quantized.loss,
    }


def teacher_cosine(outputs):
    """Cosine between estimated and true features of the teacher, a scalar."""
    return cosine_similarity(
        outputs["estimate"], outputs["teacher"], outputs["weights"]
    )


def tokenizer_loss(outputs):
    """The tokenizer phase's loss, a float32 scalar."""
    one = 1.0 / num_replicas()
    return one - teacher_cosine(outputs) + outputs["quantizer_loss"]


def check_estimator(estimator, teacher):
    """Raises a `ValueError` if an estimator does not fit a teacher."""
    if estimator.output_dim != teacher.hidden_dim:
        raise ValueError(
            "`estimator` must give vectors of the teacher's size. "
            f"Received: estimator.output_dim={estimator.output_dim}, "
            f"teacher.hidden_dim={teacher.hidden_dim}"
        )
