"""Which patches lie nearest to the codes of a tokenizer."""

import numpy as np


def nearest_patches(codes, distances, num_codes=8, num_patches=12):
    """Finds, for some codes, the patches that are most like them.

    The codes are chosen evenly from the most to the least frequent, and of each example
    the nearest patch alone is taken, so that neighbors in one picture do not fill it
    all.

    Args:
        codes: int array of shape `(examples, patches)`, the codes of one level; -1 is
            padding.
        distances: float array of the same shape, from each patch's vector to its code.
        num_codes: int, how many codes to choose.
        num_patches: int, how many patches of each code to find at most.

    Returns:
        A dict from code to an int array of shape `(n, 2)`: example and patch, the
        nearest first.

    Raises:
        ValueError: if the shapes differ, or all is padding.

    Example:
    ```python
    import numpy as np
    from keras_bridle.evaluation import nearest_patches

    codes = np.array([[0, 0, 1], [1, 0, 0]])
    distances = np.array([[0.3, 0.1, 0.2], [0.4, 0.5, 0.6]])
    print(nearest_patches(codes, distances)[0])  # [[0 1] [1 1]]
    ```
    """
    codes, distances = np.asarray(codes), np.asarray(distances)
    if codes.ndim != 2 or codes.shape != distances.shape:
        raise ValueError(
            "codes and distances must both have shape (examples, patches); received "
            f"shapes {codes.shape} and {distances.shape}"
        )
    names, counts = np.unique(codes[codes >= 0], return_counts=True)
    if not len(names):
        raise ValueError("codes must hold at least one that is not -1; received none")
    frequent_first = names[np.argsort(-counts, kind="stable")]
    ranks = np.linspace(0, len(names) - 1, min(num_codes, len(names))).round()
    return {
        int(code): _nearest(codes == code, distances, num_patches)
        for code in frequent_first[ranks.astype(int)]
    }


def _nearest(is_code, distances, num_patches):
    distances = np.where(is_code, distances, np.inf)
    patches = distances.argmin(axis=1)
    order = np.argsort(distances.min(axis=1), kind="stable")
    order = order[: min(num_patches, int(is_code.any(axis=1).sum()))]
    return np.stack([order, patches[order]], axis=1)
