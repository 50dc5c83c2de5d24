"""What a classifier says about labeled examples."""

from typing import NamedTuple

import numpy as np
from keras import ops

from keras_bridle.models.bridle_classifier import probabilities_of
from keras_bridle.pretraining.nonfinite_steps import NonFiniteLoss


class Predictions(NamedTuple):
    """Scores of examples, and their labels.

    Attributes:
        scores: float array of shape `(rows, classes)`, probabilities.
        labels: array of shape `(rows,)` or `(rows, classes)`.
        places: int array of shape `(rows,)`, which examples these are: files that
            cannot be read have no row.
    """

    scores: np.ndarray
    labels: np.ndarray
    places: np.ndarray


def predict_examples(model, examples, batch_size=32):
    """Classifies examples.

    Args:
        model: `FineTuner`.
        examples: `ArrayExamples` or `FileExamples`; or a list of such, several views of
            the same examples (see `multi_view`), whose probabilities are averaged.
        batch_size: int.

    Returns:
        `Predictions`.

    Raises:
        ValueError: if none can be read, or views are of different examples.
        NonFiniteLoss: if scores are infinite or no numbers.

    Example:
    ```python
    import numpy as np
    from keras_bridle import BridleBackbone, BridleImageClassifier
    from keras_bridle.fine_tuning import ArrayExamples, FineTuner, predict_examples

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    tuner = FineTuner(BridleImageClassifier(backbone, num_classes=3))
    examples = ArrayExamples(np.random.rand(5, 32, 32, 1), np.arange(5) % 3)
    print(predict_examples(tuner, examples).scores.shape)  # (5, 3)
    ```
    """
    views = examples if isinstance(examples, list) else [examples]
    if len({len(view) for view in views}) != 1:
        raise ValueError(
            "Views must be of the same examples. Received: views of "
            f"{[len(view) for view in views]} examples"
        )
    num_classes = model.classifier.num_classes
    total = np.zeros((len(views[0]), num_classes))
    count = np.zeros(len(views[0]))
    for view in views:
        for inputs, places in view.batches_in_order(batch_size):
            total[places] += _probabilities(model, inputs, batch_size)
            count[places] += 1
    places = np.flatnonzero(count)
    if not len(places):
        raise ValueError("None of the examples can be read")
    scores = total[places] / count[places, None]
    if not np.isfinite(scores).all():
        raise NonFiniteLoss(
            "Training made the classifier's scores infinite or no numbers. A lower "
            "`learning_rate` or `clip_norm` may help"
        )
    return Predictions(scores, views[0].labels[places], places)


def _probabilities(model, inputs, batch_size):
    """Probabilities of a batch, computed in float64."""
    number = len(inputs)
    if number < batch_size:
        # Filled up to the size of the others, for which the step is compiled.
        filling = np.repeat(inputs[-1:], batch_size - number, axis=0)
        inputs = np.concatenate([inputs, filling])
    logits = model.predict_on_batch(inputs)["logits"]
    logits = np.asarray(ops.convert_to_numpy(logits), "float64")[:number]
    return probabilities_of(logits, model.classifier.multi_label)
