"""A map of features: what lies near what."""

import importlib

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from keras_bridle.evaluation.checks import check_features, check_labels
from keras_bridle.evaluation.glyphs import drawable_names
from keras_bridle.evaluation.linear_probe import _standardization
from keras_bridle.evaluation.plots import GRAY, save_figure

# So many classes have colors that can be told apart, and a legend.
_MOST_CLASSES = 20


def plot_embedding(
    features, path, labels=None, method="pca", title=None, seed=0, dpi=120
):
    """Draws features as points in the plane, in the colors of their classes.

    The features are standardized first. Of more than 20 classes, the 20 most frequent
    have colors. Names whose letters the font lacks are shown by their numbers.

    Args:
        features: array of shape `(rows, dim)`.
        path: string or path of the picture.
        labels: optional array or list of shape `(rows,)`, integers or strings.
        method: `"pca"`, the two directions of most variance; or `"umap"`, which keeps
            neighbors near each other and needs umap-learn.
        title: optional string.
        seed: int, of UMAP.
        dpi: int, pixels per inch.

    Returns:
        The path, as a `pathlib.Path`.

    Raises:
        ValueError: if shapes do not fit, or there are fewer than 3 rows.
        ImportError: for `"umap"` without umap-learn.

    Example:
    ```python
    import tempfile
    import numpy as np
    from keras_bridle.evaluation import plot_embedding

    labels = np.arange(90) % 3
    features = np.random.normal(size=(90, 16)) + 3 * np.eye(3, 16)[labels]
    with tempfile.TemporaryDirectory() as folder:
        plot_embedding(features, f"{folder}/map.png", np.array(["a", "b", "c"])[labels])
    ```

    Reference:
        [McInnes et al., 2018](https://arxiv.org/abs/1802.03426), for UMAP
    """
    if method not in ("pca", "umap"):
        raise ValueError(f'method must be "pca" or "umap"; received {method!r}')
    features = check_features("features", features)
    if len(features) < 3 or features.shape[1] < 2:
        raise ValueError(
            "features must have 3 rows and 2 columns or more; received shape "
            f"{features.shape}"
        )
    if labels is not None:
        labels = check_labels("labels", labels)
        if len(labels) != len(features):
            raise ValueError(
                f"labels must have one entry for each of the {len(features)} rows; "
                f"received {len(labels)}"
            )
    mean, scale = _standardization(features)
    standardized = (features - mean) * scale
    figure = Figure(figsize=(7.5, 5.5), dpi=dpi, layout="constrained")
    axis = figure.subplots()
    if method == "pca":
        found = PCA(2, random_state=seed).fit(standardized)
        points = found.transform(standardized)
        # The signs of directions are arbitrary; fix them.
        points *= np.where(np.abs(points.min(0)) > points.max(0), -1, 1)
        shares = found.explained_variance_ratio_
        axis.set_xlabel(f"first component ({shares[0]:.0%} of the variance)")
        axis.set_ylabel(f"second component ({shares[1]:.0%})")
    else:
        # With a seed there is one job, as it warns if that is not asked for.
        umap = import_umap().UMAP(random_state=seed, n_jobs=1)
        points = umap.fit_transform(standardized)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[["top", "right"]].set_visible(False)
    _draw_points(axis, points, labels)
    if title and drawable_names([title]) == [title]:
        axis.set_title(title, fontsize=11)
    return save_figure(figure, path)


def _draw_points(axis, points, labels):
    style = {"s": float(np.clip(16000 / len(points), 4, 30)), "linewidths": 0}
    if labels is None:
        axis.scatter(*points.T, color="C0", alpha=0.7, **style)
        return
    classes, counts = np.unique(labels, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:_MOST_CLASSES]
    shown = classes[np.sort(frequent)]
    others = ~np.isin(labels, shown)
    if others.any():
        number = len(classes) - len(shown)
        axis.scatter(
            *points[others].T, color=GRAY, alpha=0.3, label=f"{number} others", **style
        )
    colors = colormaps["tab10" if len(shown) <= 10 else "tab20"](range(len(shown)))
    texts = drawable_names(shown)
    for name, text, color in zip(shown, texts, colors, strict=False):
        axis.scatter(
            *points[labels == name].T,
            color=[color],
            alpha=0.8,
            label=text,
            **style,
        )
    legend = axis.legend(
        fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    for handle in legend.legend_handles:
        handle.set_sizes([30])


def import_umap():
    """Imports umap-learn, or raises an ImportError that says how to get it."""
    try:
        return importlib.import_module("umap")
    except ImportError as error:
        raise ImportError(
            'method="umap" needs umap-learn: pip install umap-learn. Or choose "pca"'
        ) from error
