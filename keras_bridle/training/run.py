"""The directory of a run."""

import contextlib
import datetime
import functools
import hashlib
import itertools
import json
import platform
from pathlib import Path
from typing import Any

import filelock
import keras
import numpy as np

from keras_bridle.config import ArgumentError, current_settings
from keras_bridle.distribution import broadcast, is_alone, share_file
from keras_bridle.training.batches import ArrayBatches, in_floatx
from keras_bridle.training.checkpoint import (
    Checkpoint,
    Preemption,
    atomic_file,
    save_weights,
    write_json,
)
from keras_bridle.version import __version__


@contextlib.contextmanager
def run_lock(directory):
    """Locks a directory for this process."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path / "run.lock")
    try:
        held = lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BlockingIOError(
            f"Two runs cannot share one directory: another process uses "
            f"{str(path)!r}. Wait until it ends, or choose another directory"
        ) from None
    with held:
        yield


class RunDirectory:
    """Keeps the files of a run, so that it can be read, resumed and never overwritten.

    A run resumes only with the same `settings`, a dict for JSON. Options that one of
    two versions does not know are not compared.
    """

    def __init__(self, path, settings, resume=False, echo=False):
        self.path = Path(path)
        self.echo = echo
        self._state_path = self.path / "state.json"
        self._done: list[str] = []
        settings_path = self.path / "settings.json"
        # Compare what a later run will read: the settings after a pass through JSON.
        settings = json.loads(json.dumps(settings))
        backend = keras.config.backend()
        if not settings_path.exists():
            about = {
                "keras_bridle": __version__,
                "keras": keras.__version__,
                "backend": backend,
                "python": platform.python_version(),
                "started": _now("T"),
            }
            write_json(settings_path, {"settings": settings, "about": about})
            return
        if not resume:
            raise FileExistsError(
                f"`directory` holds a run already. Received: {str(self.path)!r}. Pass "
                "`resume=True` to resume it, or name another directory"
            )
        saved = _read_json(settings_path)
        before, now = current_settings(saved["settings"]), current_settings(settings)
        changes = "; ".join(
            f"{name}: {before[name]!r} then, {value!r} now"
            for name, value in now.items()
            if name in before and _differ(before[name], value)
        )
        if changes:
            raise ValueError(
                f"The run in {str(self.path)!r} was started with other settings, so it "
                f"cannot be resumed with these ({changes})"
            )
        if self._state_path.exists():
            self._done = _read_json(self._state_path)["phases_done"]
        started = saved.get("about", {}).get("backend", backend)
        if started != backend:
            text = f"Started on {started}, resumed on {backend}: rounding and random"
            self.note(f"{text} numbers differ from a run on one backend")

    def note(self, text):
        """Adds a line to `log.txt`, with the time."""
        with (self.path / "log.txt").open("a") as file:
            file.write(f"{_now(' ')} {text}\n")
        if self.echo:
            print(text)

    def is_done(self, name):
        """Returns whether a phase is finished."""
        return name in self._done

    def mark_done(self, name):
        """Marks a phase as finished."""
        self._done.append(name)
        write_json(self._state_path, {"phases_done": self._done})


def _now(separator):
    return datetime.datetime.now().astimezone().isoformat(separator, "seconds")


def _read_json(path):
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: it is not valid JSON ({error})"
        ) from error


def _differ(one, other):
    """Returns whether settings differ in options that both versions know."""
    if isinstance(one, dict) and isinstance(other, dict):
        return any(_differ(one[name], other[name]) for name in one.keys() & other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) != len(other) or any(map(_differ, one, other))
    return one != other


@contextlib.contextmanager
def open_run(directory, settings, options, resume=False, echo=False):
    """Yields a function from a `Phase` to its `PhaseFiles` in a locked directory."""
    if directory is None:
        yield PhaseFiles
        return
    with Preemption() as preemption, run_lock(directory):
        run = RunDirectory(directory, settings(), resume, echo=echo)
        try:
            yield functools.partial(
                PhaseFiles, run=run, options=options, preemption=preemption
            )
        except BaseException as error:
            # The disk itself may be the problem.
            with contextlib.suppress(OSError):
                run.note(f"Stopped by {type(error).__name__}")
            raise
        run.note("All phases are done")


class PhaseFiles:
    """The files of a phase: its checkpoint during training, its weights at the end."""

    def __init__(self, phase, run=None, options=None, preemption=None):
        self.name = phase.name
        self.run = run
        self.preemption = preemption
        self.folder: Any = None
        self.checkpoint: Any = None
        if run is not None:
            self.folder = run.path / "phases" / phase.name
            self.folder.mkdir(parents=True, exist_ok=True)
            self.checkpoint = Checkpoint(
                self.folder / "checkpoint.npz",
                every=options.checkpoint_every,
                every_steps=options.checkpoint_every_steps,
                # Processes that save together must not go by their own clocks.
                minutes=options.checkpoint_minutes if is_alone() else None,
                preemption=preemption,
            )

    def is_done(self):
        """Returns whether the phase is finished."""
        return self.run is not None and broadcast(self.run.is_done(self.name))

    def restore(self, trainer):
        """Restores the phase's checkpoint; returns whether there was one."""
        if self.run is None:
            return False
        share_file(self.checkpoint.previous_path)
        share_file(self.checkpoint.path)
        epochs = self.checkpoint.restore(trainer)
        steps = self.checkpoint.step
        if not epochs and not steps:
            return False
        more = f" and {steps} steps" if steps else ""
        self.run.note(f"{self.name} is resumed after {epochs} epochs{more}")
        return True

    def save(self, parts, history):
        """Saves the networks, by name, and the history at the end of the phase."""
        if self.run is not None:
            for name, part in parts.items():
                save_weights(part, self.folder / f"{name}.weights.h5")
            write_json(self.folder / "history.json", history)

    def load(self, parts):
        """Loads the networks' weights that `save()` wrote, and returns the history."""
        for name in [*(f"{name}.weights.h5" for name in parts), "history.json"]:
            share_file(self.folder / name)
        for name, part in parts.items():
            part.load_weights(self.folder / f"{name}.weights.h5")
        return json.loads((self.folder / "history.json").read_text())

    def mark_done(self):
        """Marks the phase as finished."""
        if self.run is not None:
            self.run.mark_done(self.name)

    def close(self):
        """Removes what only a resumed phase needs, then ends if preempted."""
        if self.run is not None:
            self.checkpoint.delete()
            for path in self.folder.glob("codes_*.npy"):
                path.unlink()
            self.preemption.stop_if_requested()


def as_history(logs):
    """Converts a dict per epoch to Keras' history, a dict of lists."""
    names = dict.fromkeys(name for epoch_logs in logs for name in epoch_logs)
    return {name: [one[name] for one in logs if name in one] for name in names}


def check_cacheable(batches, augmentation, tokenize):
    """Raises an `ArgumentError` if codes change between epochs."""
    is_array = isinstance(batches, ArrayBatches)
    if not is_array or augmentation is not None or tokenize != "all":
        expected = (
            "False unless inputs are an array, without augmentation, and `tokenize` is "
            "'all': otherwise codes change between epochs"
        )
        raise ArgumentError("cache_codes", expected, True)


def cached_codes(tokenize, tokenizers, inputs, batch_size, folder=None):
    """Computes the codes of all examples, or loads those of an earlier start.

    `tokenize` is a function of a batch that gives codes, -1 at padding, which become 0.
    With the `batch_size` of training, numbers are rounded in the same way.
    """
    size = min(batch_size, len(inputs))
    starts = range(0, len(inputs), size)
    largest = max(tokenizer.quantizer.codebook_size for tokenizer in tokenizers) - 1

    def compute(new_array):
        codes = None
        for start in starts:
            # The last batch is filled up with repeated examples.
            start = min(start, len(inputs) - size)
            batch = np.maximum(tokenize(in_floatx(inputs[start : start + size])), 0)
            if codes is None:
                shape = (len(inputs), *batch.shape[1:])
                codes = new_array(shape=shape, dtype=np.min_scalar_type(largest))
            codes[start : start + size] = batch
        return codes

    if folder is None:
        return compute(np.empty)
    weights = (weight for x in tokenizers for weight in x.get_weights())
    parts = (inputs[start : start + size] for start in starts)
    name = digest_of_arrays(
        itertools.chain(parts, weights), repr((inputs.shape, inputs.dtype))
    )
    path = folder / f"codes_{name}.npy"
    if not path.exists():
        with atomic_file(path) as unfinished:
            new_array = functools.partial(np.lib.format.open_memmap, unfinished, "w+")
            compute(new_array).flush()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def digest_of_arrays(arrays, text=""):
    """Returns a digest of arrays and a text."""
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]
