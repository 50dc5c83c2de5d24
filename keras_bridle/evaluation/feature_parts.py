"""The two forms in which parts of features are kept."""

import importlib
import json

import numpy as np

from keras_bridle.pretraining.atomic_files import atomic_file

FORMATS = ("npz", "parquet")


def save_part(stem, columns, about, format):
    """Writes columns to a file of its own, which is there as a whole or not at all.

    Args:
        stem: path without its ending, or `None` to check the format alone.
        columns: dict of arrays of equal length: strings or ints of shape `(rows,)`, or
            numbers of shape `(rows, ...)`.
        about: dict that JSON can hold, kept with them.
        format: `"npz"` or `"parquet"`.

    Raises:
        ValueError: for another format.
        ImportError: for `"parquet"` without pyarrow.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {FORMATS}; received {format!r}")
    pyarrow = _import_pyarrow() if format == "parquet" else None
    if stem is None:
        return
    with atomic_file(stem.with_suffix(f".{format}")) as unfinished:
        if pyarrow is None:
            np.savez(unfinished, about=np.array(json.dumps(about)), **columns)
        else:
            table = _as_arrow(pyarrow, columns, about)
            importlib.import_module("pyarrow.parquet").write_table(table, unfinished)


def load_part(path):
    """Reads what `save_part` has written.

    Args:
        path: path of the file.

    Returns:
        Tuple `(columns, about)`.
    """
    if path.suffix == ".parquet":
        return _load_arrow(path)
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files if name != "about"}
        return columns, json.loads(str(file["about"]))


def _as_arrow(pyarrow, columns, about):
    arrays, shapes = {}, {}
    for name, values in columns.items():
        array = pyarrow.array(values.reshape(-1))
        if values.ndim > 1:
            # A list of one length for each row; how it is folded is in the metadata.
            shapes[name] = values.shape[1:]
            array = pyarrow.FixedSizeListArray.from_arrays(
                array, int(np.prod(values.shape[1:]))
            )
        arrays[name] = array
    table = pyarrow.table(arrays)
    note = json.dumps({"about": about, "shapes": shapes})
    return table.replace_schema_metadata({"keras_bridle": note})


def _load_arrow(path):
    _import_pyarrow()
    table = importlib.import_module("pyarrow.parquet").read_table(path)
    note = json.loads(table.schema.metadata[b"keras_bridle"])
    columns = {}
    for name in table.column_names:
        array = table[name].combine_chunks()
        if name in note["shapes"]:
            values = array.flatten().to_numpy(zero_copy_only=False)
            columns[name] = values.reshape(-1, *note["shapes"][name])
        else:
            values = array.to_numpy(zero_copy_only=False)
            columns[name] = values.astype(str) if values.dtype == object else values
    return columns, note["about"]


def _import_pyarrow():
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise ImportError(
            'Parquet files need pyarrow: pip install "keras-bridle[parquet]". The '
            "format npz needs nothing"
        ) from error
