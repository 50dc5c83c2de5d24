"""A trace of a few steps, for those who want to know where the time goes."""

import keras

from keras_bridle.pretraining.device import start_trace


class ProfileSteps(keras.callbacks.Callback):
    """Records some steps of a `fit()`, after those in which engines compile.

    Args:
        folder: string or path, where the trace goes.
        first_step: int, the step to begin with, counted from 0 over all epochs.
        steps: int, how many steps to record; fewer if the training ends before.

    Example:
    ```python
    import tempfile
    import keras
    import numpy as np
    from keras_bridle.pretraining.profile_steps import ProfileSteps

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", loss="mse")
    trace = ProfileSteps(tempfile.mkdtemp(), first_step=1, steps=1)
    model.fit(np.ones((8, 4)), np.ones((8, 1)), batch_size=2, callbacks=[trace])
    ```
    """

    def __init__(self, folder, first_step=3, steps=5):
        super().__init__()
        self.folder = folder
        self.first_step = first_step
        self.steps = steps
        self._done, self._stop = 0, None

    def on_train_batch_begin(self, batch, logs=None):
        if self._done == self.first_step:
            self._stop = start_trace(self.folder)

    def on_train_batch_end(self, batch, logs=None):
        self._done += 1
        if self._stop is not None and self._done == self.first_step + self.steps:
            # What is still being computed belongs to the trace.
            for value in (logs or {}).values():
                keras.ops.convert_to_numpy(value)
            self.close()

    def on_train_end(self, logs=None):
        self.close()

    def close(self):
        """Ends the recording, if one is on."""
        if self._stop is not None:
            stop, self._stop = self._stop, None
            stop()
