"""TensorBoard logs that tell the speed as well."""

import keras


class SpeedBoard(keras.callbacks.TensorBoard):
    """Keras' TensorBoard callback, with the numbers of a `Throughput` in each epoch.

    They are `epoch_speed/step_seconds`, `epoch_speed/examples_per_second`,
    `epoch_speed/waiting_for_input`, `epoch_speed/memory_gb` and
    `epoch_speed/seconds_left`; they are not in the history.

    Args:
        folder: string or path.
        throughput: `Throughput`, called before this callback.
    """

    def __init__(self, folder, throughput):
        super().__init__(str(folder), write_graph=False)
        self.throughput = throughput

    def on_epoch_end(self, epoch, logs=None):
        speed = {f"speed/{key}": x for key, x in self.throughput.numbers().items()}
        super().on_epoch_end(epoch, {**(logs or {}), **speed})
