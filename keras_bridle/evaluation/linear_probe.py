"""Linear probe: how much a linear classifier reads out of frozen features."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from keras_bridle.evaluation.checks import check_labels, check_split

# Half decades; weaker ones than 10 no longer change the answers on standardized
# features.
REGULARIZATIONS = tuple(10.0 ** (power / 2) for power in range(-7, 3))


class ProbeResult(NamedTuple):
    """What a linear probe found.

    Args:
        accuracy: float, share of the test rows that were classified rightly.
        majority: float, the same share when every test row gets the most frequent
            class of the training rows.
        chance: float, one over the number of training classes.
        per_class: dict from class to the accuracy on that class' test rows.
        regularization: float, the inverse penalty that cross-validation chose
            (`C` in scikit-learn: small is strong).
        validation_accuracy: float, the cross-validated accuracy on the training rows,
            of the penalties next to that choice.
        predictions: array of shape `(test_rows,)`, the predicted classes.
        classes: array of shape `(classes,)`, the training classes, sorted.
        scores: float array of shape `(test_rows, classes)`, the logarithms of their
            probabilities.
    """

    accuracy: float
    majority: float
    chance: float
    per_class: dict[Any, float]
    regularization: float
    validation_accuracy: float
    predictions: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def linear_probe(
    train_features,
    train_labels,
    test_features,
    test_labels,
    groups=None,
    regularizations=REGULARIZATIONS,
    folds=4,
    seed=0,
):
    """Fits multinomial logistic regression on frozen features and scores it.

    The features are standardized with the mean and standard deviation of the
    training rows, which is the batch normalization without scale and offset that
    probes of masked autoencoders put before their linear head. The strength of the
    penalty is chosen by stratified cross-validation on the training rows: the test
    rows take part in nothing but the final score. What counts there is the likelihood
    of the held-out labels, and of penalties that come near each other the mean is
    taken, so that rounding in the features does not change the choice: held-out
    accuracies of weak penalties differ by less than such rounding moves them.

    Args:
        train_features: array of shape `(train_rows, dim)`.
        train_labels: array or list of shape `(train_rows,)`, integers or strings.
        test_features: array of shape `(test_rows, dim)`.
        test_labels: array or list of shape `(test_rows,)`. Classes that the training
            rows lack count as errors.
        groups: optional array or list of shape `(train_rows,)`. Rows of one group
            (one speaker, one syllable) stay in one fold. Give it when the test
            groups are others than the training ones: without it cross-validation
            rewards memorizing groups, and chooses too weak a penalty.
        regularizations: sequence of floats, the inverse penalties to choose from or
            between. A single one is used without cross-validation
            (`validation_accuracy` is then NaN).
        folds: int, at least 2, the number of cross-validation folds.
        seed: int, seeds the folds.

    Returns:
        A `ProbeResult`.

    Raises:
        ValueError: if shapes, lengths, values or numbers of classes do not fit.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation import linear_probe

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    features = rng.normal(size=(200, 16)) + 4 * np.eye(3, 16)[labels]
    result = linear_probe(features[:150], labels[:150], features[150:], labels[150:])
    assert result.accuracy > 0.8
    ```

    Reference:
        [He et al., 2022](https://arxiv.org/abs/2111.06377), appendix A.1, for the
        normalization.
    """
    train_features, test_features = check_split(
        train_features, train_labels, test_features, test_labels
    )
    train_labels = check_labels("train_labels", train_labels)
    test_labels = check_labels("test_labels", test_labels)
    classes, targets, sizes = np.unique(
        train_labels, return_inverse=True, return_counts=True
    )
    if len(classes) < 2:
        raise ValueError(
            "train_labels must hold at least 2 classes; received only "
            f"{classes.tolist()}"
        )
    regularizations = _check_regularizations(regularizations)
    mean, scale = _standardization(train_features)
    inputs = (train_features - mean) * scale
    test_inputs = (test_features - mean) * scale
    if inputs.shape[1] > inputs.shape[0]:
        # The solution is a sum of training rows: to see only what lies in their span
        # changes nothing but the time it takes.
        span = np.linalg.svd(inputs, full_matrices=False)[2].T
        inputs, test_inputs = inputs @ span, test_inputs @ span

    # One thread: the products are so small that more of them only wait for each
    # other, up to a hundred times longer on a busy machine.
    with threadpool_limits(1):
        if len(regularizations) == 1:
            chosen, validation_accuracy = regularizations[0], float("nan")
        else:
            fold_ids = _fold_ids(targets, groups, folds, seed)
            chosen, validation_accuracy = _cross_validate(
                inputs, targets, fold_ids, regularizations
            )
        # To the end: where it stops early depends on rounding.
        classifier = LogisticRegression(C=chosen, max_iter=5000, tol=1e-6)
        classifier.fit(inputs, targets)
        predictions = classes[classifier.predict(test_inputs)]
        scores = _log_shares(classifier.decision_function(test_inputs))

    right = predictions == test_labels
    return ProbeResult(
        accuracy=float(right.mean()),
        majority=float(np.mean(test_labels == classes[np.argmax(sizes)])),
        chance=1.0 / len(classes),
        per_class={
            name.item(): float(right[test_labels == name].mean())
            for name in np.unique(test_labels)
        },
        regularization=chosen,
        validation_accuracy=validation_accuracy,
        predictions=predictions,
        classes=classes,
        scores=scores,
    )


def _log_shares(logits):
    """Returns the logarithms of probabilities, finite however small these are."""
    if logits.ndim == 1:  # of two classes
        logits = np.stack([-logits / 2, logits / 2], axis=1)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def _check_regularizations(regularizations):
    values = sorted({float(value) for value in regularizations})
    if not values or values[0] <= 0 or not np.isfinite(values).all():
        raise ValueError(
            "regularizations must be one or more positive numbers; received "
            f"{regularizations!r}"
        )
    return values


def _standardization(features):
    """Returns the mean and the factor that make each column of unit variance."""
    mean = features.mean(axis=0)
    spread = features.std(axis=0)
    # A column that varies by no more than float32 rounding holds no information;
    # dividing by its spread would blow that rounding up.
    constant = spread <= 1e-6 * np.abs(features).max(axis=0)
    return mean, np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, spread))


def _fold_ids(targets, groups, folds, seed):
    """Deals rows (or whole groups) to folds, class by class, in random order."""
    if folds < 2:
        raise ValueError(f"folds must be at least 2; received {folds}")
    if groups is None:
        groups = np.arange(len(targets))
    groups = check_labels("groups", groups)
    if len(groups) != len(targets):
        raise ValueError(
            f"groups must have one entry for each of the {len(targets)} training "
            f"rows; received {len(groups)}"
        )
    names, first_rows, group_ids = np.unique(
        groups, return_index=True, return_inverse=True
    )
    if len(names) < folds:
        raise ValueError(
            f"groups must hold at least folds={folds} groups; received {len(names)}"
        )
    shuffled = np.random.default_rng(seed).permutation(len(names))
    by_class = shuffled[np.argsort(targets[first_rows][shuffled], kind="stable")]
    fold_of_group = np.empty(len(names), int)
    fold_of_group[by_class] = np.arange(len(names)) % folds
    return fold_of_group[group_ids]


def _cross_validate(inputs, targets, fold_ids, regularizations):
    """Returns the regularization that suits held-out rows, and the accuracy there."""
    folds = _folds(inputs, targets, fold_ids)
    losses, accuracies = [], []
    # From the strongest penalty on; each solution is the start of the next one's. Once
    # it is too weak it only gets worse, and takes the longest to fit.
    for regularization in regularizations:
        scores = [fold.score(regularization) for fold in folds]
        loss, accuracy = np.average(scores, axis=0, weights=[f.rows for f in folds])
        losses.append(loss)
        accuracies.append(accuracy)
        if len(losses) > np.argmin(losses) + 1:
            break
    # Weights by likelihood: all rows together tell two penalties apart, or do not.
    evidence = sum(fold.rows for fold in folds) * (min(losses) - np.array(losses))
    weights = np.exp(evidence) / np.exp(evidence).sum()
    exponents = np.log(regularizations[: len(losses)])
    return float(np.exp(weights @ exponents)), float(weights @ accuracies)


def _folds(inputs, targets, fold_ids):
    folds = []
    for fold in np.unique(fold_ids):
        is_held_out = fold_ids == fold
        # Of a class that is held out as a whole nothing can be known.
        known = np.isin(targets, targets[~is_held_out])
        if len(np.unique(targets[~is_held_out])) > 1 and (known & is_held_out).any():
            folds.append(_Fold(inputs, targets, ~is_held_out, known & is_held_out))
    if not folds:
        raise ValueError(
            "train_labels have too few rows or groups per class to cross-validate; "
            "give a single value as regularizations"
        )
    return folds


class _Fold:
    """One fold of the cross-validation, and the last classifier fit on the others."""

    def __init__(self, inputs, targets, training, held_out):
        self.training = inputs[training], targets[training]
        self.inputs, self.targets = inputs[held_out], targets[held_out]
        self.rows = len(self.targets)
        self.classifier = LogisticRegression(max_iter=200, tol=3e-4, warm_start=True)

    def score(self, regularization):
        """Returns the mean negative log-likelihood and the accuracy."""
        self.classifier.C = regularization
        with warnings.catch_warnings():
            # Choosing needs no full convergence.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.classifier.fit(*self.training)
        logs = self.classifier.predict_log_proba(self.inputs)
        places = np.searchsorted(self.classifier.classes_, self.targets)
        loss = -logs[np.arange(self.rows), places].mean()
        return loss, np.mean(logs.argmax(axis=1) == places)
