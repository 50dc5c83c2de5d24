"""Scores a classifier after each epoch and keeps the best weights."""

import contextlib
from pathlib import Path

import keras
import numpy as np

from keras_bridle.evaluation.classification import classification_metrics
from keras_bridle.fine_tuning.predictions import predict_examples
from keras_bridle.pretraining.atomic_files import atomic_file

METRICS = ("accuracy", "mAP")


class ValidationScores(keras.callbacks.Callback):
    """Adds exact scores on held-out examples to the logs, and keeps the best weights.

    Mean average precision needs the scores of all examples at once, so that no metric
    of Keras, which sees batches, can do it. Where the optimizer averages weights
    (`use_ema=True`), the averages are scored and kept, as they are what training ends
    with. Put the callback before those that write logs.

    Args:
        examples: `ArrayExamples` or `FileExamples`.
        path: string or path ending in `.weights.h5`, the classifier's best weights.
        metric: string, which score decides: `"accuracy"` or `"mAP"`.
        batch_size: int.

    Raises:
        NonFiniteLoss: in `fit()`, if the classifier's scores are infinite or no
            numbers.

    Attributes:
        best: the best score so far; set it to what a run before had reached.
        best_epoch: int, the epoch that reached it, from 0.

    Example:
    ```python
    import os
    import tempfile
    import keras
    import numpy as np
    from keras_bridle import BridleBackbone, BridleImageClassifier
    from keras_bridle.fine_tuning import ArrayExamples, FineTuner, ValidationScores

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    tuner = FineTuner(BridleImageClassifier(backbone, num_classes=2))
    tuner.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    images, labels = np.random.rand(8, 32, 32, 1), np.arange(8) % 2
    path = os.path.join(tempfile.mkdtemp(), "best.weights.h5")
    scores = ValidationScores(ArrayExamples(images, labels), path)
    history = tuner.fit(images, labels, callbacks=[scores], verbose=0).history
    print(history["val_accuracy"], scores.best)
    ```
    """

    def __init__(self, examples, path, metric="accuracy", batch_size=32):
        super().__init__()
        if metric not in METRICS:
            raise ValueError(f"`metric` must be one of {METRICS}. Received: {metric!r}")
        self.examples = examples
        self.path = Path(path)
        self.metric = metric
        self.batch_size = batch_size
        self.best = float("-inf")
        self.best_epoch = -1

    def restore(self, logs):
        """Goes on from the logs of the epochs that are done."""
        for epoch, values in enumerate(logs):
            self._note(epoch, values)

    def on_epoch_end(self, epoch, logs=None):
        with averaged_weights(self.model):
            found = predict_examples(self.model, self.examples, self.batch_size)
            metrics = classification_metrics(found.labels, found.scores)
            scores = {"val_mAP": metrics.mean_average_precision}
            if metrics.accuracy is not None:
                scores["val_accuracy"] = metrics.accuracy
            if logs is not None:
                logs.update(scores)
            if self._note(epoch, scores):
                with atomic_file(self.path) as unfinished:
                    self.model.classifier.save_weights(unfinished)

    def _note(self, epoch, scores):
        value = scores[f"val_{self.metric}"]
        is_best = value > self.best
        if is_best:
            self.best, self.best_epoch = value, epoch
        return is_best


@contextlib.contextmanager
def averaged_weights(model):
    """Lets a model have its averaged weights for a while, if its optimizer has any.

    Args:
        model: a compiled Keras model.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.fine_tuning.validation_scores import averaged_weights

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(use_ema=True), "mse")
    model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    with averaged_weights(model):
        print(model.predict(np.ones((1, 4)), verbose=0))
    ```
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not getattr(optimizer, "use_ema", False):
        yield
        return
    # Keras' SwapEMAWeights gives weights back by sums and differences on TensorFlow,
    # and so not to the last bit.
    variables = model.trainable_variables
    kept = _values(variables)
    optimizer.finalize_variable_values(variables)
    # On JAX these are the averages themselves, which a step would use up.
    _assign(variables, _values(variables))
    try:
        yield
    finally:
        _assign(variables, kept)


def _values(variables):
    return [np.copy(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
