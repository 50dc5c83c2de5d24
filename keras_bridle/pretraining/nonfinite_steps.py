"""Steps whose loss is infinite or no number: left out, or the end of a run."""

import keras
import numpy as np

from keras_bridle.pretraining.atomic_files import atomic_file
from keras_bridle.pretraining.finite_mean import FiniteLoss


class NonFiniteLoss(ArithmeticError):
    """Training came to a loss that is infinite or no number.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.pretraining import NonFiniteLoss
    from keras_bridle.pretraining.nonfinite_steps import NonFiniteSteps

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
