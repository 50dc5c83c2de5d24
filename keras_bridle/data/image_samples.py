"""The sample pictures that ship with the package."""

import functools
import io
from importlib import resources

import numpy as np

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_fashion(
    split: str | None = None, per_class: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Loads 10,000 pictures of Fashion-MNIST: clothes in 10 classes, 28 x 28, gray.

    Copyright 2017 Zalando SE, MIT license; see `sample_files/NOTICE`.

    Args:
        split: `"train"` (8,000 pictures), `"test"` (2,000), or `None` for both.
        per_class: int. So many of each class, drawn at random, as for probes with few
            labels. `None` takes all.
        seed: int. Decides which ones `per_class` draws.

    Returns:
        A tuple `(images, labels, class_names)`: uint8 images of shape
        `(n, 28, 28, 1)`, int32 labels of shape `(n,)`, and the names that they index.

    Raises:
        ValueError: for an unknown split, or more per class than there are.

    Example:
    ```python
    from keras_bridle.data import load_fashion

    images, labels, class_names = load_fashion("train", per_class=20)
    print(images.shape, class_names[labels[0]])
    ```

    Reference:
        - [Xiao et al., 2017](https://arxiv.org/abs/1708.07747)
    """
    if split not in ("train", "test", None):
        raise ValueError(
            f"`split` must be 'train', 'test' or None. Received: {split!r}"
        )
    parts = ("train", "test") if split is None else (split,)
    images = np.concatenate([_fashion()[f"x_{part}"] for part in parts])[..., None]
    labels = np.concatenate([_fashion()[f"y_{part}"] for part in parts])
    labels = labels.astype("int32")
    if per_class is not None:
        kept = _draw(labels, per_class, seed)
        images, labels = images[kept], labels[kept]
    return images, labels, FASHION_CLASSES


def _draw(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Returns positions of so many examples of each class, in order."""
    fewest = int(np.bincount(labels).min())
    if not 1 <= per_class <= fewest:
        raise ValueError(
            f"`per_class` must be from 1 to {fewest}. Received: {per_class}"
        )
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(np.flatnonzero(labels == label))[:per_class]
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn))


@functools.cache
def _fashion() -> dict[str, np.ndarray]:
    folder = resources.files("keras_bridle.data") / "sample_files" / "image"
    contents = (folder / "fashion_mnist_10k.npz").read_bytes()
    with np.load(io.BytesIO(contents)) as arrays:
        return dict(arrays)
