"""The trainers of the phases."""

import inspect
import math
from typing import Any

import keras
from keras import ops

from keras_bridle.config import ArgumentError, check
from keras_bridle.engine import after
from keras_bridle.layers.masks import RandomMask, gather_patches
from keras_bridle.models.arguments import Configured
from keras_bridle.models.data_sets import TakesAnyData
from keras_bridle.models.inputs import as_examples
from keras_bridle.models.teachers import features_on_grid
from keras_bridle.quantizer.usage import CodeUsage
from keras_bridle.replicas import (
    SumsItself,
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


class TrainedModel(SumsItself, TakesAnyData, Configured, keras.Model):
    """Base of trainers, which pass raw inputs to front ends without casting."""

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def prepared(self, x, y=None, sample_weight=None):
        """Returns raw inputs as an array; augmentation may change their sides."""
        x = x if isinstance(x, dict) else as_examples(x)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)


class Pretrainer(TrainedModel):
    """Base of the phase trainers, which train those `parts` in `trained_parts`.

    `call()` returns a dict with `codes` and their `weights`. `loss_share()` computes
    this replica's share of the loss from it, a float32 scalar.
    """

    trained_parts: tuple[str, ...] = ()
    finite_loss: Any = None

    @property
    def parts(self):
        """Returns the layers among the constructor arguments, by name."""
        arguments = {
            name: getattr(self, name, None)
            for kind in type(self).__mro__
            if kind.__module__.startswith("keras_bridle")
            for name in inspect.signature(kind).parameters
        }
        is_layer = keras.layers.Layer
        return {name: x for name, x in arguments.items() if isinstance(x, is_layer)}

    def build_parts(self, **shapes):
        """Builds parts now: TensorFlow never trains what is frozen when built."""
        for name, shape in shapes.items():
            part = getattr(self, name)
            if part is not None and not part.built:
                part.build(shape)
        self.built = True

    def set_trained_parts(self):
        """Freezes all but the phase's own parts, as `compile()` does."""
        for name, part in self.parts.items():
            # On TensorFlow, setting an unchanged value does nothing, even if the layers
            # of the parts differ, as they may after loading.
            part.trainable = name not in self.trained_parts
            part.trainable = name in self.trained_parts

    def compile(self, *args, **kwargs):
        self.set_trained_parts()
        super().compile(*args, **kwargs)
        sum_gradients(self.trainable_variables)
        if keras.backend.backend() == "torch":
            # Let each part list its parameters before the whole does, as paths are the
            # same in the encoder and in the tokenizer's encoder.
            for part in self.parts.values():
                part.named_parameters()

    def skip_nonfinite_steps(self):
        """Ignores steps without a finite loss, and logs `skipped_steps`."""
        self.finite_loss = FiniteLoss()

    @property
    def metrics(self):
        metrics = super().metrics
        if self.finite_loss is None:
            return metrics
        return [self.finite_loss, *(x for x in metrics if x.name != "loss")]

    def augmented(self, inputs, training):
        """Augments raw inputs, if there is an augmentation."""
        if self.augmentation is None:
            return inputs
        return self.augmentation(inputs, training=training)

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
            # Soft quantizers: all codes of a level count.
            codes = ops.swapaxes(codes, 2, 3)
            real = ops.broadcast_to(ops.expand_dims(real, 2), ops.shape(codes)[:3])
        self.code_usage.update_state(codes, real)
        return self.get_metrics_result()

    def add_means(self):
        """Makes the means of the tokenizer's cosine and quantizer loss."""
        self.cosine_tracker = FiniteMean(name="cosine")
        self.quantizer_loss_tracker = FiniteMean(name="quantizer_loss")

    def update_means(self, outputs, weight=None):
        """Updates the means of the tokenizer's cosine and quantizer loss."""
        cosine, loss = sum_over_replicas((outputs["cosine"], outputs["quantizer_loss"]))
        self.cosine_tracker.update_state(cosine, weight)
        self.quantizer_loss_tracker.update_state(loss, weight)


def check_fit(name, found, expected):
    """Raises an `ArgumentError` if parts differ in a number that must be equal."""
    check(found == expected, name, f"{expected}, as in the other parts", found)


def check_own_backbone(tokenizer, backbone):
    """Raises an `ArgumentError` if a tokenizer has no encoder of its own."""
    if getattr(tokenizer, "backbone", None) is backbone:
        expected = (
            "a copy of the backbone beside it, as one of the two is frozen: "
            "`BridleBackbone.from_config(backbone.get_config())`, with `set_weights()`"
        )
        raise ArgumentError("tokenizer.backbone", expected, backbone)


@keras.saving.register_keras_serializable(package="keras_bridle")
class EncoderPretrainer(Pretrainer):
    """Trains encoder and decoder to predict a frozen tokenizer's codes.

    It is an ordinary Keras model: `compile()` it with only an optimizer, which freezes
    the tokenizer, and `fit()` it on raw inputs without targets.

    Args:
        backbone: `BridleBackbone`, the encoder.
        decoder: `CodeDecoder` with the codes of the tokenizers and the levels of all.
        tokenizer: `BridleTokenizer` or `RandomProjectionTokenizer`.
        mask: mask layer. Defaults to `RandomMask()`.
        augmentation: optional Keras layer applied to raw input in training.
        tokenize: string, whether the tokenizer sees `"all"` patches or, as published
            for video, only the `"masked"` ones, which costs less.
        earlier_tokenizer: optional tokenizer of an earlier phase, to predict its codes
            as well. Its levels follow those of `tokenizer`.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        inputs: raw input, of shape `(batch, *input_dims)`; or a dict of such `inputs`
            and the known `codes` of all patches, `(batch, num_patches, num_levels)`.
        training: bool, whether to augment and skip blocks at random.

    Returns:
        A dict: `logits` of shape `(batch, num_masked, num_levels, codebook_size)`,
        `codes` of shape `(batch, num_masked, num_levels)`, and `weights` of shape
        `(batch, num_masked)`, 0 at padded patches.

    Example:
    ```python
    import keras_bridle as kb
    import numpy as np

    backbone = kb.BridleBackbone(8, 32, 1, 2, 64, input_dims=(32, 32, 1))
    tokenizer = kb.RandomProjectionTokenizer(8, 32, kb.ResidualQuantizer(2, 16, dim=8))
    trainer = kb.EncoderPretrainer(backbone, kb.CodeDecoder(2, 16, 32, 1), tokenizer)
    trainer.compile("adamw")
    trainer.fit(np.random.rand(8, 32, 32, 1), batch_size=4)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
    """

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
        check(tokenize in ("all", "masked"), "tokenize", "'all' or 'masked'", tokenize)
        quantizers = [tokenizer.quantizer for tokenizer in self.tokenizers]
        num_levels = sum(quantizer.num_levels for quantizer in quantizers)
        classes = decoder.use_class_token, backbone.use_class_token
        check_fit("decoder.use_class_token", *classes)
        check_fit("decoder.num_levels", decoder.num_levels, num_levels)
        for quantizer in quantizers:
            sizes = decoder.codebook_size, quantizer.codebook_size
            check_fit("decoder.codebook_size", *sizes)
        check_own_backbone(tokenizer, backbone)
        self.backbone = backbone
        self.decoder = decoder
        self.mask = RandomMask() if mask is None else mask
        self.augmentation = augmentation
        self.tokenize = tokenize
        self.build_parts(
            tokenizer=backbone.maps_shape,
            earlier_tokenizer=backbone.maps_shape,
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
        codes = None
        if isinstance(inputs, dict):
            inputs, codes = inputs["inputs"], ops.cast(inputs["codes"], "int32")
        maps, padding_mask = self.backbone.maps(self.augmented(inputs, training))
        return self.predict_codes(maps, padding_mask, training, codes)

    def draw_mask(self, maps):
        """Draws the `PatchMask` of a batch of maps."""
        grid = self.backbone.grid(maps)
        # A mask only needs the shape of the patches.
        patches = ops.zeros((ops.shape(maps)[0], math.prod(grid)))
        return self.mask(patches, grid=grid)

    def predict_codes(self, maps, padding_mask, training, codes=None):
        """Predicts the codes of masked patches; returns the outputs of `call()`."""
        patch_mask = self.draw_mask(maps)
        visible = None
        if codes is None:
            visible = patch_mask.masked if self.tokenize == "masked" else None
            found = [
                tokenizer(maps, padding_mask, visible=visible, training=False).codes
                for tokenizer in self.tokenizers
            ]
            codes = found[0] if len(found) == 1 else ops.concatenate(found, axis=2)
        if visible is None:
            codes = gather_patches(codes, patch_mask.masked)
        tokens = self.backbone.encode(
            maps, padding_mask, patch_mask.visible, training=training
        )
        is_real = self.backbone.patch_padding_mask(maps, padding_mask)
        logits = self.decoder(
            tokens, patch_mask, grid=self.backbone.grid(maps), padding_mask=is_real
        )
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


@keras.saving.register_keras_serializable(package="keras_bridle")
class TokenizerPretrainer(Pretrainer):
    """Trains tokenizer, codebooks and estimator towards a frozen teacher's features.

    It is trained like `EncoderPretrainer`; `compile()` freezes the teacher.

    Args:
        tokenizer: `BridleTokenizer`.
        estimator: `FeatureEstimator` whose `output_dim` is the teacher's size.
        teacher: `BridleBackbone`, the encoder of the phase before; or any other
            encoder, with `backbone`.
        augmentation: optional Keras layer applied to raw input in training.
        backbone: optional `BridleBackbone`, the encoder that the tokenizer is for, if
            the teacher has another front end or other patches. The tokenizer sees its
            maps, and the teacher's features are resampled to its grid.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        inputs: raw input, of shape `(batch, *input_dims)`.
        training: bool, whether to augment and to update the codebooks.

    Returns:
        A dict: `estimate` and `teacher` of shape `(batch, num_patches, dim)`, `codes`
        of shape `(batch, num_patches, num_levels)`, `weights` of shape
        `(batch, num_patches)`, 0 at padded patches, and the scalars `cosine` and
        `quantizer_loss`.

    Example:
    ```python
    import keras_bridle as kb
    import numpy as np

    def encoder():
        return kb.BridleBackbone(8, 32, 1, 2, 64, input_dims=(32, 32, 1))

    tokenizer = kb.BridleTokenizer(encoder(), kb.ResidualQuantizer(2, 16, dim=8))
    estimator = kb.FeatureEstimator(32, 32, num_layers=1, num_heads=2)
    trainer = kb.TokenizerPretrainer(tokenizer, estimator, teacher=encoder())
    trainer.compile("adamw")
    trainer.fit(np.random.rand(8, 32, 32, 1), batch_size=4)
    ```
    """

    trained_parts = ("tokenizer", "estimator")

    def __init__(
        self, tokenizer, estimator, teacher, augmentation=None, backbone=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.keep_arguments(locals())
        check_fit("estimator.output_dim", estimator.output_dim, teacher.hidden_dim)
        check_own_backbone(tokenizer, teacher)
        quantizer = tokenizer.quantizer
        self.build_parts(estimator=(None, None, quantizer.dim))
        self.add_means()
        self.code_usage = CodeUsage(quantizer.num_levels, quantizer.codebook_size)

    def call(self, inputs, training=False):
        inputs = self.augmented(inputs, training)
        backbone = self.teacher if self.backbone is None else self.backbone
        maps, padding_mask = backbone.maps(inputs)
        quantized = self.tokenizer(maps, padding_mask, training=training)
        target = None
        if self.backbone is not None:
            target = features_on_grid(self.teacher, inputs, backbone.grid(maps))
        return estimate_teacher(
            self.estimator, backbone, maps, padding_mask, quantized, target
        )

    def loss_share(self, outputs):
        return tokenizer_loss(outputs)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.update_means(y_pred)
        return super().compute_metrics(x, y, y_pred)


def estimate_teacher(estimator, teacher, maps, padding_mask, quantized, target=None):
    """Estimates a teacher's features, or a `target`; returns the phase's outputs."""
    is_real = teacher.patch_padding_mask(maps, padding_mask)
    estimate = estimator(
        quantized.quantized, grid=teacher.grid(maps), padding_mask=is_real
    )
    if target is None:
        tokens = teacher.encode(maps, padding_mask, training=False)
        target = teacher.drop_class_token(tokens)
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
    """Returns this replica's share of the tokenizer phase's loss."""
    return 1.0 / num_replicas() - outputs["cosine"] + outputs["quantizer_loss"]


@keras.saving.register_keras_serializable(package="keras_bridle")
class JointPretrainer(EncoderPretrainer):
    """Trains the encoder in every step, and the tokenizer in every few.

    In those steps, the tokenizer learns from the current encoder: its weighted loss is
    added to the encoder's, and codebooks are updated. In other steps, its gradients are
    zeros: an optimizer with momentum or weight decay still changes its networks a
    little, so codes drift. To avoid that, use `tokenizer_every=1`, or train in phases.

    Args:
        backbone: `BridleBackbone`, the encoder.
        decoder: `CodeDecoder`, as in `EncoderPretrainer`.
        tokenizer: `BridleTokenizer`.
        estimator: `FeatureEstimator` whose `output_dim` is the encoder's size.
        tokenizer_every: int, the interval of tokenizer steps.
        tokenizer_loss_ratio: float, the weight of the tokenizer's loss.
        mask: mask layer. Defaults to `RandomMask()`.
        augmentation: optional Keras layer applied to raw input in training.
        earlier_tokenizer: optional, as in `EncoderPretrainer`; it is not trained.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        inputs: raw input, of shape `(batch, *input_dims)`.
        training: bool, whether to augment and to update the codebooks.

    Returns:
        The dict of `EncoderPretrainer`, with the scalars `tokenizer_loss`, `cosine`,
        `quantizer_loss` and `is_due`, 1 if the step trains the tokenizer.

    Example:
    ```python
    import keras_bridle as kb
    import numpy as np

    def encoder():
        return kb.BridleBackbone(8, 32, 1, 2, 64, input_dims=(32, 32, 1))

    trainer = kb.JointPretrainer(
        encoder(),
        kb.CodeDecoder(2, 16, 32, num_layers=1),
        kb.BridleTokenizer(encoder(), kb.ResidualQuantizer(2, 16, dim=8)),
        kb.FeatureEstimator(32, 32, num_layers=1, num_heads=2),
    )
    trainer.compile("adamw")
    trainer.fit(np.random.rand(8, 32, 32, 1), batch_size=4)
    ```
    """

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
        check_fit("estimator.output_dim", estimator.output_dim, backbone.hidden_dim)
        check(tokenizer_every >= 1, "tokenizer_every", "1 or more", tokenizer_every)
        super().__init__(
            backbone,
            decoder,
            tokenizer,
            mask,
            augmentation,
            # The tokenizer learns from all patches.
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
        self.add_means()

    def call(self, inputs, training=False):
        maps, padding_mask = self.backbone.maps(self.augmented(inputs, training))
        outputs = self.predict_codes(maps, padding_mask, training)
        if not training:
            losses, _ = self._tokenizer_step(maps, padding_mask, training=False)
            return {**outputs, **losses}
        quantizer = self.tokenizer.quantizer
        # Within a branch, nothing may be assigned and no random number drawn.
        state, draws = quantizer.state(), quantizer.draws()
        step = ops.convert_to_tensor(self.step)
        # Codes are from the tokenizer before this step trains it.
        is_due = ops.equal(step % self.tokenizer_every, 0)
        is_due = after(is_due, outputs["codes"])
        losses, state = cond(
            is_due,
            lambda: self._tokenizer_step(maps, padding_mask, True, state, draws),
            lambda: (self._losses_between(), state),
        )
        quantizer.assign_state(state)
        self.step.assign(step + 1)
        return {**outputs, **losses}

    def _tokenizer_step(self, maps, padding_mask, training, state=None, draws=None):
        """Returns the tokenizer's losses, and the new state of its quantizer."""
        is_real = self.backbone.patch_padding_mask(maps, padding_mask)
        # Without stochastic depth, which would draw random numbers.
        quantized, state = self.tokenizer.quantizer.stateless_step(
            self.tokenizer.vectors(maps, padding_mask),
            is_real,
            training=training,
            draws=draws,
            state=state,
        )
        outputs = estimate_teacher(
            self.estimator, self.backbone, maps, padding_mask, quantized
        )
        losses = {
            "tokenizer_loss": tokenizer_loss(outputs),
            "cosine": outputs["cosine"],
            "quantizer_loss": ops.cast(outputs["quantizer_loss"], "float32"),
            "is_due": ops.ones(()),
        }
        return losses, state

    def _losses_between(self):
        """Returns zeros, for steps that do not train the tokenizer."""
        zero = ops.zeros(())
        for part in (self.tokenizer, self.estimator):
            for variable in part.trainable_variables:
                # Otherwise torch would have no gradients instead of zeros, and the
                # optimizer would skip these variables.
                rows = ops.reshape(ops.convert_to_tensor(variable), (-1,))
                zero = zero + ops.cast(ops.sum(rows[:0]), "float32")
        names = ("tokenizer_loss", "cosine", "quantizer_loss", "is_due")
        return dict.fromkeys(names, zero)

    def get_config(self):
        config = super().get_config()
        # This class does not have the argument.
        del config["tokenize"]
        return config

    def loss_share(self, outputs):
        loss = self.tokenizer_loss_ratio * outputs["tokenizer_loss"]
        return super().loss_share(outputs) + loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.update_means(y_pred, y_pred["is_due"])
        return super().compute_metrics(x, y, y_pred)
