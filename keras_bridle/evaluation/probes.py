"""Probes of frozen features."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from keras_bridle.evaluation.features import (
    FileModel,
    InputFeatures,
    PatchFeatures,
    run_batches,
)
from keras_bridle.evaluation.metrics import (
    check_features,
    check_labels,
    check_split,
    check_targets,
    classification_metrics,
)

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


def knn_probe(
    train_features,
    train_labels,
    test_features,
    test_labels,
    neighbors=10,
    temperature=0.07,
):
    """Scores a vote of the nearest training rows by cosine similarity.

    It has nothing to fit, so it shows the geometry of the features as they are.

    Args:
        train_features: array of shape `(train_rows, dim)`.
        train_labels: array or list of shape `(train_rows,)`, integers or strings.
        test_features: array of shape `(test_rows, dim)`.
        test_labels: array or list of shape `(test_rows,)`.
        neighbors: int, the number of training rows that vote.
        temperature: float or None. A neighbor of similarity `s` votes with weight
            `exp(s / temperature)`; None gives every neighbor one vote. A tie goes
            to the class that sorts first.

    Returns:
        float, the share of the test rows that were classified rightly.

    Raises:
        ValueError: if shapes, lengths or values do not fit.

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
    train_features, test_features = check_split(
        train_features, train_labels, test_features, test_labels
    )
    classes, targets = np.unique(
        check_labels("train_labels", train_labels), return_inverse=True
    )
    votes = neighbor_votes(
        train_features,
        np.eye(len(classes))[targets],
        test_features,
        neighbors,
        temperature,
    )
    right = classes[votes.argmax(axis=1)] == np.asarray(test_labels)
    return float(right.mean())


def neighbor_votes(train_features, hot, test_features, neighbors, temperature):
    """Lets the nearest training rows vote for each test row.

    Args:
        train_features: finite array of shape `(train_rows, dim)`.
        hot: array of zeros and ones of shape `(train_rows, classes)`.
        test_features: finite array of shape `(test_rows, dim)`.
        neighbors: as of `knn_probe`.
        temperature: likewise.

    Returns:
        Array of shape `(test_rows, classes)`, the share of the votes for each class.
    """
    if not 1 <= neighbors <= len(train_features):
        raise ValueError(
            f"neighbors must lie between 1 and the {len(train_features)} training "
            f"rows; received {neighbors}"
        )
    if temperature is not None and temperature <= 0:
        raise ValueError(f"temperature must be positive or None; got {temperature}")
    train, test = _unit_rows(train_features), _unit_rows(test_features)
    shares = []
    for start in range(0, len(test), 1024):
        similarity = test[start : start + 1024] @ train.T
        nearest = np.argpartition(-similarity, neighbors - 1, axis=1)[:, :neighbors]
        similarity = np.take_along_axis(similarity, nearest, axis=1)
        weights = np.ones_like(similarity)
        if temperature is not None:
            # Against the nearest neighbor's, so that no weight overflows.
            highest = similarity.max(axis=1, keepdims=True)
            weights = np.exp((similarity - highest) / temperature)
        votes = np.zeros((len(similarity), hot.shape[1]))
        for place in range(neighbors):
            votes += weights[:, place, None] * hot[nearest[:, place]]
        shares.append(votes / weights.sum(axis=1, keepdims=True))
    return np.concatenate(shares)


def _unit_rows(features):
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-12)


@keras.saving.register_keras_serializable(package="keras_bridle")
class AttentivePooling(keras.layers.Layer):
    """One vector from many: cross-attention of a learned query over patches.

    Args:
        num_heads: int, heads of the attention; the size of the patches must be a
            multiple of it.
        seed: optional int, seeds the weights.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: tensor of shape `(batch, num_patches, dim)`.
        is_real: optional bool tensor of shape `(batch, num_patches)`; the others are
            not attended to.

    Returns:
        Tensor of shape `(batch, dim)`.

    Raises:
        ValueError: if the sizes do not fit.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation.probes import AttentivePooling

    pooled = AttentivePooling(num_heads=4)(np.ones((2, 10, 32), "float32"))
    print(pooled.shape)  # (2, 32)
    ```

    Reference:
        - [Yu et al., 2022](https://arxiv.org/abs/2205.01917), section 3.2
        - [Bardes et al., 2024](https://arxiv.org/abs/2404.08471), section 4.1
    """

    def __init__(self, num_heads, seed=None, **kwargs):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"`num_heads` must be positive. Received: {num_heads}")
        self.num_heads = num_heads
        self.seed = seed

    def build(self, patches_shape):
        dim = patches_shape[-1]
        if dim % self.num_heads:
            raise ValueError(
                "The size of the patches must be a multiple of `num_heads`. "
                f"Received: {dim} and {self.num_heads}"
            )
        seeds = [None] * 4
        if self.seed is not None:
            seeds = [4 * self.seed + place for place in range(4)]
        self.query = self.add_weight(
            shape=(self.num_heads, dim // self.num_heads),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02, seed=seeds[0]),
            name="query",
        )
        for name, seed in zip(("key", "value", "output"), seeds[1:], strict=True):
            dense = keras.layers.Dense(
                dim,
                kernel_initializer=keras.initializers.GlorotUniform(seed),
                dtype=self.dtype_policy,
                name=name,
            )
            dense.build((None, None, dim))
            setattr(self, f"{name}_projection", dense)

    def call(self, patches, is_real=None):
        query = ops.convert_to_tensor(self.query)
        heads, size = query.shape
        shape = (-1, ops.shape(patches)[1], heads, size)
        keys = ops.reshape(self.key_projection(patches), shape)
        values = ops.reshape(self.value_projection(patches), shape)
        scores = ops.sum(keys * ops.cast(query, keys.dtype), axis=-1)
        scores = ops.cast(scores, "float32") / size**0.5
        if is_real is not None:
            scores = ops.where(is_real[:, :, None], scores, -1e9)
        shares = ops.cast(ops.softmax(scores, axis=1), values.dtype)
        pooled = ops.sum(values * shares[..., None], axis=1)
        return self.output_projection(ops.reshape(pooled, (-1, heads * size)))

    def compute_output_shape(self, patches_shape):
        return (patches_shape[0], patches_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "seed": self.seed,
        }


def dense_scores(
    train_features,
    train_hot,
    test_features,
    multi_label=False,
    epochs=100,
    batch_size=64,
    learning_rate=3e-3,
    weight_decay=0.0,
    seed=0,
):
    """Trains one dense layer on normalized features, as published for linear probes.

    The normalization is a batch normalization without scale and offset.

    Args:
        train_features: float array of shape `(train_rows, dim)`.
        train_hot: array of zeros and ones of shape `(train_rows, classes)`.
        test_features: float array of shape `(test_rows, dim)`.
        multi_label: bool, whether a row may have several classes, or none.
        epochs: int. The learning rate falls to 0 over them, by a cosine.
        batch_size: int.
        learning_rate: float, of AdamW.
        weight_decay: float, likewise.
        seed: int, of the order of the rows.

    Returns:
        Float array of shape `(test_rows, classes)`, logits.

    Reference:
        [He et al., 2022](https://arxiv.org/abs/2111.06377), appendix A.1
    """
    inputs = keras.Input(train_features.shape[1:])
    normalized = keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-6, center=False, scale=False, dtype="float32"
    )(inputs)
    model = keras.Model(inputs, _head(train_hot.shape[1])(normalized))
    _fit(
        model,
        [train_features],
        train_hot,
        multi_label,
        epochs,
        batch_size,
        learning_rate,
        weight_decay,
        seed,
    )
    return model.predict(test_features, batch_size=batch_size, verbose=0)


def attentive_scores(
    train_features,
    train_hot,
    test_features,
    multi_label=False,
    num_heads=None,
    epochs=40,
    batch_size=64,
    learning_rate=1e-3,
    weight_decay=0.01,
    seed=0,
):
    """Trains `AttentivePooling`, a normalization and a dense layer on patches.

    Args:
        train_features: `PatchFeatures` of the training rows.
        train_hot: array of zeros and ones of shape `(train_rows, classes)`.
        test_features: `PatchFeatures` of the test rows.
        multi_label: bool, whether a row may have several classes, or none.
        num_heads: optional int; by default one for each 64 numbers of a patch, and
            at least one.
        epochs: int. The learning rate falls to 0 over them, by a cosine.
        batch_size: int.
        learning_rate: float, of AdamW.
        weight_decay: float, likewise.
        seed: int, of the weights and of the order of the rows.

    Returns:
        Float array of shape `(test_rows, classes)`, logits.
    """
    shape = train_features.patches.shape[1:]
    patches = keras.Input(shape, name="patches")
    is_real = keras.Input(shape[:1], dtype="bool", name="is_real")
    if num_heads is None:
        num_heads = shape[1] // 64 if shape[1] % 64 == 0 else 1
    pooled = AttentivePooling(num_heads, seed=seed, dtype="float32")(patches, is_real)
    pooled = keras.layers.LayerNormalization(epsilon=1e-6, dtype="float32")(pooled)
    model = keras.Model([patches, is_real], _head(train_hot.shape[1])(pooled))
    _fit(
        model,
        list(train_features),
        train_hot,
        multi_label,
        epochs,
        batch_size,
        learning_rate,
        weight_decay,
        seed,
    )
    return model.predict(list(test_features), batch_size=batch_size, verbose=0)


def _head(classes):
    # From zero: all classes are alike before the first step, whatever the seed.
    return keras.layers.Dense(classes, kernel_initializer="zeros", dtype="float32")


def _fit(
    model,
    inputs,
    hot,
    multi_label,
    epochs,
    batch_size,
    learning_rate,
    weight_decay,
    seed,
):
    batches = _Batches(inputs, hot.astype("float32"), batch_size, seed)
    losses = keras.losses
    loss = losses.BinaryCrossentropy if multi_label else losses.CategoricalCrossentropy
    model.compile(
        keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(
                learning_rate, max(1, epochs * len(batches))
            ),
            weight_decay=weight_decay,
        ),
        loss(from_logits=True),
    )
    model.fit(batches, epochs=epochs, verbose=0, shuffle=False)


class _Batches(keras.utils.PyDataset):
    """Full batches in an order drawn anew for each epoch."""

    def __init__(self, inputs, targets, batch_size, seed):
        super().__init__()
        self.arrays = [*inputs, targets]
        # A small rest would distort the statistics of the normalization.
        self.batch_size = min(batch_size, len(targets))
        self.generator = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return len(self.arrays[-1]) // self.batch_size

    def __getitem__(self, index):
        start = index * self.batch_size
        rows = self.order[start : start + self.batch_size]
        *inputs, targets = (array[rows] for array in self.arrays)
        inputs = [x if x.dtype == bool else x.astype("float32") for x in inputs]
        return inputs[0] if len(inputs) == 1 else tuple(inputs), targets

    def on_epoch_end(self):
        self.order = self.generator.permutation(len(self.arrays[-1]))


class ProbeData(NamedTuple):
    """Labeled examples to probe encoders with.

    Args:
        inputs: function of a backbone that returns an array of raw inputs, or a
            `tf.data.Dataset` of batches `(inputs, places)`, where places are rows of
            `labels`; rows that it leaves out are left out.
        labels: int array of shape `(rows,)`, or zeros and ones of shape
            `(rows, classes)`.
        class_names: sequence of strings.
        splits: list of tuples `(train, test)` of int arrays, rows of `labels`.
        groups: optional int array of shape `(rows,)`, as of `linear_probe`.
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
):
    """Probes a frozen encoder.

    Args:
        backbone: `BridleBackbone`.
        data: `ProbeData`.
        kinds: list of strings, as of `probe`.
        segments: int, as of `extract_features`; the attentive probe has all patches.
        batch_size: int, examples per step of the encoder.
        seed: int, as of `probe`.
        options: optional dict from kind to a dict of more arguments of `probe`.
        most_gigabytes: float, the most that the patches for the attentive probe may
            take in memory.

    Returns:
        A dict from kind to a list with the `ClassificationMetrics` of each split.

    Raises:
        ValueError: if no example can be read, or patches would need more memory.
    """
    found: dict[str, Any] = {}
    vectors = [kind for kind in kinds if kind != "attentive"]
    if vectors:
        network = FileModel(backbone, segments=segments)
        features, rows = _features(network, data, backbone, batch_size)
        found |= _scores(vectors, features["features"], rows, data, seed, options)
    if "attentive" in kinds:
        network = FileModel(backbone, per="patch")
        limit = most_gigabytes * 1e9
        features, rows = _features(network, data, backbone, batch_size, limit)
        patches = PatchFeatures(features["features"], features["is_real"])
        found |= _scores(["attentive"], patches, rows, data, seed, options)
    return {kind: found[kind] for kind in kinds}


def probe_inputs(
    backbone, data, kinds, segments=1, batch_size=32, seed=0, options=None
):
    """Probes plain features of what an encoder starts from, see `InputFeatures`.

    Args:
        backbone: as of `probe_encoder`, as the others.
        data: as above.
        kinds: as above; the attentive probe is left out.
        segments: as above.
        batch_size: as above.
        seed: as above.
        options: as above.

    Returns:
        A dict as of `probe_encoder`.
    """
    kinds = [kind for kind in kinds if kind != "attentive"]
    if not kinds:
        return {}
    network = InputFeatures(backbone, segments)
    features, rows = _features(network, data, backbone, batch_size)
    return _scores(kinds, features["features"], rows, data, seed, options)


def mean_per_class(several):
    """Averages the lines of each class over splits, where they are defined.

    Args:
        several: list of `ClassificationMetrics`.

    Returns:
        A list of dicts, as `ClassificationMetrics.per_class`; examples are added up.
    """
    rows = []
    for lines in zip(*(metrics.per_class for metrics in several), strict=True):
        row = {
            "name": lines[0]["name"],
            "examples": sum(line["examples"] for line in lines),
        }
        for name in ("accuracy", "average precision", "AUC"):
            known = [line[name] for line in lines if line[name] is not None]
            row[name] = float(np.mean(known)) if known else None
        rows.append(row)
    return rows


def _features(network, data, backbone, batch_size, limit=float("inf")):
    """Returns features of all examples that can be read, and which those are."""
    columns: dict[str, list] = {}
    rows: list[np.ndarray] = []
    count = size = 0
    for outputs, others in run_batches(network, data.inputs(backbone), batch_size):
        if not isinstance(outputs, dict):
            outputs = {"features": outputs}
        if network.name == "file_model" and network.per == "patch":
            outputs["features"] = outputs["features"].astype("float16")
        for name, values in outputs.items():
            columns.setdefault(name, []).append(values)
        start, count = count, count + len(outputs["features"])
        rows.append(others[0] if others else np.arange(start, count))
        size += outputs["features"].nbytes
        total = size / count * len(data.labels)
        if total > limit:
            raise ValueError(
                f"The patches of {len(data.labels)} examples would take "
                f"{total / 1e9:.1f} GB of memory, more than {limit / 1e9:.1f}. Probe "
                "fewer examples, or by another probe than the attentive one"
            )
    if not rows:
        raise ValueError("No example can be read.")
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    return joined, np.concatenate(rows)


def _scores(kinds, features, rows, data, seed, options):
    # Where a row of the labels is among the features, -1 if it could not be read.
    places = np.full(len(data.labels), -1)
    places[rows] = np.arange(len(rows))
    found: dict[str, list] = {kind: [] for kind in kinds}
    for split in data.splits:
        train, test = (part[places[part] >= 0] for part in split)
        for name, part in (("training", train), ("test", test)):
            if not len(part):
                raise ValueError(f"No {name} example can be read.")
        take = (
            features.take
            if isinstance(features, PatchFeatures)
            else features.__getitem__
        )
        for kind in kinds:
            more = dict((options or {}).get(kind, {}))
            if kind == "linear" and data.groups is not None:
                more["groups"] = data.groups[train]
            found[kind].append(
                probe(
                    kind,
                    take(places[train]),
                    data.labels[train],
                    take(places[test]),
                    data.labels[test],
                    data.class_names,
                    seed,
                    **more,
                )
            )
    return found


PROBES = ("linear", "dense", "knn", "attentive")


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
    """Fits a probe on frozen features of training rows, and scores it on test rows.

    Args:
        kind: string. `"linear"`: logistic regression, whose penalty cross-validation on
            the training rows chooses (`linear_probe`). `"dense"`: the same classifier
            as published, batch normalization without scale and offset and one dense
            layer, trained by AdamW. `"knn"`: a vote of the nearest training rows by
            cosine similarity. `"attentive"`: cross-attention of a learned query over
            the patches, then a dense layer.
        train_features: array of shape `(train_rows, dim)`; for `"attentive"`, the
            `PatchFeatures` that `extract_patches` gives, or an array of shape
            `(train_rows, patches, dim)`. The others average patches.
        train_labels: int array of shape `(train_rows,)`; for multi-label data, which
            all but `"linear"` take, zeros and ones of shape `(train_rows, classes)`.
        test_features: likewise.
        test_labels: likewise.
        class_names: optional sequence of strings, also to tell how many classes there
            are; by default numbers up to the highest label.
        seed: int, of all that is drawn.
        **options: of `"linear"`: `groups`, `regularizations`, `folds`, as of
            `linear_probe`; of `"knn"`: `neighbors` (10, or as many as there are) and
            `temperature`; of the two others: `epochs`, `batch_size`, `learning_rate`,
            `weight_decay`, and `num_heads` of `"attentive"`.

    Returns:
        `ClassificationMetrics` on the test rows.

    Raises:
        ValueError: for an unknown kind, or if shapes, lengths or values do not fit.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation.probes import probe

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    features = rng.normal(size=(200, 16)) + 4 * np.eye(3, 16)[labels]
    train, test = (features[:150], labels[:150]), (features[150:], labels[150:])
    for kind in ("linear", "knn"):
        assert probe(kind, *train, *test).accuracy > 0.8
    ```
    """
    if kind not in PROBES:
        raise ValueError(f"kind must be one of {PROBES}; received {kind!r}")
    train_features, test_features = (
        _features_probe(name, features, kind == "attentive")
        for name, features in (
            ("train_features", train_features),
            ("test_features", test_features),
        )
    )
    classes = _count_classes(train_labels, test_labels, class_names)
    train_rows, test_rows = len(train_features[0]), len(test_features[0])
    hot, numbers = check_targets("train_labels", train_labels, train_rows, classes)
    _, test_numbers = check_targets("test_labels", test_labels, test_rows, classes)
    if (numbers is None) != (test_numbers is None):
        raise ValueError("train_labels and test_labels must be of one kind")
    if kind == "attentive":
        scores = attentive_scores(
            PatchFeatures(*train_features),
            hot,
            PatchFeatures(*test_features),
            numbers is None,
            seed=seed,
            **options,
        )
        return classification_metrics(test_labels, scores, class_names)
    train, test = train_features[0], test_features[0]
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            "train_features and test_features must have the same dim; received "
            f"{train.shape[1]} and {test.shape[1]}"
        )
    if kind == "linear":
        if numbers is None:
            raise ValueError(
                'The "linear" probe takes one class for each row; "dense" is a linear '
                "probe for multi-label data"
            )
        scores = _linear_scores(
            train, numbers, test, test_numbers, classes, seed, options
        )
    elif kind == "dense":
        scores = dense_scores(train, hot, test, numbers is None, seed=seed, **options)
    else:
        defaults = {"neighbors": min(10, len(train)), "temperature": 0.07}
        scores = neighbor_votes(train, hot, test, **{**defaults, **options})
    return classification_metrics(test_labels, scores, class_names)


def _linear_scores(train, numbers, test, test_numbers, classes, seed, options):
    found = linear_probe(train, numbers, test, test_numbers, seed=seed, **options)
    # A class that training lacks comes last.
    scores = np.full((len(test), classes), found.scores.min() - 1)
    scores[:, found.classes] = found.scores
    return scores


def _features_probe(name, features, with_patches):
    """Returns `(patches, is_real)`, or `(vectors,)`."""
    if isinstance(features, PatchFeatures):
        return features if with_patches else (check_features(name, features.mean()),)
    features = np.asarray(features)
    if features.ndim == 3 and 0 not in features.shape:
        if with_patches:
            return PatchFeatures(features, np.ones(features.shape[:2], bool))
        features = features.mean(axis=1)
    elif with_patches:
        raise ValueError(
            f'{name} of the "attentive" probe must be PatchFeatures or have shape '
            f"(rows, patches, dim); received shape {features.shape}"
        )
    return (check_features(name, features),)


def _count_classes(train_labels, test_labels, class_names):
    if class_names is not None:
        return len(class_names)
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    if train_labels.ndim == 2:
        return train_labels.shape[1]
    if train_labels.dtype.kind not in "iu" or test_labels.dtype.kind not in "iu":
        raise ValueError(
            "labels must be ints; received dtypes "
            f"{train_labels.dtype} and {test_labels.dtype}"
        )
    return int(max(train_labels.max(initial=0), test_labels.max(initial=0))) + 1
