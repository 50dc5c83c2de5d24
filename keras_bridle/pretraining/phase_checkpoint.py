"""Keeps the whole state of a training run on disk, epoch by epoch."""

import json
import os
import zipfile
from pathlib import Path

import keras
import numpy as np


class PhaseCheckpoint(keras.callbacks.Callback):
    """Saves all that a phase needs to go on: weights, optimizer, seeds, history.

    A file is written beside the old one and then put in its place, so that a run
    stopped while saving loses nothing. No pickles: a NumPy archive of plain arrays.

    Args:
        path: string or path, the file, ending in `.npz`.
        every: int, save after so many epochs, and after the last.

    Attributes:
        logs: list with a dict of floats for each epoch of the phase, those of before a
            `restore()` included. Put the callback behind those that add to the logs.

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

    def __init__(self, path, every=1):
        super().__init__()
        self.path = Path(path)
        self.every = every
        self.logs = []

    def on_epoch_end(self, epoch, logs=None):
        # An epoch that is run again takes the place of the first try.
        self.logs[epoch:] = [
            {name: float(value) for name, value in (logs or {}).items()}
        ]
        is_last = epoch + 1 == self.params.get("epochs")
        if is_last or (epoch + 1) % self.every == 0:
            self.save(self.model, epoch + 1)

    def save(self, model, epoch):
        """Writes the state of a model after so many epochs."""
        variables = _state_variables(model)
        arrays = {
            f"{index:05d}": _as_plain_array(variable)
            for index, variable in enumerate(variables)
        }
        header = {
            "epoch": epoch,
            "logs": self.logs,
            "paths": [variable.path for variable in variables],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(self.path.name + ".unfinished")
        with unfinished.open("wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path)

    def restore(self, model):
        """Puts the saved state into a model, if there is one.

        Args:
            model: a compiled and built model, made like the one that was saved.

        Returns:
            int, the epochs that were done; 0 if nothing has been saved.

        Raises:
            ValueError: if the file belongs to a model made in another way, or is
                damaged.
        """
        if not self.path.exists():
            return 0
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        variables = _state_variables(model)
        header, arrays = self._read()
        shapes = [array.shape for array in arrays]
        expected = [tuple(variable.shape) for variable in variables]
        if shapes != expected:
            raise ValueError(
                f"The checkpoint {self.path} was saved by a model made in another way: "
                f"it holds {len(shapes)} arrays, the model has {len(expected)}"
                + _first_difference(header["paths"], shapes, variables)
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        self.logs = header["logs"]
        return header["epoch"]

    def _read(self):
        try:
            with np.load(self.path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                names = [f"{index:05d}" for index in range(len(header["paths"]))]
                return header, [file[name] for name in names]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"The checkpoint {self.path} is damaged and cannot be read ({error}). "
                "Delete it to start the phase anew"
            ) from error


def _state_variables(model):
    """All variables that training changes, metrics left out, each once, in order."""
    metrics = {id(variable) for variable in model.metrics_variables}
    found: dict[int, keras.Variable] = {}
    for variable in [*model.variables, *model.optimizer.variables]:
        if id(variable) not in metrics:
            found.setdefault(id(variable), variable)
    return list(found.values())


def _as_plain_array(variable):
    array = keras.ops.convert_to_numpy(variable)
    # NumPy's files know no bfloat16; float32 holds it exactly.
    return array if array.dtype.kind in "biuf" else array.astype("float32")


def _first_difference(paths, shapes, variables):
    for path, shape, variable in zip(paths, shapes, variables, strict=False):
        if shape != tuple(variable.shape):
            return (
                f"; the first that differs is {path} of shape {shape}, expected "
                f"{variable.path} of shape {tuple(variable.shape)}"
            )
    return ""
