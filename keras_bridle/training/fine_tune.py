"""Fine-tuning of pretrained encoders."""

import contextlib
import tempfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bridle.augmentation.base import mix_labels
from keras_bridle.evaluation.metrics import classification_metrics
from keras_bridle.models.classifier import probabilities_of
from keras_bridle.training.batches import (
    LabeledBatches,
    balanced_weights,
    in_order_of_epochs,
    timing_of,
)
from keras_bridle.training.checkpoint import NonFiniteLoss, PhaseCheckpoint, atomic_file
from keras_bridle.training.layer_decay import layer_decay_optimizer, warmup_cosine
from keras_bridle.training.progress import RichProgress
from keras_bridle.training.run import as_history, write_history
from keras_bridle.training.trainers import ModelOfParts


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
    from keras_bridle.training.fine_tune import FineTuner

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


class Predictions(NamedTuple):
    """Scores of examples, and their labels.

    Attributes:
        scores: float array of shape `(rows, classes)`, probabilities.
        labels: array of shape `(rows,)` or `(rows, classes)`.
        places: int array of shape `(rows,)`, which examples these are: files that
            cannot be read have no row.
    """

    scores: np.ndarray
    labels: np.ndarray
    places: np.ndarray


def predict_examples(model, examples, batch_size=32):
    """Classifies examples.

    Args:
        model: `FineTuner`.
        examples: `ArrayExamples` or `FileExamples`; or a list of such, several views of
            the same examples (see `multi_view`), whose probabilities are averaged.
        batch_size: int.

    Returns:
        `Predictions`.

    Raises:
        ValueError: if none can be read, or views are of different examples.
        NonFiniteLoss: if scores are infinite or no numbers.

    Example:
    ```python
    import numpy as np
    from keras_bridle import BridleBackbone, BridleImageClassifier
    from keras_bridle.training.batches import ArrayExamples
    from keras_bridle.training.fine_tune import FineTuner, predict_examples

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    tuner = FineTuner(BridleImageClassifier(backbone, num_classes=3))
    examples = ArrayExamples(np.random.rand(5, 32, 32, 1), np.arange(5) % 3)
    print(predict_examples(tuner, examples).scores.shape)  # (5, 3)
    ```
    """
    views = examples if isinstance(examples, list) else [examples]
    if len({len(view) for view in views}) != 1:
        raise ValueError(
            "Views must be of the same examples. Received: views of "
            f"{[len(view) for view in views]} examples"
        )
    num_classes = model.classifier.num_classes
    total = np.zeros((len(views[0]), num_classes))
    count = np.zeros(len(views[0]))
    for view in views:
        for inputs, places in view.batches_in_order(batch_size):
            total[places] += _probabilities(model, inputs, batch_size)
            count[places] += 1
    places = np.flatnonzero(count)
    if not len(places):
        raise ValueError("None of the examples can be read")
    scores = total[places] / count[places, None]
    if not np.isfinite(scores).all():
        raise NonFiniteLoss(
            "Training made the classifier's scores infinite or no numbers. A lower "
            "`learning_rate` or `clip_norm` may help"
        )
    return Predictions(scores, views[0].labels[places], places)


def _probabilities(model, inputs, batch_size):
    """Probabilities of a batch, computed in float64."""
    number = len(inputs)
    if number < batch_size:
        # Filled up to the size of the others, for which the step is compiled.
        filling = np.repeat(inputs[-1:], batch_size - number, axis=0)
        inputs = np.concatenate([inputs, filling])
    logits = model.predict_on_batch(inputs)["logits"]
    logits = np.asarray(ops.convert_to_numpy(logits), "float64")[:number]
    return probabilities_of(logits, model.classifier.multi_label)


METRICS = ("accuracy", "mAP")


class ValidationScores(keras.callbacks.Callback):
    """Adds exact scores on held-out examples to the logs, and keeps the best weights.

    Mean average precision needs the scores of all examples at once, so that no metric
    of Keras, which sees batches, can do it. Where the optimizer averages weights
    (`use_ema=True`), the averages are scored and kept, as they are what training ends
    with. Put the callback before those that write logs.

    Args:
        examples: `ArrayExamples` or `FileExamples`.
        path: string or path ending in `.weights.h5`, the classifier's best weights.
        metric: string, which score decides: `"accuracy"` or `"mAP"`.
        batch_size: int.

    Raises:
        NonFiniteLoss: in `fit()`, if the classifier's scores are infinite or no
            numbers.

    Attributes:
        best: the best score so far; set it to what a run before had reached.
        best_epoch: int, the epoch that reached it, from 0.

    Example:
    ```python
    import os
    import tempfile
    import keras
    import numpy as np
    from keras_bridle import BridleBackbone, BridleImageClassifier
    from keras_bridle.training.batches import ArrayExamples
    from keras_bridle.training.fine_tune import FineTuner, ValidationScores

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    tuner = FineTuner(BridleImageClassifier(backbone, num_classes=2))
    tuner.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    images, labels = np.random.rand(8, 32, 32, 1), np.arange(8) % 2
    path = os.path.join(tempfile.mkdtemp(), "best.weights.h5")
    scores = ValidationScores(ArrayExamples(images, labels), path)
    history = tuner.fit(images, labels, callbacks=[scores], verbose=0).history
    print(history["val_accuracy"], scores.best)
    ```
    """

    def __init__(self, examples, path, metric="accuracy", batch_size=32):
        super().__init__()
        if metric not in METRICS:
            raise ValueError(f"`metric` must be one of {METRICS}. Received: {metric!r}")
        self.examples = examples
        self.path = Path(path)
        self.metric = metric
        self.batch_size = batch_size
        self.best = float("-inf")
        self.best_epoch = -1

    def restore(self, logs):
        """Goes on from the logs of the epochs that are done."""
        for epoch, values in enumerate(logs):
            self._note(epoch, values)

    def on_epoch_end(self, epoch, logs=None):
        with averaged_weights(self.model):
            found = predict_examples(self.model, self.examples, self.batch_size)
            metrics = classification_metrics(found.labels, found.scores)
            scores = {"val_mAP": metrics.mean_average_precision}
            if metrics.accuracy is not None:
                scores["val_accuracy"] = metrics.accuracy
            if logs is not None:
                logs.update(scores)
            if self._note(epoch, scores):
                with atomic_file(self.path) as unfinished:
                    self.model.classifier.save_weights(unfinished)

    def _note(self, epoch, scores):
        value = scores[f"val_{self.metric}"]
        is_best = value > self.best
        if is_best:
            self.best, self.best_epoch = value, epoch
        return is_best


@contextlib.contextmanager
def averaged_weights(model):
    """Lets a model have its averaged weights for a while, if its optimizer has any.

    Args:
        model: a compiled Keras model.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.training.fine_tune import averaged_weights

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(use_ema=True), "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    with averaged_weights(model):
        print(model.predict(np.ones((1, 4)), verbose=0))
    ```
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not getattr(optimizer, "use_ema", False):
        yield
        return
    # Keras' SwapEMAWeights gives weights back by sums and differences on TensorFlow,
    # and so not to the last bit.
    variables = model.trainable_variables
    kept = _values(variables)
    optimizer.finalize_variable_values(variables)
    # On JAX these are the averages themselves, which a step would use up.
    _assign(variables, _values(variables))
    try:
        yield
    finally:
        _assign(variables, kept)


def _values(variables):
    return [np.copy(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


LOSSES = ("auto", "categorical", "binary")


class FineTuned(NamedTuple):
    """How a fine-tuning went.

    Attributes:
        history: dict from a name to a list of floats, one an epoch.
        best_epoch: int, counted from 0, the epoch whose weights the classifier has:
            that of the best validation score, or the last.
        best_score: float, that score; `None` without validation.
    """

    history: dict
    best_epoch: int
    best_score: float | None


def fine_tune(
    tuner,
    train,
    validation=None,
    *,
    epochs,
    batch_size=32,
    learning_rate=1e-3,
    warmup_epochs=0.0,
    weight_decay=0.05,
    layer_decay=0.75,
    beta_2=0.999,
    loss="auto",
    label_smoothing=0.0,
    clip_norm=None,
    gradient_accumulation_steps=None,
    ema_momentum=None,
    balanced=False,
    epoch_length=None,
    metric=None,
    directory=None,
    resume=False,
    checkpoint_every=None,
    seed=0,
    title="fine-tuning",
    on_start=None,
    callbacks=(),
    verbose=1,
):
    """Trains a classifier; afterwards it has the weights of its best epoch.

    The learning rate warms up linearly and then follows half a cosine to zero; layers
    learn the more slowly the deeper they lie. Order, augmentation and mixing follow
    from the seeds alone, so that a resumed run is the one it would have been.

    Args:
        tuner: `FineTuner`, not compiled.
        train: `ArrayExamples` or `FileExamples`.
        validation: optional examples, scored after each epoch: the weights of the best
            epoch are kept. Without them those of the last are.
        epochs: int.
        batch_size: int.
        learning_rate: float, of the head, after the warm-up.
        warmup_epochs: float.
        weight_decay: float, not of biases, norms and the class token.
        layer_decay: float in (0, 1], see `LayerDecayAdamW`.
        beta_2: float, of Adam.
        loss: string: `"categorical"` or `"binary"` cross-entropy, the only one for
            multi-label data; `"auto"` is categorical where it can be.
        label_smoothing: float in [0, 1).
        clip_norm: optional float, largest norm of the gradients.
        gradient_accumulation_steps: optional int, batches to each step.
        ema_momentum: optional float; weights are averaged over steps with it, and the
            averages scored and kept.
        balanced: bool, whether to draw examples of rare classes as often as those of
            common ones, see `balanced_weights()`.
        epoch_length: optional int, examples of an epoch; more than there are needs
            `balanced`.
        metric: string, what decides about the best epoch: `"accuracy"`, or `"mAP"`,
            the only one for multi-label data and its default.
        directory: optional string or path, where to keep `history.csv`, the state after
            each epoch and the best weights.
        resume: bool, whether to go on with what is in the directory.
        checkpoint_every: optional int, epochs between saved states; by default a
            twentieth of all.
        seed: int, of the order of the examples.
        title: string, in front of the progress.
        on_start: optional function without arguments, called when settings have been
            checked, before anything is written.
        callbacks: more Keras callbacks.
        verbose: int, 0 for no progress, 1 for a bar, 2 for a line for each epoch.

    Returns:
        `FineTuned`.

    Raises:
        ValueError: for settings that cannot work.
        FileExistsError: if the directory holds a fine-tuning, without `resume`.
        NonFiniteLoss: if training makes weights or scores infinite or no numbers.

    Example:
    ```python
    import numpy as np
    from keras_bridle import BridleBackbone, BridleImageClassifier
    from keras_bridle.training.batches import ArrayExamples
    from keras_bridle.training.fine_tune import FineTuner, fine_tune

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    tuner = FineTuner(BridleImageClassifier(backbone, class_names=["dark", "light"]))
    images, labels = np.random.rand(16, 32, 32, 1), np.arange(16) % 2
    images[labels == 1] += 1.0
    examples = ArrayExamples(images, labels)
    found = fine_tune(tuner, examples, examples, epochs=2, batch_size=8, verbose=0)
    print(found.best_score, tuner.classifier.predict_classes(images[:1]))
    ```
    """
    _check(loss, label_smoothing, metric, epochs, warmup_epochs)
    _check_length(epoch_length, len(train), balanced)
    classifier = tuner.classifier
    if loss == "categorical" and classifier.multi_label:
        raise ValueError(
            "`loss` must be 'binary' or 'auto' where an example may have several "
            "classes. Received: 'categorical'"
        )
    if metric is None:
        metric = "mAP" if classifier.multi_label else "accuracy"
    if metric == "accuracy" and classifier.multi_label:
        raise ValueError(
            "`metric` must be 'mAP' where an example may have several classes. "
            "Received: 'accuracy'"
        )
    if metric == "mAP" and validation is not None and not _has_classes(validation):
        raise ValueError(
            f"`validation` has {len(validation)} examples and none with a class, so "
            "that no epoch can be called the best"
        )
    weights = None
    if balanced:
        weights = balanced_weights(train.labels, classifier.num_classes)
    make_batches, steps = train.training_batches(
        batch_size, seed, weights, epoch_length
    )
    optimizer = layer_decay_optimizer(
        classifier,
        # Schedules count batches, also where several of them make a step.
        warmup_cosine(learning_rate, epochs * steps, round(warmup_epochs * steps)),
        layer_decay,
        weight_decay,
        beta_2=beta_2,
        global_clipnorm=clip_norm,
        gradient_accumulation_steps=gradient_accumulation_steps,
        use_ema=ema_momentum is not None,
        ema_momentum=ema_momentum,
    )
    _compile(tuner, optimizer, loss, label_smoothing)
    if on_start is not None:
        on_start()
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        run = _Run(tuner, directory, epochs, resume, checkpoint_every)
        if validation is not None:
            run.validate(validation, metric, batch_size)
        if run.checkpoint.epoch < epochs:
            run.fit(make_batches, steps, batch_size, callbacks, title, verbose)
        return run.finish()


class _Run:
    """The files of a run, and the callbacks that write them."""

    def __init__(self, tuner, directory, epochs, resume, checkpoint_every):
        self.tuner = tuner
        self.epochs = epochs
        self.directory = directory
        self.best_path = directory / "best.weights.h5"
        every = checkpoint_every or max(1, epochs // 20)
        self.checkpoint = PhaseCheckpoint(directory / "state.npz", every)
        if resume:
            self.checkpoint.restore(tuner)
        elif self.best_path.exists() or (directory / "state.npz").exists():
            raise FileExistsError(
                f"`directory` '{directory}' holds a fine-tuning: go on with it "
                "(`resume=True`), or name another"
            )
        self.scores = None
        self.was_fit = False

    def validate(self, examples, metric, batch_size):
        """Scores examples after each epoch."""
        self.scores = ValidationScores(examples, self.best_path, metric, batch_size)
        self.scores.restore(self.checkpoint.logs)

    def fit(self, make_batches, steps, batch_size, callbacks, title, verbose):
        """Trains the epochs that are not done."""
        epoch = self.checkpoint.epoch
        batches = make_batches(epoch)
        callbacks = [*callbacks, self.checkpoint, self._history()]
        if self.scores is not None:
            callbacks.insert(0, self.scores)
        if isinstance(batches, LabeledBatches):
            callbacks.append(in_order_of_epochs(batches))
            batch_size, clock, steps = batches.batch_size, None, None
        else:
            clock = timing_of(batches).InputClock()
            batches = clock.wrap(batches)
        progress = RichProgress(title, batch_size, clock=clock)
        if verbose == 1:
            callbacks.append(progress)
        try:
            self.tuner.fit(
                batches,
                epochs=self.epochs,
                initial_epoch=epoch,
                steps_per_epoch=steps,
                shuffle=False,
                callbacks=callbacks,
                verbose=2 if verbose == 2 else 0,
            )
        finally:
            progress.close()
        self.was_fit = True

    def _history(self):
        def write(epoch, logs):
            write_history(self.directory / "history.csv", self.checkpoint.logs)

        return keras.callbacks.LambdaCallback(on_epoch_end=write)

    def finish(self):
        """Gives the classifier its best weights, and tells how it went."""
        classifier = self.tuner.classifier
        history = as_history(self.checkpoint.logs)
        if self.scores is not None:
            classifier.load_weights(self.best_path)
            return FineTuned(history, self.scores.best_epoch, self.scores.best)
        if self.was_fit:
            self._save_best()
        elif not self.best_path.exists():
            # A state has the weights as they are before they are averaged.
            with averaged_weights(self.tuner):
                self._save_best()
        classifier.load_weights(self.best_path)
        return FineTuned(history, self.epochs - 1, None)

    def _save_best(self):
        with atomic_file(self.best_path) as unfinished:
            self.tuner.classifier.save_weights(unfinished)


def _compile(tuner, optimizer, loss, label_smoothing):
    multi_label = tuner.classifier.multi_label
    if loss == "auto":
        loss = "binary" if multi_label else "categorical"
    kind = {
        "categorical": keras.losses.CategoricalCrossentropy,
        "binary": keras.losses.BinaryCrossentropy,
    }[loss]
    metrics = []
    if not multi_label:
        metrics.append(keras.metrics.CategoricalAccuracy(name="accuracy"))
    tuner.compile(
        optimizer,
        loss=kind(from_logits=True, label_smoothing=label_smoothing),
        metrics=metrics,
    )


def _has_classes(examples):
    return examples.labels.ndim == 1 or bool(examples.labels.any())


def _check_length(epoch_length, number, balanced):
    if epoch_length is None:
        return
    if epoch_length < 1:
        raise ValueError(
            f"`epoch_length` must be 1 or more. Received: epoch_length={epoch_length}"
        )
    if epoch_length > number and not balanced:
        raise ValueError(
            f"`epoch_length` {epoch_length} is more than the {number} examples to "
            "train on: to draw some of them again needs `balanced=True`"
        )


def _check(loss, label_smoothing, metric, epochs, warmup_epochs):
    if loss not in LOSSES:
        raise ValueError(f"`loss` must be one of {LOSSES}. Received: {loss!r}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            "`label_smoothing` must be 0 or more and below 1. "
            f"Received: label_smoothing={label_smoothing}"
        )
    if metric not in (None, *METRICS):
        raise ValueError(
            f"`metric` must be None or one of {METRICS}. Received: {metric!r}"
        )
    if epochs < 1:
        raise ValueError(f"`epochs` must be 1 or more. Received: epochs={epochs}")
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(
            f"`warmup_epochs` must be 0 or more and below `epochs`, which is {epochs}. "
            f"Received: warmup_epochs={warmup_epochs}"
        )
