"""Reads the files that weights are published in, without running what is in them."""

from pathlib import Path

import numpy as np

from keras_bridle.conversion.torch_file import read_torch_file


def read_published_state(path, key=None):
    """Reads weights from a `.pth`, `.pt`, `.bin` or `.safetensors` file.

    A PyTorch file is a pickle, which could run any code when it is read. So only
    arrays, plain containers, numbers and the arguments of a command line are let in.

    Args:
        path: string or path of the file. `.safetensors` need the package of that name.
        key: optional string, the entry that holds the weights, if several might, such
            as those of a model and their moving averages.

    Returns:
        Dict of NumPy arrays by name, for `load_published()`. Halves are float32.

    Raises:
        ImportError: if the package that reads the file is missing.
        ValueError: if the file is damaged, holds objects that might run code, or it is
            not clear which of its entries are the weights.

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
    """Reads all that a file of weights holds, which may be settings, too.

    With `only_shapes`, arrays are zeros, which take no memory before they are used.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}")
    read = _read_safetensors if path.suffix == ".safetensors" else read_torch_file
    try:
        return read(path, only_shapes)
    except ImportError as error:
        raise ImportError(
            f"{path.name} needs a package that is not installed: `pip install "
            f"{error.name}`"
        ) from error
    # Damage shows in many kinds of errors, objects that are not let in, in one.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read safely: it is damaged, or holds more than weights"
        ) from error


def _read_safetensors(path, only_shapes):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        names = file.keys()
        if only_shapes:
            shapes = {name: file.get_slice(name).get_shape() for name in names}
            return {name: np.zeros(shape, "f") for name, shape in shapes.items()}
        return {name: file.get_tensor(name) for name in names}


def weights_of(content, path, key=None):
    """Finds the dictionary of arrays: all there is, the `key`, or the only one."""
    if key is None and _is_state(content):
        return {name: _as_array(x) for name, x in content.items()}
    entries = content if isinstance(content, dict) else {}
    found = [
        name
        for name, value in entries.items()
        if _is_state(value) and key in (None, name)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{path} must hold one dictionary of weights, or `key` name which. "
            f"Received: key={key!r}, {found or 'none'} among {list(entries)}"
        )
    return {name: _as_array(x) for name, x in content[found[0]].items()}


def _is_state(value):
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(hasattr(array, "shape") for array in value.values())
    )


def _as_array(value):
    is_half = value.dtype.itemsize == 2 and value.dtype.kind not in "iu"
    return value.astype("float32") if is_half else value
