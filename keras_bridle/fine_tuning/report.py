"""What a fine-tuning leaves behind: tables and pictures."""

from pathlib import Path

import numpy as np

from keras_bridle.evaluation.classification import classification_metrics
from keras_bridle.evaluation.confusion_plot import plot_confusion_matrix
from keras_bridle.evaluation.report import probe_table, write_in_all_forms


def report_predictions(predictions, class_names, folder, name="test", console=None):
    """Scores predictions, writes tables and the picture of confusions.

    Args:
        predictions: `Predictions`.
        class_names: list of strings.
        folder: string or path; it gets `metrics` and `per_class` as `.json`, `.csv` and
            `.md`, the scores as `predictions.npz`, and `confusion.png` where examples
            have one class each.
        name: string, the line in the table of metrics.
        console: optional `rich.console.Console`, to show the tables on.

    Returns:
        `keras_bridle.evaluation.ClassificationMetrics`.

    Example:
    ```python
    import tempfile
    import numpy as np
    from keras_bridle.fine_tuning import Predictions, report_predictions

    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    predictions = Predictions(scores, np.array([0, 1, 1]), np.arange(3))
    with tempfile.TemporaryDirectory() as folder:
        print(report_predictions(predictions, ["cat", "dog"], folder).accuracy)
    ```
    """
    folder = Path(folder)
    metrics = classification_metrics(
        predictions.labels, predictions.scores, class_names
    )
    rows = [{"name": name, **metrics.summary()}]
    write_in_all_forms(folder / "metrics", rows)
    write_in_all_forms(folder / "per_class", metrics.per_class)
    np.savez(folder / "predictions.npz", **predictions._asdict())
    if metrics.confusion is not None:
        path = folder / "confusion.png"
        plot_confusion_matrix(metrics.confusion, path, class_names)
    if console is not None:
        if len(class_names) <= 60:
            console.print(probe_table(metrics.per_class, title="By class"))
        console.print(probe_table(rows, title="Held-out examples"))
    return metrics
