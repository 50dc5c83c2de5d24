"""Reads published files of weights without running code that they may hold."""

import argparse
import collections
import pickle
import zipfile
from pathlib import Path

import numpy as np

# PyTorch's names of dtypes. NumPy has no bfloat16, so its bits are read as integers.
_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def read_published_state(path, key=None):
    """Reads weights from a `.pth`, `.pt`, `.bin` or `.safetensors` file.

    A PyTorch file is a pickle, which could run code when it is read. So only arrays,
    plain containers, numbers and parsed command lines are allowed.

    Args:
        path: string or path of the file. `.safetensors` need the package of that name.
        key: optional string, the entry with the weights, if there are several, such as
            a model's weights and their moving averages.

    Returns:
        Dict of NumPy arrays by name, for `load_published()`. Halves are float32.

    Raises:
        ValueError: if the file is damaged, might run code, or has several entries.

    Example:
    ```python
    import tempfile
    from importlib.util import find_spec
    from pathlib import Path
    import numpy as np
    from keras_bridle.conversion.published_state import read_published_state

    if find_spec("safetensors"):
        from safetensors.numpy import save_file

        path = Path(tempfile.mkdtemp(), "model.safetensors")
        save_file({"norm.weight": np.ones(4, "float32")}, path)
        print(read_published_state(path))
    ```
    """
    return weights_of(read_published_file(path), path, key)


def read_published_file(path, only_shapes=False):
    """Reads all contents of a file of weights, which may include settings.

    With `only_shapes`, arrays are zeros that take no memory.
    """
    path = Path(path)
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch_file
    try:
        return read(path, only_shapes)
    except (FileNotFoundError, ImportError):
        raise
    # Damaged files raise many kinds of errors.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read safely: it is damaged, or holds more than weights, "
            "or is older than PyTorch 1.6"
        ) from error


def weights_of(content, path, key=None):
    """Finds the dictionary of arrays: the whole, the entry `key`, or the only one."""
    entries = content if isinstance(content, dict) else {}
    found = [x for name, x in entries.items() if _is_state(x) and key in (None, name)]
    if key is None and _is_state(content):
        found = [content]
    if len(found) != 1:
        raise ValueError(
            f"{path} must hold one dictionary of weights, or `key` name which. "
            f"Received: key={key!r}, {len(found)} of them among {list(entries)}"
        )
    return {
        name: x.astype("float32") if x.dtype.name in ("float16", "bfloat16") else x
        for name, x in found[0].items()
    }


def _is_state(value):
    is_full = isinstance(value, dict) and len(value) > 0
    return is_full and all(hasattr(array, "shape") for array in value.values())


def _read_safetensors(path, only_shapes):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        names = file.keys()
        if only_shapes:
            shapes = {name: file.get_slice(name).get_shape() for name in names}
            return {name: np.zeros(shape, "f") for name, shape in shapes.items()}
        return {name: file.get_tensor(name) for name in names}


def _read_torch_file(path, only_shapes):
    """Reads a file of `torch.save()`, with NumPy arrays for tensors."""
    with zipfile.ZipFile(path) as archive:
        (contents,) = [x for x in archive.namelist() if x.endswith("/data.pkl")]
        with archive.open(contents) as file:
            folder = contents.removesuffix("data.pkl")
            return _Reader(file, archive, folder, only_shapes).load()


class _Reader(pickle.Unpickler):
    """An unpickler that only creates objects of a few known kinds."""

    def __init__(self, file, archive, folder, only_shapes):
        super().__init__(file)
        self.archive = archive
        self.folder = folder
        self.only_shapes = only_shapes

    def find_class(self, module, name):
        """Looks up one of the names that are allowed."""
        if module in ("torch", "torch.storage") and name in _TYPES:
            return name
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no weight")
        return _KNOWN[module, name]

    def persistent_load(self, pid):
        """Reads a storage, which lies beside the pickle."""
        _, kind, key, *_ = pid
        dtype = np.dtype(_TYPES[kind])
        entry = self.archive.getinfo(f"{self.folder}data/{key}")
        numbers = np.zeros(entry.file_size // dtype.itemsize, dtype)
        if not self.only_shapes:
            with self.archive.open(entry) as file:
                file.readinto(numbers.view("u1"))
        if kind == "BFloat16Storage":
            numbers = (numbers.astype("uint32") << 16).view("float32")
        return numbers


def _tensor(numbers, offset, shape, strides, *_):
    """Returns a strided view of a storage."""
    reached = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 in shape:
        return np.zeros(shape, numbers.dtype)
    if min((offset, reached, *strides, *shape)) < 0 or reached >= len(numbers):
        raise pickle.UnpicklingError("a tensor reaches beyond its numbers")
    strides = [step * numbers.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, strides)


_KNOWN = {
    ("argparse", "Namespace"): argparse.Namespace,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}
