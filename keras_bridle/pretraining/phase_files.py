"""What a run keeps on disk of each phase, or nothing at all."""

import contextlib
import functools
import json

from keras_bridle.distribution import (
    broadcast,
    is_alone,
    share_file,
)
from keras_bridle.pretraining.atomic_files import atomic_file
from keras_bridle.pretraining.code_cache import delete_cached_codes
from keras_bridle.pretraining.phase_checkpoint import PhaseCheckpoint
from keras_bridle.pretraining.preemption import Preemption
from keras_bridle.pretraining.run_directory import RunDirectory
from keras_bridle.pretraining.run_lock import RunLock


@contextlib.contextmanager
def open_run(directory, settings, options, resume=False):
    """Keeps a run's directory for itself in a `with` block.

    Args:
        directory: string or path; `None` keeps nothing on disk.
        settings: function that makes the dict of the run's settings, for JSON.
        options: `FitOptions`.
        resume: bool, whether to go on with the run in `directory`.

    Yields:
        A function of a `Phase` that gives its `PhaseFiles` (or `NoFiles`).

    Raises:
        FileExistsError: if `directory` holds a run and `resume` is `False`.
        ValueError: if the run that is there has other settings.
        BlockingIOError: if another process is at work in `directory`.
    """
    if directory is None:
        yield NoFiles
        return
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(RunLock(directory))
        run = RunDirectory(directory, settings(), resume, echo=options.verbose > 0)
        stack.enter_context(run.noting_end(lock.left_by))
        preemption = stack.enter_context(Preemption())
        yield functools.partial(PhaseFiles, run, options, preemption)


class PhaseFiles:
    """The files of one phase: its state while it trains, its weights at its end.

    Args:
        run: `RunDirectory`.
        options: `FitOptions`.
        preemption: `Preemption`.
        phase: `Phase`.

    Attributes:
        folder: path of the phase's folder.
        checkpoint: `PhaseCheckpoint` in it.
    """

    def __init__(self, run, options, preemption, phase):
        self.run = run
        self.preemption = preemption
        self.name = phase.name
        self.folder = run.phase_path(phase.name)
        self.checkpoint = PhaseCheckpoint(
            self.folder / "checkpoint.npz",
            every=options.checkpoint_every,
            every_steps=options.checkpoint_every_steps,
            # Processes that save together must not look at clocks of their own.
            minutes=options.checkpoint_minutes if is_alone() else None,
            preemption=preemption,
        )

    def is_done(self):
        """Tells whether the phase has come to its end."""
        return broadcast(self.run.is_done(self.name))

    def restore(self, trainer):
        """Puts the state at which the phase was stopped, if any, into a trainer.

        Args:
            trainer: `Pretrainer`, compiled.

        Returns:
            Whether there was one.
        """
        share_file(self.checkpoint.previous_path)
        share_file(self.checkpoint.path)
        self.checkpoint.restore(trainer)
        if self.checkpoint.is_restored:
            self.run.note(f"{self.name} goes on after {self.checkpoint.position}")
        return self.checkpoint.is_restored

    def save(self, parts, history):
        """Writes what the phase ends with.

        Args:
            parts: dict from names to networks.
            history: dict of lists.
        """
        for name, part in parts.items():
            with atomic_file(self._weights_path(name)) as unfinished:
                part.save_weights(unfinished)
        with atomic_file(self._history_path) as unfinished:
            text = json.dumps(history, default=float, indent=2)
            unfinished.write_text(text + "\n")

    def load(self, parts):
        """Puts what `save()` wrote into networks.

        Args:
            parts: dict from names to networks.

        Returns:
            The history.
        """
        for name, part in parts.items():
            share_file(self._weights_path(name))
            part.load_weights(self._weights_path(name))
        share_file(self._history_path)
        return json.loads(self._history_path.read_text())

    def mark_done(self):
        """Notes that the phase has come to its end."""
        self.run.mark_done(self.name)

    def close(self):
        """Removes what only a phase that goes on would need, then ends if asked to."""
        self.checkpoint.delete()
        delete_cached_codes(self.folder)
        self.preemption.stop_if_requested()

    def _weights_path(self, name):
        return self.folder / f"{name}.weights.h5"

    @property
    def _history_path(self):
        return self.folder / "history.json"


class NoFiles:
    """Stands in for `PhaseFiles` where nothing is kept on disk.

    Args:
        phase: `Phase`.
    """

    folder = None
    checkpoint = None

    def __init__(self, phase):
        self.name = phase.name

    def is_done(self):
        """No phase is ever done before."""
        return False

    def restore(self, trainer):
        """There is no state to restore."""
        return False

    def save(self, parts, history):
        """Keeps nothing."""

    def load(self, parts):
        """There is nothing to load."""
        raise FileNotFoundError(f"Nothing was kept of {self.name}")

    def mark_done(self):
        """Keeps nothing."""

    def close(self):
        """There is nothing to remove."""
