"""Fine-tuning of pretrained encoders."""

import contextlib
import tempfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import ops
from rich.console import Console

from keras_bridle.augmentation.base import mix_labels
from keras_bridle.config import ArgumentError, FineTuningOptions, check
from keras_bridle.models.classifier import probabilities_of
from keras_bridle.models.inputs import filled_up
from keras_bridle.training.batches import fit_in_order
from keras_bridle.training.checkpoint import (
    Checkpoint,
    NonFiniteLoss,
    assign,
    save_weights,
)
from keras_bridle.training.examples import balanced_weights
from keras_bridle.training.optimizers import (
    check_accumulation,
    layer_decay_optimizer,
    shared_options,
    warmup_cosine,
)
from keras_bridle.training.progress import RichProgress
from keras_bridle.training.run import as_history
from keras_bridle.training.trainers import TrainedModel


@keras.saving.register_keras_serializable(package="keras_bridle")
class FineTuner(TrainedModel):
    """Trains a classifier: repeats, augments and mixes raw inputs first.

    All random draws are within the model: equal on every backend and after a resume.
    Give `compile()` losses and metrics for logits and one-hot labels, to which `fit()`
    converts ints. For SpecAugment and dropped patches, set the classifier's
    `feature_augmentation` and `token_mask`.

    Args:
        classifier: `BridleAudioClassifier`, `BridleImageClassifier` or
            `BridleVideoClassifier`, whose head returns logits.
        augmentation: optional Keras layer applied to raw input, also at inference, so
            that crops have their size.
        mix: optional layer that returns a `MixedBatch`, such as `RandomImageMix`.
        repeats: int, how often each example occurs in a training batch, with other
            augmentation each time.
        **kwargs: keyword arguments of `keras.Model`.

    Call arguments:
        inputs: raw input, of shape `(batch, *input_dims)`.
        training: bool, whether to repeat, augment and mix.

    Returns:
        A dict with `logits` of shape `(batch, classes)`. In training, the batch is
        `repeats` times as large, and other entries say how to repeat and mix labels.

    Example:
    ```python
    import keras
    import keras_bridle as kb
    import numpy as np

    backbone = kb.BridleBackbone(8, 32, 1, 2, 64, input_dims=(32, 32, 1))
    classifier = kb.BridleImageClassifier(backbone, num_classes=3)
    tuner = kb.FineTuner(classifier, mix=kb.RandomImageMix(seed=0), repeats=2)
    tuner.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    images, labels = np.random.rand(8, 32, 32, 1), np.arange(8) % 3
    tuner.fit(images, labels, batch_size=4, verbose=0)
    ```

    Reference:
        - [Hoffer et al., 2019](https://arxiv.org/abs/1901.09335), repeated augmentation
    """

    needs_labels = True

    def __init__(self, classifier, augmentation=None, mix=None, repeats=1, **kwargs):
        super().__init__(**kwargs)
        if classifier.activation is not None:
            raise ValueError(
                "`classifier` must return logits: pass `activation=None`. "
                f"Received: activation={classifier.activation!r}"
            )
        check(repeats >= 1, "repeats", "at least 1", repeats)
        self.keep_arguments(locals())
        self.built = True

    def prepared(self, x, y=None, sample_weight=None):
        """Also converts labels to numbers."""
        y = None if y is None else self.classifier.labels(y)
        return super().prepared(x, y, sample_weight)

    def call(self, inputs, training=False):
        if training and self.repeats > 1:
            inputs = ops.repeat(inputs, self.repeats, axis=0)
        if self.augmentation is not None:
            inputs = self.augmentation(inputs, training=training)
        mixed = {}
        if training and self.mix is not None:
            inputs, mixed["partners"], mixed["shares"] = self.mix(inputs, training=True)
        features, padding_mask = self.classifier.backbone.maps(inputs)
        logits = self.classifier.classify(features, padding_mask, training=training)
        outputs = {"logits": logits, **mixed}
        if training and self.repeats > 1:
            # Tells code that sees only the labels that inputs are repeated.
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
        """Makes labels one-hot; repeats and mixes labels and weights like inputs."""
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


class Predictions(NamedTuple):
    """Probabilities and labels of the readable examples, at `indices`."""

    scores: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


def predict_examples(model, examples, batch_size=32):
    """Classifies examples, or a list of views of the same, by a `FineTuner`."""
    views = examples if isinstance(examples, list) else [examples]
    total = np.zeros((len(views[0]), model.classifier.num_classes))
    count = np.zeros(len(views[0]))
    for view in views:
        for inputs, indices in view.batches_in_order(batch_size):
            logits = model.predict_on_batch(filled_up(inputs, batch_size))["logits"]
            logits = np.asarray(ops.convert_to_numpy(logits), "float64")[: len(indices)]
            total[indices] += probabilities_of(logits, model.classifier.multi_label)
            count[indices] += 1
    indices = np.flatnonzero(count)
    if not len(indices):
        raise ValueError("None of the examples can be read")
    scores = total[indices] / count[indices, None]
    if not np.isfinite(scores).all():
        raise NonFiniteLoss(
            "Training made the classifier's scores infinite or NaN. A lower "
            "`learning_rate` or `clip_norm` may help"
        )
    return Predictions(scores, views[0].labels[indices], indices)


class ValidationScores(keras.callbacks.Callback):
    """Adds exact scores on held-out examples to the logs, and keeps the best weights.

    Put it before callbacks that write logs; pass the logs of epochs already done.
    """

    def __init__(self, examples, path, metric="accuracy", batch_size=32, logs=()):
        super().__init__()
        self.examples = examples
        self.path = Path(path)
        self.metric = metric
        self.batch_size = batch_size
        self.best = float("-inf")
        self.best_epoch = -1
        for epoch, scores in enumerate(logs):
            self._note(epoch, scores)

    def on_epoch_end(self, epoch, logs=None):
        with averaged_weights(self.model):
            found = predict_examples(self.model, self.examples, self.batch_size)
            scores = _validation_scores(found.labels, found.scores)
            if logs is not None:
                logs.update(scores)
            if self._note(epoch, scores):
                save_weights(self.model.classifier, self.path)

    def _note(self, epoch, scores):
        value = scores[f"val_{self.metric}"]
        if value > self.best:
            self.best, self.best_epoch = value, epoch
        return self.best_epoch == epoch


def _validation_scores(labels, scores):
    # Importing scikit-learn takes a second that others need not wait for.
    from sklearn.metrics import average_precision_score

    found = {}
    if labels.ndim == 1:
        found["val_accuracy"] = float(np.mean(np.argmax(scores, axis=1) == labels))
        labels = labels[:, None] == np.arange(scores.shape[1])
    known = labels.any(axis=0)
    precision = average_precision_score(labels[:, known], scores[:, known])
    return {"val_mAP": float(precision), **found}


@contextlib.contextmanager
def averaged_weights(model):
    """Assigns a model its averaged weights within a context, if there are any.

    On TensorFlow, Keras' SwapEMAWeights restores weights with rounding errors.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not getattr(optimizer, "use_ema", False):
        yield
        return
    variables = model.trainable_variables
    kept = _values(variables)
    optimizer.finalize_variable_values(variables)
    # On JAX, these are the averages themselves, which a step would donate.
    assign(variables, _values(variables))
    try:
        yield
    finally:
        assign(variables, kept)


def _values(variables):
    return [np.copy(ops.convert_to_numpy(variable)) for variable in variables]


class FineTuned(NamedTuple):
    """The history of a fine-tuning, and the epoch, from 0, whose weights were kept."""

    history: dict
    best_epoch: int
    best_score: float | None


def fine_tune(
    tuner,
    train,
    validation=None,
    directory=None,
    resume=False,
    config=None,
    title="fine-tuning",
    on_start=None,
    callbacks=(),
    verbose=1,
    **options,
):
    """Trains a classifier, and keeps the weights of its best epoch.

    The learning rate warms up linearly, then decays to zero by a cosine; it is smaller
    in lower layers. All random draws follow from the seeds, also after a resume.

    Args:
        tuner: `FineTuner`, not compiled.
        train: `ArrayExamples` or `FileExamples`.
        validation: optional examples, scored after each epoch, to find the best.
            Without them the classifier keeps the weights of the last epoch.
        directory: optional path for `history.csv`, checkpoints and the best weights.
        resume: bool, whether to resume a run in the directory.
        config: optional `FineTuningOptions`.
        title: string, a prefix of the progress line.
        on_start: optional function without arguments, called after all checks and
            before anything is written.
        callbacks: more Keras callbacks.
        verbose: int, 0 for no progress, 1 for a bar, 2 for a line for each epoch.
        **options: fields of `FineTuningOptions`, which replace the config's, such as
            `epochs=100, learning_rate=1e-3`.

    Returns:
        A named tuple of the `history`, a dict of lists with one number an epoch, the
        `best_epoch`, counted from 0, and the `best_score`, `None` without validation.

    Raises:
        FileExistsError: if the directory holds a run and `resume` is `False`.
        NonFiniteLoss: if training makes weights or scores infinite or NaN.

    Example:
    ```python
    import keras_bridle as kb
    import numpy as np
    from keras_bridle.training.examples import ArrayExamples

    backbone = kb.BridleBackbone(8, 32, 1, 2, 64, input_dims=(32, 32, 1))
    classifier = kb.BridleImageClassifier(backbone, class_names=["dark", "light"])
    images, labels = np.random.rand(16, 32, 32, 1), np.arange(16) % 2
    images[labels == 1] += 1.0
    examples, tuner = ArrayExamples(images, labels), kb.FineTuner(classifier)
    found = kb.fine_tune(tuner, examples, examples, epochs=2, batch_size=8, verbose=0)
    print(found.best_score, classifier.predict_classes(images[:1]))
    ```
    """
    tuning = FineTuningOptions.make(config, **options)
    classifier, epochs = tuner.classifier, tuning.epochs
    metric = tuning.metric or ("mAP" if classifier.multi_label else "accuracy")
    loss = tuning.loss
    if loss == "auto":
        loss = "binary" if classifier.multi_label else "categorical"
    _check(tuning, classifier.multi_label, loss, metric, len(train), validation)
    train = train.for_classifier(classifier)
    if validation is not None:
        validation = validation.for_classifier(classifier)
    weights = None
    if tuning.balanced:
        weights = balanced_weights(train.labels, classifier.num_classes)
    make_batches, steps = train.training_batches(
        tuning.batch_size, tuning.seed, weights, tuning.epoch_length
    )
    check_accumulation(tuning, steps)
    # Schedules count batches, even if several of them make a step.
    warmup_steps = round(tuning.warmup_epochs * steps)
    losses = {
        "binary": keras.losses.BinaryCrossentropy,
        "categorical": keras.losses.CategoricalCrossentropy,
    }
    accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
    tuner.compile(
        layer_decay_optimizer(
            classifier,
            warmup_cosine(tuning.learning_rate, epochs * steps, warmup_steps),
            tuning.layer_decay,
            beta_2=tuning.beta_2,
            **shared_options(tuning),
        ),
        loss=losses[loss](from_logits=True, label_smoothing=tuning.label_smoothing),
        metrics=[] if classifier.multi_label else [accuracy],
    )
    if on_start is not None:
        on_start()
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
        best_path = Path(directory, "best.weights.h5")
        every = tuning.checkpoint_every or max(1, epochs // 20)
        checkpoint = Checkpoint(best_path.with_name("state.npz"), every)
        if resume:
            checkpoint.restore(tuner)
        elif best_path.exists() or checkpoint.path.exists():
            raise FileExistsError(
                f"`directory` '{directory}' holds a fine-tuning: resume it "
                "(`resume=True`), or name another"
            )
        scores = None
        if validation is not None:
            scores = ValidationScores(
                validation, best_path, metric, tuning.batch_size, checkpoint.logs
            )
            callbacks = [scores, *callbacks]
        if checkpoint.epoch < epochs:
            console = Console(quiet=verbose != 1)
            progress = RichProgress(title, epochs, steps, console=console)
            batches = make_batches(checkpoint.epoch)
            fit_in_order(
                tuner,
                progress.watched(batches),
                [*callbacks, checkpoint, progress],
                verbose,
                [progress],
                epochs=epochs,
                initial_epoch=checkpoint.epoch,
                # Finite data sets have a length.
                steps_per_epoch=None if getattr(batches, "num_batches", 0) else steps,
            )
        if scores is None:
            with averaged_weights(tuner):
                save_weights(classifier, best_path)
        classifier.load_weights(best_path)
    best = (epochs - 1, None) if scores is None else (scores.best_epoch, scores.best)
    return FineTuned(as_history(checkpoint.logs), *best)


def _check(options, multi_label, loss, metric, number, validation):
    """Raises an `ArgumentError` for options that conflict with others or the data."""
    several = "where an example may have several classes"
    if multi_label and loss == "categorical":
        raise ArgumentError("loss", f"'binary' or 'auto' {several}", loss)
    check(not multi_label or metric != "accuracy", "metric", f"'mAP' {several}", metric)
    if options.warmup_epochs >= options.epochs:
        expected = f"below `epochs`, which is {options.epochs}"
        raise ArgumentError("warmup_epochs", expected, options.warmup_epochs)
    length = options.epoch_length or 0
    expected = f"at most {number}, the examples to train on, without `balanced`"
    check(length <= number or options.balanced, "epoch_length", expected, length)
    if metric == "mAP" and validation is not None:
        labels = validation.labels
        if labels.ndim == 2 and not labels.any():
            found = f"{len(labels)} without any"
            raise ArgumentError("validation", "examples with classes", found)
