"""A frozen network, compiled once, and how batches go through it."""

from typing import Any

import keras
import numpy as np
from rich.progress import track


class FeatureExtractor:
    """A frozen network that gives one vector for each example, compiled but once.

    For features of several sets, or again and again while the network learns; see
    `extract_features` for those of one.

    Args:
        model: as of `extract_features`.
        pooling: likewise.
        segments: likewise.

    Call arguments:
        inputs: as of `extract_features`.
        batch_size: likewise.
        description: optional string, the text before a progress bar.

    Returns:
        float32 NumPy array of shape `(examples, dim)`.

    Raises:
        ValueError: as `extract_features`.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.evaluation import FeatureExtractor

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    extract = FeatureExtractor(model)
    train, test = extract(np.ones((10, 8))), extract(np.zeros((5, 8)))
    assert train.shape == (10, 4)
    ```
    """

    def __init__(self, model, pooling="mean", segments=1):
        if pooling != "mean" and not callable(pooling):
            raise ValueError(
                f'pooling must be "mean" or a function; received {pooling!r}'
            )
        if segments != 1 and not (
            pooling == "mean" and hasattr(model, "pooled_features")
        ):
            raise ValueError(
                'segments need pooling="mean" and a model with a method '
                f"`pooled_features`; received segments={segments}, "
                f"pooling={pooling!r}, model {model!r}"
            )
        self.network = InferenceModel(model, pooling, segments)

    def __call__(self, inputs, batch_size=32, description=None):
        features = run(self.network, inputs, batch_size, description)
        if features.ndim != 2:
            raise ValueError(
                "model and pooling must give features of shape (batch, dim); received "
                f"shape {features.shape}"
            )
        return features


class InferenceModel(keras.Model):
    """A network and its pooling as one model, so that Keras compiles them as one."""

    def __init__(self, network, pooling, segments=1):
        super().__init__(name="inference_model")
        self.network = network
        self.pooling = pooling
        self.segments = segments

    def call(self, inputs):
        if self.pooling == "mean" and hasattr(self.network, "pooled_features"):
            options = {} if self.segments == 1 else {"segments": self.segments}
            return self.network.pooled_features(inputs, **options)
        outputs = self.network(inputs)
        if callable(self.pooling):
            return self.pooling(outputs)
        if self.pooling == "mean" and len(outputs.shape) == 3:
            return keras.ops.mean(outputs, axis=1)
        return outputs


def run(network, inputs, batch_size, description=None):
    """Returns the outputs of all inputs; a description asks for a progress bar."""
    outputs = [
        np.asarray(output, "float32")
        for output, _ in run_batches(network, inputs, batch_size, description)
    ]
    if not outputs:
        raise ValueError("inputs must hold at least one example; received none")
    return np.concatenate(outputs)


def run_batches(network, inputs, batch_size, description=None):
    """Runs a network over inputs, batch by batch.

    Args:
        network: `keras.Model`, not compiled, of one tensor or a dict of them.
        inputs: as of `extract_features`.
        batch_size: int, likewise.
        description: optional string, the text before a progress bar.

    Yields:
        Tuples `(outputs, others)`: NumPy arrays of the real rows of a batch, and what
        came with these rows of inputs, such as labels, a tuple of NumPy arrays.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; received {batch_size}")
    if isinstance(inputs, (list, tuple, dict)):
        raise ValueError(
            "inputs must be one array or an iterable over batches such as a "
            f"tf.data.Dataset; received a {type(inputs).__name__}"
        )
    total = None
    if hasattr(inputs, "shape"):
        batch_size = max(1, min(batch_size, len(inputs)))
        total = -(-len(inputs) // batch_size)
        batches = _filled_batches([inputs], batch_size)
    else:
        batches = _filled_batches(inputs)
    if description is not None:
        batches = track(batches, description=description, total=total)
    if not network.compiled:
        network.compile()
    for batch, count, others in batches:
        outputs = network.predict_on_batch(batch)
        if isinstance(outputs, dict):
            outputs = {name: np.asarray(x)[:count] for name, x in outputs.items()}
        else:
            outputs = np.asarray(outputs)[:count]
        yield outputs, others


def _filled_batches(batches, size=None):
    """Yields batches of one size, how many rows are real, and what came with these."""
    for batch in batches:
        others: list[Any] = []
        if isinstance(batch, (tuple, list)):
            batch, *others = batch
        size = size or len(batch)
        for start in range(0, len(batch), size):
            rows = keras.ops.convert_to_numpy(batch[start : start + size])
            filling = np.repeat(rows[-1:], size - len(rows), axis=0)
            with_rows = tuple(
                keras.ops.convert_to_numpy(other[start : start + size])
                for other in others
            )
            yield np.concatenate([rows, filling]), len(rows), with_rows
