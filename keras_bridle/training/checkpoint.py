"""The state of a training run on disk."""

import contextlib
import csv
import errno
import io
import itertools
import json
import os
import signal
import threading
import time
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np

# Layers without a seed draw from it. Keras has no public name for it.
from keras.src.random.seed_generator import global_seed_generator

from keras_bridle.distribution import gather, is_alone, is_chief
from keras_bridle.replicas import summing
from keras_bridle.training.batches import first_batches

# An exceeded quota counts as a full disk.
_FULL = (errno.ENOSPC, errno.EDQUOT)
# A shell's exit code for SIGTERM. Kubernetes, HTCondor and others take it for a
# requested stop rather than a failure.
EXIT_CODE = 128 + signal.SIGTERM
# Seconds between the processes' exchanges about stopping.
_INTERVAL = 1.0


class SaveError(OSError):
    """A file, `path`, could not be written, for a `reason`; older ones are unharmed."""

    def __init__(self, path, reason):
        self.path, self.reason = path, reason
        super().__init__(
            f"Cannot save {path.name} in {str(path.parent)!r}: {reason}. Earlier "
            "files are unharmed: free space, and resume with `resume=True` "
            "(`--resume` of a recipe)"
        )


@contextlib.contextmanager
def atomic_file(path):
    """Yields a path to write to, which then replaces `path` at once or not at all."""
    path = Path(path)
    unfinished = path.with_name(f"unfinished.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        _flush(unfinished)
        unfinished.replace(path)
        _flush(path.parent)
    # HDF5 may notice only when it closes a file, and raises its own error.
    except (OSError, RuntimeError) as error:
        raise SaveError(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _flush(path):
    """Flushes a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path, content):
    """Writes a JSON file atomically."""
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, default=float, indent=2) + "\n")


def save_weights(model, path):
    """Writes a model's weights atomically."""
    with atomic_file(path) as unfinished:
        model.save_weights(unfinished)


def write_history(path, logs):
    """Rewrites the history, a line per epoch, so that none is lost or repeated."""
    names = list(dict.fromkeys(name for epoch_logs in logs for name in epoch_logs))
    with atomic_file(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", *names])
        writer.writeheader()
        writer.writerows({"epoch": i, **values} for i, values in enumerate(logs))


def full_disk_error(error):
    """Returns the error, or the cause of it, that says that a disk is full."""
    while error is not None:
        # HDF5's and TensorFlow's errors have no `errno`.
        in_words = os.strerror(errno.ENOSPC) in str(error)
        if in_words or getattr(error, "errno", None) in _FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def _unique(variables):
    return list({id(variable): variable for variable in variables}.values())


def state_variables(model):
    """Lists all variables that training changes, except metrics, each once."""
    metrics = {id(variable) for variable in model.metrics_variables}
    variables = [*model.variables, *model.optimizer.variables]
    variables.append(global_seed_generator().state)
    return [v for v in _unique(variables) if id(v) not in metrics]


def _as_array(variable):
    array = keras.ops.convert_to_numpy(variable)
    # NumPy's files have no bfloat16; float32 holds it exactly.
    return array if array.dtype.kind in "biuf" else array.astype("float32")


def assign(variables, arrays):
    """Assigns arrays to variables."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


class NonFiniteLoss(ArithmeticError):
    """A loss or weights became infinite or NaN."""


class NonFiniteSteps(keras.callbacks.Callback):
    """Stops after too many steps without a finite loss; saves their batches.

    They are read again by `make_batches(epoch, first_batch=step)`. To skip `max_steps`
    in an epoch, call the model's `skip_nonfinite_steps()` before.
    """

    def __init__(self, make_batches, max_steps=0, folder=None):
        super().__init__()
        self.make_batches = make_batches
        self.max_steps = max_steps
        self.folder = folder
        self.first_step = 0
        self._pending: tuple | None = None
        self._seen: int | None = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        # A resumed epoch continues its count.
        self._seen = None if self.first_step else 0

    def on_train_batch_end(self, batch, logs=None):
        # One step late, as waiting for each step would stall accelerators.
        self.check()
        self._pending = (self._epoch, self.first_step + batch, logs or {})

    def on_epoch_end(self, epoch, logs=None):
        self.check()

    def check(self):
        """Checks the last step's loss; raises `NonFiniteLoss` after too many."""
        if self._pending is None:
            return
        epoch, step, logs = self._pending
        self._pending = None
        name = "skipped_steps" if self.max_steps else "loss"
        value = float(keras.ops.convert_to_numpy(logs.get(name, 0.0)))
        count = int(value if self.max_steps else not np.isfinite(value))
        seen, self._seen = self._seen, count
        if count == seen or (seen is None and count <= self.max_steps):
            return
        saved = self._save(epoch, step)
        if count > self.max_steps:
            raise NonFiniteLoss(
                f"The loss is not finite at epoch {epoch + 1}, step {step + 1}{saved}. "
                f"{count} such steps in an epoch are more than max_nonfinite_steps="
                f"{self.max_steps}. Earlier checkpoints are unharmed: resume with "
                "`resume=True`, and allow more if you wish"
            )

    def _save(self, epoch, step):
        if self.folder is None:
            return ""
        path = self.folder / f"epoch_{epoch}_step_{step}.npz"
        (batch,) = first_batches(self.make_batches(epoch, first_batch=step), 1)
        arrays = batch if isinstance(batch, dict) else {"inputs": batch}
        with atomic_file(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **arrays)
        return f"; its batch is in {path}"


def is_float16():
    """Returns whether layers compute in float16, which needs loss scaling."""
    return keras.config.dtype_policy().compute_dtype == "float16"


def skipping(optimizer):
    """Makes an optimizer skip steps with gradients that are not finite."""
    # Keras' loss scaling does just that.
    exact = {"initial_scale": 1.0, "dynamic_growth_steps": 2**31 - 1}
    optimizer.is_within = True  # see `SummedGradients`
    scaling = summing(keras.optimizers.LossScaleOptimizer)
    return scaling(optimizer, **({} if is_float16() else exact))


class Preempted(SystemExit):
    """Ends a program with exit code 143 after SIGTERM, once its state is saved."""

    def __init__(self):
        super().__init__(EXIT_CODE)


class Preemption:
    """Handles SIGTERM: training stops after the step.

    In the main thread a second signal acts at once, but not in one of several
    processes, which stop together: there it may be the first one passed on.
    """

    def __init__(self):
        self.is_requested = False
        self._before = None
        self._is_alone = is_alone()
        # With several processes: what they agreed on, and steps to the next exchange.
        self._is_agreed, self._steps, self._steps_left = False, 1, 1
        self._asked_at = time.monotonic()

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, Preempted) and not self._is_alone:
            # When one process ends, torchrun sends the others the signal.
            return
        self._restore()
        if self.is_requested and kind is None:
            # It came too late for this run, but must still end the program.
            os.kill(os.getpid(), signal.SIGTERM)

    def is_due(self):
        """Returns whether to save and stop, equal in all processes."""
        if self._is_alone:
            return self.is_requested
        self._steps_left -= 1
        if self._steps_left <= 0:
            now = time.monotonic()
            steps = self._steps * _INTERVAL / max(now - self._asked_at, 1e-3)
            # A single step is too noisy, and the chief's number decides.
            steps = int(np.clip(steps, 1, 2 * self._steps)) if is_chief() else 0
            requests, steps = gather([int(self.is_requested), steps]).sum(axis=0)
            self._is_agreed = self._is_agreed or bool(requests)
            self._steps = self._steps_left = int(steps)
            self._asked_at = now
        return self._is_agreed

    def stop_if_requested(self):
        """Raises `Preempted` if the signal came, in all processes at once."""
        self._steps_left = 0
        is_due = self.is_due()
        # The next phase may have longer steps.
        self._steps = self._steps_left = 1
        if is_due:
            raise Preempted

    def _note(self, number, frame):
        self.is_requested = True
        if self._is_alone:
            self._restore()

    def _restore(self):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None


class Checkpoint(keras.callbacks.Callback):
    """Saves what training needs to resume: weights, optimizer, seeds, metrics.

    It saves every `every` epochs and after the last, every `every_steps` within an
    epoch, and every few `minutes`. The previous file is kept as `*.previous.npz`, to
    which `restore()` falls back if a checksum shows damage. Put the callback after
    those that add to the logs. After `restore()`, `epoch` and `step` are what was done:
    train the rest of an epoch in a separate `fit()`.
    """

    def __init__(self, path, every=1, every_steps=None, minutes=None, preemption=None):
        super().__init__()
        self.path = Path(path)
        self.previous_path = self.path.with_name(f"{self.path.stem}.previous.npz")
        self._damaged_path = self.path.with_name(f"{self.path.stem}.damaged.npz")
        self.every = every
        self.every_steps = every_steps
        self.minutes = minutes
        self.preemption = preemption
        self.before_saving = lambda: None
        self.logs = []
        self.epoch = self.step = 0
        self._metrics = []
        self._first_step, self._is_due = 0, False

    def on_train_begin(self, logs=None):
        self._saved_at = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._first_step = epoch, 0
        if self._metrics and epoch == self.epoch:
            # Keras has just reset the metrics.
            self._first_step = self.step
            assign(_unique(self.model.metrics_variables), self._metrics)
            self._metrics = []

    def on_train_batch_end(self, batch, logs=None):
        self._is_due = self._is_due or self._is_time(self._first_step + batch + 1)
        # After the last step, the epoch must still end.
        if self._is_due and batch + 1 != self.params.get("steps"):
            self._save_and_stop(self._epoch, self._first_step + batch + 1)

    def on_epoch_end(self, epoch, logs=None):
        # A repeated epoch replaces its first row.
        self.logs[epoch:] = [{name: float(x) for name, x in (logs or {}).items()}]
        write_history(self.path.with_name("history.csv"), self.logs)
        is_last = epoch + 1 == self.params.get("epochs")
        if self._is_due or is_last or (epoch + 1) % self.every == 0:
            self._save_and_stop(epoch + 1)

    def _is_time(self, step):
        seconds = time.monotonic() - self._saved_at
        return (
            (self.preemption is not None and self.preemption.is_due())
            or (self.every_steps is not None and step % self.every_steps == 0)
            or (self.minutes is not None and seconds >= 60 * self.minutes)
        )

    def _save_and_stop(self, epoch, step=0):
        self._is_due = False
        self.before_saving()
        self.save(self.model, epoch, step)
        self._saved_at = time.monotonic()
        if self.preemption is not None:
            self.preemption.stop_if_requested()

    def save(self, model, epoch, step=0):
        """Saves the state of a model after some epochs, and steps of the next."""
        variables = state_variables(model)
        metrics = _unique(model.metrics_variables) if step else []
        arrays = {
            f"{index:05d}": _as_array(variable)
            for index, variable in enumerate([*variables, *metrics])
        }
        for variable, array in zip(variables, arrays.values(), strict=False):
            if variable.trainable and not np.isfinite(array).all():
                raise NonFiniteLoss(
                    f"Training made {variable.path} infinite or NaN. This was not "
                    "saved: `resume=True` resumes from the last checkpoint"
                )
        header = {
            "epoch": epoch,
            "step": step,
            "logs": self.logs[:epoch],
            "paths": [variable.path for variable in variables],
            "metrics": [variable.path for variable in metrics],
            "backend": keras.config.backend(),
        }
        with atomic_file(self.path) as unfinished:
            with unfinished.open("wb") as file:
                np.savez(file, header=np.array(json.dumps(header)), **arrays)
            if self.path.exists():
                self.path.replace(self.previous_path)

    def delete(self):
        """Deletes the checkpoint."""
        for path in (self.path, self.previous_path, self._damaged_path):
            path.unlink(missing_ok=True)

    def restore(self, model):
        """Restores the saved state of a compiled model, and returns the epochs done."""
        found = self._read_newest()
        if found is None:
            return 0
        header, arrays = found
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        variables = state_variables(model)
        count = len(header["paths"])
        self._check(header["paths"], arrays[:count], variables)
        assign(variables, arrays[:count])
        self._metrics = arrays[count:]
        self.logs = header["logs"]
        self.epoch, self.step = header["epoch"], header["step"]
        return self.epoch

    def _read_newest(self):
        """Reads the newest undamaged state, or returns `None`."""
        paths = [path for path in (self.path, self.previous_path) if path.exists()]
        for path in paths:
            try:
                return _read(path)
            # Damaged archives raise many kinds of errors.
            except Exception as error:
                damage = f"{type(error).__name__}: {error}"
                if path is paths[-1]:
                    raise ValueError(
                        f"The checkpoint {path} is damaged and cannot be read "
                        f"({damage}). Delete it to restart the phase"
                    ) from error
                # Move it away, or the next checkpoint would replace the good one.
                kept = path.replace(self._damaged_path)
                warnings.warn(
                    f"The checkpoint {path} is damaged ({damage}) and kept as "
                    f"{kept.name}. Resuming from the one before",
                    stacklevel=3,
                )
        return None

    def _check(self, paths, arrays, variables):
        """Raises a `ValueError` if variables have other shapes than were saved."""
        found = [(path, a.shape) for path, a in zip(paths, arrays, strict=True)]
        expected = [(v.path, tuple(v.shape)) for v in variables]
        for one, other in itertools.zip_longest(found, expected):
            if one is None or other is None or one[1] != other[1]:
                raise ValueError(
                    f"The checkpoint {self.path} was saved by another model: the first "
                    f"variable that differs is {one}, expected {other}"
                )


def _read(path):
    """Reads a state completely, which verifies the checksum of each array."""
    with zipfile.ZipFile(path) as archive:

        def array(name):
            content = io.BytesIO(archive.read(f"{name}.npy"))
            return np.lib.format.read_array(content, allow_pickle=False)

        header = json.loads(str(array("header")))
        count = len(header["paths"]) + len(header["metrics"])
        return header, [array(f"{index:05d}") for index in range(count)]
