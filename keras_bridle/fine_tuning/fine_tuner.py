"""Trains a classifier on augmented and mixed examples."""

import keras
from keras import ops

from keras_bridle.layers.mixed_batch import mix_labels
from keras_bridle.pretraining.model_of_parts import ModelOfParts


@keras.saving.register_keras_serializable(package="keras_bridle")
class FineTuner(ModelOfParts):
    """A classifier in training: raw input is repeated, augmented and mixed first.

    Everything random happens within the model: the same on every backend, on the
    device, and after a resume. Give `compile()` losses and metrics for logits and for
    labels with one number for each class (`keras.losses.CategoricalCrossentropy(
    from_logits=True, label_smoothing=0.1)`), as mixed labels are no ints; ints given to
    `fit()` are turned into such. SpecAugment and dropped patches are the classifier's:
    its `feature_augmentation` and `token_mask`.

    Args:
        classifier: `BridleAudioClassifier`, `BridleImageClassifier` or
            `BridleVideoClassifier`, whose head gives logits.
        augmentation: optional Keras layer applied to raw input, such as a
            `keras.Sequential` of `RandomResizedCrop` and `RandomHorizontalFlip`. It is
            called without training as well, so that crops come out at their size.
        mix: optional layer that returns a `MixedBatch`, such as `RandomWaveformMix` or
            `RandomImageMix`.
        repeats: int, how many times each example comes in a training batch, augmented
            in another way each time.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        inputs: raw input, of shape `(batch, *input_dims)`.
        training: bool, whether to repeat, augment and mix.

    Returns:
        A dict: `logits` of shape `(batch, classes)`; in training, when the batch is
        `repeats` times as large, also what tells how labels are to be treated.

    Raises:
        ValueError: if the classifier's head has an activation, or for less than one
            repeat.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle import BridleBackbone, BridleImageClassifier, RandomImageMix
    from keras_bridle.fine_tuning import FineTuner

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    classifier = BridleImageClassifier(backbone, num_classes=3)
    tuner = FineTuner(classifier, mix=RandomImageMix(seed=0), repeats=2)
    tuner.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    images, labels = np.random.rand(8, 32, 32, 1), np.arange(8) % 3
    tuner.fit(images, labels, batch_size=4, verbose=0)
    ```

    Reference:
        - [Hoffer et al., 2019](https://arxiv.org/abs/1901.09335), repeated augmentation
    """

    parts: tuple[str, ...] = ("classifier", "augmentation", "mix")

    def __init__(self, classifier, augmentation=None, mix=None, repeats=1, **kwargs):
        super().__init__(**kwargs)
        if classifier.activation is not None:
            raise ValueError(
                "`classifier` must give logits: make it with `activation=None`. "
                f"Received: activation={classifier.activation!r}"
            )
        if repeats < 1:
            raise ValueError(f"`repeats` must be 1 or more. Received: {repeats}")
        self.classifier = classifier
        self.augmentation = augmentation
        self.mix = mix
        self.repeats = repeats
        self.built = True

    def call(self, inputs, training=False):
        if training and self.repeats > 1:
            inputs = ops.repeat(inputs, self.repeats, axis=0)
        if self.augmentation is not None:
            inputs = self.augmentation(inputs, training=training)
        mixed = {}
        if training and self.mix is not None:
            inputs, mixed["partners"], mixed["shares"] = self.mix(inputs, training=True)
        features, padding_mask = self.classifier.backbone.features(inputs)
        logits = self.classifier.classify(features, padding_mask, training=training)
        outputs = {"logits": logits, **mixed}
        if training and self.repeats > 1:
            # Tells those who see the labels alone that inputs were repeated.
            outputs["repeated"] = ops.ones_like(logits[:, 0])
        return outputs

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        targets, weights = self._targets(y, y_pred, sample_weight)
        return super().compute_loss(x, targets, y_pred["logits"], weights, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        targets, weights = self._targets(y, y_pred, sample_weight)
        return super().compute_metrics(x, targets, y_pred["logits"], weights)

    def _targets(self, labels, outputs, sample_weight):
        """Labels and weights as the inputs are: one for each class, repeated, mixed."""
        labels = ops.convert_to_tensor(labels)
        if len(labels.shape) == 1:
            labels = ops.one_hot(
                ops.cast(labels, "int32"), self.classifier.num_classes, dtype="float32"
            )
        labels = ops.cast(labels, "float32")
        if "repeated" in outputs:
            labels = ops.repeat(labels, self.repeats, axis=0)
            if sample_weight is not None:
                sample_weight = ops.repeat(sample_weight, self.repeats, axis=0)
        if "partners" in outputs:
            labels = mix_labels(labels, outputs["partners"], outputs["shares"])
        return labels, sample_weight

    def get_config(self):
        return {**super().get_config(), "repeats": self.repeats}
