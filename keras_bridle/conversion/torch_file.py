"""PyTorch's files of weights, read without PyTorch and without running anything."""

import argparse
import collections
import pickle
import zipfile

import numpy as np

# What PyTorch calls the numbers of a storage. NumPy has no bfloat16: its bits are read.
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


def read_torch_file(path, only_shapes=False):
    """Reads what `torch.save()` has written, with NumPy arrays for tensors.

    Only arrays, plain containers and the arguments of a command line are let in.
    Anything else raises `pickle.UnpicklingError`.
    """
    with zipfile.ZipFile(path) as archive:
        (contents,) = [x for x in archive.namelist() if x.endswith("/data.pkl")]
        with archive.open(contents) as file:
            folder = contents.removesuffix("data.pkl")
            return _Reader(file, archive, folder, only_shapes).load()


class _Reader(pickle.Unpickler):
    """An unpickler that makes objects of a few known kinds alone."""

    def __init__(self, file, archive, folder, only_shapes):
        super().__init__(file)
        self.archive = archive
        self.folder = folder
        self.only_shapes = only_shapes

    def find_class(self, module, name):
        """Looks up one of the names that are let in."""
        if module in ("torch", "torch.storage") and name in _TYPES:
            return name
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no weight")
        return _KNOWN[module, name]

    def persistent_load(self, pid):
        """Reads the numbers that lie beside the pickle."""
        _, kind, key, *_ = pid
        entry = self.archive.getinfo(f"{self.folder}data/{key}")
        numbers = np.zeros(
            entry.file_size // np.dtype(_TYPES[kind]).itemsize, _TYPES[kind]
        )
        if not self.only_shapes:
            with self.archive.open(entry) as file:
                file.readinto(numbers.view("u1"))
        if kind == "BFloat16Storage":
            numbers = (numbers.astype("uint32") << 16).view("float32")
        return numbers


def _tensor(numbers, offset, shape, strides, *_):
    """An array of some of the numbers of a storage."""
    reached = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 in shape:
        return np.zeros(shape, numbers.dtype)
    if min((offset, reached, *strides, *shape)) < 0 or reached >= len(numbers):
        raise pickle.UnpicklingError("a tensor reaches beyond its numbers")
    size = numbers.itemsize
    strides = [step * size for step in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, strides)


_KNOWN = {
    ("argparse", "Namespace"): argparse.Namespace,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}
