"""k-nearest-neighbor probe: how well frozen features group what belongs together."""

import numpy as np

from keras_bridle.evaluation.checks import check_labels, check_split


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
    from keras_bridle.evaluation import knn_probe

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
