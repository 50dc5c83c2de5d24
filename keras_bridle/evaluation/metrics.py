"""Scores of classifiers and of codebooks."""

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import entropy, norm
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from keras_bridle.config import ArgumentError, check
from keras_bridle.models.inputs import as_labels

OF_A_CLASS = ("accuracy", "average precision", "AUC")


class ClassificationMetrics(NamedTuple):
    """Metrics of a classifier's scores.

    `accuracy`, `top5` (with more than 5 classes) and `confusion` (true classes first)
    are `None` for multi-label data. `mean_average_precision` and `area_under_curve` are
    means over the classes with labels, and `d_prime` is the distance of two normal
    distributions with that area. `per_class` has a dict for each class, for
    `probe_table` and `write_results`; `excluded` names the classes without examples.
    """

    accuracy: float | None
    top5: float | None
    mean_average_precision: float
    area_under_curve: float
    d_prime: float
    per_class: list[dict[str, Any]]
    excluded: tuple[str, ...]
    confusion: np.ndarray | None

    def summary(self):
        """Returns the means as a row for `probe_table()`."""
        found = {
            "accuracy": self.accuracy,
            "top-5": self.top5,
            "mAP": self.mean_average_precision,
            "AUC": self.area_under_curve,
            # A string, as tables show floats in percent.
            "d'": f"{self.d_prime:.3f}",
        }
        return {name: value for name, value in found.items() if value is not None}


def classification_metrics(labels, scores, class_names=None):
    """Computes metrics of logits or probabilities, one row for each example.

    `labels` are ints `(rows,)` or, for multi-label data, zeros and ones `(rows,
    classes)`. Ties go to the first class. References: [Gemmeke et al.,
    2017](https://research.google/pubs/pub45857/) for mAP, [Kong et al.,
    2019](https://arxiv.org/abs/1903.00765) for d'.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size or not np.isfinite(scores).all():
        raise ArgumentError("scores", "finite, of shape (rows, classes)", scores)
    classes = scores.shape[1]
    hot, labels = check_targets("labels", labels, len(scores), classes, class_names)
    names = list(map(str, range(classes) if class_names is None else class_names))
    check(len(names) == classes, "class_names", f"{classes} names", class_names)
    predicted = accuracy = top5 = confusion = None
    if labels is not None:
        order = np.argsort(-scores, axis=1, kind="stable")
        predicted = order[:, 0]
        accuracy = float(np.mean(predicted == labels))
        if classes > 5:
            top5 = float(np.mean((order[:, :5] == labels[:, None]).any(axis=1)))
        confusion = confusion_matrix(labels, predicted, labels=range(classes))
    per_class = []
    for index, (name, is_true) in enumerate(zip(names, hot.T, strict=True)):
        row: dict[str, Any] = {"name": name, "examples": int(is_true.sum())}
        row |= dict.fromkeys(OF_A_CLASS)
        if is_true.any():
            if predicted is not None:
                row["accuracy"] = float(np.mean(predicted[is_true] == index))
            precision = average_precision_score(is_true, scores[:, index])
            row["average precision"] = float(precision)
            if not is_true.all():
                row["AUC"] = float(roc_auc_score(is_true, scores[:, index]))
        per_class.append(row)
    area = mean_of(per_class, "AUC", np.nan)
    return ClassificationMetrics(
        accuracy=accuracy,
        top5=top5,
        mean_average_precision=mean_of(per_class, "average precision", np.nan),
        area_under_curve=area,
        d_prime=float(2**0.5 * norm.ppf(area)),
        per_class=per_class,
        excluded=tuple(row["name"] for row in per_class if not row["examples"]),
        confusion=confusion,
    )


def mean_of(rows, name, default=None):
    """Returns the mean of a metric over the rows that have it."""
    known = [row[name] for row in rows if row[name] is not None]
    return float(np.mean(known)) if known else default


def check_targets(name, labels, rows, classes, class_names=None):
    """Returns labels as bools `(rows, classes)`, and as ints or `None`."""
    labels = as_labels(labels, classes, class_names, np.ndim(labels) == 2, name)
    if len(labels) != rows or (labels.ndim == 2 and not np.isin(labels, (0, 1)).all()):
        expected = f"{rows} class numbers or rows of zeros and ones"
        raise ArgumentError(name, expected, labels)
    if labels.ndim == 2:
        return labels.astype(bool), None
    return labels[:, None] == np.arange(classes), labels.astype("int64")


class CodeUsage(NamedTuple):
    """How often the codes of each level occur.

    Args:
        counts: int64 array of shape `(levels, codebook_size)`.
        usage: float64 array of shape `(levels,)`, share of the codes that occur.
        perplexity: float64 array of shape `(levels,)`, the exponential of the entropy:
            the equivalent number of equally frequent codes.
    """

    counts: np.ndarray
    usage: np.ndarray
    perplexity: np.ndarray

    def published(self):
        """CUR, UE and ECU of each level, as BRIDLE reports them.

        Usage rate, entropy in bits, and `CUR / (UE * ln(codebook_size))`, which mixes
        two logarithms; infinite where the entropy is 0.
        """
        bits = np.log2(self.perplexity)
        with np.errstate(divide="ignore"):
            efficiency = self.usage / (bits * np.log(self.counts.shape[1]))
        return {"CUR": self.usage, "UE": bits, "ECU": efficiency}


def code_usage(codes, codebook_size):
    """Computes how often and how evenly the codes of each level are used.

    Args:
        codes: int array of shape `(..., levels)`, values from 0 to
            `codebook_size - 1`.
        codebook_size: int, the number of codes of a level.

    Returns:
        `CodeUsage`.

    Raises:
        ValueError: if there are no codes, or any is out of range.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation.metrics import code_usage

    codes = np.array([[0, 3], [1, 3], [0, 3], [1, 3]])
    usage = code_usage(codes, codebook_size=4)
    assert usage.usage.tolist() == [0.5, 0.25]
    assert np.allclose(usage.perplexity, [2, 1])
    ```

    Reference:
        [BRIDLE, 2025](https://arxiv.org/abs/2502.02118), for `CodeUsage.published()`
    """
    codes = np.asarray(codes)
    if codes.ndim < 2 or not 0 <= codes.min(initial=0) <= codes.max() < codebook_size:
        expected = f"ints from 0 to {codebook_size - 1} of shape (..., levels)"
        raise ArgumentError("codes", expected, codes)
    levels = codes.reshape(-1, codes.shape[-1]).T
    counts = np.stack([np.bincount(x, minlength=codebook_size) for x in levels])
    perplexity = np.exp(entropy(counts, axis=1))
    return CodeUsage(counts, (counts > 0).mean(axis=1), perplexity)
