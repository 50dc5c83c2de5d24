"""Checks of the arrays that the probes receive."""

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
