"""The state of a training run on disk."""

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import threading
import time
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
from keras.src.random.seed_generator import global_seed_generator

from keras_bridle.distribution import is_alone, is_chief, total
from keras_bridle.training.losses import FiniteLoss


class SaveError(OSError):
    """A file of a run could not be written: the disk is full, or gone.

    What was saved before is unharmed, and the run can go on from there.

    Example:
    ```python
    import tempfile
    from pathlib import Path
    from keras_bridle.training.checkpoint import SaveError
    from keras_bridle.training.checkpoint import atomic_file

    try:
        with atomic_file(Path(tempfile.mkdtemp(), "state.json")):
            raise OSError("No space left on device")
    except SaveError as error:
        print(error)
    ```
    """


@contextlib.contextmanager
def atomic_file(path):
    """Gives a path to write to, and puts the file there in the place of another.

    A program killed at any moment leaves the old file or the new one. An error leaves
    the old one, and no half file that would fill a disk.

    Args:
        path: string or path of the file. Its folder is made if it is missing.

    Yields:
        `pathlib.Path` of a file beside it, of the same ending.

    Raises:
        SaveError: if the file cannot be written.

    Example:
    ```python
    import os
    import tempfile
    from keras_bridle.training.checkpoint import atomic_file

    path = os.path.join(tempfile.mkdtemp(), "state.json")
    with atomic_file(path) as unfinished:
        unfinished.write_text("{}")
    print(os.listdir(os.path.dirname(path)))  # ['state.json']
    ```
    """
    path = Path(path)
    unfinished = path.with_name(f"unfinished.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        _write_out(unfinished)
        unfinished.replace(path)
        _write_out(path.parent)
    # HDF5 may notice only on closing a file, with an error of its own.
    except (OSError, RuntimeError) as error:
        raise SaveError(_reason(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def full_disk_error(error):
    """Finds what tells of a full disk: an error, or one that it came from.

    Args:
        error: optional exception.

    Returns:
        The exception, or `None`.

    Example:
    ```python
    import errno
    from keras_bridle.training.checkpoint import full_disk_error

    print(full_disk_error(OSError(errno.ENOSPC, "No space left on device")))
    print(full_disk_error(ValueError("another one")))  # None
    ```
    """
    while error is not None:
        # HDF5 and TensorFlow tell in words only.
        in_words = os.strerror(errno.ENOSPC) in str(error)
        if in_words or getattr(error, "errno", None) in _FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


# A quota is as good as a disk.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def _write_out(path):
    """Brings a file or folder from memory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(path, error):
    free = ""
    with contextlib.suppress(OSError):
        free = f" {shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free there."
    return (
        f"Cannot save {path.name} in {str(path.parent)!r}: {error}.{free} What was "
        "saved before is unharmed: make room, and go on with `resume=True` "
        "(`--resume` of a recipe)"
    )


# What layers draw from that were given no seed; Keras has no public name for it.


def state_variables(model):
    """Lists all variables that training changes, each once, without metrics.

    They come in the same order on every backend, however many layers of a kind were
    made before.

    Args:
        model: a compiled and built `keras.Model`.

    Returns:
        A list of `keras.Variable`: weights, states of layers and of seeds, optimizer.
    """
    metrics = {id(variable) for variable in model.metrics_variables}
    found: dict[int, keras.Variable] = {}
    variables = [*model.variables, *model.optimizer.variables]
    for variable in [*variables, global_seed_generator().state]:
        if id(variable) not in metrics:
            found.setdefault(id(variable), variable)
    return list(found.values())


def metric_variables(model):
    """Lists the variables of a model's metrics, each once."""
    found = {id(variable): variable for variable in model.metrics_variables}
    return list(found.values())


def as_plain_array(variable):
    """Gives a variable's value as an array that NumPy's files can hold."""
    array = keras.ops.convert_to_numpy(variable)
    # They know no bfloat16; float32 holds it exactly.
    return array if array.dtype.kind in "biuf" else array.astype("float32")


def first_difference(paths, shapes, variables):
    """Names the first variable that is not as it was saved, if there is one."""
    for path, shape, variable in zip(paths, shapes, variables, strict=False):
        if shape != tuple(variable.shape):
            return (
                f"; the first that differs is {path} of shape {shape}, expected "
                f"{variable.path} of shape {tuple(variable.shape)}"
            )
    return ""


class NonFiniteLoss(ArithmeticError):
    """Training came to a loss that is infinite or no number.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.training.checkpoint import NonFiniteLoss
    from keras_bridle.training.checkpoint import NonFiniteSteps

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    bad = np.full((8, 4), np.nan)
    stop = NonFiniteSteps(folder=None, batch_at=lambda epoch, step: bad)
    try:
        model.fit(bad, np.ones((8, 1)), callbacks=[stop], verbose=0)
    except NonFiniteLoss as error:
        print(error)
    ```
    """


class NonFiniteSteps(keras.callbacks.Callback):
    """Saves the batches of steps without a finite loss, and stops after too many.

    Losses are looked at one step late, when they are there anyway: to wait for each
    would keep accelerators waiting.

    Args:
        folder: path where batches go, as `epoch_3_step_17.npz`, both counted from 0;
            or `None`.
        batch_at: function of an epoch and a step that returns the batch there.
        max_steps: int, so many steps of an epoch may be skipped. More than 0 needs a
            model that was prepared with `skip_nonfinite_steps()`.

    Raises:
        NonFiniteLoss: in `fit()`, after too many such steps.
    """

    def __init__(self, folder, batch_at, max_steps=0):
        super().__init__()
        self.folder = folder
        self.batch_at = batch_at
        self.max_steps = max_steps
        self.first_step = 0
        self._pending: tuple | None = None
        self._seen: int | None = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        # The count of a resumed epoch goes on.
        self._seen = None if self.first_step else 0

    def on_train_batch_end(self, batch, logs=None):
        self.check()
        self._pending = (self._epoch, self.first_step + batch, logs or {})

    def on_epoch_end(self, epoch, logs=None):
        self.check()

    def check(self):
        """Looks at the last step's loss.

        Raises:
            NonFiniteLoss: after too many steps without a finite one.
        """
        if self._pending is None:
            return
        epoch, step, logs = self._pending
        self._pending = None
        count = self._count(logs)
        seen, self._seen = self._seen, count
        if count == seen or (seen is None and count <= self.max_steps):
            return
        saved = self._save(epoch, step)
        if count > self.max_steps:
            raise NonFiniteLoss(
                f"The loss is not finite at epoch {epoch + 1}, step {step + 1}{saved}. "
                f"{count} such steps in an epoch are more than max_nonfinite_steps="
                f"{self.max_steps}. What was saved before is unharmed: `resume=True` "
                "goes on from there, skipping as many as you allow"
            )

    def _count(self, logs):
        if self.max_steps:
            return int(_number(logs.get("skipped_steps", 0)))
        return int(not np.isfinite(_number(logs.get("loss", 0.0))))

    def _save(self, epoch, step):
        if self.folder is None:
            return ""
        path = self.folder / f"epoch_{epoch}_step_{step}.npz"
        batch = self.batch_at(epoch, step)
        arrays = batch if isinstance(batch, dict) else {"inputs": batch}
        with atomic_file(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **arrays)
        return f"; its batch is in {path}"


def skipping(optimizer):
    """Makes an optimizer leave out steps whose gradients are not finite.

    Keras' scaling of losses does just that; at a scale of 1 it changes nothing else.
    After each step left out it halves the scale, which is exact.

    Args:
        optimizer: `keras.optimizers.Optimizer`.

    Returns:
        An optimizer. In half precision it is the same one: Keras scales losses there.
    """
    if keras.config.dtype_policy().compute_dtype == "float16":
        return optimizer
    return keras.optimizers.LossScaleOptimizer(
        optimizer, initial_scale=1.0, dynamic_growth_steps=2**31 - 1
    )


def skip_nonfinite_steps(trainer):
    """Keeps steps that an optimizer of `skipping()` leaves out of the mean loss, too.

    Args:
        trainer: a compiled model. Its logs get `skipped_steps`, counted in each epoch.
    """
    # Past Keras' book-keeping, which would list it as a metric a second time.
    object.__setattr__(trainer, "_loss_tracker", FiniteLoss())


def _number(value):
    return float(keras.ops.convert_to_numpy(value))


# As a shell reports a program that SIGTERM ended: Kubernetes, HTCondor and the like
# take it for a stop that was asked for, not for a fault of the program.
EXIT_CODE = 128 + signal.SIGTERM
# How often several processes ask each other, in seconds.
_INTERVAL = 1.0


class Preempted(SystemExit):
    """Ends a program that was asked to end, after its state was saved.

    The exit code is 143, that is 128 + SIGTERM.

    Example:
    ```python
    from keras_bridle.training.checkpoint import Preempted

    try:
        raise Preempted
    except SystemExit as stop:
        print(stop.code)  # 143
    ```
    """

    def __init__(self):
        super().__init__(EXIT_CODE)


class Preemption:
    """Notes that the process got SIGTERM, for training to stop at the next step.

    In a `with` block the first signal is noted and the second one is acted upon at
    once. Only the main thread of a program can do so; elsewhere nothing is noted.

    Several processes stop together, whichever of them got the signal: they ask each
    other about once a second, after the same step. As what starts them may pass signals
    on that they have got already, more than one is not acted upon there.

    Attributes:
        is_requested: bool, whether the signal came, to this process.

    Example:
    ```python
    import os
    import signal
    from keras_bridle.training.checkpoint import Preempted, Preemption

    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
            preemption.stop_if_requested()
    except Preempted as stop:
        print(stop.code)  # 143
    ```
    """

    def __init__(self):
        self.is_requested = False
        self._before = None
        self._is_alone = is_alone()
        # Of several processes: what they have found, and steps to the next asking.
        self._is_agreed, self._steps, self._steps_left = False, 1, 1
        self._asked_at = time.monotonic()

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind, error, traceback):
        if kind is not None and issubclass(kind, Preempted) and not self._is_alone:
            # The first one to end makes torchrun send the others the signal.
            return
        self._restore()
        if self.is_requested and kind is None:
            # It came too late for this run, but the program is to end all the same.
            os.kill(os.getpid(), signal.SIGTERM)

    def is_due(self):
        """Tells whether to save and to stop; to be called after each step.

        Returns:
            bool, the same in all processes.
        """
        if self._is_alone:
            return self.is_requested
        self._steps_left -= 1
        if self._steps_left <= 0:
            self._ask()
        return self._is_agreed

    def stop_if_requested(self):
        """Raises `Preempted` if the signal came. Call it when all is saved.

        Of several processes, none goes on or ends before all have come here.
        """
        if not self._is_alone:
            self._ask()
            # What follows may have longer steps.
            self._steps = self._steps_left = 1
        if self.is_requested if self._is_alone else self._is_agreed:
            raise Preempted

    def _ask(self):
        """Learns whether any process got the signal, and when the chief asks again."""
        now = time.monotonic()
        steps = self._steps * _INTERVAL / max(now - self._asked_at, 1e-3)
        # One step that happens to be short tells little.
        steps = int(np.clip(steps, 1, 2 * self._steps)) if is_chief() else 0
        requests, steps = total(np.array([self.is_requested, steps], "int32"))
        self._is_agreed = self._is_agreed or bool(requests)
        self._steps = self._steps_left = int(steps)
        self._asked_at = now

    def _note(self, number, frame):
        self.is_requested = True
        if self._is_alone:
            self._restore()

    def _restore(self):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None


class PhaseCheckpoint(keras.callbacks.Callback):
    """Saves all that a phase needs to go on: weights, optimizer, seeds, metrics.

    A file is written beside the old ones and then put in its place, so that a run
    stopped while saving loses nothing. The one before is kept under the name
    `*.previous.npz`; `restore()` goes back to it if the newest is damaged, which the
    checksum of each array tells. No pickles: NumPy archives of plain arrays.

    Args:
        path: string or path, the file, ending in `.npz`.
        every: int, save after so many epochs, and after the last.
        every_steps: optional int, save after so many steps of an epoch as well.
        minutes: optional float, save after so much time as well.
        preemption: optional `Preemption`. When it is requested, the state is saved
            after the step, and the program is ended.
        before_saving: optional function called before each saving, which may raise to
            keep it from happening.

    Attributes:
        logs: list with a dict of floats for each epoch of the phase, those of before a
            `restore()` included. Put the callback behind those that add to the logs.
        epoch: int, the epochs that were done when the restored state was saved.
        step: int, the steps done in the epoch after them. Train that epoch on the
            batches from there on, in a `fit()` of its own.
        is_restored: bool, whether there was a state to restore.

    Example:
    ```python
    import os
    import tempfile

    import keras
    import numpy as np
    from keras_bridle.training.checkpoint import PhaseCheckpoint

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", loss="mse")
    checkpoint = PhaseCheckpoint(os.path.join(tempfile.mkdtemp(), "state.npz"))
    x, y = np.ones((8, 4)), np.ones((8, 1))
    model.fit(x, y, epochs=2, callbacks=[checkpoint], verbose=0)
    print(checkpoint.restore(model))  # 2
    ```
    """

    def __init__(
        self,
        path,
        every=1,
        every_steps=None,
        minutes=None,
        preemption=None,
        before_saving=None,
    ):
        super().__init__()
        self.path = Path(path)
        self.every = every
        self.every_steps = every_steps
        self.minutes = minutes
        self.preemption = preemption
        self.before_saving = before_saving
        self.logs = []
        self.epoch, self.step, self.is_restored = 0, 0, False
        self._metrics = []
        self._first_step, self._is_due = 0, False

    @property
    def previous_path(self):
        """Where the state before the newest one is."""
        return self.path.with_name(f"{self.path.stem}.previous.npz")

    @property
    def _damaged_path(self):
        return self.path.with_name(f"{self.path.stem}.damaged.npz")

    @property
    def position(self):
        """What was done when the restored state was saved, in words."""
        return f"{self.epoch} epochs" + (f" and {self.step} steps" * bool(self.step))

    def on_train_begin(self, logs=None):
        self._saved_at = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._first_step = epoch, 0
        if self._metrics and epoch == self.epoch:
            # Keras has just set them back.
            self._first_step = self.step
            _assign(metric_variables(self.model), self._metrics)
            self._metrics = []

    def on_train_batch_end(self, batch, logs=None):
        self._is_due = self._is_due or self._is_time(self._first_step + batch + 1)
        # After the last step, the end of the epoch is to follow.
        if self._is_due and batch + 1 != self.params.get("steps"):
            self._save_and_stop(self._epoch, self._first_step + batch + 1)

    def on_epoch_end(self, epoch, logs=None):
        # An epoch that is run again takes the place of the first try.
        self.logs[epoch:] = [
            {name: float(value) for name, value in (logs or {}).items()}
        ]
        is_last = epoch + 1 == self.params.get("epochs")
        if self._is_due or is_last or (epoch + 1) % self.every == 0:
            self._save_and_stop(epoch + 1)

    def _is_time(self, step):
        if self.preemption is not None and self.preemption.is_due():
            return True
        if self.every_steps is not None and step % self.every_steps == 0:
            return True
        if self.minutes is None:
            return False
        return time.monotonic() - self._saved_at >= 60 * self.minutes

    def _save_and_stop(self, epoch, step=0):
        self._is_due = False
        if self.before_saving is not None:
            self.before_saving()
        self.save(self.model, epoch, step)
        self._saved_at = time.monotonic()
        if self.preemption is not None:
            self.preemption.stop_if_requested()

    def save(self, model, epoch, step=0):
        """Writes the state of a model.

        Args:
            model: a compiled and built model.
            epoch: int, the epochs that are done.
            step: int, the steps that are done in the next one.

        Raises:
            SaveError: if the file cannot be written. Those before stay.
            NonFiniteLoss: if weights are not finite, which would replace good ones.
        """
        variables = state_variables(model)
        metrics = metric_variables(model) if step else []
        arrays = {
            f"{index:05d}": as_plain_array(variable)
            for index, variable in enumerate([*variables, *metrics])
        }
        _check_weights(variables, arrays.values())
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
        """Removes what was saved."""
        for path in (self.path, self.previous_path, self._damaged_path):
            path.unlink(missing_ok=True)

    def restore(self, model):
        """Puts the saved state into a model, if there is one.

        Metrics of an epoch that was begun follow when `fit()` goes on with it.

        Args:
            model: a compiled and built model, made like the one that was saved.

        Returns:
            int, the epochs that were done; 0 if nothing has been saved.

        Raises:
            ValueError: if the file belongs to a model made in another way, or is
                damaged and there is none before it.
        """
        self.epoch, self.step, self.is_restored = 0, 0, False
        found = self._read_newest()
        if found is None:
            return 0
        header, arrays = found
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        variables = state_variables(model)
        count = len(header["paths"])
        self._check(header["paths"], arrays[:count], variables)
        _assign(variables, arrays[:count])
        self._metrics = arrays[count:]
        self.logs = header["logs"]
        self.epoch, self.step, self.is_restored = header["epoch"], header["step"], True
        return self.epoch

    def _read_newest(self):
        """Reads the newest state that is whole, or returns `None` if there is none."""
        paths = [path for path in (self.path, self.previous_path) if path.exists()]
        for path, other in zip(paths, [*paths[1:], None], strict=False):
            try:
                return _read(path)
            except _Damage as damage:
                if other is None:
                    raise ValueError(
                        f"The checkpoint {path} is damaged and cannot be read "
                        f"({damage}). Delete it to start the phase anew"
                    ) from damage
                # Out of the way: the next one saved must not push out the good one.
                kept = path.replace(self._damaged_path)
                warnings.warn(
                    f"The checkpoint {path} is damaged ({damage}) and kept as "
                    f"{kept.name}. Going on from the one before, {other.name}",
                    stacklevel=2,
                )
        return None

    def _check(self, paths, arrays, variables):
        shapes = [array.shape for array in arrays]
        expected = [tuple(variable.shape) for variable in variables]
        if shapes != expected:
            raise ValueError(
                f"The checkpoint {self.path} was saved by a model made in another way: "
                f"it holds {len(shapes)} arrays, the model has {len(expected)}"
                + first_difference(paths, shapes, variables)
            )


class _Damage(Exception):
    """A file that holds no state."""


def _read(path):
    try:
        with zipfile.ZipFile(path) as archive:
            # Read to its end, each member is held against its checksum.
            header = json.loads(str(_array(archive, "header")))
            count = len(header["paths"]) + len(header["metrics"])
            return header, [_array(archive, f"{index:05d}") for index in range(count)]
    # Damage shows in as many kinds of errors as an archive has kinds of bytes.
    except Exception as error:
        raise _Damage(f"{type(error).__name__}: {error}") from error


def _array(archive, name):
    content = io.BytesIO(archive.read(f"{name}.npy"))
    return np.lib.format.read_array(content, allow_pickle=False)


def _check_weights(variables, arrays):
    for variable, array in zip(variables, arrays, strict=False):
        if variable.trainable and not np.isfinite(array).all():
            raise NonFiniteLoss(
                f"Training made {variable.path} infinite or no number. Nothing of it "
                "is saved: `resume=True` goes on from the state before"
            )


def _assign(variables, arrays):
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
