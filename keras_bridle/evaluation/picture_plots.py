"""Pictures of codes in pictures and clips: masks, code maps, contact sheets."""

import numpy as np
from matplotlib.figure import Figure

from keras_bridle.evaluation.plots import check_codes, code_colors, save_figure

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
    from keras_bridle.evaluation import plot_picture_codes

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
    from keras_bridle.evaluation import plot_code_patches

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
