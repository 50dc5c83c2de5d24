"""Probes of frozen features."""

import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsRegressor
from sklearn.utils import check_array, check_consistent_length
from threadpoolctl import threadpool_limits

from keras_bridle.config import ArgumentError, check
from keras_bridle.evaluation.features import (
    FeatureExtractor,
    InputFeatures,
    PatchFeatures,
    joined,
)
from keras_bridle.evaluation.metrics import (
    OF_A_CLASS,
    check_targets,
    classification_metrics,
    mean_of,
)
from keras_bridle.models.inputs import as_array, as_labels

PROBES = ("linear", "dense", "knn", "attentive")
# Half decades. On standardized features, values above 10 no longer change the
# predictions.
REGULARIZATIONS = tuple(10.0 ** (power / 2) for power in range(-7, 3))


class ProbeResult(NamedTuple):
    """The result of `linear_probe()`."""

    accuracy: float
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

    The features are standardized by the training rows, like the batch normalization
    before the linear head in probes of masked autoencoders. Stratified cross-validation
    on the training rows chooses the penalty by the likelihood of held-out labels.
    Penalties of similar likelihood are averaged, so that rounding in the features does
    not change the choice.

    Args:
        train_features: array of shape `(train_rows, dim)`.
        train_labels: array or list of shape `(train_rows,)`, integers or strings.
        test_features: array of shape `(test_rows, dim)`.
        test_labels: array or list of shape `(test_rows,)`. Classes that the training
            rows lack count as errors.
        groups: optional array or list of shape `(train_rows,)`. Rows of one group, such
            as a speaker, stay in one fold. Give it when the test rows come from other
            groups; without it cross-validation rewards memorizing groups.
        regularizations: sequence of floats, the inverse penalties to choose from or
            between. A single one is used without cross-validation.
        folds: int, the number of cross-validation folds.
        seed: int, seeds the folds.

    Returns:
        `ProbeResult`, a named tuple: `accuracy`, the share of test rows classified
        correctly; `per_class`, a dict of it; `regularization`, the chosen inverse
        penalty; `validation_accuracy`, of held-out rows near it (NaN without
        cross-validation); `predictions`; the training `classes`, sorted; and `scores`,
        log-probabilities `(test_rows, classes)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation.probes import linear_probe

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
    train_features, test_features = _check_split(
        train_features, train_labels, test_features, test_labels
    )
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    classes, targets = np.unique(train_labels, return_inverse=True)
    check(len(classes) >= 2, "train_labels", "of 2 classes or more", classes)
    inputs, test_inputs = standardized(train_features, test_features)
    if inputs.shape[1] > inputs.shape[0]:
        # The solution lies in the span of the training rows, where fitting is faster.
        span = np.linalg.svd(inputs, full_matrices=False)[2].T
        inputs, test_inputs = inputs @ span, test_inputs @ span

    # The products are small, so threads mostly wait for each other: on a busy machine,
    # up to a hundred times longer.
    with threadpool_limits(1):
        chosen, validation_accuracy = _cross_validated(
            inputs, targets, groups, sorted(map(float, regularizations)), folds, seed
        )
        # Fit until convergence, as stopping earlier would depend on rounding.
        classifier = LogisticRegression(C=chosen, solver="newton-cg", tol=1e-6)
        classifier.fit(inputs, targets)
        logits = classifier.decision_function(test_inputs)
    if logits.ndim == 1:  # two classes
        logits = np.stack([-logits / 2, logits / 2], axis=1)
    predictions = classes[logits.argmax(axis=1)]
    is_right = predictions == test_labels
    return ProbeResult(
        accuracy=float(is_right.mean()),
        per_class={
            name.item(): float(is_right[test_labels == name].mean())
            for name in np.unique(test_labels)
        },
        regularization=chosen,
        validation_accuracy=validation_accuracy,
        predictions=predictions,
        classes=classes,
        # Not `predict_log_proba()`, which is not finite where probabilities are tiny.
        scores=log_softmax(logits, axis=1),
    )


def _check_split(train_features, train_labels, test_features, test_labels):
    """Checks features and labels, and returns features as finite float64."""
    train = check_array(train_features, dtype="float64", input_name="train_features")
    test = check_array(test_features, dtype="float64", input_name="test_features")
    check_consistent_length(train, train_labels)
    check_consistent_length(test, test_labels)
    for name, labels in (("train_labels", train_labels), ("test_labels", test_labels)):
        labels = as_array(labels)
        if labels.dtype == "O" and any(x is None or x != x for x in labels.ravel()):
            raise ArgumentError(name, "a class for each row", "None or NaN")
        if labels.ndim == 1 and labels.dtype.kind in "iuf":
            # -1 and NaN mean a missing label.
            as_labels(labels, sys.maxsize, rows=False, name=name)
    return train, test


def standardized(features, *others):
    """Standardizes columns, and those of `others` by the same mean and deviation."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    # A column that varies by no more than float32 rounding holds no information;
    # dividing by its spread would blow that rounding up.
    constant = spread <= 1e-6 * np.abs(features).max(axis=0)
    scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, spread))
    return [(x - mean) * scale for x in (features, *others)]


def _fold_ids(targets, groups, folds, seed):
    """Deals rows (or whole groups) to folds, class by class, in random order."""
    groups = np.arange(len(targets)) if groups is None else groups
    check_consistent_length(targets, groups)
    names, first_rows, group_ids = np.unique(
        groups, return_index=True, return_inverse=True
    )
    if not 2 <= folds <= len(names):
        raise ArgumentError("folds", f"2 to the {len(names)} groups of rows", folds)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    by_class = shuffled[np.argsort(targets[first_rows][shuffled], kind="stable")]
    fold_of_group = np.empty(len(names), int)
    fold_of_group[by_class] = np.arange(len(names)) % folds
    return fold_of_group[group_ids]


def _cross_validated(inputs, targets, groups, regularizations, num_folds, seed):
    """Returns the best regularization for held-out rows, and the accuracy there."""
    if len(regularizations) == 1:
        return regularizations[0], float("nan")
    folds = []
    fold_ids = _fold_ids(targets, groups, num_folds, seed)
    for fold in range(num_folds):
        training = fold_ids != fold
        # Ignore classes that are held out as a whole.
        held_out = ~training & np.isin(targets, targets[training])
        if len(np.unique(targets[training])) > 1 and held_out.any():
            model = LogisticRegression(solver="newton-cg", tol=1e-3, warm_start=True)
            folds.append((model, training, held_out))
    check(folds, "groups", "two or more for each class", groups)
    losses, accuracies = [], []
    rows = np.array([held_out.sum() for *_, held_out in folds])
    # Start with the strongest penalty, and each fit from the one before. Weak penalties
    # take longest to fit, so stop when the loss rises.
    for regularization in regularizations:
        scores = [_held_out(*fold, inputs, targets, regularization) for fold in folds]
        loss, accuracy = np.average(scores, axis=0, weights=rows)
        losses.append(loss)
        accuracies.append(accuracy)
        if len(losses) > np.argmin(losses) + 1:
            break
    # Average over penalties, weighted by the likelihood of all held-out rows.
    evidence = rows.sum() * (min(losses) - np.array(losses))
    weights = np.exp(evidence) / np.exp(evidence).sum()
    exponents = np.log(regularizations[: len(losses)])
    return float(np.exp(weights @ exponents)), float(weights @ accuracies)


def _held_out(model, training, held_out, inputs, targets, regularization):
    """Fits one fold, returns its mean negative log-likelihood and its accuracy."""
    with warnings.catch_warnings():
        # Model selection needs no full convergence.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.set_params(C=regularization).fit(inputs[training], targets[training])
    inputs, targets = inputs[held_out], targets[held_out]
    loss = log_loss(targets, model.predict_proba(inputs), labels=model.classes_)
    return loss, model.score(inputs, targets)


def knn_probe(
    train_features,
    train_labels,
    test_features,
    test_labels,
    neighbors=10,
    temperature=0.07,
):
    """Scores a vote of the nearest training rows by cosine similarity.

    It fits nothing, so it shows the geometry of the features.

    Args:
        train_features: array of shape `(train_rows, dim)`.
        train_labels: array or list of shape `(train_rows,)`, integers or strings.
        test_features: array of shape `(test_rows, dim)`.
        test_labels: array or list of shape `(test_rows,)`.
        neighbors: int, the number of training rows that vote.
        temperature: float or `None`. A neighbor of similarity `s` votes with weight
            `exp(s / temperature)`; `None` gives every neighbor one vote. A tie goes to
            the class that sorts first.

    Returns:
        float, the share of the test rows that are classified correctly.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation.probes import knn_probe

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    features = rng.normal(size=(200, 16)) + 4 * np.eye(3, 16)[labels]
    assert knn_probe(features[:150], labels[:150], features[150:], labels[150:]) > 0.8
    ```

    Reference:
        [Wu et al., 2018](https://arxiv.org/abs/1805.01978), section 3.4.
    """
    train, test = _check_split(train_features, train_labels, test_features, test_labels)
    classes, targets = np.unique(train_labels, return_inverse=True)
    hot = np.eye(len(classes))[targets]
    votes = neighbor_votes(train, hot, test, neighbors, temperature)
    return float(np.mean(classes[votes.argmax(axis=1)] == np.asarray(test_labels)))


def neighbor_votes(train, hot, test, neighbors=10, temperature=0.07):
    """Returns the share of the nearest training rows' votes for each class of `hot`."""
    if temperature is not None and temperature <= 0:
        raise ArgumentError("temperature", "positive or None", temperature)

    def weights(distances):
        if temperature is None:
            return np.ones_like(distances)
        # Relative to the nearest neighbor's distance, so that no weight overflows.
        return np.exp((distances[:, :1] - distances) / temperature)

    # The weighted mean of the neighbors' targets.
    votes = KNeighborsRegressor(neighbors, weights=weights, metric="cosine")
    return votes.fit(train, hot.astype("float64")).predict(test)


class AttentivePooling(keras.layers.Layer):
    """One vector from many: cross-attention of a learned query over real patches.

    References: [Yu et al., 2022](https://arxiv.org/abs/2205.01917), section 3.2;
    [Bardes et al., 2024](https://arxiv.org/abs/2404.08471), section 4.1.
    """

    def __init__(self, num_heads, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.seed = seed

    def build(self, patches_shape, is_real_shape=None):
        dim = patches_shape[-1]
        self.query = self.add_weight(
            shape=(1, 1, dim),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02, seed=self.seed),
            name="query",
        )
        self.attention = keras.layers.MultiHeadAttention(
            self.num_heads,
            dim // self.num_heads,
            kernel_initializer=keras.initializers.GlorotUniform(self.seed),
            dtype=self.dtype_policy,
        )
        self.attention.build((None, 1, dim), (None, None, dim))

    def call(self, patches, is_real):
        query = ops.repeat(self.query, ops.shape(patches)[0], axis=0)
        mask = is_real[:, None, :]
        return self.attention(query, patches, attention_mask=mask)[:, 0]


def dense_scores(train, hot, test, **options):
    """The published probe: [He et al., 2022](https://arxiv.org/abs/2111.06377), A.1."""
    inputs = keras.Input(train.shape[1:])
    features = keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-6, center=False, scale=False, dtype="float32"
    )(inputs)
    return _trained_scores([inputs], features, [train], hot, [test], **options)


def attentive_scores(train, hot, test, num_heads=None, seed=0, **options):
    """Trains an attentive probe, by default with heads of 64 channels."""
    _, patches, dim = train.patches.shape
    inputs = [keras.Input((patches, dim)), keras.Input((patches,), dtype="bool")]
    num_heads = num_heads or (dim // 64 if dim % 64 == 0 else 1)
    pooled = AttentivePooling(num_heads, seed, dtype="float32")(*inputs)
    features = keras.layers.LayerNormalization(epsilon=1e-6, dtype="float32")(pooled)
    defaults = {"epochs": 40, "learning_rate": 1e-3, "weight_decay": 0.01, "seed": seed}
    options = {**defaults, **options}
    return _trained_scores(inputs, features, [*train], hot, [*test], **options)


def _trained_scores(
    inputs,
    features,
    train,
    hot,
    test,
    epochs=100,
    learning_rate=3e-3,
    weight_decay=0.0,
    batch_size=64,
    seed=0,
    multi_label=False,
):
    """Trains a dense layer with AdamW and cosine decay; returns logits of test rows."""
    # Zeros: all classes start equal, whatever the seed.
    head = keras.layers.Dense(hot.shape[1], kernel_initializer="zeros", dtype="float32")
    model = keras.Model(inputs, head(features))
    losses = keras.losses
    loss = losses.BinaryCrossentropy if multi_label else losses.CategoricalCrossentropy
    batch_size = min(batch_size, len(hot))
    steps = len(hot) // batch_size
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=weight_decay)
    model.compile(optimizer, loss(from_logits=True))
    batches = _batches([*train, hot.astype("float32")], batch_size, seed)
    model.fit(batches, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=0)
    return model.predict(test, batch_size=batch_size, verbose=0)


def _batches(arrays, batch_size, seed):
    """Yields full batches of arrays endlessly; the last array has the targets."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(arrays[-1]))
        # A small last batch would distort the normalization's statistics.
        for start in range(0, len(order) - batch_size + 1, batch_size):
            *inputs, targets = (x[order[start : start + batch_size]] for x in arrays)
            yield tuple(inputs), targets


class ProbeData(NamedTuple):
    """Labeled examples to probe encoders with.

    `inputs` is a function of a backbone that returns an array, or a dataset of batches
    `(inputs, indices)`, where indices are rows of `labels`; unreadable rows are
    missing. `splits` lists pairs of training and test rows.
    """

    inputs: Callable
    labels: np.ndarray
    class_names: Any
    splits: list[tuple[np.ndarray, np.ndarray]]
    groups: np.ndarray | None = None


def probe_encoder(
    backbone,
    data,
    kinds,
    segments=1,
    batch_size=32,
    seed=0,
    options=None,
    most_gigabytes=8.0,
    plain=False,
):
    """Probes a frozen encoder, or with `plain` the `InputFeatures` of its inputs.

    Gives a dict from kind to the `ClassificationMetrics` of each split. `options` has
    more arguments of `probe()` by kind; `most_gigabytes` limits the patches in memory.
    """
    features: dict[str, Any] = {}
    found = {}
    for kind in kinds:
        per = "patch" if kind == "attentive" else "file"
        if plain and per == "patch":
            continue
        if per not in features:
            means = segments if per == "file" else 1
            extract: Any = FeatureExtractor(backbone, per=per, segments=means)
            extract = InputFeatures(backbone, segments) if plain else extract
            features[per] = _features(extract, data, batch_size, most_gigabytes)
        more = (options or {}).get(kind, {})
        vectors, rows = features[per]
        found[kind] = _of_splits(kind, vectors, rows, data, seed, more)
    return found


def mean_per_class(several):
    """Averages each class' metrics over the splits where they are defined."""
    return [
        {
            "name": rows[0]["name"],
            "examples": sum(row["examples"] for row in rows),
            **{name: mean_of(rows, name) for name in OF_A_CLASS},
        }
        for rows in zip(*(metrics.per_class for metrics in several), strict=True)
    ]


def _features(extract, data, batch_size, most_gigabytes):
    """Returns the features of all readable examples, and their indices."""
    parts, count, size = [], 0, 0
    for part, others in extract.batches(data.inputs(extract.backbone), batch_size):
        if "patches" in part:
            part["patches"] = part["patches"].astype("float16")
            size += part["patches"].nbytes
        start, count = count, count + len(next(iter(part.values())))
        parts.append(part | {"rows": others[0] if others else range(start, count)})
        gigabytes = size / count * len(data.labels) / 1e9
        if gigabytes > most_gigabytes:
            need = f"{gigabytes:.1f} GB of memory, more than {most_gigabytes:.1f}"
            raise ValueError(f"The patches of all examples would take {need}")
    found = joined(parts)
    rows = found.pop("rows")
    return found.get("features") if size == 0 else PatchFeatures(**found), rows


def _of_splits(kind, features, rows, data, seed, options):
    """Returns the `ClassificationMetrics` of each split."""
    # For each label, the row of its features, or -1 if the file was unreadable.
    position = np.full(len(data.labels), -1)
    position[rows] = np.arange(len(rows))
    found = []
    for split in data.splits:
        train, test = (part[position[part] >= 0] for part in split)
        if not (len(train) and len(test)):
            missing = "test" if len(train) else "training"
            raise ValueError(f"No {missing} example can be read.")
        if kind == "linear" and data.groups is not None:
            options = {**options, "groups": data.groups[train]}
        train, test = (
            (features[position[rows]], data.labels[rows]) for rows in (train, test)
        )
        found.append(probe(kind, *train, *test, data.class_names, seed, **options))
    return found


def probe(
    kind,
    train_features,
    train_labels,
    test_features,
    test_labels,
    class_names=None,
    seed=0,
    **options,
):
    """Fits a probe on training rows; returns `ClassificationMetrics` of test rows.

    `kind` is `"linear"` (`linear_probe()`), `"dense"` (the same as published), `"knn"`
    (`knn_probe()`) or `"attentive"` (cross-attention over `PatchFeatures`). Labels are
    ints or names, or rows of zeros and ones for several classes (not for `"linear"`).
    `options` depend on the kind.
    """
    check(kind in PROBES, "kind", f"one of {PROBES}", kind)
    train, test = train_features, test_features
    if kind != "attentive":
        train, test = _check_split(train, train_labels, test, test_labels)
    train_labels, test_labels = as_array(train_labels), as_array(test_labels)
    if class_names is None and train_labels.dtype.kind in "OSU":
        class_names = np.unique(train_labels).tolist()
    if class_names is not None:
        classes = len(class_names)
    elif train_labels.ndim == 2:
        classes = train_labels.shape[1]
    else:
        classes = int(max(train_labels.max(), test_labels.max())) + 1
    rows = len(train_labels)
    hot, numbers = check_targets(
        "train_labels", train_labels, rows, classes, class_names
    )
    test_labels = as_labels(
        test_labels, classes, class_names, numbers is None, "test_labels"
    )
    if kind == "linear":
        check(numbers is not None, "kind", '"dense" for multi-label data', kind)
        result = linear_probe(train, numbers, test, test_labels, seed=seed, **options)
        # Classes that training lacks rank last.
        scores = np.full((len(test), classes), result.scores.min() - 1)
        scores[:, result.classes] = result.scores
    elif kind == "knn":
        options = {"neighbors": min(10, len(train)), **options}
        scores = neighbor_votes(train, hot, test, **options)
    else:
        trained_scores = dense_scores if kind == "dense" else attentive_scores
        options |= {"seed": seed, "multi_label": numbers is None}
        scores = trained_scores(train, hot, test, **options)
    return classification_metrics(test_labels, scores, class_names)
