"""Classifiers of audio, images and video."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_bridle.config import ArgumentError, check
from keras_bridle.export import Exportable
from keras_bridle.layers.masks import gather_patches
from keras_bridle.models.arguments import Functional
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.converters import (
    BridleAudioPreprocessor,
    BridleImagePreprocessor,
    BridleVideoPreprocessor,
    check_modality,
)
from keras_bridle.models.data_sets import TakesAnyData, is_data_set
from keras_bridle.models.inputs import as_array, as_batch, as_labels
from keras_bridle.models.presets import (
    MODALITIES_BY_RANK,
    preset_folder,
    saved_classifier_class,
    saved_classifier_config,
)


class ClassScore(NamedTuple):
    """The name of a class, its number and its probability."""

    name: str
    number: int
    probability: float


def probabilities_of(logits, multi_label):
    """Returns probabilities by sigmoid if `multi_label`, else softmax, in float64."""
    if multi_label:
        return 0.5 + 0.5 * np.tanh(0.5 * logits)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


class BridleClassifier(TakesAnyData, Exportable, Functional, keras_hub.models.Task):
    """Base of the classifiers: an encoder, the mean of its patches, a norm, a head.

    `from_preset()` attaches a preprocessor, so that `fit()`, `evaluate()` and
    `predict()` take raw inputs of any size. Exported models take inputs as the
    preprocessor returns them.

    Args:
        backbone: `BridleBackbone`, the encoder.
        num_classes: int; optional if there are `class_names`.
        preprocessor: optional preprocessor that converts raw inputs.
        class_names: optional list of strings, one for each class.
        pooling: string. `"mean"`: the mean of the real patches, then a norm, in place
            of the encoder's own. `"first"`: the encoder's own norm, then the class
            token or, without one, the first patch.
        multi_label: bool, whether an input can have several classes or none.
        activation: optional string or function of the head. `None` returns logits.
        dropout: float, share of the pooled features to drop in training.
        token_mask: optional mask layer. Training encodes only its visible patches.
        feature_augmentation: optional Keras layer applied in training to the maps that
            are cut into patches: log-mel spectrograms or normalized pixels.
        **kwargs: keyword arguments of `keras_hub.models.Task`.

    Call arguments:
        inputs: tensor of shape `(batch, *input_dims)`, as the preprocessor returns it.
        training: bool, whether to drop and to augment.

    Returns:
        float32 tensor of shape `(batch, num_classes)`: logits without `activation`.
    """

    backbone_cls = BridleBackbone
    preprocessor_cls: Any = None
    modality: str | None = None
    needs_labels = True

    def __init__(
        self,
        backbone,
        num_classes=None,
        preprocessor=None,
        class_names=None,
        pooling="mean",
        multi_label=False,
        activation=None,
        dropout=0.0,
        token_mask=None,
        feature_augmentation=None,
        **kwargs,
    ):
        if class_names is not None:
            class_names = [str(name) for name in class_names]
            num_classes = len(class_names) if num_classes is None else num_classes
            if len(class_names) != num_classes:
                raise ArgumentError("class_names", f"{num_classes} names", class_names)
        if num_classes is None or num_classes < 1:
            raise ArgumentError("num_classes", "1 or more", num_classes)
        check(pooling in ("mean", "first"), "pooling", '"mean" or "first"', pooling)
        self.keep_arguments(locals())
        self.pooled_encoder = _PooledEncoder(
            backbone, pooling, token_mask, feature_augmentation
        )
        self.output_dropout = keras.layers.Dropout(
            dropout, dtype="float32", name="output_dropout"
        )
        self.head = keras.layers.Dense(
            num_classes,
            activation=activation,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            dtype="float32",
            name="head",
        )

        inputs = keras.Input(backbone.input.shape[1:], name="inputs")
        outputs = self.head(self.output_dropout(self.pooled_encoder(inputs)))
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

    @property
    def fc_norm(self):
        """The norm of the pooled features; `None` if the encoder's norm is used."""
        return self.pooled_encoder.fc_norm

    def pooled(self, maps, padding_mask=None, noise=None, training=None):
        """Returns the head's input, features of shape `(batch, hidden_dim)`."""
        return self.pooled_encoder.pooled(maps, padding_mask, noise, training)

    def classify(self, maps, padding_mask=None, noise=None, training=None):
        """Classifies maps of `backbone.maps()`, with `noise` for the `token_mask`."""
        pooled = self.pooled(maps, padding_mask, noise, training)
        return self.head(self.output_dropout(pooled, training=training))

    def compile(self, optimizer="auto", loss="auto", *, metrics="auto", **kwargs):
        """Configures the training, with defaults for everything.

        Args:
            optimizer: optimizer; AdamW at 1e-4 by default.
            loss: loss; by default cross-entropy with labels as ints, or binary
                cross-entropy with one 0 or 1 for each class if `multi_label`.
            metrics: list of metrics; by default accuracy, or the area under the curve.
            **kwargs: keyword arguments of `keras.Model.compile`.
        """
        self.pooled_encoder.freeze_unused()
        logits = {"from_logits": self._returns_logits()}
        if optimizer == "auto":
            optimizer = keras.optimizers.AdamW(1e-4, weight_decay=0.05)
            optimizer.exclude_from_weight_decay(
                var_names=["bias", "gamma", "beta", "class_token", "positions"]
            )
        if self.multi_label:
            usual_loss = keras.losses.BinaryCrossentropy(**logits)
            metric = keras.metrics.AUC(
                multi_label=True, num_labels=self.num_classes, **logits
            )
        else:
            usual_loss = keras.losses.SparseCategoricalCrossentropy(**logits)
            metric = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        loss = usual_loss if loss == "auto" else loss
        metrics = [metric] if metrics == "auto" else metrics
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)

    def prepared(self, x, y=None, sample_weight=None):
        """Converts raw inputs, labels and weights for the encoder and the loss.

        Labels of other losses than cross-entropies stay as they are.
        """
        found = self.preprocess_samples(x, y, sample_weight)
        x, y, weight = keras.utils.unpack_x_y_sample_weight(found)
        x = as_batch(x, self.backbone.input.shape[1:])
        loss = getattr(self, "loss", None)
        loss = str(getattr(loss, "name", getattr(loss, "__name__", loss)))
        if y is not None and "crossentropy" in loss:
            y = self.labels(y, rows=False if "sparse" in loss else None)
        weight = None if weight is None else as_array(weight)
        return keras.utils.pack_x_y_sample_weight(x, y, weight)

    def labels(self, labels, name="labels", rows=None):
        """Checks labels, and converts class names to numbers, see `as_labels()`."""
        rows = self.multi_label or rows
        return as_labels(labels, self.num_classes, self.class_names, rows, name)

    def predict_classes(self, inputs, top=1, batch_size=32):
        """Names the most likely classes of raw inputs.

        Args:
            inputs: raw inputs, as `predict()` takes them.
            top: int, number of classes to name.
            batch_size: int, inputs per step.

        Returns:
            For each input a list of `ClassScore`, the most likely first.
        """
        if not 1 <= top <= self.num_classes:
            raise ArgumentError("top", f"between 1 and {self.num_classes}", top)
        size = None if is_data_set(inputs) else batch_size
        outputs = self.predict(inputs, size, verbose=0)
        probabilities = outputs.astype("float64")
        if self._returns_logits():
            probabilities = probabilities_of(probabilities, self.multi_label)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        names = self.class_names or [str(index) for index in range(self.num_classes)]
        return [
            [ClassScore(names[i], int(i), float(row[i])) for i in best]
            for row, best in zip(probabilities, order, strict=True)
        ]

    def _returns_logits(self):
        return keras.activations.get(self.activation) is keras.activations.linear

    @classmethod
    def from_preset(
        cls, preset, load_weights=True, drop_path_rate=None, dtype=None, **kwargs
    ):
        """Builds a classifier on a pretrained encoder, or loads a saved classifier.

        Args:
            preset: string, as in `BridleBackbone.from_preset()`, or a saved classifier.
            load_weights: bool. `False` starts from scratch, which named sizes such as
                `"bridle_audio_base"` need.
            drop_path_rate: optional float, an argument of the encoder.
            dtype: optional string or `keras.DTypePolicy`.
            **kwargs: arguments of the constructor, such as `class_names`. The head of a
                saved classifier is kept unless `num_classes` is among them. The default
                `preprocessor` is the saved one, or else one made for the encoder.

        Raises:
            ValueError: for an unknown name, an encoder of another modality, missing
                weights or classes, or other classes than those of the saved head.
            FileNotFoundError: if the directory of a run has no preset yet.
        """
        # Imported here, as the module imports this one.
        from keras_bridle.conversion import checkpoints

        preset = preset_folder(checkpoints.fetched(preset))
        config = saved_classifier_config(preset)
        if "num_classes" in kwargs:
            kwargs.setdefault("class_names", None)
        elif config is not None and kwargs.get("class_names") is not None:
            _check_names_of_head(config, preset, kwargs["class_names"])
        changes = {"drop_path_rate": drop_path_rate, "dtype": dtype}
        changes = {name: value for name, value in changes.items() if value is not None}
        is_address = "://" in preset
        if changes or not is_address:
            backbone = BridleBackbone.from_preset(preset, load_weights, **changes)
            kwargs.setdefault("backbone", backbone)
        if is_address:
            return super().from_preset(preset, load_weights, **kwargs)
        if len(backbone.input_dims) in MODALITIES_BY_RANK:
            check_modality(cls, backbone)
        if config is None and "preprocessor" not in kwargs:
            kwargs["preprocessor"] = cls._preprocessor(preset, backbone)
        if config is not None and cls.modality is None:
            cls = saved_classifier_class(preset)
        classifier = cls.from_config({**(config or {}), **kwargs})
        if config is not None and load_weights and "num_classes" not in kwargs:
            classifier.load_task_weights(str(Path(preset, "task.weights.h5")))
        return classifier

    @classmethod
    def _preprocessor(cls, preset, backbone):
        """Returns the preprocessor of a preset, or one made for the encoder."""
        path = Path(preset, f"{cls.modality}_converter.json")
        if not path.exists():
            return cls.preprocessor_cls.for_backbone(backbone)
        config = json.loads(path.read_text())
        return cls.preprocessor_cls(keras.saving.deserialize_keras_object(config))

    def save_task_weights(self, filepath):
        """Saves the weights of the head, see `keras_hub.models.Task`."""
        # KerasHub would save the optimizer's state, too.
        skipped = [self.backbone, self.optimizer]
        keras.saving.save_weights(self, filepath, objects_to_skip=skipped)

    def load_task_weights(self, filepath):
        """Loads the weights of the head, see `keras_hub.models.Task`."""
        skipped = [self.backbone, self.optimizer]
        keras.saving.load_weights(self, filepath, objects_to_skip=skipped)

    def get_config(self):
        activation = self.activation and keras.activations.get(self.activation)
        return {
            **super().get_config(),
            "activation": activation and keras.activations.serialize(activation),
        }


class _PooledEncoder(keras.layers.Layer):
    """Encodes and pools raw inputs; in training, it may drop patches."""

    def __init__(self, backbone, pooling, token_mask, feature_augmentation):
        # The front end needs raw inputs in full precision.
        super().__init__(dtype="float32", autocast=False, name="pooled_encoder")
        self.backbone = backbone
        self.pooling = pooling
        self.token_mask = token_mask
        self.feature_augmentation = feature_augmentation
        self.fc_norm: Any = None
        if pooling == "mean":
            self.fc_norm = keras.layers.LayerNormalization(
                epsilon=backbone.layer_norm_epsilon, dtype="float32", name="fc_norm"
            )
            self.fc_norm.build((None, backbone.hidden_dim))
        self.freeze_unused()
        self.built = True

    def freeze_unused(self):
        """Freezes the encoder's norm if it is unused, as it gets no gradient."""
        if self.pooling == "mean" and self.backbone.norm is not None:
            self.backbone.norm.trainable = False

    def call(self, inputs, training=None):
        maps, padding_mask = self.backbone.maps(inputs)
        return self.pooled(maps, padding_mask, None, training)

    def pooled(self, maps, padding_mask, noise, training):
        if self.feature_augmentation is not None:
            maps = self.feature_augmentation(maps, training=training)
        visible = None
        if self.token_mask is not None and training:
            visible = self._visible(maps, noise)
        tokens = self.backbone.encode(
            maps,
            padding_mask,
            visible,
            normalize=self.pooling == "first",
            training=training,
        )
        if self.pooling == "first":
            return ops.cast(tokens[:, 0], "float32")
        is_real = self.backbone.patch_padding_mask(maps, padding_mask)
        if is_real is not None and visible is not None:
            is_real = gather_patches(is_real, visible)
        return self.fc_norm(_mean(self.backbone.drop_class_token(tokens), is_real))

    def _visible(self, maps, noise):
        grid = self.backbone.grid(maps)
        # A mask only needs the shape of the patches.
        patches = ops.zeros((ops.shape(maps)[0], math.prod(grid)))
        options = {} if noise is None else {"noise": noise}
        return self.token_mask(patches, grid=grid, **options).visible

    def compute_output_shape(self, inputs_shape):
        return (inputs_shape[0], self.backbone.hidden_dim)


def _mean(tokens, is_real):
    """Returns the mean of the real tokens, in float32."""
    tokens = ops.cast(tokens, "float32")
    if is_real is None:
        return ops.mean(tokens, axis=1)
    weights = ops.expand_dims(ops.cast(is_real, "float32"), 2)
    # The mask may have left nothing of a short clip.
    count = ops.maximum(ops.sum(weights, axis=1), 1.0)
    return ops.sum(tokens * weights, axis=1) / count


def _check_names_of_head(config, preset, class_names):
    """Raises a `ValueError` if a saved head is for other classes."""
    given, saved = [str(name) for name in class_names], config.get("class_names")
    if len(given) != config["num_classes"] or saved not in (None, given):
        raise ValueError(
            f"The classifier of preset={preset!r} is one for {config['num_classes']} "
            f"classes, {saved or 'without names'}. Received: class_names={given}. For "
            f"a new head pass num_classes={len(given)} as well; to rename its classes "
            "set `class_names` afterwards"
        )


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleAudioClassifier(BridleClassifier):
    """Classifies waveforms of any length, tensors of shape `(batch, samples)`.

    A `token_mask` may be `TimeFrequencyMask(0.2, 0.2)`, a `feature_augmentation`
    `SpecAugment(8, 40)`.

    Args:
        backbone: `BridleBackbone` that takes waveforms.
        **kwargs: see `keras_bridle.models.classifier.BridleClassifier`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.classifier import BridleAudioClassifier

    classifier = BridleAudioClassifier.from_preset(
        "bridle_audio_tiny", load_weights=False, class_names=["cat", "dog"]
    )
    clips = [np.random.uniform(-1, 1, n).astype("float32") for n in (9000, 16000)]
    classifier.fit(clips, [0, 1], epochs=1, verbose=0)
    for best, *_ in classifier.predict_classes(clips):
        print(best.name, best.probability)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
        - [Huang et al., 2022](https://arxiv.org/abs/2207.06405), the fine-tuning
    """

    preprocessor_cls = BridleAudioPreprocessor
    modality = "audio"


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleImageClassifier(BridleClassifier):
    """Classifies images of any size, as `BridleAudioClassifier` classifies waveforms.

    It takes pixels from 0 to 255, tensors of shape `(batch, rows, columns, channels)`.
    A `token_mask` may be `RandomMask(0.2)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.classifier import BridleImageClassifier

    classifier = BridleImageClassifier.from_preset(
        "bridle_image_tiny", load_weights=False, class_names=["shirt", "shoe"]
    )
    images = np.random.randint(0, 256, (2, 28, 28, 1)).astype("uint8")
    print(classifier.predict_classes(images))
    ```

    Reference:
        - [He et al., 2021](https://arxiv.org/abs/2111.06377), the fine-tuning
    """

    preprocessor_cls = BridleImagePreprocessor
    modality = "image"


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleVideoClassifier(BridleClassifier):
    """Classifies clips of any size, as `BridleAudioClassifier` classifies waveforms.

    It takes pixels from 0 to 255, tensors of shape `(batch, frames, rows, columns,
    channels)`. A `token_mask` may be `TubeMask(0.5)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.classifier import BridleVideoClassifier

    classifier = BridleVideoClassifier.from_preset(
        "bridle_video_tiny", load_weights=False, class_names=["jump", "run"]
    )
    clips = np.random.randint(0, 256, (2, 8, 48, 64, 3)).astype("uint8")
    print(classifier.predict_classes(clips))
    ```

    Reference:
        - [Tong et al., 2022](https://arxiv.org/abs/2203.12602), the fine-tuning
    """

    preprocessor_cls = BridleVideoPreprocessor
    modality = "video"
