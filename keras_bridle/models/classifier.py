"""Classifiers of sounds, images and clips."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_bridle.layers.masks import gather_patches
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.converters import (
    BridleAudioPreprocessor,
    BridleImagePreprocessor,
    BridleVideoPreprocessor,
)
from keras_bridle.models.presets import (
    backbone_preset,
    preset_folder,
    preset_modality,
    saved_classifier_config,
)

_POOLINGS = ("mean", "first")
# Layers among the constructor's arguments.
_LAYERS = ("token_mask", "feature_augmentation")


class ClassScore(NamedTuple):
    """A class and how likely it is.

    Attributes:
        name: string, the class; its number if classes have no names.
        number: int, the place of the class among all.
        probability: float.
    """

    name: str
    number: int
    probability: float


def probabilities_of(logits, multi_label):
    """Turns logits into probabilities.

    Args:
        logits: float64 array of shape `(inputs, classes)`.
        multi_label: bool, whether an input can have several classes or none.

    Returns:
        float64 array of the same shape.
    """
    if multi_label:
        return 0.5 + 0.5 * np.tanh(0.5 * logits)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


class BridleClassifier(keras_hub.models.Task):
    """Base of the classifiers: an encoder, the mean of its patches, a norm, a head.

    Args:
        backbone: `BridleBackbone`, the encoder.
        num_classes: int; may be left out where there are `class_names`.
        preprocessor: optional preprocessor that `fit()`, `evaluate()` and `predict()`
            give raw inputs to. `from_preset()` makes the one that fits the encoder.
        class_names: optional list of strings, one for each class.
        pooling: string. `"mean"`: the mean of the real patches, then a norm, as
            published. `"first"`: the encoder's own norm, then the class token or, if
            there is none, the first patch.
        multi_label: bool, whether an input can have several classes or none. It decides
            about the defaults of `compile()` and about probabilities.
        activation: optional string or function that the head ends with. `None` gives
            logits.
        dropout: float, share of the pooled features to drop in training.
        token_mask: optional mask layer, such as `TimeFrequencyMask(0.2, 0.2)`. In
            training only the patches that it leaves visible are encoded.
        feature_augmentation: optional Keras layer applied in training to the maps that
            are cut into patches: log-mel spectrograms or normalized pixels.
        **kwargs: keyword arguments of `keras_hub.models.Task`.
    """

    backbone_cls = BridleBackbone
    preprocessor_cls: Any = None
    # What its encoder must be for; `None` leaves that open.
    modality: str | None = None

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
        num_classes, class_names = _checked_classes(num_classes, class_names)
        if pooling not in _POOLINGS:
            raise ValueError(
                f"`pooling` must be one of {_POOLINGS}. Received: pooling={pooling!r}"
            )

        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor
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

        # === Config ===
        self.num_classes = num_classes
        self.class_names = class_names
        self.pooling = pooling
        self.multi_label = multi_label
        self.activation = activation
        self.dropout = dropout
        self.token_mask = token_mask
        self.feature_augmentation = feature_augmentation

        # === Functional model ===
        inputs = keras.Input(backbone.input.shape[1:], name="inputs")
        outputs = self.head(self.output_dropout(self.pooled_encoder(inputs)))
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

    @property
    def fc_norm(self):
        """The norm of the pooled features; `None` where there is the encoder's."""
        return self.pooled_encoder.fc_norm

    def pooled(self, features, padding_mask=None, noise=None, training=None):
        """Encodes maps to one vector each.

        Args:
            features: tensor of shape `(batch, *sides, channels)`, as
                `BridleBackbone.features()` gives it.
            padding_mask: optional bool tensor of shape `(batch, rows)`, `True` at real
                rows.
            noise: optional numbers that `token_mask` takes instead of random ones.
            training: bool, whether to augment maps and to leave out patches.

        Returns:
            float32 tensor of shape `(batch, hidden_dim)`.
        """
        return self.pooled_encoder.pooled(features, padding_mask, noise, training)

    def classify(self, features, padding_mask=None, noise=None, training=None):
        """Classifies maps, for trainers that change them or their labels before.

        Args:
            features: tensor of shape `(batch, *sides, channels)`, as
                `BridleBackbone.features()` gives it.
            padding_mask: optional bool tensor of shape `(batch, rows)`, `True` at real
                rows.
            noise: optional numbers that `token_mask` takes instead of random ones.
            training: bool, whether to augment maps and to leave out patches.

        Returns:
            float32 tensor of shape `(batch, num_classes)`.
        """
        pooled = self.pooled(features, padding_mask, noise, training)
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
        self.pooled_encoder.freeze_what_is_not_used()
        from_logits = self._gives_logits()
        if optimizer == "auto":
            optimizer = keras.optimizers.AdamW(1e-4, weight_decay=0.05)
            optimizer.exclude_from_weight_decay(
                var_names=["bias", "gamma", "beta", "class_token", "positions"]
            )
        if loss == "auto" and self.multi_label:
            loss = keras.losses.BinaryCrossentropy(from_logits=from_logits)
        elif loss == "auto":
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        if metrics == "auto" and self.multi_label:
            metrics = [
                keras.metrics.AUC(
                    multi_label=True,
                    num_labels=self.num_classes,
                    from_logits=from_logits,
                )
            ]
        elif metrics == "auto":
            metrics = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)

    def compile_from_config(self, config):
        """Compiles a loaded classifier as the saved one was.

        Args:
            config: dict that `get_compile_config()` made.
        """
        # Keras leaves it out for models with a `compile()` of their own.
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    # KerasHub would feed arrays in their own order, epoch after epoch.

    def fit(self, x=None, y=None, batch_size=None, *, validation_data=None, **kwargs):
        """Trains on raw inputs, see `keras.Model.fit()`.

        Args:
            x: array or list of raw inputs; or a `tf.data` or Grain data set of batches
                of `(x, y)`, likewise raw. Batches of other iterables must be as the
                encoder takes them.
            y: labels, ints, or one row of numbers for each input.
            batch_size: optional int, inputs of a step, of arrays and lists.
            validation_data: optional tuple of raw inputs and labels, or data set.
            **kwargs: keyword arguments of `keras.Model.fit()`.

        Returns:
            A `keras.callbacks.History`.
        """
        if isinstance(validation_data, tuple):
            inputs, *labels = validation_data
            validation_data = (self._prepared(inputs), *map(_as_array, labels))
        else:
            validation_data = self._prepared(validation_data)
        if hasattr(x, "map"):
            # Data sets have an order of their own, and Keras would warn of it.
            kwargs.setdefault("shuffle", False)
        return keras.Model.fit(
            self,
            self._prepared(x),
            _as_array(y),
            batch_size=batch_size,
            validation_data=validation_data,
            **_with_weights_as_array(kwargs),
        )

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Evaluates on raw inputs, see `keras.Model.evaluate()` and `fit()`."""
        if not kwargs.get("_use_cached_eval_dataset"):
            x = self._prepared(x)
        return keras.Model.evaluate(
            self, x, _as_array(y), *args, **_with_weights_as_array(kwargs)
        )

    def predict(self, x, *args, **kwargs):
        """Classifies raw inputs, see `keras.Model.predict()` and `fit()`."""
        return keras.Model.predict(self, self._prepared(x), *args, **kwargs)

    def predict_classes(self, inputs, top=1, batch_size=32):
        """Names the most likely classes of raw inputs.

        Args:
            inputs: raw inputs, as `predict()` takes them.
            top: int, how many classes to name.
            batch_size: int, inputs per step.

        Returns:
            A list with one list for each input, of `ClassScore`, the likeliest first.

        Raises:
            ValueError: for a number of classes that there are not.
        """
        if not 1 <= top <= self.num_classes:
            raise ValueError(
                f"`top` must lie between 1 and {self.num_classes}, the number of "
                f"classes. Received: top={top}"
            )
        sizes = {} if hasattr(inputs, "map") else {"batch_size": batch_size}
        outputs = self.predict(inputs, verbose=0, **sizes)
        probabilities = outputs.astype("float64")
        if self._gives_logits():
            probabilities = probabilities_of(probabilities, self.multi_label)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        names = self.class_names or [str(index) for index in range(self.num_classes)]
        return [
            [ClassScore(names[i], int(i), float(row[i])) for i in best]
            for row, best in zip(probabilities, order, strict=True)
        ]

    def _gives_logits(self):
        return keras.activations.get(self.activation) is keras.activations.linear

    def _prepared(self, data):
        """Preprocesses an array, a list, or all batches of a data set."""
        if self.preprocessor is None:
            return data
        if isinstance(data, list) or hasattr(data, "shape"):
            return _inputs_of(self.preprocess_samples(data))
        if hasattr(data, "prefetch"):  # tf.data, for which -1 is a number to tune
            return data.map(self.preprocess_samples, num_parallel_calls=-1).prefetch(-1)
        if hasattr(data, "map"):
            return data.map(self._preprocess_batch)
        return data

    def _preprocess_batch(self, batch):
        return self.preprocess_samples(*keras.utils.unpack_x_y_sample_weight(batch))

    @classmethod
    def from_preset(
        cls, preset, load_weights=True, drop_path_rate=None, dtype=None, **kwargs
    ):
        """Builds a classifier on a pretrained encoder, or loads a saved classifier.

        Args:
            preset: string, the directory of a run, or a folder or address of a saved
                preset; or, with `load_weights=False`, the name of a size that comes
                with the library, such as `"bridle_audio_base"`.
            load_weights: bool. `False` starts from scratch.
            drop_path_rate: optional float, that of the encoder.
            dtype: optional string or `keras.DTypePolicy`.
            **kwargs: arguments of the constructor, such as `num_classes` or
                `class_names`. Without them, the head of a saved classifier is kept;
                for other classes, pass `num_classes`, which makes a new one. The
                `preprocessor` is by default the saved one, or else one made
                for the encoder.

        Returns:
            A classifier.

        Raises:
            ValueError: for a misspelled name, an encoder of another modality, weights
                that are not there, missing classes, or other classes than those of the
                saved head.
            FileNotFoundError: for the directory of a run that saved no preset yet.
        """
        if "num_classes" in kwargs:
            kwargs.setdefault("class_names", None)
        changes = {"drop_path_rate": drop_path_rate, "dtype": dtype}
        changes = {name: value for name, value in changes.items() if value is not None}
        is_size = backbone_preset(preset) is not None
        preset = preset_folder(preset)
        modality = preset_modality(preset)
        if modality is not None and cls.modality not in (None, modality):
            raise ValueError(
                f"`{cls.__name__}` needs an encoder for {cls.modality}. Received: "
                f"preset={preset!r}, which is one for {modality}"
            )
        if not is_size and "num_classes" not in kwargs:
            _check_names_of_head(preset, kwargs.get("class_names"))
        needs_preprocessor = "preprocessor" not in kwargs and not _has_converter(preset)
        if is_size or changes or needs_preprocessor:
            backbone = BridleBackbone.from_preset(preset, load_weights, **changes)
            kwargs = {"backbone": backbone, **kwargs}
        if needs_preprocessor:
            kwargs["preprocessor"] = cls.preprocessor_cls.for_backbone(
                kwargs["backbone"]
            )
        if is_size:
            return cls(**kwargs)
        return super().from_preset(preset, load_weights, **kwargs)

    # KerasHub would put the optimizer's state into the preset.

    def save_task_weights(self, filepath):
        """Saves the weights that are not the encoder's, see `keras_hub.models.Task`."""
        keras.saving.save_weights(self, filepath, objects_to_skip=self._not_the_tasks())

    def load_task_weights(self, filepath):
        """Loads the weights that are not the encoder's, see `keras_hub.models.Task`."""
        keras.saving.load_weights(self, filepath, objects_to_skip=self._not_the_tasks())

    def _not_the_tasks(self):
        return [*self.backbone._flatten_layers(), self.optimizer]

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "class_names": self.class_names and list(self.class_names),
            "pooling": self.pooling,
            "multi_label": self.multi_label,
            "activation": self.activation
            and keras.activations.serialize(keras.activations.get(self.activation)),
            "dropout": self.dropout,
            **{
                name: keras.saving.serialize_keras_object(getattr(self, name))
                for name in _LAYERS
            },
        }

    @classmethod
    def from_config(cls, config):
        layers = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in _LAYERS
            if isinstance(config.get(name), dict)
        }
        return super().from_config({**config, **layers})


class _PooledEncoder(keras.layers.Layer):
    """Raw inputs to one vector each: encodes, in training only some, and pools."""

    def __init__(self, backbone, pooling, token_mask, feature_augmentation):
        # Raw input must reach the front end as it came, not in half precision.
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
        self.freeze_what_is_not_used()
        self.built = True

    def freeze_what_is_not_used(self):
        """Freezes the encoder's norm where it has no part and gets no gradient."""
        if self.pooling == "mean":
            self.backbone.norm.trainable = False

    def call(self, inputs, training=None):
        features, padding_mask = self.backbone.features(inputs)
        return self.pooled(features, padding_mask, None, training)

    def pooled(self, features, padding_mask, noise, training):
        if self.feature_augmentation is not None:
            features = self.feature_augmentation(features, training=training)
        visible = None
        if self.token_mask is not None and training:
            visible = self._draw_visible(features, noise)
        tokens = self.backbone.encode(
            features,
            padding_mask,
            visible,
            normalize=self.pooling == "first",
            training=training,
        )
        if self.pooling == "first":
            return ops.cast(tokens[:, 0], "float32")
        is_real = self.backbone.patch_padding_mask(features, padding_mask)
        if is_real is not None and visible is not None:
            is_real = gather_patches(is_real, visible)
        return self.fc_norm(_mean(self.backbone.drop_class_token(tokens), is_real))

    def _draw_visible(self, features, noise):
        grid = self.backbone.grid(features)
        # A mask asks for the patches' shape alone.
        patches = ops.zeros((ops.shape(features)[0], math.prod(grid)))
        options = {} if noise is None else {"noise": noise}
        return self.token_mask(patches, grid=grid, **options).visible

    def compute_output_shape(self, inputs_shape):
        return (inputs_shape[0], self.backbone.hidden_dim)


def _mean(tokens, is_real):
    """Mean of the real tokens, in float32."""
    tokens = ops.cast(tokens, "float32")
    if is_real is None:
        return ops.mean(tokens, axis=1)
    weights = ops.expand_dims(ops.cast(is_real, "float32"), 2)
    # Of a short clip the mask may have left nothing.
    count = ops.maximum(ops.sum(weights, axis=1), 1.0)
    return ops.sum(tokens * weights, axis=1) / count


def _check_names_of_head(preset, class_names):
    """Raises a `ValueError` if a saved head, which would be kept, is for others."""
    if class_names is None:
        return
    config = saved_classifier_config(preset)
    if config is None:
        return
    given, saved = [str(name) for name in class_names], config.get("class_names")
    if len(given) != config["num_classes"] or saved not in (None, given):
        raise ValueError(
            f"The classifier of preset={preset!r} is one for {config['num_classes']} "
            f"classes, {saved or 'without names'}. Received: class_names={given}. For "
            f"a new head pass num_classes={len(given)} as well; to call its classes "
            "otherwise set `class_names` afterwards"
        )


def _checked_classes(num_classes, class_names):
    """The number of classes and their names as a list, if they fit each other."""
    if class_names is not None:
        class_names = [str(name) for name in class_names]
        num_classes = len(class_names) if num_classes is None else num_classes
    if num_classes is None or num_classes < 1:
        raise ValueError(
            "`num_classes` must be 1 or more, or `class_names` must be given. "
            f"Received: num_classes={num_classes}, class_names={class_names}"
        )
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(
            "`class_names` must name every class. "
            f"Received: num_classes={num_classes} and {len(class_names)} names"
        )
    return num_classes, class_names


def _inputs_of(data):
    return keras.utils.unpack_x_y_sample_weight(data)[0]


def _as_array(labels):
    return np.asarray(labels) if isinstance(labels, list) else labels


def _with_weights_as_array(kwargs):
    names = {"sample_weight"} & kwargs.keys()
    return kwargs | {name: _as_array(kwargs[name]) for name in names}


def _has_converter(preset):
    """Whether a preset says itself how raw inputs are converted."""
    folder = Path(preset)
    if not folder.is_dir():
        return "://" in str(preset)
    names = ("task.json", "preprocessor.json")
    return any((folder / name).exists() for name in names) or any(
        folder.glob("*_converter.json")
    )


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleAudioClassifier(BridleClassifier):
    """Classifies waveforms: an encoder, the mean of its patches, a norm, a head.

    Waveforms of any length go in: `from_preset()` attaches what converts them, and the
    encoder computes the log-mel spectrogram, also in what `export()` writes. With
    `"mean"` the encoder's own norm has no part in it and is made not trainable.

    Args:
        backbone: `BridleBackbone` that takes waveforms.
        num_classes: int; may be left out where there are `class_names`.
        preprocessor: optional `BridleAudioPreprocessor`, through which raw inputs go in
            `fit()`, `evaluate()` and `predict()`. `from_preset()` makes the one that
            fits the encoder; see `BridleAudioPreprocessor.for_backbone()`.
        class_names: optional list of strings, one for each class.
        pooling: string. `"mean"`: the mean of the real patches, then a norm, as
            published. `"first"`: the encoder's own norm, then the class token or, if
            there is none, the first patch.
        multi_label: bool, whether an input can have several classes or none. It decides
            about the defaults of `compile()` and about probabilities.
        activation: optional string or function that the head ends with. `None` gives
            logits.
        dropout: float, share of the pooled features to drop in training.
        token_mask: optional mask layer, such as `TimeFrequencyMask(0.2, 0.2)`. In
            training only the patches that it leaves visible are encoded.
        feature_augmentation: optional Keras layer applied in training to the log-mel
            spectrograms that are cut into patches.
        **kwargs: keyword arguments of `keras_hub.models.Task`.

    Call arguments:
        inputs: float tensor of shape `(batch, samples)`, as the preprocessor gives it.
        training: bool, whether to drop and to augment.

    Returns:
        float32 tensor of shape `(batch, num_classes)`: logits, unless there is an
        `activation`.

    Raises:
        ValueError: for classes that are missing or do not fit their names, or an
            unknown `pooling`.

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
    """Classifies pictures: an encoder, the mean of its patches, a norm, a head.

    Pictures of any size go in, with pixels from 0 to 255: `from_preset()` attaches what
    resizes them, and the encoder normalizes them. With `"mean"` the encoder's own norm
    has no part in it and is made not trainable.

    Args:
        backbone: `BridleBackbone` that takes pictures.
        num_classes: int; may be left out where there are `class_names`.
        preprocessor: optional `BridleImagePreprocessor`, through which raw inputs go in
            `fit()`, `evaluate()` and `predict()`. `from_preset()` makes the one that
            fits the encoder; see `BridleImagePreprocessor.for_backbone()`.
        class_names: optional list of strings, one for each class.
        pooling: string. `"mean"`: the mean of the real patches, then a norm, as
            published. `"first"`: the encoder's own norm, then the class token or, if
            there is none, the first patch.
        multi_label: bool, whether an input can have several classes or none. It decides
            about the defaults of `compile()` and about probabilities.
        activation: optional string or function that the head ends with. `None` gives
            logits.
        dropout: float, share of the pooled features to drop in training.
        token_mask: optional mask layer, such as `RandomMask(0.2)`. In training only
            the patches that it leaves visible are encoded.
        feature_augmentation: optional Keras layer applied in training to the normalized
            pixels that are cut into patches.
        **kwargs: keyword arguments of `keras_hub.models.Task`.

    Call arguments:
        inputs: tensor of shape `(batch, rows, columns, channels)`, as the preprocessor
            gives it.
        training: bool, whether to drop and to augment.

    Returns:
        float32 tensor of shape `(batch, num_classes)`: logits, unless there is an
        `activation`.

    Raises:
        ValueError: for classes that are missing or do not fit their names, or an
            unknown `pooling`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.classifier import BridleImageClassifier

    classifier = BridleImageClassifier.from_preset(
        "bridle_image_tiny", load_weights=False, class_names=["shirt", "shoe"]
    )
    pictures = np.random.randint(0, 256, (2, 28, 28, 1)).astype("uint8")
    classifier.fit(pictures, [0, 1], epochs=1, verbose=0)
    for best, *_ in classifier.predict_classes(pictures):
        print(best.name, best.probability)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
        - [He et al., 2021](https://arxiv.org/abs/2111.06377), the fine-tuning
    """

    preprocessor_cls = BridleImagePreprocessor
    modality = "image"


@keras.saving.register_keras_serializable(package="keras_bridle")
class BridleVideoClassifier(BridleClassifier):
    """Classifies clips: an encoder, the mean of its patches, a norm, a head.

    Clips of any length and size go in, with pixels from 0 to 255: `from_preset()`
    attaches what fits them, and the encoder normalizes them. With `"mean"` the
    encoder's own norm has no part in it and is made not trainable.

    Args:
        backbone: `BridleBackbone` that takes clips.
        num_classes: int; may be left out where there are `class_names`.
        preprocessor: optional `BridleVideoPreprocessor`, through which raw inputs go in
            `fit()`, `evaluate()` and `predict()`. `from_preset()` makes the one that
            fits the encoder; see `BridleVideoPreprocessor.for_backbone()`.
        class_names: optional list of strings, one for each class.
        pooling: string. `"mean"`: the mean of the real patches, then a norm, as
            published. `"first"`: the encoder's own norm, then the class token or, if
            there is none, the first patch.
        multi_label: bool, whether an input can have several classes or none. It decides
            about the defaults of `compile()` and about probabilities.
        activation: optional string or function that the head ends with. `None` gives
            logits.
        dropout: float, share of the pooled features to drop in training.
        token_mask: optional mask layer, such as `TubeMask(0.5)`. In training only
            the patches that it leaves visible are encoded.
        feature_augmentation: optional Keras layer applied in training to the normalized
            pixels that are cut into patches.
        **kwargs: keyword arguments of `keras_hub.models.Task`.

    Call arguments:
        inputs: tensor of shape `(batch, frames, rows, columns, channels)`, as the
            preprocessor gives it.
        training: bool, whether to drop and to augment.

    Returns:
        float32 tensor of shape `(batch, num_classes)`: logits, unless there is an
        `activation`.

    Raises:
        ValueError: for classes that are missing or do not fit their names, or an
            unknown `pooling`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.classifier import BridleVideoClassifier

    classifier = BridleVideoClassifier.from_preset(
        "bridle_video_tiny", load_weights=False, class_names=["jump", "run"]
    )
    clips = np.random.randint(0, 256, (2, 8, 48, 64, 3)).astype("uint8")
    classifier.fit(clips, [0, 1], epochs=1, verbose=0)
    for best, *_ in classifier.predict_classes(clips):
        print(best.name, best.probability)
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
        - [Tong et al., 2022](https://arxiv.org/abs/2203.12602), the fine-tuning
    """

    preprocessor_cls = BridleVideoPreprocessor
    modality = "video"
