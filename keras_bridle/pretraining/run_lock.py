"""One process at a time in the folder of a run."""

import contextlib
import errno
import json
import os
import socket
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]


class RunLock:
    """Keeps other processes out of a folder while this one works in it.

    The operating system frees the lock when its process ends, however that ends. The
    file `run.lock` tells who holds it. Where a file system knows no locks, the file
    alone decides: it is taken over if its process was on this machine and is dead.

    Args:
        path: string or path of the folder, made if it is missing.

    Attributes:
        left_by: dict with the `pid` and `host` of a run that was killed here, or
            `None` if the last one was ended properly.

    Raises:
        BlockingIOError: if another process works there.

    Example:
    ```python
    import tempfile
    from keras_bridle.pretraining.run_lock import RunLock

    directory = tempfile.mkdtemp()
    with RunLock(directory) as lock:
        print(lock.left_by)  # None
    ```
    """

    def __init__(self, path):
        self.path = Path(path) / "run.lock"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+")
        owner = self._owner()
        if not self._lock(owner):
            self._file.close()
            who = f"process {owner['pid']} on {owner['host']}" if owner else "another"
            raise BlockingIOError(
                f"Two runs cannot share one directory: {who} is at work in "
                f"{str(self.path.parent)!r}. Wait for its end, or name another one"
            )
        self.left_by = owner
        self._file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, self._file)
        self._file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Lets others in."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()

    def _owner(self):
        self._file.seek(0)
        with contextlib.suppress(ValueError):
            owner = json.load(self._file)
            if isinstance(owner, dict) and {"pid", "host"} <= owner.keys():
                return owner
        return None

    def _lock(self, owner):
        """Takes the lock, if it is free."""
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return False
        return owner is None or _is_dead(owner)


def _is_dead(owner):
    if owner["host"] != socket.gethostname():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
