"""Computes with arrays of any kind: NumPy's, the backend's, those of `tf.data`."""

import importlib

import numpy as np
from keras import ops


def array_functions(array):
    """Finds the functions that an array's kind is computed with.

    In a `tf.data` pipeline arrays are TensorFlow's on every backend, and `keras.ops`
    are not for them.

    Args:
        array: NumPy array, tensor of the backend, or tensor of a `tf.data` pipeline.

    Returns:
        A module, `numpy`, `keras.ops` or `tensorflow`, whose `pad`, `reshape`, `shape`,
        `stack`, `minimum` and `maximum` take such arrays.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converter_arrays import array_functions

    print(array_functions(np.ones(3)).__name__)  # numpy
    ```
    """
    if isinstance(array, np.ndarray):
        return np
    if type(array).__module__.startswith("tensorflow"):
        return importlib.import_module("tensorflow")
    return ops


def as_float32(array):
    """Casts an array of any kind, see `array_functions()`, to float32.

    Args:
        array: NumPy array, tensor of the backend, or tensor of a `tf.data` pipeline.

    Returns:
        Array of the same kind.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converter_arrays import as_float32

    print(as_float32(np.arange(3)).dtype)  # float32
    ```
    """
    if isinstance(array, np.ndarray):
        return array.astype("float32", copy=False)
    return array_functions(array).cast(array, "float32")


def sides_of(array):
    """Tells an array's shape, with tensors only where a side is not known yet.

    Args:
        array: NumPy array, tensor of the backend, or tensor of a `tf.data` pipeline.

    Returns:
        Tuple of ints, or int tensors in TensorFlow graphs.

    Example:
    ```python
    import numpy as np
    from keras_bridle.models.converter_arrays import sides_of

    print(sides_of(np.ones((2, 3))))  # (2, 3)
    ```
    """
    known = tuple(array.shape)
    if None not in known:
        return known
    now = array_functions(array).shape(array)
    return tuple(now[axis] if side is None else side for axis, side in enumerate(known))
