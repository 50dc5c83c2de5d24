"""All probes by one name and one result."""

import numpy as np

from keras_bridle.evaluation.checks import check_features
from keras_bridle.evaluation.classification import (
    check_targets,
    classification_metrics,
)
from keras_bridle.evaluation.knn_probe import neighbor_votes
from keras_bridle.evaluation.linear_probe import linear_probe
from keras_bridle.evaluation.patch_features import PatchFeatures
from keras_bridle.evaluation.trained_probes import attentive_scores, dense_scores

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
    from keras_bridle.evaluation import probe

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
        _features(name, features, kind == "attentive")
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


def _features(name, features, with_patches):
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
