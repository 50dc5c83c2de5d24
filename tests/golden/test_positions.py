"""Position tables against the published ones."""

import re

import numpy as np
import pytest
from golden_files import golden_files, load
from harness import to_numpy

from keras_bridle.layers.positions import SineCosinePositionEncoding

TOLERANCE = 1e-6


def tables():
    return [
        pytest.param(path, name, id=f"{path.stem}-{name}")
        for path in golden_files("pos_embed*.npz")
        for name in load(path)[1]
    ]


def described(name):
    """What a table's name says: layout, grid, dim, rows in front."""
    kind, *parts = name.split(".")
    dim = int(re.search(r"dim(\d+)", name).group(1))
    if kind == "sinusoid":
        return "sequence", (int(re.search(r"\.n(\d+)", name).group(1)),), dim, 0
    if kind == "audio_model":
        time, mel = map(int, re.search(r"img(\d+)x(\d+)", name).groups())
        patch = int(re.search(r"patch(\d+)", name).group(1))
        return "transposed_grid", (time // patch, mel // patch), dim, 1
    sides = re.search(r"grid(\d+)(?:x(\d+))?", name).groups()
    grid = (int(sides[0]), int(sides[1] or sides[0]))
    return "grid", grid, dim, int(parts[-1] == "cls1")


@pytest.mark.parametrize(("path", "name"), tables())
def test_layer_adds_the_table_to_a_grid(path, name):
    layout, grid, dim, rows_in_front = described(name)
    expected = load(path)[1][name].reshape(-1, dim)[rows_in_front:]
    patches = np.random.default_rng(0).normal(size=(2, *grid, dim)).astype("float32")
    layer = SineCosinePositionEncoding(layout)
    added = to_numpy(layer(patches)) - patches
    assert np.abs(added.reshape(2, -1, dim) - expected).max() <= TOLERANCE
    flat = patches.reshape(2, -1, dim)
    added = to_numpy(layer(flat, grid=grid)) - flat
    assert np.abs(added - expected).max() <= TOLERANCE
