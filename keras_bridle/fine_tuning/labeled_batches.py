"""Batches of arrays and their labels, in an order of seed and epoch alone."""

import keras
import numpy as np

from keras_bridle.fine_tuning.sampling import epoch_order
from keras_bridle.pretraining.array_batches import in_floatx


class LabeledBatches(keras.utils.PyDataset):
    """Serves arrays with labels in shuffled or sampled batches of one size.

    Args:
        inputs: array of shape `(num_examples, ...)`.
        labels: array of shape `(num_examples,)` or `(num_examples, classes)`.
        batch_size: int; more than an epoch has means all of them.
        seed: int.
        initial_epoch: int, the epoch to start with.
        weights: optional array of shape `(num_examples,)` that sums to 1, by which
            examples are drawn with replacement, see `balanced_weights()`.
        epoch_length: optional int, examples of an epoch.
        **kwargs: keyword arguments of `keras.utils.PyDataset`.

    Raises:
        ValueError: if there are no examples, or not a label for each.

    Example:
    ```python
    import numpy as np
    from keras_bridle.fine_tuning import LabeledBatches

    batches = LabeledBatches(np.eye(10), np.arange(10), batch_size=4)
    inputs, labels = batches[0]
    print(len(batches), inputs.shape, labels)
    ```
    """

    def __init__(
        self,
        inputs,
        labels,
        batch_size,
        seed=0,
        initial_epoch=0,
        weights=None,
        epoch_length=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if len(inputs) == 0 or len(inputs) != len(labels):
            raise ValueError(
                "There must be examples, and a label for each. "
                f"Received: {len(inputs)} inputs and {len(labels)} labels"
            )
        if batch_size < 1:
            raise ValueError(
                f"`batch_size` must be positive. Received: batch_size={batch_size}"
            )
        self.inputs = inputs
        self.labels = labels
        self.seed = seed
        self.weights = weights
        self.epoch_length = epoch_length
        self.start_epoch(initial_epoch)
        self.batch_size = min(batch_size, len(self._order))

    def start_epoch(self, epoch):
        """Puts the examples in the order of an epoch, counted from 0."""
        self.epoch = epoch
        self._order = epoch_order(
            len(self.inputs), self.seed, epoch, self.weights, self.epoch_length
        )

    def on_epoch_end(self):
        """Goes on to the next epoch's order."""
        self.start_epoch(self.epoch + 1)

    def __len__(self):
        return len(self._order) // self.batch_size

    def __getitem__(self, index):
        start = index * self.batch_size
        places = np.sort(self._order[start : start + self.batch_size])
        return in_floatx(self.inputs[places]), self.labels[places]
