"""Keeps the whole state of a training run on disk, at epochs' ends and between."""

import io
import json
import time
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np

from keras_bridle.pretraining.atomic_files import atomic_file
from keras_bridle.pretraining.nonfinite_steps import NonFiniteLoss
from keras_bridle.pretraining.state_variables import (
    as_plain_array,
    first_difference,
    metric_variables,
    state_variables,
)


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
    from keras_bridle.pretraining import PhaseCheckpoint

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
