"""Runs the fine-tuning of a classifier, with all that surrounds it."""

import contextlib
import tempfile
from pathlib import Path
from typing import NamedTuple

import keras

from keras_bridle.fine_tuning.labeled_batches import LabeledBatches
from keras_bridle.fine_tuning.layer_decay import layer_decay_optimizer
from keras_bridle.fine_tuning.sampling import balanced_weights
from keras_bridle.fine_tuning.validation_scores import (
    METRICS,
    ValidationScores,
    averaged_weights,
)
from keras_bridle.pretraining.array_batches import in_order_of_epochs
from keras_bridle.pretraining.atomic_files import atomic_file
from keras_bridle.pretraining.input_batches import timing_of
from keras_bridle.pretraining.optimization import warmup_cosine
from keras_bridle.pretraining.phase_checkpoint import PhaseCheckpoint
from keras_bridle.pretraining.phase_history import as_history, write_history
from keras_bridle.pretraining.rich_progress import RichProgress

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
    from keras_bridle.fine_tuning import ArrayExamples, FineTuner, fine_tune

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
