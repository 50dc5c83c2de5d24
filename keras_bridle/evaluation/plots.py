"""Plots of histories, codes, maps and confusions."""

import contextlib
import math
import re
from pathlib import Path
from typing import Any

import keras
import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from sklearn.decomposition import PCA
from sklearn.metrics import ConfusionMatrixDisplay

from keras_bridle.config import ArgumentError, check
from keras_bridle.data.files import printable
from keras_bridle.evaluation.features import optional_package
from keras_bridle.evaluation.probes import standardized
from keras_bridle.layers.masks import RandomMask
from keras_bridle.models.inputs import filled_up

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.titlesize": 10,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    # Names may have dollar signs.
    "text.parse_math": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
# The second row of a history shows the first of these that a phase has.
SECOND_ROW = ("accuracy", "cosine", "usage", "perplexity")
# Limits of a plot: names that are readable, numbers that fit into cells, and colors
# that can be told apart.
MOST_NAMES, MOST_NUMBERS, MOST_COLORS = 60, 20, 20


@contextlib.contextmanager
def _figure(path, rows, columns, size, title=None, grid=False, **options):
    """Yields the axes of a new figure, then saves it; `size` is a panel's in inches."""
    width, height = size
    with matplotlib.rc_context({**STYLE, "axes.grid": grid}):
        inches = (max(4.5, 0.4 + columns * width), 0.4 + rows * height)
        figure = Figure(figsize=inches, dpi=120, layout="constrained")
        figure.suptitle(printable(title or ""))
        yield figure.subplots(rows, columns, squeeze=False, **options)
        for axis in figure.axes:
            axis.set_visible(axis.has_data())
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _level_colors(levels):
    return colormaps["viridis"](np.linspace(0.1, 0.8, levels))


def plot_history(history, path):
    """Draws each phase's loss and, below, its accuracies per level or the like.

    `history` has a dict from metric to a value per epoch, or a CSV file's path, for
    each phase. Names that end in a number are levels. Validation is dashed.
    """
    with _figure(path, 2, len(history), (3.4, 2.6), grid=True, sharex="col") as axes:
        for (phase, columns), (top, bottom) in zip(
            history.items(), axes.T, strict=True
        ):
            columns = _columns(columns)
            _draw_curves(top, columns, columns.keys() & {"loss", "val_loss"})
            top.set(title=phase, ylabel="loss")
            kind, names = _second_row(columns)
            _draw_curves(bottom, columns, names)
            bottom.set_ylabel(kind or "")
            bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
            (bottom if names else top).set_xlabel("epoch")
            top.tick_params(labelbottom=not names)


def _columns(history):
    """Returns the columns of a phase as float arrays."""
    if not isinstance(history, dict):
        # Text and empty cells (epochs without validation) become NaN.
        table = np.genfromtxt(history, delimiter=",", names=True, ndmin=1)
        history = {name: table[name] for name in table.dtype.names or ()}
    return {name: np.asarray(x, "float64") for name, x in history.items()}


def _second_row(columns):
    """Finds the first kind of metric with values, and its columns."""
    for kind in SECOND_ROW:
        names = [
            name
            for name, values in columns.items()
            if kind in name and "loss" not in name and np.isfinite(values).any()
        ]
        if names:
            # Show levels rather than their mean.
            return kind, [x for x in names if _level(x) is not None] or names
    return None, []


def _level(name):
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else None


def _draw_curves(axis, columns, names):
    levels = sorted({_level(name) for name in names} - {None})
    colors = dict(zip(levels, _level_colors(len(levels)), strict=True))
    for name in sorted(names):
        values, level = columns[name], _level(name)
        # Validation may run in some epochs only: connect those.
        known = np.isfinite(values)
        label = name.replace("_", " ") if level is None else f"level {level}"
        axis.plot(
            np.flatnonzero(known) + 1,
            values[known],
            color=colors.get(level, "C0"),
            linestyle="--" if name.startswith("val_") else "-",
            marker="o" if known.sum() <= 12 else None,
            markersize=3,
            label={"loss": "training", "val_loss": "validation"}.get(name, label),
        )
    if len(names) > 1:
        axis.legend(ncols=1 + (len(names) > 5))


def plot_code_usage(usage, path):
    """Draws how often each code of a `CodeUsage` is used, in descending order.

    The logarithmic axis is relative to uniform usage.
    """
    levels, size = usage.counts.shape
    shares = usage.counts * size / usage.counts.sum(axis=1, keepdims=True)
    shares = np.sort(shares, axis=1)[:, ::-1]
    # A logarithmic axis needs two decades to have numbers.
    lowest = min(0.5 * shares[shares > 0].min(), 0.1)
    highest = max(1.5 * shares.max(), 10)
    columns = min(levels, 4)
    rows = -(-levels // columns)
    with _figure(
        path, rows, columns, (3.1, 2.6), grid=True, sharex=True, sharey=True
    ) as axes:
        for level, (axis, color) in enumerate(
            zip(axes.flat, _level_colors(levels), strict=False)
        ):
            heights = np.maximum(shares[level], lowest)
            axis.stairs(heights, baseline=lowest, fill=True, color=color)
            even = axis.axhline(1, color="black", linewidth=1, linestyle="--")
            axis.set(
                title=f"level {level + 1}: {usage.usage[level]:.1%} used,\n"
                f"perplexity {usage.perplexity[level]:.0f} of {size}",
                xlabel="codes, most frequent first",
                ylabel="frequency / uniform",
                xlim=(0, size),
                yscale="log",
                ylim=(lowest, highest),
            )
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.label_outer()
        axes[0, -1].legend([even], ["uniform usage"])


def plot_codes(
    inputs, visible, codes, grid, patch_size, path, frame_seconds=0.01, title=None
):
    """Draws an input, what its mask leaves visible, and the codes of each level.

    `inputs` is a spectrogram `(frames, mel_bins)`, an image `(height, width, channels)`
    or a clip `(frames, height, width, channels)`, of which at most 8 frames are drawn;
    `visible` has the indices of visible patches, whose codes are pale; `codes` is an
    array `(patches, levels)`, row by row, -1 at padding. Colors only show which codes
    are equal.
    """
    inputs, codes = np.asarray(inputs), np.asarray(codes)
    grid, patch_size = tuple(grid), tuple(patch_size)
    if codes.ndim != 2 or len(codes) != math.prod(grid):
        raise ArgumentError("codes", f"of shape ({math.prod(grid)}, levels)", codes)
    hidden = np.ones(len(codes), bool)
    hidden[visible] = False
    hidden, codes = hidden.reshape(grid), codes.reshape(*grid, -1)
    is_spectrogram = inputs.ndim == 2
    if is_spectrogram:
        # Time runs to the right.
        grid, patch_size = grid[::-1], patch_size[::-1]
        inputs, hidden, codes = (x.swapaxes(0, 1) for x in (inputs, hidden, codes))
        colors = colormaps["magma"](as_colors(inputs[..., None])[..., 0])[..., :3]
    else:
        colors = as_colors(inputs)
    colors = fill_up(colors, grid, patch_size)
    if len(grid) == 2:
        colors, hidden, codes = colors[None], hidden[None], codes[None]
        patch_size = (1, *patch_size)
    times = np.linspace(0, len(codes) - 1, min(len(codes), 8)).round().astype(int)
    frames, hidden, codes = colors[times * patch_size[0]], hidden[times], codes[times]
    seen = frames.copy()
    seen[np.kron(hidden, np.ones((1, *patch_size[1:]))) > 0] = 0.8
    count = f"visible: {hidden.size - hidden.sum()} of {hidden.size} patches"
    # Each panel has a title, images, and the numbers to write into cells, or None.
    panels: list[tuple] = [("log-mel" if is_spectrogram else "input", frames, None)]
    panels.append((count, seen, np.full(hidden.shape, -1)))
    for level, numbers in enumerate(np.moveaxis(codes, -1, 0), start=1):
        shown = code_colors(numbers)
        shown[~hidden] = 0.3 * shown[~hidden] + 0.7
        shown[numbers < 0] = 1.0
        panels.append((f"codes, level {level} (pale: visible)", shown, numbers))
    _draw_panels(path, panels, hidden, frame_seconds if is_spectrogram else None, title)


def _draw_panels(path, panels, hidden, frame_seconds, title):
    """Draws panels side by side, or a row for each panel of a clip."""
    num_frames, height, width = panels[0][1].shape[:3]
    is_spectrogram = frame_seconds is not None
    if is_spectrogram:
        inches = 1.35
        across = inches * float(np.clip(1.4 * width / height, 1.9, 6))
        columns = 1 if across > 4.5 else 2
        extent = (0, width * frame_seconds, 0, height)
    else:
        inches = 1.8 if num_frames == 1 else 1.1
        across = inches * width / height
        columns = num_frames if num_frames > 1 else len(panels)
        extent = (0, width, height, 0)
    rows = -(-len(panels) * num_frames // columns)
    size = (across + 0.2, inches + 0.3)
    with _figure(path, rows, columns, size, title, sharex=True, sharey=True) as axes:
        used = axes.ravel()[: len(panels) * num_frames].reshape(-1, num_frames)
        for (name, images, numbers), row in zip(panels, used, strict=True):
            row[0].set_title(name, fontsize=9, loc="left")
            for index, axis in enumerate(row):
                axis.imshow(
                    images[index],
                    origin="lower" if is_spectrogram else "upper",
                    aspect="auto",
                    interpolation="nearest",
                    extent=extent,
                )
                if numbers is not None:
                    cells = hidden[index], numbers[index]
                    _draw_cells(axis, *cells, extent, (across, inches))
                if is_spectrogram:
                    axis.set(xlabel="seconds", ylabel="mel bin")
                else:
                    axis.set_axis_off()
                axis.label_outer()


def _draw_cells(axis, hidden, numbers, extent, inches):
    """Draws lines between patches, and codes in the cells if they fit."""
    rows, columns = hidden.shape
    left, right, bottom, top = extent
    lines = {"color": "white", "linewidth": 0.6}
    axis.hlines(np.linspace(bottom, top, rows + 1)[1:-1], left, right, **lines)
    axis.vlines(np.linspace(left, right, columns + 1)[1:-1], bottom, top, **lines)
    digits = len(str(numbers.max()))
    size = 72 * min(0.55 * inches[1] / rows, inches[0] / columns / (0.75 * digits))
    for row, column in np.argwhere(numbers >= 0) if size >= 5 else ():
        axis.text(
            (column + 0.5) / columns * right,
            (row + 0.5) / rows * max(bottom, top),
            numbers[row, column],
            ha="center",
            va="center_baseline",
            fontsize=min(size, 8),
            color="black" if hidden[row, column] else "0.45",
        )


def code_colors(codes):
    """Maps codes to RGB colors that differ clearly for adjacent numbers."""
    golden = 0.5 * (np.sqrt(5) - 1)
    hue = (codes * golden) % 1
    value = 0.72 + 0.26 * ((codes * golden**2 * 7) % 1)
    return hsv_to_rgb(np.stack([hue, np.full(codes.shape, 0.5), value], axis=-1))


def as_colors(pixels):
    """Converts pixels to RGB from 0 to 1, and stretches the range of floats."""
    if pixels.dtype.kind in "iu":
        colors = pixels / 255.0
    else:
        lowest, highest = np.percentile(pixels, [0.5, 99.5])
        colors = (pixels - lowest) / max(highest - lowest, 1e-12)
    return np.broadcast_to(np.clip(colors, 0, 1), (*colors.shape[:-1], 3))


def fill_up(inputs, grid, patch_size):
    """Crops or zero-pads an array `(*sides, channels)` to whole patches."""
    sides = [cells * size for cells, size in zip(grid, patch_size, strict=True)]
    inputs = inputs[tuple(map(slice, sides))]
    missing = [(0, a - b) for a, b in zip(sides, inputs.shape[:-1], strict=True)]
    return np.pad(inputs, [*missing, (0, 0)])


def cut_patches(inputs, grid, patch_size):
    """Cuts an image or clip into patches `(patches, height, width, channels)`.

    Tubelets are shown by their first frame.
    """
    inputs = fill_up(np.asarray(inputs), grid, patch_size)
    inputs = inputs[:: patch_size[0]] if len(grid) == 3 else inputs[None]
    (rows, columns), (height, width) = grid[-2:], patch_size[-2:]
    cut = inputs.reshape(len(inputs), rows, height, columns, width, -1)
    return cut.swapaxes(2, 3).reshape(-1, height, width, inputs.shape[-1])


def plot_code_patches(patches, path, title=None):
    """Draws a contact sheet of a dict from the name of a row to its patches."""
    lengths = [len(found) for found in patches.values()]
    colors = as_colors(np.concatenate(list(patches.values())))
    height, width = colors.shape[1:3]
    # Patches of a few frames and many bins are drawn wider than they are.
    ratio = min(max(width / height, 0.6), 3.0)
    rows, columns = len(lengths), max(lengths)
    size = (columns * ratio / 2 + 0.5, rows / 2)
    with _figure(path, 1, 1, size, title) as ((axis,),):
        for row, images in enumerate(np.split(colors, np.cumsum(lengths)[:-1])):
            for column, image in enumerate(images):
                axis.imshow(
                    image,
                    interpolation="nearest",
                    aspect="auto",
                    extent=(column, column + 0.92, row + 0.92, row),
                )
        axis.set(xlim=(0, columns), ylim=(rows, 0), xticks=[])
        axis.set_yticks(np.arange(rows) + 0.46, map(str, patches))
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)


def nearest_patches(codes, distances, num_codes=8, num_patches=12):
    """Finds, for some codes, the patches whose vectors are nearest to them.

    `codes` of one level, -1 at padding, and `distances` have shape `(examples,
    patches)`. Codes are chosen evenly from the most to the least frequent. Each example
    contributes one patch, so that overlapping neighbors do not fill a row. The result
    has an array of rows `(example, patch)` for each code, the nearest first.
    """
    names, counts = np.unique(codes[codes >= 0], return_counts=True)
    frequent_first = names[np.argsort(-counts, kind="stable")]
    ranks = np.linspace(0, len(names) - 1, min(num_codes, len(names))).round()
    found = {}
    for code in frequent_first[ranks.astype(int)]:
        near = np.where(codes == code, distances, np.inf)
        order = np.argsort(near.min(axis=1), kind="stable")[:num_patches]
        order = order[np.isfinite(near[order].min(axis=1))]
        found[int(code)] = np.stack([order, near[order].argmin(axis=1)], axis=1)
    return found


def draw_codes(pretraining, inputs, folder, most_examples=512):
    """Writes `codes.png`, the first input's codes, and `code_patches.png`."""
    backbone, augmentation = pretraining.backbone, pretraining.augmentation
    inputs = np.asarray(inputs[:most_examples])
    codes, distances = pretraining.codes(inputs, with_distances=True)
    # The nearest code, where a level has several.
    codes = codes.reshape(*codes.shape[:2], pretraining.num_levels, -1)[..., 0]
    if augmentation is not None:
        # It may also crop inputs to the encoder's size.
        inputs = keras.ops.convert_to_numpy(augmentation(inputs, training=False))
    is_audio = len(backbone.input_dims) == 1
    if is_audio:
        # Small batches, as long recordings need much memory.
        size = min(16, len(inputs))
        batches = np.split(inputs, range(size, len(inputs), size))
        maps = [backbone.features(filled_up(batch, size))[0] for batch in batches]
        inputs = np.concatenate([keras.ops.convert_to_numpy(x) for x in maps])
    patch_size = backbone.patch_size
    grid = backbone.patch_embedding.grid(inputs.shape[1:-1])
    mask = RandomMask() if pretraining.mask is None else pretraining.mask
    visible = keras.ops.convert_to_numpy(mask(codes[:1], grid=grid).visible)[0]
    example = inputs[0, ..., 0] if is_audio else inputs[0]
    plot_codes(example, visible, codes[0], grid, patch_size, Path(folder, "codes.png"))
    patches = {
        f"code {code}": np.stack(
            [cut_patches(inputs[i], grid, patch_size)[patch] for i, patch in nearest]
        )
        for code, nearest in nearest_patches(codes[:, :, 0], distances).items()
    }
    if is_audio:
        # Time runs to the right and frequency upwards, as in spectrograms.
        patches = {name: x.swapaxes(1, 2)[:, ::-1] for name, x in patches.items()}
    title = "level 1: the patches nearest to a code, frequent codes first"
    plot_code_patches(patches, Path(folder, "code_patches.png"), title)


def plot_confusion_matrix(confusion, path, class_names=None, title=None):
    """Draws a confusion matrix with a row per true class, as shares of the row.

    With more than 20 classes it has no numbers, with more than 60 no names.
    """
    confusion = np.asarray(confusion)
    classes = len(confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    is_small = classes <= MOST_NUMBERS
    side = 3.0 + (0.32 if is_small else 0.17) * min(classes, MOST_NAMES)
    with _figure(path, 1, 1, (side + 0.4, side - 0.4)) as ((axis,),):
        names = None if class_names is None else list(map(printable, class_names))
        ConfusionMatrixDisplay(shares, display_labels=names).plot(
            ax=axis,
            cmap="Blues",
            include_values=is_small,
            values_format=".0%",
            xticks_rotation="vertical",
            im_kw={"vmin": 0, "vmax": 1},
            text_kw={"fontsize": 6},
        )
        axis.tick_params(labelsize=8 if is_small else 6)
        if classes > MOST_NAMES:
            axis.set(xticks=[], yticks=[])
        axis.set_title(printable(title or ""))
    return Path(path)


def plot_embedding(features, path, labels=None, method="pca", title=None, seed=0):
    """Draws standardized features as points in the plane, colored by class.

    `method` is `"pca"`, or `"umap"`, which keeps neighbors near each other and needs
    umap-learn. Of more than 20 classes, the 20 most frequent have colors.
    """
    check(method in ("pca", "umap"), "method", '"pca" or "umap"', method)
    (inputs,) = standardized(np.asarray(features, "float64"))
    axis_labels = {}
    if method == "pca":
        found = PCA(2, random_state=seed).fit(inputs)
        points = found.transform(inputs)
        first, second = found.explained_variance_ratio_
        axis_labels["xlabel"] = f"first component ({first:.0%} of the variance)"
        axis_labels["ylabel"] = f"second component ({second:.0%})"
    else:
        # With a seed, UMAP warns unless it is told to use one job.
        umap = optional_package("umap", "umap").UMAP(random_state=seed, n_jobs=1)
        points = umap.fit_transform(inputs)
    labels = np.zeros(len(points)) if labels is None else np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    shown = np.sort(classes[np.argsort(-counts, kind="stable")[:MOST_COLORS]])
    palette = colormaps["tab10" if len(shown) <= 10 else "tab20"]
    colors: list[Any] = [palette(index) for index in range(len(shown))]
    groups = [(name, labels == name) for name in shown]
    if len(classes) > len(shown):
        others = f"{len(classes) - len(shown)} others"
        groups.insert(0, (others, ~np.isin(labels, shown)))
        colors.insert(0, "0.8")
    style = {"s": np.clip(16000 / len(points), 4, 30), "alpha": 0.8, "linewidths": 0}
    with _figure(path, 1, 1, (7.1, 5.1)) as ((axis,),):
        for (name, rows), color in zip(groups, colors, strict=True):
            label = printable(str(name))
            # matplotlib hides labels that begin with an underscore.
            label = f" {label}" if label.startswith("_") else label
            axis.scatter(*points[rows].T, color=color, label=label, **style)
        axis.set(title=printable(title or ""), xticks=[], yticks=[], **axis_labels)
        if len(classes) > 1:
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Path(path)
