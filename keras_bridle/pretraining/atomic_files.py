"""Files that are there whole or not at all."""

import contextlib
import errno
import os
import shutil
from pathlib import Path


class SaveError(OSError):
    """A file of a run could not be written: the disk is full, or gone.

    What was saved before is unharmed, and the run can go on from there.

    Example:
    ```python
    import tempfile
    from pathlib import Path
    from keras_bridle.pretraining import SaveError
    from keras_bridle.pretraining.atomic_files import atomic_file

    try:
        with atomic_file(Path(tempfile.mkdtemp(), "state.json")):
            raise OSError("No space left on device")
    except SaveError as error:
        print(error)
    ```
    """


@contextlib.contextmanager
def atomic_file(path):
    """Gives a path to write to, and puts the file there in the place of another.

    A program killed at any moment leaves the old file or the new one. An error leaves
    the old one, and no half file that would fill a disk.

    Args:
        path: string or path of the file. Its folder is made if it is missing.

    Yields:
        `pathlib.Path` of a file beside it, of the same ending.

    Raises:
        SaveError: if the file cannot be written.

    Example:
    ```python
    import os
    import tempfile
    from keras_bridle.pretraining.atomic_files import atomic_file

    path = os.path.join(tempfile.mkdtemp(), "state.json")
    with atomic_file(path) as unfinished:
        unfinished.write_text("{}")
    print(os.listdir(os.path.dirname(path)))  # ['state.json']
    ```
    """
    path = Path(path)
    unfinished = path.with_name(f"unfinished.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        _write_out(unfinished)
        unfinished.replace(path)
        _write_out(path.parent)
    # HDF5 may notice only on closing a file, with an error of its own.
    except (OSError, RuntimeError) as error:
        raise SaveError(_reason(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def full_disk_error(error):
    """Finds what tells of a full disk: an error, or one that it came from.

    Args:
        error: optional exception.

    Returns:
        The exception, or `None`.

    Example:
    ```python
    import errno
    from keras_bridle.pretraining.atomic_files import full_disk_error

    print(full_disk_error(OSError(errno.ENOSPC, "No space left on device")))
    print(full_disk_error(ValueError("another one")))  # None
    ```
    """
    while error is not None:
        # HDF5 and TensorFlow tell in words only.
        in_words = os.strerror(errno.ENOSPC) in str(error)
        if in_words or getattr(error, "errno", None) in _FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


# A quota is as good as a disk.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def _write_out(path):
    """Brings a file or folder from memory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(path, error):
    free = ""
    with contextlib.suppress(OSError):
        free = f" {shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free there."
    return (
        f"Cannot save {path.name} in {str(path.parent)!r}: {error}.{free} What was "
        "saved before is unharmed: make room, and go on with `resume=True` "
        "(`--resume` of a recipe)"
    )
