"""Plots of histories, codes, maps and confusions."""

import csv
import importlib
import math
import re
from pathlib import Path

import keras
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import NullFormatter
from sklearn.decomposition import PCA

from keras_bridle.evaluation.features import nearest_patches
from keras_bridle.evaluation.metrics import check_features, check_labels
from keras_bridle.evaluation.probes import _standardization
from keras_bridle.layers.masks import RandomMask


def drawable_names(names):
    """Puts numbers in place of names that the font has no letters for.

    The font is that of matplotlib's settings: with one that has the letters, such as
    `matplotlib.rcParams["font.family"] = "Noto Sans CJK SC"`, all names are shown.

    Args:
        names: sequence of names, strings or ints.

    Returns:
        A list of strings; `"3"` for the fourth name if its letters are missing.

    Example:
    ```python
    from keras_bridle.evaluation.plots import drawable_names

    print(drawable_names(["cat", "\u72d7"]))  # ['cat', '1'], if the font lacks it
    ```
    """
    known = get_font(findfont(FontProperties())).get_charmap()
    return [
        str(name) if all(ord(letter) in known for letter in str(name)) else str(number)
        for number, name in enumerate(names)
    ]


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
    from keras_bridle.evaluation.plots import plot_history

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
    from keras_bridle.evaluation.metrics import code_usage
    from keras_bridle.evaluation.plots import plot_code_usage

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
    from keras_bridle.evaluation.plots import plot_masked_codes

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


_GRAY_OF_HIDDEN = 0.8


def plot_picture_codes(
    picture, visible, codes, grid, patch_size, path, title=None, dpi=120
):
    """Draws a picture or clip, what its mask leaves visible, and the codes per level.

    Of a clip, one frame of each row of tubelets is drawn, 8 at most. Code numbers have
    no order: neighboring colors mean nothing, only equal colors do.

    Args:
        picture: array of shape `(height, width, channels)` or
            `(frames, height, width, channels)`, of 1 or 3 channels. Integers are pixels
            from 0 to 255; the range of floats is stretched.
        visible: int array of shape `(visible_patches,)`, indices of the patches that
            the encoder sees.
        codes: int array of shape `(patches, levels)`, the codes of all patches, row by
            row and, of clips, frame by frame.
        grid: tuple of ints, patches along each side: `(rows, columns)` or
            `(frames, rows, columns)`.
        patch_size: tuple of ints, the sides of a patch.
        path: string or path of the picture.
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
    from keras_bridle.evaluation.plots import plot_picture_codes

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        plot_picture_codes(
            picture=rng.integers(0, 256, (32, 32, 3), "uint8"),
            visible=rng.permutation(16)[:4],
            codes=rng.integers(0, 64, (16, 4)),
            grid=(4, 4),
            patch_size=(8, 8),
            path=f"{folder}/codes.png",
        )
    ```
    """
    picture, visible, codes = map(np.asarray, (picture, visible, codes))
    grid, patch_size = tuple(grid), tuple(patch_size)
    _check_picture(picture, grid, patch_size)
    check_codes(visible, codes, grid)
    picture = fill_up(picture, grid, patch_size)
    if len(grid) == 2:
        picture, grid, patch_size = picture[None], (1, *grid), (1, *patch_size)
    hidden = np.ones(len(codes), bool)
    hidden[visible] = False
    hidden = hidden.reshape(grid)
    codes = codes.reshape(*grid, -1)
    times = _some(grid[0], 8)
    frames = as_colors(picture)[times * patch_size[0]]

    panels = [("picture" if grid[0] == 1 else "clip", frames)]
    panels.append(
        (
            f"visible: {int((~hidden).sum())} of {hidden.size} patches",
            _without_hidden(frames, hidden[times], patch_size[1:]),
        )
    )
    for level in range(codes.shape[-1]):
        colors = _code_map(codes[times, ..., level], hidden[times])
        panels.append((f"codes, level {level + 1}", colors))
    figure = _draw_panels(panels, frames.shape[1:3], dpi)
    figure.suptitle(title or "pale codes: visible patches", fontsize=9)
    return save_figure(figure, path)


def plot_code_patches(patches, path, title=None, dpi=120):
    """Draws a contact sheet: in each row, patches of one code, the nearest first.

    Args:
        patches: dict from a code, or any name of a row, to an array of shape
            `(n, height, width, channels)`. Integers are pixels from 0 to 255; the range
            of all floats together is stretched.
        path: string or path of the picture.
        title: optional string.
        dpi: int, pixels per inch.

    Returns:
        The path, as a `pathlib.Path`.

    Raises:
        ValueError: if there is no patch, or one of other than 1 or 3 channels.

    Example:
    ```python
    import tempfile
    import numpy as np
    from keras_bridle.evaluation.plots import plot_code_patches

    rng = np.random.default_rng(0)
    patches = {code: rng.integers(0, 256, (6, 8, 8, 3), "uint8") for code in (3, 17)}
    with tempfile.TemporaryDirectory() as folder:
        plot_code_patches(patches, f"{folder}/patches.png")
    ```
    """
    rows = {name: np.asarray(row) for name, row in patches.items()}
    if not sum(map(len, rows.values())):
        raise ValueError("patches must hold at least one patch; received none")
    for row in rows.values():
        if row.ndim != 4 or row.shape[-1] not in (1, 3):
            raise ValueError(
                "patches must be arrays of shape (n, height, width, 1 or 3); received "
                f"shape {row.shape}"
            )
    columns = max(map(len, rows.values()))
    colors = iter(as_colors(np.concatenate(list(rows.values()))))
    height, width = next(iter(rows.values())).shape[1:3]
    cell = 0.5
    # A patch of a few frames by many bins would be a line: it is drawn wider.
    ratio = min(max(width / height, 0.6), 3.0)
    figure = Figure(
        figsize=(max(4.5, 0.9 + columns * cell * ratio), 0.4 + len(rows) * cell),
        dpi=dpi,
        layout="constrained",
    )
    if title:
        figure.suptitle(title, fontsize=9)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row_axes, (name, row) in zip(axes, rows.items(), strict=True):
        for axis, _ in zip(row_axes, row, strict=False):
            axis.imshow(
                next(colors), interpolation="nearest", aspect=width / height / ratio
            )
        row_axes[0].text(
            -0.15,
            0.5,
            str(name),
            transform=row_axes[0].transAxes,
            ha="right",
            va="center",
            fontsize=8,
        )
    return save_figure(figure, path)


def cut_patches(picture, grid, patch_size):
    """Cuts a picture or clip into its patches; of a tubelet, its first frame.

    Args:
        picture: array of shape `(*sides, channels)`, of 2 or 3 sides.
        grid: tuple of ints, patches along each side.
        patch_size: tuple of ints, the sides of a patch.

    Returns:
        Array of shape `(patches, height, width, channels)`. What a patch has beyond the
        picture is 0.
    """
    picture = fill_up(np.asarray(picture), grid, patch_size)
    picture = picture[:: patch_size[0]] if len(grid) == 3 else picture[None]
    rows, columns, (height, width) = grid[-2], grid[-1], patch_size[-2:]
    cut = picture.reshape(len(picture), rows, height, columns, width, -1)
    return cut.swapaxes(2, 3).reshape(-1, height, width, picture.shape[-1])


def fill_up(picture, grid, patch_size):
    """Cuts off or fills up a picture with zeros to the sides of its patches.

    Args:
        picture: array of shape `(*sides, channels)`.
        grid: tuple of ints, patches along each side.
        patch_size: tuple of ints, the sides of a patch.

    Returns:
        Array of shape `(*sides, channels)`, whole patches.
    """
    sides = [cells * size for cells, size in zip(grid, patch_size, strict=True)]
    picture = picture[tuple(slice(side) for side in sides)]
    missing = [
        (0, side - length)
        for side, length in zip(sides, picture.shape[:-1], strict=True)
    ]
    return np.pad(picture, [*missing, (0, 0)])


def as_colors(pictures):
    """Turns pixels into RGB colors in [0, 1].

    Args:
        pictures: array of shape `(..., channels)`, of 1 or 3 channels. Integers are
            pixels from 0 to 255; the range of floats is stretched.

    Returns:
        float array of shape `(..., 3)`.
    """
    pictures = np.asarray(pictures)
    if pictures.dtype.kind in "iu":
        colors = pictures / 255.0
    else:
        lowest, highest = np.percentile(pictures, [0.5, 99.5])
        colors = (pictures - lowest) / max(highest - lowest, 1e-12)
    return np.broadcast_to(np.clip(colors, 0, 1), (*colors.shape[:-1], 3))


def _check_picture(picture, grid, patch_size):
    # The last patches may reach beyond the picture.
    needed = tuple(
        (cells - 1) * size + 1 for cells, size in zip(grid, patch_size, strict=True)
    )
    is_right = (
        len(grid) in (2, 3)
        and picture.ndim == len(grid) + 1
        and picture.shape[-1] in (1, 3)
    )
    if not is_right or (np.array(picture.shape[:-1]) < needed).any():
        raise ValueError(
            f"picture must have sides of at least {needed} for grid={grid} and "
            f"patch_size={patch_size}, and 1 or 3 channels; received shape "
            f"{picture.shape}"
        )


def _some(length, most):
    """Returns at most so many indices, evenly spread."""
    return np.linspace(0, length - 1, min(length, most)).round().astype(int)


def _without_hidden(frames, hidden, patch_size):
    is_hidden = np.kron(hidden, np.ones((1, *patch_size))) > 0
    seen = frames[:, : is_hidden.shape[1], : is_hidden.shape[2]].copy()
    seen[is_hidden] = _GRAY_OF_HIDDEN
    return seen


def _code_map(codes, hidden):
    colors = code_colors(codes.reshape(-1)).reshape(*codes.shape, 3)
    # The visible patches are no targets of the encoder: pale.
    colors[~hidden] = 0.3 * colors[~hidden] + 0.7
    colors[codes < 0] = 1.0
    return colors


def _draw_panels(panels, sides, dpi):
    """Panels beside each other; of a clip, one below the other, frames in a row."""
    num_frames = len(panels[0][1])
    is_clip = num_frames > 1
    rows, columns = (len(panels), num_frames) if is_clip else (1, len(panels))
    width = 1.1 if is_clip else 1.8
    height = width * sides[0] / sides[1]
    figure = Figure(
        figsize=(0.2 + columns * (width + 0.1), 0.4 + rows * (height + 0.3)),
        dpi=dpi,
        layout="constrained",
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for index, (name, frames) in enumerate(panels):
        places = axes[index] if is_clip else axes[:, index]
        places[0].set_title(name, fontsize=9, loc="left")
        for axis, frame in zip(places, frames, strict=True):
            axis.imshow(
                frame, interpolation="nearest", extent=(0, sides[1], sides[0], 0)
            )
            axis.set_axis_off()
    return figure


def draw_codes(pretraining, inputs, folder, most_examples=512):
    """Draws an example with its mask and its codes, and the nearest patches of codes.

    Args:
        pretraining: `InterleavedPretraining`, after `fit()`.
        inputs: array of raw inputs; the first is the example.
        folder: string or path; it gets `codes.png` and `code_patches.png`.
        most_examples: int, how many inputs to look for patches in.

    Returns:
        The paths of both pictures.

    Example:
    ```python
    import tempfile
    import numpy as np
    from keras_bridle import BridleBackbone, InterleavedPretraining
    from keras_bridle.evaluation.plots import draw_codes

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    pretraining = InterleavedPretraining(backbone, codebook_size=8, code_dim=8)
    images = np.random.rand(16, 32, 32, 1).astype("float32")
    pretraining.fit(images, rounds=0, cold_start_epochs=1, batch_size=8, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        draw_codes(pretraining, images, folder)
    ```
    """
    backbone, folder = pretraining.backbone, Path(folder)
    inputs = np.asarray(inputs[:most_examples])
    codes, distances = pretraining.codes(inputs, with_distances=True)
    # The nearest of soft codes.
    codes = codes.reshape(*codes.shape[:2], pretraining.num_levels, -1)[..., 0]
    pictures = _pictures(pretraining, inputs)
    grid = backbone.patch_embedding.grid(pictures.shape[1:-1])
    example = {
        "visible": _visible(pretraining, codes[:1], grid),
        "codes": codes[0],
        "grid": grid,
        "patch_size": backbone.patch_size,
        "path": folder / "codes.png",
    }
    if _is_sound(backbone):
        # The last row of patches may reach beyond the clip.
        whole = fill_up(pictures[0], grid, backbone.patch_size)
        path = plot_masked_codes(whole[..., 0], **example)
    else:
        path = plot_picture_codes(pictures[0], **example)
    return path, _draw_nearest(backbone, pictures, codes, distances, grid, folder)


def _is_sound(backbone):
    return len(backbone.input_dims) == 1


def _pictures(pretraining, inputs):
    """Raw input where it can be seen, else the map that is cut into patches."""
    backbone, augmentation = pretraining.backbone, pretraining.augmentation
    if augmentation is not None:
        # It may bring input to its size.
        inputs = keras.ops.convert_to_numpy(augmentation(inputs, training=False))
    if inputs.ndim == len(backbone.patch_size) + 2:
        return inputs
    # One after another, as a batch of long recordings would fill the memory.
    maps = [backbone.features(example[None])[0] for example in inputs]
    return np.concatenate([keras.ops.convert_to_numpy(x) for x in maps])


def _visible(pretraining, codes, grid):
    mask = RandomMask() if pretraining.mask is None else pretraining.mask
    return keras.ops.convert_to_numpy(mask(codes, grid=grid).visible)[0]


def _draw_nearest(backbone, pictures, codes, distances, grid, folder):
    found = nearest_patches(codes[:, :, 0], distances)
    patches = {}
    for code, places in found.items():
        cut = [
            cut_patches(pictures[example], grid, backbone.patch_size)[patch]
            for example, patch in places
        ]
        patches[f"code {code}"] = np.stack(cut)
    if _is_sound(backbone):
        # Time to the right and high notes at the top, as in spectrograms.
        patches = {name: x.swapaxes(1, 2)[:, ::-1] for name, x in patches.items()}
    title = "level 1: the patches nearest to a code, frequent codes first"
    return plot_code_patches(patches, folder / "code_patches.png", title=title)


# More names than these cannot be read, more numbers do not fit into their cells.
_MOST_NAMES = 60
_MOST_NUMBERS = 20


def plot_confusion_matrix(confusion, path, class_names=None, title=None, dpi=120):
    """Draws a confusion matrix, its cells as shares of the rows of the true class.

    Args:
        confusion: int array of shape `(classes, classes)`, true classes first, as of
            `ClassificationMetrics`. Classes that never occur are left white.
        path: string or path of the picture.
        class_names: optional sequence of strings; numbers by default, and where the
            font lacks letters. Of more than 60 classes no names are drawn.
        title: optional string.
        dpi: int, pixels per inch.

    Returns:
        The path, as a `pathlib.Path`.

    Raises:
        ValueError: if `confusion` has another shape or negative values, or names do not
            fit.

    Example:
    ```python
    import tempfile
    from keras_bridle.evaluation.plots import plot_confusion_matrix

    confusion = [[8, 2, 0], [1, 9, 0], [0, 5, 5]]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/confusion.png"
        plot_confusion_matrix(confusion, path, ["cat", "dog", "owl"])
    ```
    """
    confusion = np.asarray(confusion)
    classes = len(confusion)
    if confusion.ndim != 2 or confusion.shape != (classes, classes) or not classes:
        raise ValueError(
            "confusion must have shape (classes, classes); received shape "
            f"{confusion.shape}"
        )
    if confusion.min() < 0:
        raise ValueError("confusion must not be negative")
    names = list(range(classes)) if class_names is None else list(class_names)
    if len(names) != classes:
        raise ValueError(
            f"class_names must name the {classes} classes; received {len(names)}"
        )
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.ma.masked_where(
        np.broadcast_to(totals == 0, confusion.shape), confusion / np.maximum(totals, 1)
    )
    names = drawable_names(names)
    named = classes <= _MOST_NAMES
    side = 3.0 + (0.32 if classes <= _MOST_NUMBERS else 0.17) * min(
        classes, _MOST_NAMES
    )
    figure = Figure(figsize=(side + 0.8, side), dpi=dpi, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    if title and drawable_names([title]) == [title]:
        axis.set_title(title, fontsize=11)
    if named:
        size = 8 if classes <= _MOST_NUMBERS else 6
        axis.set_xticks(range(classes), names, rotation=90, fontsize=size)
        axis.set_yticks(range(classes), names, fontsize=size)
    if classes <= _MOST_NUMBERS:
        _write_numbers(axis, confusion, shares)
    return save_figure(figure, path)


def _write_numbers(axis, confusion, shares):
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            axis.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                fontsize=6 if confusion.max() < 1000 else 5,
                color="white" if shares[row, column] > 0.5 else "0.2",
            )


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
    from keras_bridle.evaluation.plots import plot_embedding

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
