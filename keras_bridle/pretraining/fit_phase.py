"""Runs the `fit()` of one phase."""

import keras

from keras_bridle.pretraining.array_batches import ArrayBatches
from keras_bridle.pretraining.input_batches import timing_of
from keras_bridle.pretraining.phase_history import as_history, write_history
from keras_bridle.pretraining.rich_progress import RichProgress


def fit_phase(trainer, phase, batches, epochs_done, options, checkpoint=None):
    """Trains a compiled trainer to the end of its phase.

    Args:
        trainer: `Pretrainer`, compiled.
        phase: `Phase`.
        batches: raw input for the epochs to come, whatever `fit()` takes.
        epochs_done: int, epochs that were trained before.
        options: `FitOptions`.
        checkpoint: optional `PhaseCheckpoint`; logs are written beside its file.

    Returns:
        The history of the phase: a dict of lists, one value an epoch, those of before
        included if there is a checkpoint.
    """
    batches, progress = _with_progress(phase, batches, options)
    callbacks = [
        *options.callbacks,
        *_epoch_order(batches),
        *_records(checkpoint, options),
    ]
    if options.verbose == 1:
        callbacks.append(progress)
    try:
        fitted = trainer.fit(
            batches,
            epochs=phase.epochs,
            initial_epoch=epochs_done,
            steps_per_epoch=options.steps_per_epoch,
            shuffle=False,
            callbacks=callbacks,
            verbose=2 if options.verbose == 2 else 0,
        )
    finally:
        progress.close()
    return fitted.history if checkpoint is None else as_history(checkpoint.logs)


def _with_progress(phase, batches, options):
    """The batches, timed where they are read from files, and the progress bar."""
    timing = timing_of(batches)
    if timing is not None and options.verbose == 1:
        clock = timing.InputClock()
        progress = RichProgress(
            phase.name, clock=clock, reading_speed=options.reading_speed
        )
        return clock.wrap(batches), progress
    return batches, RichProgress(phase.name, getattr(batches, "batch_size", None))


def _epoch_order(batches):
    """The callback that puts the examples of an array in each epoch's order."""
    if not isinstance(batches, ArrayBatches):
        return []
    # Keras may draw a batch to look at it, which ends an epoch of its own.
    return [
        keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: batches.start_epoch(epoch)
        )
    ]


def _records(checkpoint, options):
    """The callbacks that keep state and history on disk."""
    if checkpoint is None:
        return []
    folder = checkpoint.path.parent

    def write(epoch, logs):
        write_history(folder / "history.csv", checkpoint.logs)

    records = [checkpoint, keras.callbacks.LambdaCallback(on_epoch_end=write)]
    if options.tensorboard:
        records.append(
            keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)
        )
    return records
