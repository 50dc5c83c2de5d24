"""Runs the `fit()` of one phase."""

import contextlib

import keras

from keras_bridle.distribution import distributed_input
from keras_bridle.pretraining.array_batches import ArrayBatches, in_order_of_epochs
from keras_bridle.pretraining.input_batches import first_batches, timing_of
from keras_bridle.pretraining.nonfinite_steps import NonFiniteSteps
from keras_bridle.pretraining.phase_history import as_history, write_history
from keras_bridle.pretraining.profile_steps import ProfileSteps
from keras_bridle.pretraining.rich_progress import RichProgress
from keras_bridle.pretraining.speed_board import SpeedBoard


def fit_phase(trainer, phase, make_batches, options, checkpoint=None):
    """Trains a compiled trainer to the end of its phase.

    Args:
        trainer: `Pretrainer`, compiled.
        phase: `Phase`.
        make_batches: function of an epoch and `first_batch` that returns raw input from
            there on, whatever `fit()` takes.
        options: `FitOptions`.
        checkpoint: optional `PhaseCheckpoint`, which tells where to go on; logs are
            written beside its file.

    Returns:
        The history of the phase: a dict of lists, one value an epoch, those of before
        included if there is a checkpoint.
    """
    epoch, step = (0, 0) if checkpoint is None else (checkpoint.epoch, checkpoint.step)
    shows_speed = options.verbose == 1 or (options.tensorboard and checkpoint)
    clock, batch_size = _clock(make_batches(0), shows_speed)
    progress = RichProgress(
        phase.name, batch_size, clock=clock, reading_speed=options.reading_speed
    )
    callbacks = _Callbacks(make_batches, options, checkpoint, progress)

    def fit(epoch, step, epochs):
        batches = make_batches(epoch, first_batch=step)
        return trainer.fit(
            distributed_input(batches if clock is None else clock.wrap(batches)),
            epochs=epochs,
            initial_epoch=epoch,
            steps_per_epoch=_steps_per_epoch(batches, step, options),
            shuffle=False,
            callbacks=callbacks.of(batches, step),
            verbose=2 if options.verbose == 2 else 0,
        ).history

    try:
        if step:
            # The rest of an epoch has fewer steps, so it is a `fit()` of its own.
            progress.throughput.in_rest_of_epoch(
                step, options.num_batches, phase.epochs
            )
            with _without_end_of_training(trainer, epoch + 1 == phase.epochs):
                fit(epoch, step, epoch + 1)
            epoch += 1
        history = (
            fit(epoch, 0, phase.epochs) if epoch < phase.epochs or not step else {}
        )
    finally:
        callbacks.close()
    if checkpoint is None:
        return history
    write_history(checkpoint.path.parent / "history.csv", checkpoint.logs)
    return as_history(checkpoint.logs)


def _clock(batches, is_wanted):
    """The clock for batches that are read from files, and the size of others."""
    timing = timing_of(batches)
    if timing is not None and is_wanted:
        return timing.InputClock(), None
    return None, getattr(batches, "batch_size", None)


def _steps_per_epoch(batches, step, options):
    if step == 0:
        return options.steps_per_epoch
    return options.num_batches - step


@contextlib.contextmanager
def _without_end_of_training(trainer, is_end):
    """Keeps `fit()` from putting moving averages in the place of the weights."""
    if is_end:
        yield
        return
    trainer.optimizer.finalize_variable_values = lambda variables: None
    try:
        yield
    finally:
        del trainer.optimizer.finalize_variable_values


class _Callbacks:
    """The callbacks of a phase, which may be more than one `fit()`."""

    def __init__(self, make_batches, options, checkpoint, progress):
        self.options = options
        self.checkpoint = checkpoint
        self.progress = progress
        folder = None if checkpoint is None else checkpoint.path.parent

        def batch_at(epoch, step):
            (batch,) = first_batches(make_batches(epoch, first_batch=step), 1)
            return batch

        self.finite = NonFiniteSteps(
            folder and folder / "nonfinite", batch_at, options.max_nonfinite_steps
        )
        self.trace = None
        if options.profile and folder is not None:
            self.trace = ProfileSteps(folder / "profile")

    def of(self, batches, step):
        """Lists the callbacks for batches from a step on."""
        self.finite.first_step = step
        is_array = isinstance(batches, ArrayBatches)
        return [
            *self.options.callbacks,
            *([in_order_of_epochs(batches)] if is_array else []),
            self.finite,
            *self._records(),
            *([] if self.trace is None else [self.trace]),
        ]

    def close(self):
        """Ends what an error in `fit()` has left open."""
        self.progress.close()
        if self.trace is not None:
            self.trace.close()

    def _records(self):
        """The callbacks that show progress and keep state and history on disk."""
        progress = self.progress
        shown = [progress if self.options.verbose == 1 else progress.throughput]
        if self.checkpoint is None:
            return shown
        folder, checkpoint = self.checkpoint.path.parent, self.checkpoint
        checkpoint.before_saving = self.finite.check

        def write(epoch, logs):
            write_history(folder / "history.csv", checkpoint.logs)

        if self.options.tensorboard:
            shown.append(SpeedBoard(folder / "tensorboard", progress.throughput))
        return [*shown, checkpoint, keras.callbacks.LambdaCallback(on_epoch_end=write)]
