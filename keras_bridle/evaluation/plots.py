"""Pictures of a run: its curves, its codes, its masks.

All of them are drawn without pyplot, so that neither its global state nor a display
is touched.
"""

import csv
import math
import re
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

# What the second row of a history shows: the first kind that a phase has.
SECOND_ROW = ("accuracy", "cosine", "usage", "perplexity")
GRAY = "0.45"


def plot_history(history, path, dpi=120):
    """Draws the loss of every phase and, below, its accuracy per level.

    Phases without accuracy show their cosine to the teacher, usage or perplexity
    there instead. Validation is dashed.

    Args:
        history: dict from phase to its history, which is a dict from metric name to
            a sequence of values, one per epoch (as `History.history` of Keras is), or
            the path of a CSV file with one line per epoch. Or the path of one CSV
            file for all phases, with a column `phase`. Names that end in a number
            are the levels of one metric.
        path: string or path of the picture.
        dpi: int, pixels per inch.

    Returns:
        The path, as a `pathlib.Path`.

    Raises:
        ValueError: if there is no phase, or a phase has no finite loss.
        FileNotFoundError: if a CSV file does not exist.

    Example:
    ```python
    import tempfile
    from keras_bridle.evaluation import plot_history

    history = {
        "cold start": {"loss": [5.5, 5.1], "code_accuracy_1": [0.01, 0.03]},
        "tokenizer 1": {"loss": [0.9, 0.4], "cosine": [0.2, 0.7]},
    }
    with tempfile.TemporaryDirectory() as folder:
        plot_history(history, f"{folder}/history.png")
    ```
    """
    phases = _read_history(history)
    second = {name: _second_row(columns) for name, columns in phases.items()}
    rows = 2 if any(second.values()) else 1
    width = max(4.5, 3.4 * len(phases))
    figure = Figure(figsize=(width, 0.4 + 2.6 * rows), dpi=dpi, layout="constrained")
    axes = figure.subplots(rows, len(phases), squeeze=False, sharex="col")
    for column, (name, columns) in enumerate(phases.items()):
        top = axes[0, column]
        top.set_title(name, fontsize=11)
        _draw_curves(top, columns, _loss_names(columns))
        if column == 0:
            top.set_ylabel("loss")
        if rows == 2:
            bottom = axes[1, column]
            if second[name]:
                _draw_curves(bottom, columns, second[name])
                bottom.set_ylabel(_kind(second[name][0]))
            else:
                bottom.set_visible(False)
        lowest = axes[1, column] if second[name] else top
        lowest.set_xlabel("epoch")
        lowest.tick_params(labelbottom=True)
        lowest.xaxis.get_major_locator().set_params(integer=True)
        if len(columns["loss"]) == 1:
            lowest.set_xticks([1])
    return save_figure(figure, path)


def plot_code_usage(counts, path, dpi=120):
    """Draws how often each code is used, from the most to the least frequent.

    The axis is logarithmic, in multiples of the share that every code would have if
    all were used equally often.

    Args:
        counts: int array of shape `(levels, codebook_size)`, as `code_usage` returns
            it.
        path: string or path of the picture.
        dpi: int, pixels per inch.

    Returns:
        The path, as a `pathlib.Path`.

    Raises:
        ValueError: if `counts` has another shape, a negative value, or an empty
            level.

    Example:
    ```python
    import tempfile
    import numpy as np
    from keras_bridle.evaluation import code_usage, plot_code_usage

    codes = np.random.default_rng(0).integers(0, 16, (100, 4))
    with tempfile.TemporaryDirectory() as folder:
        plot_code_usage(code_usage(codes, 16).counts, f"{folder}/usage.png")
    ```
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or 0 in counts.shape:
        raise ValueError(
            "counts must have shape (levels, codebook_size); received shape "
            f"{counts.shape}"
        )
    if counts.min() < 0 or counts.sum(axis=1).min() <= 0:
        raise ValueError("counts must not be negative, nor 0 in all codes of a level")
    levels, size = counts.shape
    shares = np.sort(counts / counts.sum(axis=1, keepdims=True), axis=1)[:, ::-1]
    shares *= size  # 1 is an even share
    # At least two decades, or the logarithmic axis would be left without numbers.
    lowest = min(0.5 * shares[shares > 0].min(), 0.1)
    highest = max(1.5 * shares.max(), 10)
    columns = min(levels, 4)
    rows = -(-levels // columns)
    figure = Figure(
        figsize=(max(4.5, 3.1 * columns), 0.4 + 2.6 * rows),
        dpi=dpi,
        layout="constrained",
    )
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colors = _level_colors(levels)
    for level, axis in enumerate(axes.flat):
        if level >= levels:
            axis.set_visible(False)
            continue
        share = shares[level][shares[level] > 0] / size
        perplexity = np.exp(-np.sum(share * np.log(share)))
        axis.fill_between(
            np.arange(size + 1),
            np.maximum(np.append(shares[level], 0), lowest),
            lowest,
            step="post",
            color=colors[level],
            linewidth=0,
        )
        even = axis.axhline(1, color="black", linewidth=1, linestyle="--")
        axis.set_title(
            f"level {level + 1}: {100 * len(share) / size:.1f} % used,\n"
            f"perplexity {perplexity:.0f} of {size}",
            fontsize=10,
        )
        axis.set_xlim(0, size)
        axis.set_yscale("log")
        axis.set_ylim(lowest, highest)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        _tidy(axis)
        if level + columns >= levels:
            axis.set_xlabel("codes, most frequent first")
            axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("frequency / even share")
    axes[0, -1].legend(
        [even],
        ["all codes equally often"],
        fontsize=8,
        frameon=False,
        loc="upper right",
    )
    return save_figure(figure, path)


def plot_masked_codes(
    spectrogram,
    visible,
    codes,
    grid,
    patch_size,
    path,
    frame_seconds=0.01,
    title=None,
    dpi=120,
):
    """Draws a spectrogram, what its mask leaves visible, and the codes per level.

    Code numbers have no order: neighboring colors mean nothing, only equal colors
    do.

    Args:
        spectrogram: float array of shape `(frames, mel_bins)`.
        visible: int array of shape `(visible_patches,)`, indices of the patches that
            the encoder sees.
        codes: int array of shape `(patches, levels)`, the codes of all patches, in
            the order of the patches: along mel first, then along time. Patches of
            code -1 are padding and stay white.
        grid: pair of ints, patches along time and along mel.
        patch_size: pair of ints, frames and mel bins of a patch.
        path: string or path of the picture.
        frame_seconds: float, seconds from one frame to the next.
        title: optional string.
        dpi: int, pixels per inch.

    Returns:
        The path, as a `pathlib.Path`.

    Raises:
        ValueError: if shapes and indices do not fit each other.

    Example:
    ```python
    import tempfile
    import numpy as np
    from keras_bridle.evaluation import plot_masked_codes

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        plot_masked_codes(
            spectrogram=rng.normal(size=(64, 32)),
            visible=rng.permutation(8)[:2],
            codes=rng.integers(0, 16, (8, 4)),
            grid=(4, 2),
            patch_size=(16, 16),
            path=f"{folder}/codes.png",
        )
    ```
    """
    spectrogram, visible, codes = map(np.asarray, (spectrogram, visible, codes))
    _check_spectrogram(spectrogram, grid, patch_size)
    check_codes(visible, codes, grid)
    frames, bins = (cells * size for cells, size in zip(grid, patch_size, strict=True))
    spectrogram = spectrogram[:frames, :bins]
    hidden = np.ones(len(codes), bool)
    hidden[visible] = False

    panels = 2 + codes.shape[1]
    # Short clips stand two abreast, long ones below each other.
    height = 1.35
    width = height * float(np.clip(1.4 * frames / bins, 1.9, 6))
    columns = 1 if width > 4.5 else 2
    rows = -(-panels // columns)
    figure = Figure(
        figsize=(0.8 + columns * (0.2 + width), 0.7 + rows * (0.3 + height)),
        dpi=dpi,
        layout="constrained",
    )
    if title:
        figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    flat_axes = list(axes.flat)
    extent = (0, frames * frame_seconds, 0, bins)
    _draw_spectrograms(flat_axes[:2], spectrogram, hidden, grid, patch_size, extent)
    cell = (width / grid[0], height / grid[1])
    for level, axis in enumerate(flat_axes[2:panels]):
        _draw_codes(axis, codes[:, level], hidden, grid, extent, cell)
        axis.set_title(f"codes, level {level + 1} (pale: visible)", fontsize=10)
    for axis in flat_axes[panels:]:
        axis.set_visible(False)
    for axis in flat_axes[max(0, panels - columns) : panels]:
        axis.set_xlabel("seconds")
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("mel bin")
    flat_axes[0].set_yticks(np.linspace(0, bins, 5).round())
    return save_figure(figure, path)


def _check_spectrogram(spectrogram, grid, patch_size):
    needed = tuple(cells * size for cells, size in zip(grid, patch_size, strict=True))
    if spectrogram.ndim != 2 or (np.array(spectrogram.shape) < needed).any():
        raise ValueError(
            f"spectrogram must have shape (frames, mel_bins), at least {needed} for "
            f"grid={tuple(grid)} and patch_size={tuple(patch_size)}; received shape "
            f"{spectrogram.shape}"
        )


def check_codes(visible, codes, grid):
    """Raises a `ValueError` if codes and visible patches do not fit a grid.

    Args:
        visible: array of the visible patches' indices.
        codes: array of shape `(patches, levels)`.
        grid: tuple of ints, patches along each side.
    """
    patches = math.prod(grid)
    if codes.ndim != 2 or len(codes) != patches:
        raise ValueError(
            f"codes must have shape ({patches}, levels) for grid={tuple(grid)}; "
            f"received shape {codes.shape}"
        )
    if visible.ndim != 1 or visible.dtype.kind not in "iu":
        raise ValueError(
            "visible must be a vector of patch indices; received shape "
            f"{visible.shape}, dtype {visible.dtype}"
        )
    if visible.min(initial=0) < 0 or visible.max(initial=0) >= patches:
        raise ValueError(
            f"visible must lie between 0 and {patches - 1}; received {visible.min()} "
            f"to {visible.max()}"
        )


def _draw_spectrograms(axes, spectrogram, hidden, grid, patch_size, extent):
    lowest, highest = np.percentile(spectrogram, [1, 99.5])
    masked_frames = np.kron(hidden.reshape(grid), np.ones(patch_size)) > 0
    images = (spectrogram, np.ma.masked_where(masked_frames, spectrogram))
    count, total = int(np.sum(~hidden)), len(hidden)
    titles = ("log-mel spectrogram", f"visible: {count} of {total} patches")
    for axis, image, title in zip(axes, images, titles, strict=True):
        axis.imshow(
            image.T,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            extent=extent,
            cmap=colormaps["magma"].with_extremes(bad="0.8"),
            vmin=lowest,
            vmax=highest,
        )
        axis.set_title(title, fontsize=10)
    _draw_grid(axes[1], grid, extent)


def _draw_codes(axis, codes, hidden, grid, extent, cell):
    colors = code_colors(codes)
    # The visible patches are no targets of the encoder: pale.
    colors[~hidden] = 0.3 * colors[~hidden] + 0.7
    colors[codes < 0] = 1.0
    axis.imshow(
        colors.reshape(*grid, 3).swapaxes(0, 1),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=extent,
    )
    _draw_grid(axis, grid, extent)
    # Numbers only where they fit.
    digits = len(str(int(codes.max())))
    size = 72 * min(0.55 * cell[1], cell[0] / (0.75 * digits))
    if size < 5:
        return
    for patch in np.flatnonzero(codes >= 0):
        column, row = divmod(patch, grid[1])
        axis.text(
            (column + 0.5) / grid[0] * extent[1],
            (row + 0.5) / grid[1] * extent[3],
            str(codes[patch]),
            ha="center",
            va="center_baseline",
            fontsize=min(size, 8),
            color="black" if hidden[patch] else GRAY,
        )


def _draw_grid(axis, grid, extent):
    style = {"color": "white", "linewidth": 0.6}
    for position in np.linspace(0, extent[1], grid[0] + 1)[1:-1]:
        axis.axvline(position, **style)
    for position in np.linspace(0, extent[3], grid[1] + 1)[1:-1]:
        axis.axhline(position, **style)


def code_colors(codes):
    """Chooses colors that are far apart for neighboring code numbers.

    Args:
        codes: int array of shape `(patches,)`.

    Returns:
        float array of shape `(patches, 3)`, RGB.
    """
    golden = 0.5 * (np.sqrt(5) - 1)
    hue = (codes * golden) % 1
    value = 0.72 + 0.26 * ((codes * golden**2 * 7) % 1)
    return hsv_to_rgb(np.stack([hue, np.full(len(codes), 0.5), value], axis=-1))


def _read_history(history):
    if not isinstance(history, dict):
        history = _split_phases(_read_csv(history))
    if not history:
        raise ValueError("history must hold at least one phase; received none")
    phases = {}
    for name, columns in history.items():
        if not isinstance(columns, dict):
            columns = _read_csv(columns)
        columns = {
            key: np.array([_number(value) for value in values])
            for key, values in columns.items()
        }
        if not np.isfinite(columns.get("loss", [])).any():
            raise ValueError(
                f'history of phase {name!r} must have a finite "loss"; received the '
                f"columns {sorted(columns)}"
            )
        phases[name] = columns
    return phases


def _read_csv(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {key: [row[key] for row in rows] for key in (rows[0] if rows else ())}


def _split_phases(columns):
    """Cuts the columns of one file at its column `phase`."""
    names = columns.get("phase", ["training"] * len(columns.get("loss", [])))
    return {
        phase: {
            key: [
                value
                for name, value in zip(names, values, strict=True)
                if name == phase
            ]
            for key, values in columns.items()
            if key != "phase"
        }
        for phase in dict.fromkeys(names)
    }


def _number(value):
    try:
        return float(value)
    except (TypeError, ValueError):  # an empty cell, a word
        return np.nan


def _loss_names(columns):
    return [name for name in ("loss", "val_loss") if name in columns]


def _second_row(columns):
    """Returns the names of the first kind of metric that has values."""
    for kind in SECOND_ROW:
        names = [
            name
            for name, values in columns.items()
            if kind in name and "loss" not in name and np.isfinite(values).any()
        ]
        # Levels if there are any: their mean would only hide among them.
        by_level = [name for name in names if _level(name) is not None]
        if names:
            return by_level or names
    return []


def _kind(name):
    return next(kind for kind in SECOND_ROW if kind in name)


def _level(name):
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else None


def _draw_curves(axis, columns, names):
    levels = sorted({_level(name) for name in names} - {None})
    colors = dict(zip(levels, _level_colors(len(levels)), strict=True))
    for name in names:
        values, level = columns[name], _level(name)
        epochs = np.arange(1, len(values) + 1)
        # Validation may run in some epochs only: join those.
        known = np.isfinite(values)
        validation = name.startswith("val_")
        label = f"level {level}" if level is not None else name.replace("_", " ")
        if name in ("loss", "val_loss"):
            label = "validation" if validation else "training"
        axis.plot(
            epochs[known],
            values[known],
            color=colors.get(level, "C0"),
            linestyle="--" if validation else "-",
            marker="o" if known.sum() <= 12 else None,
            markersize=3,
            linewidth=1.5,
            label=label.removeprefix("val "),
        )
    if len(names) > 1:
        axis.legend(fontsize=8, frameon=False, ncols=1 + (len(names) > 5))
    _tidy(axis)


def _level_colors(levels):
    return colormaps["viridis"](np.linspace(0.1, 0.8, levels))


def _tidy(axis):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)


def save_figure(figure, path):
    """Writes a figure; missing folders are made.

    Args:
        figure: `matplotlib.figure.Figure`.
        path: string or path.

    Returns:
        The path, as a `pathlib.Path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
