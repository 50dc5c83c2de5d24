"""Which examples a training run sees: splits, few labels, weights."""

import numpy as np


def split_examples(labels, share, seed=0):
    """Splits examples in two, the same share of each class.

    Args:
        labels: int array of shape `(examples,)`; or 0/1 of shape `(examples, classes)`,
            which are split regardless of classes.
        share: float between 0 and 1, of the second part. Of a class with two examples
            or more, both parts get at least one.
        seed: int.

    Returns:
        A tuple of two sorted int arrays, the places of the examples of either part.

    Raises:
        ValueError: for a share out of range, or one that leaves a part empty.

    Example:
    ```python
    import numpy as np
    from keras_bridle.fine_tuning import split_examples

    train, test = split_examples(np.arange(20) % 2, share=0.2)
    print(len(train), len(test))  # 16 4
    ```
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` must lie between 0 and 1. Received: share={share}")
    second: list[int] = []
    for places in _groups(labels, seed):
        count = round(share * len(places))
        if len(places) > 1:
            count = min(max(count, 1), len(places) - 1)
        second.extend(places[:count])
    is_second = np.zeros(len(labels), bool)
    is_second[second] = True
    if is_second.all() or not is_second.any():
        raise ValueError(
            f"`share` leaves one of the two parts of {len(labels)} examples empty. "
            f"Received: share={share}"
        )
    return np.flatnonzero(~is_second), np.flatnonzero(is_second)


def draw_few(labels, per_class, seed=0):
    """Draws so many examples of each class, or all of a class that has fewer.

    Args:
        labels: int array of shape `(examples,)`.
        per_class: int, 1 or more.
        seed: int.

    Returns:
        A sorted int array, the places of the examples.

    Raises:
        ValueError: for less than one, or labels of another shape.

    Example:
    ```python
    import numpy as np
    from keras_bridle.fine_tuning import draw_few

    print(draw_few(np.array([0, 0, 0, 1, 1, 2]), per_class=2))
    ```
    """
    if per_class < 1:
        raise ValueError(f"`per_class` must be 1 or more. Received: {per_class}")
    if np.ndim(labels) != 1:
        raise ValueError(
            "`labels` must be one int for each example. "
            f"Received shape: {np.shape(labels)}"
        )
    drawn = [places[:per_class] for places in _groups(labels, seed)]
    return np.sort(np.concatenate(drawn))


def balanced_weights(labels, num_classes=None):
    """Weighs examples so that rare classes are drawn as often as common ones.

    As published for AudioSet: a class weighs 1000 / (its examples + 0.01), an example
    as much as its classes together.

    Args:
        labels: int array of shape `(examples,)`; or 0/1 of shape `(examples, classes)`.
        num_classes: int, for ints; by default what their largest tells.

    Returns:
        A float array of shape `(examples,)` that sums to 1.

    Raises:
        ValueError: if no example has a class.

    Example:
    ```python
    import numpy as np
    from keras_bridle.fine_tuning import balanced_weights

    print(balanced_weights(np.array([0, 0, 0, 1])))
    ```

    Reference:
        - [Gong et al., 2021](https://arxiv.org/abs/2102.01243)
    """
    labels = np.asarray(labels)
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=num_classes or 0)
        weights = 1000.0 / (counts[labels] + 0.01)
    else:
        of_class = 1000.0 / (np.count_nonzero(labels, axis=0) + 0.01)
        # Part by part, as products are made in float64.
        parts = np.array_split(labels, 1 + len(labels) // 10_000)
        weights = np.concatenate([(part > 0) @ of_class for part in parts])
    if not weights.sum() > 0:
        raise ValueError("No example has a class, so none can be drawn")
    return weights / weights.sum()


def epoch_order(num_examples, seed, epoch, weights=None, length=None):
    """Draws the order of the examples in an epoch: all, or a weighted sample.

    Args:
        num_examples: int.
        seed: int. With the epoch, it decides all.
        epoch: int, from 0.
        weights: optional float array of shape `(num_examples,)` that sums to 1: draw
            by these, with replacement.
        length: optional int, examples of an epoch; by default as many as there are. It
            needs `weights`, or not to exceed the number of examples.

    Returns:
        An int array of shape `(length,)`, places of examples.

    Raises:
        ValueError: for too long an epoch without `weights`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.fine_tuning import epoch_order

    print(epoch_order(4, seed=0, epoch=3))
    print(epoch_order(4, seed=0, epoch=3, weights=np.array([0.7, 0.1, 0.1, 0.1])))
    ```
    """
    random = np.random.default_rng([seed, epoch])
    length = num_examples if length is None else length
    if weights is not None:
        return random.choice(num_examples, length, p=weights)
    if length > num_examples:
        raise ValueError(
            f"An epoch of {length} of {num_examples} examples needs `weights`"
        )
    return random.permutation(num_examples)[:length]


def _groups(labels, seed):
    """Yields the shuffled places of each class, or of all of multi-label data."""
    labels = np.asarray(labels)
    random = np.random.default_rng(seed)
    if labels.ndim == 2:
        yield random.permutation(len(labels))
        return
    for label in np.unique(labels):
        yield random.permutation(np.flatnonzero(labels == label))
