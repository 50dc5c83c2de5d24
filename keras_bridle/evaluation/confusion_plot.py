"""A picture of which classes are taken for which."""

import numpy as np
from matplotlib.figure import Figure

from keras_bridle.evaluation.glyphs import drawable_names
from keras_bridle.evaluation.plots import save_figure

# More names than these cannot be read, more numbers do not fit into their cells.
_MOST_NAMES = 60
_MOST_NUMBERS = 20


def plot_confusion_matrix(confusion, path, class_names=None, title=None, dpi=120):
    """Draws a confusion matrix, its cells as shares of the rows of the true class.

    Args:
        confusion: int array of shape `(classes, classes)`, true classes first, as of
            `ClassificationMetrics`. Classes that never occur are left white.
        path: string or path of the picture.
        class_names: optional sequence of strings; numbers by default, and where the
            font lacks letters. Of more than 60 classes no names are drawn.
        title: optional string.
        dpi: int, pixels per inch.

    Returns:
        The path, as a `pathlib.Path`.

    Raises:
        ValueError: if `confusion` has another shape or negative values, or names do not
            fit.

    Example:
    ```python
    import tempfile
    from keras_bridle.evaluation import plot_confusion_matrix

    confusion = [[8, 2, 0], [1, 9, 0], [0, 5, 5]]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/confusion.png"
        plot_confusion_matrix(confusion, path, ["cat", "dog", "owl"])
    ```
    """
    confusion = np.asarray(confusion)
    classes = len(confusion)
    if confusion.ndim != 2 or confusion.shape != (classes, classes) or not classes:
        raise ValueError(
            "confusion must have shape (classes, classes); received shape "
            f"{confusion.shape}"
        )
    if confusion.min() < 0:
        raise ValueError("confusion must not be negative")
    names = list(range(classes)) if class_names is None else list(class_names)
    if len(names) != classes:
        raise ValueError(
            f"class_names must name the {classes} classes; received {len(names)}"
        )
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.ma.masked_where(
        np.broadcast_to(totals == 0, confusion.shape), confusion / np.maximum(totals, 1)
    )
    names = drawable_names(names)
    named = classes <= _MOST_NAMES
    side = 3.0 + (0.32 if classes <= _MOST_NUMBERS else 0.17) * min(
        classes, _MOST_NAMES
    )
    figure = Figure(figsize=(side + 0.8, side), dpi=dpi, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    if title and drawable_names([title]) == [title]:
        axis.set_title(title, fontsize=11)
    if named:
        size = 8 if classes <= _MOST_NUMBERS else 6
        axis.set_xticks(range(classes), names, rotation=90, fontsize=size)
        axis.set_yticks(range(classes), names, fontsize=size)
    if classes <= _MOST_NUMBERS:
        _write_numbers(axis, confusion, shares)
    return save_figure(figure, path)


def _write_numbers(axis, confusion, shares):
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            axis.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                fontsize=6 if confusion.max() < 1000 else 5,
                color="white" if shares[row, column] > 0.5 else "0.2",
            )
