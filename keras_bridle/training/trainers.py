"""The trainers of the phases."""

import math
from typing import Any

import keras
from keras import ops

from keras_bridle.config import ArgumentError
from keras_bridle.engine import after
from keras_bridle.layers.masks import RandomMask, gather_patches
from keras_bridle.quantizer.usage import CodeUsage
from keras_bridle.replicas import (
    cond,
    num_replicas,
    sum_gradients,
    sum_over_replicas,
    with_value_of_batch,
)
from keras_bridle.training.losses import (
    CodeAccuracy,
    FiniteLoss,
    FiniteMean,
    code_prediction_loss,
    cosine_similarity,
)


class ModelOfParts(keras.Model):
    """Base of trainers: `parts` names the arguments that are layers or models.

    Raw input must reach their front ends as it came, not in half precision, so that
    these models cast nothing themselves.
    """

    parts: tuple[str, ...] = ()

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def get_config(self):
        parts: dict[str, Any] = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in self.parts
        }
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config):
        parts = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in cls.parts
        }
        return cls(**{**config, **parts})


class Pretrainer(ModelOfParts):
    """Base of the phase trainers, which train the parts named in `trained_parts`.

    Subclasses make a dict of outputs in `call()`, with `codes` and their `weights`, and
    of these the loss in `loss_share()`.
    """

    trained_parts: tuple[str, ...] = ()
    finite_loss: Any = None

    def build_parts(self, **shapes):
        """Builds parts now, by name: TensorFlow never trains what was frozen then."""
        for name, shape in shapes.items():
            part = getattr(self, name)
            if part is not None and not part.built:
                part.build(shape)
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
        sum_gradients(self.trainable_variables)
        if keras.backend.backend() == "torch":
            # Each part lists its own parameters before the whole does, by paths, which
            # are the same in the encoder and the tokenizer's own.
            for name in self.parts:
                if getattr(self, name) is not None:
                    getattr(self, name).named_parameters()

    def compile_from_config(self, config):
        # Keras leaves it out for models with a `compile()` of their own.
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def skip_nonfinite_steps(self):
        """Leaves steps without a finite loss out of its mean; logs `skipped_steps`."""
        self.finite_loss = FiniteLoss()

    @property
    def metrics(self):
        metrics = super().metrics
        if self.finite_loss is None:
            return metrics
        return [self.finite_loss, *(x for x in metrics if x.name != "loss")]

    def prepare(self, backbone, inputs, training):
        """Augments raw input and turns it into the maps that are cut into patches."""
        if self.augmentation is not None:
            inputs = self.augmentation(inputs, training=training)
        return backbone.features(inputs)

    def loss_share(self, outputs):
        """This replica's share of the loss, a float32 scalar."""
        raise NotImplementedError

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return with_value_of_batch(self.loss_share(y_pred))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        codes, real = y_pred["codes"], ops.cast(y_pred["weights"], "bool")
        if self.finite_loss is not None:
            loss = sum_over_replicas(self.loss_share(y_pred))
            self.finite_loss.update_state(loss, ops.shape(codes)[0])
        if len(codes.shape) == 4:
            # Several codes of a level, which all count.
            codes = ops.swapaxes(codes, 2, 3)
            real = ops.broadcast_to(ops.expand_dims(real, 2), ops.shape(codes)[:3])
        self.code_usage.update_state(codes, real)
        return self.get_metrics_result()

    def update_means(self, outputs, weight=None):
        """Updates the means of the tokenizer's cosine and quantizer loss."""
        cosine, loss = sum_over_replicas((outputs["cosine"], outputs["quantizer_loss"]))
        self.cosine_tracker.update_state(cosine, weight)
        self.quantizer_loss_tracker.update_state(loss, weight)


@keras.saving.register_keras_serializable(package="keras_bridle")
class EncoderPretrainer(Pretrainer):
    """Trains encoder and decoder to predict a frozen tokenizer's codes.

    Use it like any Keras model: `compile()` with an optimizer alone, `fit()` on raw
    input without targets. `compile()` freezes the tokenizer.

    Args:
        backbone: `BridleBackbone`, the encoder.
        decoder: `CodeDecoder` with the levels and codes of the tokenizer's quantizer,
            or the levels of both tokenizers.
        tokenizer: `BridleTokenizer` or `RandomProjectionTokenizer`.
        earlier_tokenizer: optional tokenizer of a phase before, such as the cold
            start's, whose codes are predicted as well, so that what the encoder learned
            from them stays. Its levels come after those of `tokenizer`.
        mask: mask layer, such as `RandomMask` (the default, with its default ratio) or
            `TimeFrequencyMask`.
        augmentation: optional Keras layer applied to raw input in training.
        tokenize: string, what the tokenizer sees: `"all"` patches, or the `"masked"`
            ones alone, whose codes are wanted, as published for video. It costs less
            and gives other codes where patches attend to each other.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        inputs: raw input, of shape `(batch, *input_dims)`; or a dict of it, as
            `inputs`, and of the tokenizer's `codes` of all patches, of shape
            `(batch, num_patches, num_levels)`, which are then not computed.
        training: bool, whether to augment, and whether examples skip blocks at random.

    Returns:
        A dict: `logits` of shape `(batch, num_masked, num_levels, codebook_size)`,
        `codes` of shape `(batch, num_masked, num_levels)`, and `weights` of shape
        `(batch, num_masked)`, 0 at padded patches.

    Raises:
        ValueError: if decoder and quantizer do not fit each other.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
    from keras_bridle.models.backbone import BridleBackbone
    from keras_bridle.models.heads import CodeDecoder
    from keras_bridle.models.tokenizers import RandomProjectionTokenizer
    from keras_bridle.training.trainers import EncoderPretrainer

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    tokenizer = RandomProjectionTokenizer(8, 32, ResidualQuantizer(2, 16, dim=8))
    decoder = CodeDecoder(2, 16, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64)
    trainer = EncoderPretrainer(backbone, decoder, tokenizer)
    trainer.compile(keras.optimizers.AdamW(1e-3))
    history = trainer.fit(np.random.rand(8, 32, 32, 1), batch_size=4, verbose=0)
    print(sorted(history.history))
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
    """

    parts: tuple[str, ...] = (
        "backbone",
        "decoder",
        "tokenizer",
        "earlier_tokenizer",
        "mask",
        "augmentation",
    )
    trained_parts: tuple[str, ...] = ("backbone", "decoder")

    def __init__(
        self,
        backbone,
        decoder,
        tokenizer,
        mask=None,
        augmentation=None,
        tokenize="all",
        earlier_tokenizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.earlier_tokenizer = earlier_tokenizer
        if tokenize not in ("all", "masked"):
            raise ArgumentError("tokenize", "'all' or 'masked'", tokenize)
        check_decoder(decoder, [t.quantizer for t in self.tokenizers], backbone)
        check_own_backbone(tokenizer, backbone)
        self.backbone = backbone
        self.decoder = decoder
        self.mask = RandomMask() if mask is None else mask
        self.augmentation = augmentation
        self.tokenize = tokenize
        self.build_parts(
            tokenizer=backbone.features_shape,
            earlier_tokenizer=backbone.features_shape,
            decoder=(None, None, backbone.hidden_dim),
        )
        self.code_accuracy = CodeAccuracy(decoder.num_levels)
        self.code_usage = CodeUsage(decoder.num_levels, decoder.codebook_size)

    @property
    def tokenizers(self):
        """The tokenizers whose codes are predicted, in the order of the levels."""
        both = (self.tokenizer, self.earlier_tokenizer)
        return [tokenizer for tokenizer in both if tokenizer is not None]

    def call(self, inputs, training=False):
        known = inputs["codes"] if isinstance(inputs, dict) else None
        inputs = inputs if known is None else inputs["inputs"]
        features, padding_mask = self.prepare(self.backbone, inputs, training)
        patch_mask = self.draw_mask(features)
        if known is not None:
            codes = gather_patches(ops.cast(known, "int32"), patch_mask.masked)
        else:
            codes = self._masked_codes(features, padding_mask, patch_mask)
        return self.predict_codes(features, padding_mask, patch_mask, codes, training)

    def _masked_codes(self, features, padding_mask, patch_mask):
        visible = patch_mask.masked if self.tokenize == "masked" else None
        codes = [
            tokenizer(features, padding_mask, visible=visible, training=False).codes
            for tokenizer in self.tokenizers
        ]
        codes = codes[0] if len(codes) == 1 else ops.concatenate(codes, axis=2)
        if self.tokenize == "masked":
            return codes
        return gather_patches(codes, patch_mask.masked)

    def draw_mask(self, features):
        """Draws the `PatchMask` of a batch of maps."""
        grid = self.backbone.grid(features)
        # A mask asks for the patches' shape alone.
        patches = ops.zeros((ops.shape(features)[0], math.prod(grid)))
        return self.mask(patches, grid=grid)

    def predict_codes(self, features, padding_mask, patch_mask, codes, training):
        """Predicts the codes of masked patches from the others, as `call()` returns."""
        grid = self.backbone.grid(features)
        tokens = self.backbone.encode(
            features, padding_mask, patch_mask.visible, training=training
        )
        is_real = self.backbone.patch_padding_mask(features, padding_mask)
        logits = self.decoder(tokens, patch_mask, grid=grid, padding_mask=is_real)
        if is_real is None:
            weights = ops.ones_like(patch_mask.masked, dtype="float32")
        else:
            weights = gather_patches(ops.cast(is_real, "float32"), patch_mask.masked)
        return {"logits": logits, "codes": ops.stop_gradient(codes), "weights": weights}

    def loss_share(self, outputs):
        return code_prediction_loss(
            outputs["codes"], outputs["logits"], outputs["weights"]
        )

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.code_accuracy.update_state(
            y_pred["codes"], y_pred["logits"], y_pred["weights"]
        )
        return super().compute_metrics(x, y, y_pred)

    def get_config(self):
        return {**super().get_config(), "tokenize": self.tokenize}


def check_decoder(decoder, quantizers, backbone):
    """Raises an `ArgumentError` if a decoder does not fit quantizers and an encoder."""
    num_levels = sum(quantizer.num_levels for quantizer in quantizers)
    expected = [("use_class_token", backbone.use_class_token)]
    expected += [("num_levels", num_levels)]
    expected += [("codebook_size", x.codebook_size) for x in quantizers]
    for name, value in expected:
        if getattr(decoder, name) != value:
            wanted = f"{value}, as the backbone's or the tokenizer's"
            raise ArgumentError(f"decoder.{name}", wanted, getattr(decoder, name))


def check_own_backbone(tokenizer, backbone):
    """Raises an `ArgumentError` if a tokenizer has no encoder of its own."""
    if getattr(tokenizer, "backbone", None) is backbone:
        expected = (
            "another backbone than the one beside it, as one of the two is frozen: a "
            "copy is `keras.models.clone_model(backbone)`, with `set_weights()`"
        )
        raise ArgumentError("tokenizer.backbone", expected, backbone)


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
    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
    from keras_bridle.models.backbone import BridleBackbone
    from keras_bridle.models.tokenizers import BridleTokenizer
    from keras_bridle.models.heads import FeatureEstimator
    from keras_bridle.training.trainers import TokenizerPretrainer

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
        self.build_parts(estimator=(None, None, quantizer.dim))
        self.cosine_tracker = FiniteMean(name="cosine")
        self.quantizer_loss_tracker = FiniteMean(name="quantizer_loss")
        self.code_usage = CodeUsage(quantizer.num_levels, quantizer.codebook_size)

    def call(self, inputs, training=False):
        features, padding_mask = self.prepare(self.teacher, inputs, training)
        quantized = self.tokenizer(features, padding_mask, training=training)
        return estimate_teacher(
            self.estimator, self.teacher, features, padding_mask, quantized
        )

    def loss_share(self, outputs):
        return tokenizer_loss(outputs)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.update_means(y_pred)
        return super().compute_metrics(x, y, y_pred)


def estimate_teacher(estimator, teacher, features, padding_mask, quantized):
    """Estimates a teacher's features, as `TokenizerPretrainer.call()` returns it."""
    is_real = teacher.patch_padding_mask(features, padding_mask)
    estimate = estimator(
        quantized.quantized, grid=teacher.grid(features), padding_mask=is_real
    )
    target = teacher.drop_class_token(
        teacher.encode(features, padding_mask, training=False)
    )
    target = ops.stop_gradient(target)
    if is_real is None:
        is_real = ops.ones_like(estimate[..., 0])
    weights = ops.cast(is_real, "float32")
    return {
        "estimate": estimate,
        "teacher": target,
        "codes": quantized.codes,
        "weights": weights,
        "cosine": cosine_similarity(estimate, target, weights),
        "quantizer_loss": quantized.loss,
    }


def tokenizer_loss(outputs):
    """This replica's share of the tokenizer phase's loss, a float32 scalar."""
    return 1.0 / num_replicas() - outputs["cosine"] + outputs["quantizer_loss"]


def check_estimator(estimator, teacher):
    """Raises an `ArgumentError` if an estimator does not fit a teacher."""
    if estimator.output_dim != teacher.hidden_dim:
        expected = f"the encoder's {teacher.hidden_dim}"
        raise ArgumentError("estimator.output_dim", expected, estimator.output_dim)


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
    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
    from keras_bridle.models.backbone import BridleBackbone
    from keras_bridle.models.tokenizers import BridleTokenizer
    from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
    from keras_bridle.training.trainers import JointPretrainer

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
            raise ArgumentError("tokenizer_every", "1 or more", tokenizer_every)
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
        self.build_parts(estimator=(None, None, tokenizer.quantizer.dim))
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
            lambda: (self._losses_between(), state),
        )
        quantizer.assign_state(state)
        self.step.assign(step + 1)
        return {**outputs, **losses}

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
            "cosine": outputs["cosine"],
            "quantizer_loss": ops.cast(outputs["quantizer_loss"], "float32"),
            "is_due": ops.ones(()),
        }
        return losses, state

    def _losses_between(self):
        """Zeros at the steps that do not train the tokenizer."""
        zero = ops.zeros(())
        for part in (self.tokenizer, self.estimator):
            for variable in part.trainable_variables:
                # Else torch would have no gradients instead of zeros, and its optimizer
                # would leave these variables out.
                rows = ops.reshape(ops.convert_to_tensor(variable), (-1,))
                zero = zero + ops.cast(ops.sum(rows[:0]), "float32")
        names = ("tokenizer_loss", "cosine", "quantizer_loss", "is_due")
        return dict.fromkeys(names, zero)

    def loss_share(self, outputs):
        loss = self.tokenizer_loss_ratio * outputs["tokenizer_loss"]
        return super().loss_share(outputs) + loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.update_means(y_pred, y_pred["is_due"])
        return super().compute_metrics(x, y, y_pred)

    def get_config(self):
        config = super().get_config()
        del config["tokenize"]
        return {
            **config,
            "tokenizer_every": self.tokenizer_every,
            "tokenizer_loss_ratio": self.tokenizer_loss_ratio,
        }
