"""Finds and reads the reference numbers that the golden tests compare with."""

import json
import os
from pathlib import Path

import numpy as np

GOLDEN_FOLDER = Path(
    os.environ.get("KERAS_BRIDLE_GOLDEN", Path(__file__).parent / "golden")
)


def golden_files(pattern, where=None):
    """Lists the golden files of a kind, as pytest parameters.

    Args:
        pattern: string, a glob such as `"rq_*.npz"`.
        where: optional function of a file's config that says whether it counts.

    Returns:
        A list of paths. It may be empty: pytest then reports the test as skipped.
    """
    paths = sorted(GOLDEN_FOLDER.glob(pattern))
    return [path for path in paths if where is None or where(load(path)[0])]


def load(path):
    """Reads one `.npz` file.

    Returns:
        Tuple `(config, arrays)`: the settings and a dict of NumPy arrays by name.
    """
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    config = json.loads(str(arrays.pop("config"))) if "config" in arrays else {}
    return config, arrays
