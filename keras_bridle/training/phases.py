"""The plan of phases, and the training of one."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import keras
from rich.console import Console

from keras_bridle.config import ArgumentError, TrainingOptions, check
from keras_bridle.training.batches import fit_in_order
from keras_bridle.training.checkpoint import NonFiniteSteps, is_float16, skipping
from keras_bridle.training.optimizers import adamw, shared_options, warmup_cosine
from keras_bridle.training.progress import ProfileSteps, RichProgress, SpeedBoard
from keras_bridle.training.run import as_history


class Phase(NamedTuple):
    """A phase of the plan, such as `("2_encoder", "encoder", 100, 5e-4)`."""

    name: str
    kind: str
    epochs: int
    learning_rate: float


# docs/how_long.md explains these defaults.
EXAMPLES_FOR_ROUNDS = 50_000
ENCODER_STEPS = 10_000
ENCODER_EPOCHS = 20, 400


def by_size(options, num_batches, batch_size=None, has_teacher=False):
    """Chooses rounds and epochs by the size of the data, where they are `None`.

    There is one round for data sets without a `batch_size`.
    """
    rounds, epochs = options.rounds, options.encoder_epochs
    if rounds is None:
        is_large = batch_size is None or num_batches * batch_size >= EXAMPLES_FOR_ROUNDS
        rounds = int(is_large or has_teacher or options.joint)
    if epochs is None:
        batches = ENCODER_STEPS * (options.gradient_accumulation_steps or 1)
        least, most = ENCODER_EPOCHS
        epochs = min(max(math.ceil(batches / num_batches), least), most)
    return options.replace(
        rounds=rounds,
        encoder_epochs=epochs,
        tokenizer_epochs=options.tokenizer_epochs or math.ceil(epochs / 4),
    )


def phases(options, has_teacher=False):
    """Lists the phases of a run; with a teacher, it has no cold start."""
    if (options.joint or has_teacher) and options.rounds == 0:
        of = "with a teacher" if has_teacher else "for joint training"
        raise ArgumentError("rounds", f"1 or more {of}", options.rounds)
    check(not options.joint or not has_teacher, "joint", "False with a teacher", True)
    epochs, rate = options.encoder_epochs, options.encoder_learning_rate
    encoder = ("encoder", epochs, rate)
    tokenizer = ("tokenizer", options.tokenizer_epochs, options.tokenizer_learning_rate)
    cold_start = (
        "cold_start",
        options.cold_start_epochs or epochs,
        options.cold_start_learning_rate or rate,
    )
    if options.joint:
        plan = [cold_start, ("joint", options.rounds * epochs, rate)]
    else:
        start = [] if has_teacher else [cold_start]
        plan = [*start, *(options.rounds * [tokenizer, encoder])]
    return [Phase(f"{i}_{kind}", kind, *rest) for i, (kind, *rest) in enumerate(plan)]


# With fewer steps, some probes on some data found no gain over an untrained encoder:
# docs/how_long.md.
ENOUGH_STEPS = 1000


def remarks(plan, num_batches, options, given):
    """Yields remarks about the plan of the `given` options."""
    epochs = sum(phase.epochs for phase in plan if phase.kind != "tokenizer")
    steps = epochs * num_batches // (options.gradient_accumulation_steps or 1)
    if given.rounds is None and options.rounds == 0:
        yield (
            f"With fewer than {EXAMPLES_FOR_ROUNDS:,} examples the cold start alone is "
            "best: there are no tokenizer phases unless `rounds` asks for them."
        )
    if steps < ENOUGH_STEPS:
        yield (
            f"The encoder has {steps:,} steps in all. With fewer than about "
            f"{ENOUGH_STEPS:,} it may be worse than an untrained one: take more epochs "
            "or smaller batches, and compare."
        )


@dataclasses.dataclass(frozen=True)
class FitCall:
    """The arguments of `InterleavedPretraining.fit()` for each phase."""

    options: TrainingOptions
    make_batches: Callable
    num_batches: int
    steps_per_epoch: int | None
    one_reading: Callable
    callbacks: tuple
    on_phase_end: Callable | None
    verbose: int
    reading_speed: float | None = None

    def compile(self, trainer, phase):
        """Compiles a trainer for its phase."""
        trainer.phase = phase.name
        options = self.options
        trainer.set_trained_parts()
        # Schedules count batches, even if several of them make a step.
        batches = phase.epochs * self.num_batches
        warmup = int(options.warmup * batches)
        schedule = warmup_cosine(phase.learning_rate, batches, warmup)
        optimizer = adamw(trainer, schedule, **shared_options(options))
        if options.max_nonfinite_steps:
            trainer.skip_nonfinite_steps()
        if options.max_nonfinite_steps or is_float16():
            optimizer = skipping(optimizer)
        trainer.compile(optimizer, jit_compile=options.jit_compile)

    def fit(self, trainer, phase, make_batches, checkpoint=None):
        """Trains a compiled trainer to the end of its phase; returns the history."""
        options = self.options
        progress = RichProgress(
            phase.name,
            phase.epochs,
            self.num_batches,
            self.reading_speed,
            Console(quiet=self.verbose != 1),
        )
        finite = NonFiniteSteps(make_batches, options.max_nonfinite_steps)
        callbacks, closing = [*self.callbacks, finite, progress], [progress]
        epoch = step = 0
        if checkpoint is not None:
            epoch, step = checkpoint.epoch, checkpoint.step
            folder = checkpoint.path.parent
            finite.folder = folder / "nonfinite"
            checkpoint.before_saving = finite.check
            if options.tensorboard:
                callbacks.append(SpeedBoard(folder / "tensorboard", progress))
            callbacks.append(checkpoint)
            if options.profile:
                trace = ProfileSteps(folder / "profile")
                callbacks.append(trace)
                closing.append(trace)

        def fit(epoch, epochs, step=0, more=()):
            finite.first_step = progress.first_step = step
            steps = self.num_batches - step if step else self.steps_per_epoch
            return fit_in_order(
                trainer,
                progress.watched(make_batches(epoch, first_batch=step)),
                [*callbacks, *more],
                self.verbose,
                closing,
                epochs=epochs,
                initial_epoch=epoch,
                steps_per_epoch=steps,
            )

        history: dict[str, list[float]] = {}
        if step:
            self._fit_rest_of_epoch(trainer, phase, fit, epoch, step)
            epoch += 1
        if epoch < phase.epochs or step == 0:
            history = fit(epoch, phase.epochs)
        return history if checkpoint is None else as_history(checkpoint.logs)

    def _fit_rest_of_epoch(self, trainer, phase, fit, epoch, step):
        """Trains the rest of an interrupted epoch in a separate `fit()`."""
        # At its end, Keras replaces the weights by their moving averages.
        kept: list = []
        keep = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: kept.extend(trainer.get_weights())
        )
        is_end = epoch + 1 == phase.epochs
        has_averages = self.options.ema_momentum is not None and not is_end
        fit(epoch, epoch + 1, step, [keep] if has_averages else ())
        if has_averages:
            trainer.set_weights(kept)
