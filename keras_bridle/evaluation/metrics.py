"""Scores of classifiers and of codebooks."""

from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np


def check_features(name, features):
    """Returns features as a finite float64 array of shape `(rows, dim)`."""
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(
            f"{name} must have shape (rows, dim) without empty axes; received shape "
            f"{features.shape}"
        )
    features = features.astype("float64")
    if not np.isfinite(features).all():
        rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise ValueError(
            f"{name} must be finite; received NaN or infinity in {len(rows)} of "
            f"{len(features)} rows, first in row {rows[0]}"
        )
    return features


def check_labels(name, labels):
    """Returns labels as an array of shape `(rows,)` of integers or strings."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iubUS":
        raise ValueError(
            f"{name} must be a vector of integers or strings; received shape "
            f"{labels.shape}, dtype {labels.dtype}"
        )
    return labels


def check_split(train_features, train_labels, test_features, test_labels):
    """Returns both feature arrays after checking that all four arguments fit."""
    train_features = check_features("train_features", train_features)
    test_features = check_features("test_features", test_features)
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            "train_features and test_features must have the same dim; received "
            f"{train_features.shape[1]} and {test_features.shape[1]}"
        )
    for name, features, labels in (
        ("train", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        labels = check_labels(f"{name}_labels", labels)
        if len(labels) != len(features):
            raise ValueError(
                f"{name}_labels must have one label for each of the "
                f"{len(features)} rows of {name}_features; received {len(labels)}"
            )
    kinds = np.asarray(train_labels).dtype.kind, np.asarray(test_labels).dtype.kind
    if (kinds[0] in "US") != (kinds[1] in "US"):
        raise ValueError(
            "train_labels and test_labels must be of one type; received dtypes "
            f"{np.asarray(train_labels).dtype} and {np.asarray(test_labels).dtype}"
        )
    return train_features, test_features


class ClassificationMetrics(NamedTuple):
    """How well scores tell classes apart.

    Args:
        accuracy: float, the share of rows whose highest score is their class';
            `None` for multi-label data.
        top5: float, the share of rows whose class is among the 5 highest scores;
            `None` for multi-label data, and where there are 5 classes or fewer.
        mean_average_precision: float, "mAP": the average precision of each class over
            all rows, averaged over the classes that occur.
        area_under_curve: float, "AUC": the area under the ROC curve of each class,
            averaged over the classes that some rows have and others have not.
        d_prime: float, the distance in standard deviations between two normal
            distributions of scores that would give this area; infinite for an area of
            1.
        per_class: list with a dict for each class, as `probe_table` and `write_results`
            take them: `"name"`, `"examples"` and, `None` where it is not defined,
            `"accuracy"`, `"average precision"` and `"AUC"`.
        excluded: tuple of strings, the classes that do not occur in the labels and so
            are left out of the means.
        confusion: int array of shape `(classes, classes)`, how many rows of each class
            (first axis) were taken for which (second axis); `None` for multi-label
            data.
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
        """Gives the means alone, as one line for `probe_table` or `write_results`."""
        found = {
            "accuracy": self.accuracy,
            "top-5": self.top5,
            "mAP": self.mean_average_precision,
            "AUC": self.area_under_curve,
            # Text: tables show floats in percent.
            "d'": f"{self.d_prime:.3f}",
        }
        return {name: value for name, value in found.items() if value is not None}


def classification_metrics(labels, scores, class_names=None):
    """Scores predictions of one class, or of several, for each row.

    Args:
        labels: int array of shape `(rows,)`; or, for multi-label data, an array of
            zeros and ones of shape `(rows, classes)`.
        scores: float array of shape `(rows, classes)`. Logits do as well as
            probabilities. Of equal scores in a row, the first class' counts as the
            highest.
        class_names: optional sequence of strings; numbers by default.

    Returns:
        A `ClassificationMetrics`. Averages leave out classes that do not occur, which
        `excluded` names; of none at all they are NaN.

    Raises:
        ValueError: if shapes or values do not fit.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation.metrics import classification_metrics

    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.4, 0.0]])
    metrics = classification_metrics([0, 1, 1], scores, ["cat", "dog", "owl"])
    print(metrics.summary())
    assert np.isclose(metrics.accuracy, 2 / 3) and metrics.excluded == ("owl",)
    ```

    Reference:
        - [Gemmeke et al., 2017](https://research.google/pubs/pub45857/), for mAP
        - [Kong et al., 2019](https://arxiv.org/abs/1903.00765), for d'
    """
    # One class is something to tell only where an example may have none.
    scores = _check_scores(scores, 1 if np.ndim(labels) == 2 else 2)
    rows, classes = scores.shape
    hot, labels = check_targets("labels", labels, rows, classes)
    names = _check_names(class_names, classes)
    precisions = np.array(
        [_average_precision(hot[:, i], scores[:, i]) for i in range(classes)]
    )
    areas = np.array(
        [_area_under_curve(hot[:, i], scores[:, i]) for i in range(classes)]
    )
    accuracies: Any = [None] * classes
    accuracy = top5 = confusion = None
    if labels is not None:
        ranks = _ranks(scores, labels)
        accuracy = float(np.mean(ranks == 0))
        top5 = float(np.mean(ranks < 5)) if classes > 5 else None
        confusion = np.zeros((classes, classes), "int64")
        np.add.at(confusion, (labels, scores.argmax(axis=1)), 1)
        accuracies = [
            float(np.mean(ranks[labels == i] == 0)) if hot[:, i].any() else None
            for i in range(classes)
        ]
    area = _mean(areas)
    counts = hot.sum(axis=0)
    return ClassificationMetrics(
        accuracy=accuracy,
        top5=top5,
        mean_average_precision=_mean(precisions),
        area_under_curve=area,
        d_prime=_d_prime(area),
        per_class=[
            {
                "name": names[i],
                "examples": int(counts[i]),
                "accuracy": accuracies[i],
                "average precision": _or_none(precisions[i]),
                "AUC": _or_none(areas[i]),
            }
            for i in range(classes)
        ],
        excluded=tuple(names[i] for i in np.flatnonzero(counts == 0)),
        confusion=confusion,
    )


def check_targets(name, labels, rows, classes):
    """Checks labels of either kind.

    Args:
        name: string, of the argument, for messages.
        labels: as of `classification_metrics`.
        rows: int, how many there must be.
        classes: int.

    Returns:
        A tuple `(hot, numbers)`: a bool array of shape `(rows, classes)`, and an int
        array of shape `(rows,)`, or `None` for multi-label data.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2:
        if labels.shape != (rows, classes) or not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"{name} must be an array of zeros and ones of shape "
                f"({rows}, {classes}) for multi-label data; received shape "
                f"{labels.shape}, values {np.unique(labels)[:5].tolist()}"
            )
        return labels.astype(bool), None
    labels = check_labels(name, labels)
    if len(labels) != rows or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be {rows} ints, one for each row; received {len(labels)} of "
            f"dtype {labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{name} must lie between 0 and {classes - 1}; received {labels.min()} to "
            f"{labels.max()}"
        )
    return labels[:, None] == np.arange(classes), labels.astype("int64")


def _check_scores(scores, least_classes):
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.shape[0] < 1 or scores.shape[1] < least_classes:
        raise ValueError(
            "scores must have shape (rows, classes), with a row and, where each row "
            "has one class, two classes at least; received shape "
            f"{scores.shape}"
        )
    if not np.isfinite(scores).all():
        rows = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        raise ValueError(
            f"scores must be finite; received NaN or infinity in {len(rows)} of "
            f"{len(scores)} rows, first in row {rows[0]}"
        )
    return scores


def _check_names(class_names, classes):
    if class_names is None:
        return [str(number) for number in range(classes)]
    if len(class_names) != classes:
        raise ValueError(
            f"class_names must name the {classes} classes of scores; received "
            f"{len(class_names)}"
        )
    return [str(name) for name in class_names]


def _average_precision(is_positive, scores):
    """The area under the steps of precision over recall; NaN without positives."""
    positives = is_positive.sum()
    if positives == 0:
        return np.nan
    order = np.argsort(-scores, kind="stable")
    # Rows of equal scores are found together.
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(is_positive[order])[last]
    return np.sum(np.diff(found, prepend=0) * found / (last + 1)) / positives


def _area_under_curve(is_positive, scores):
    """The chance that a positive scores higher, ties by half; NaN if of one kind."""
    positives = int(is_positive.sum())
    negatives = len(is_positive) - positives
    if positives == 0 or negatives == 0:
        return np.nan
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    total = ranks[places][is_positive].sum()
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def _ranks(scores, labels):
    """How many classes of a row come before the right one."""
    right = scores[np.arange(len(scores)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    return np.sum((scores > right) | ((scores == right) & earlier), axis=1)


def _d_prime(area):
    if not 0 < area < 1:
        return {0.0: -np.inf, 1.0: np.inf}.get(area, np.nan)
    return 2**0.5 * NormalDist().inv_cdf(area)


def _mean(values):
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _or_none(value):
    return None if np.isnan(value) else float(value)


class CodeUsage(NamedTuple):
    """Usage of the codes of each level.

    Args:
        counts: int64 array of shape `(levels, codebook_size)`, how often each code
            occurs.
        usage: float64 array of shape `(levels,)`, share of the codes that occur.
        perplexity: float64 array of shape `(levels,)`, the exponential of the
            entropy: the number of equally frequent codes that would be as varied.
    """

    counts: np.ndarray
    usage: np.ndarray
    perplexity: np.ndarray


class PublishedCodeUsage(NamedTuple):
    """The three numbers by which the published evaluation describes a codebook.

    Args:
        usage_rate: float64 array of shape `(levels,)`, "CUR": the share of the codes
            that occur.
        entropy: float64 array of shape `(levels,)`, "UE": the entropy in bits.
        efficiency: float64 array of shape `(levels,)`, "ECU":
            `usage_rate / (entropy * ln(codebook_size))`, which mixes two logarithms;
            infinite where the entropy is 0.
    """

    usage_rate: np.ndarray
    entropy: np.ndarray
    efficiency: np.ndarray


def code_usage(codes, codebook_size):
    """Counts the codes of each level and says how evenly they are used.

    Args:
        codes: int array of shape `(..., levels)`, values from 0 to
            `codebook_size - 1`.
        codebook_size: int, the number of codes of a level.

    Returns:
        A `CodeUsage`.

    Raises:
        ValueError: if there are no codes, or any is out of range or no integer.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation.metrics import code_usage

    codes = np.array([[0, 3], [1, 3], [0, 3], [1, 3]])
    usage = code_usage(codes, codebook_size=4)
    assert usage.usage.tolist() == [0.5, 0.25]
    assert np.allclose(usage.perplexity, [2, 1])
    ```
    """
    counts = _count_codes(codes, codebook_size)
    shares = counts / counts.sum(axis=1, keepdims=True)
    logs = np.log(np.where(counts > 0, shares, 1.0))
    return CodeUsage(
        counts=counts,
        usage=(counts > 0).mean(axis=1),
        perplexity=np.exp(-np.sum(shares * logs, axis=1)),
    )


def published_code_usage(codes, codebook_size):
    """Returns usage rate, entropy and efficiency as the published code does.

    For comparison with numbers that come out of it; `code_usage` has the sounder
    ones. Its entropy is a float32 sum, repeated here in the same order of additions,
    so that all digits agree.

    Args:
        codes: int array of shape `(..., levels)`, values from 0 to
            `codebook_size - 1`.
        codebook_size: int, the number of codes of a level.

    Returns:
        A `PublishedCodeUsage`.

    Raises:
        ValueError: if there are no codes, or any is out of range or no integer.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation.metrics import published_code_usage

    usage = published_code_usage(np.array([[0], [1], [0], [1]]), codebook_size=4)
    assert usage.entropy.tolist() == [1.0]  # bits
    ```

    Reference:
        [BRIDLE, 2025](https://arxiv.org/abs/2502.02118).
    """
    return published_usage_of_counts(_count_codes(codes, codebook_size))


def published_usage_of_counts(counts):
    """Returns the same as `published_code_usage` of codes that have been counted.

    Args:
        counts: int array of shape `(levels, codebook_size)`, how often each code
            occurs.

    Returns:
        A `PublishedCodeUsage`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation.metrics import published_usage_of_counts

    print(published_usage_of_counts(np.array([[2, 2, 0, 0]])).entropy)  # [1.]
    ```
    """
    usage_rate = (counts > 0).mean(axis=1)
    entropy = np.array([_float32_entropy(level[level > 0]) for level in counts])
    with np.errstate(divide="ignore"):
        # abs: the entropy of a single code is -0.0.
        efficiency = usage_rate / np.abs(entropy * np.log(counts.shape[1]))
    return PublishedCodeUsage(usage_rate, entropy, efficiency)


def _count_codes(codes, codebook_size):
    codes = np.asarray(codes)
    if codebook_size < 2:
        raise ValueError(f"codebook_size must be at least 2; received {codebook_size}")
    if codes.ndim < 2 or codes.size == 0 or codes.dtype.kind not in "iu":
        raise ValueError(
            "codes must be a non-empty array of integers of shape (..., levels); "
            f"received shape {codes.shape}, dtype {codes.dtype}"
        )
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise ValueError(
            f"codes must lie between 0 and codebook_size - 1 = {codebook_size - 1}; "
            f"received {codes.min()} to {codes.max()}"
        )
    levels = codes.reshape(-1, codes.shape[-1]).T
    return np.stack([np.bincount(level, minlength=codebook_size) for level in levels])


def _float32_entropy(counts):
    shares = counts.astype("float32") / np.float32(counts.sum())
    # float64 in between: NumPy's float32 logarithm may miss the last bit.
    logs = np.log2(shares.astype("float64")).astype("float32")
    return -float(_float32_sum(shares * logs))


def _float32_sum(values):
    """Adds float32 values in the order in which PyTorch does on a CPU.

    Eight lanes side by side, four rows at a time; what is left over goes first.
    """
    lanes = 8 if len(values) >= 8 else 1
    whole = len(values) // lanes * lanes
    total = _column_sums(values[:whole].reshape(-1, lanes))
    if lanes == 1:
        return total[0]
    result = np.float32(0)
    for value in [*values[whole:], *total]:
        result += value
    return result


def _column_sums(rows):
    blocks = rows[: len(rows) // 4 * 4].reshape(-1, 4, rows.shape[1])
    # Every 16 additions a sum moves up a level, which keeps the rounding small.
    sums = np.zeros((4, *blocks.shape[1:]), "float32")
    for count, block in enumerate(blocks, start=1):
        sums[0] += block
        for level in range(1, 4):
            if count % 16**level:
                break
            sums[level] += sums[level - 1]
            sums[level - 1] = 0
    for level in range(1, 4):
        sums[0] += sums[level]
    result = sums[0]
    for row in rows[len(blocks) * 4 :]:
        result[0] += row
    for column in range(1, 4):
        result[0] += result[column]
    return result[0]
