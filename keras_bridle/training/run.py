"""The directory of a run."""

import contextlib
import csv
import datetime
import errno
import functools
import hashlib
import json
import os
import platform
import socket
import zlib
from pathlib import Path

import keras
import numpy as np

from keras_bridle.distribution import broadcast, is_alone, share_file
from keras_bridle.training.batches import ArrayBatches, in_floatx
from keras_bridle.training.checkpoint import PhaseCheckpoint, Preemption, atomic_file
from keras_bridle.version import __version__

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
    from keras_bridle.training.run import RunLock

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


class RunDirectory:
    """Keeps the files of a run, so that it can be read, resumed and never overwritten.

    ```
    settings.json               what the run was asked to do, and with which versions
    state.json                  which phases are done
    log.txt                     when it was started, gone on with, and how it ended
    phases/2_encoder/           history.csv, tensorboard/, and *.weights.h5 at its end
    ```

    Args:
        path: string or path of the folder, made if it is missing.
        settings: dict that JSON can hold.
        resume: bool, whether to go on with a run that is there.
        echo: bool, whether to print what is noted in `log.txt`.

    Raises:
        FileExistsError: if there is a run and `resume` is `False`.
        ValueError: if the run that is there has other settings, or its files cannot be
            read.

    Example:
    ```python
    import os
    import tempfile
    from keras_bridle.training.run import RunDirectory

    path = os.path.join(tempfile.mkdtemp(), "run")
    run = RunDirectory(path, {"rounds": 2})
    run.mark_done("0_cold_start")
    print(RunDirectory(path, {"rounds": 2}, resume=True).is_done("0_cold_start"))
    ```
    """

    def __init__(self, path, settings, resume=False, echo=False):
        self.path = Path(path)
        self.echo = echo
        self._settings_path = self.path / "settings.json"
        self._state_path = self.path / "state.json"
        self._state: dict[str, list[str]] = {"phases_done": []}
        # What JSON makes of the settings is what a later run will read.
        settings = json.loads(json.dumps(settings))
        if self._settings_path.exists():
            self._check(settings, resume)
            if self._state_path.exists():
                self._state = _read_json(self._state_path)
            self._note_backend()
            return
        self.path.mkdir(parents=True, exist_ok=True)
        about = {
            "keras_bridle": __version__,
            "keras": keras.__version__,
            "backend": keras.config.backend(),
            "python": platform.python_version(),
            "started": datetime.datetime.now().astimezone().isoformat("T", "seconds"),
        }
        _write_json(self._settings_path, {"settings": settings, "about": about})

    def _check(self, settings, resume):
        if not resume:
            raise FileExistsError(
                f"`directory` holds a run already. Received: {str(self.path)!r}. Pass "
                "`resume=True` to go on with it, or name another directory"
            )
        saved = _read_json(self._settings_path)["settings"]
        names = sorted(saved.keys() | settings.keys())
        changed = [name for name in names if saved.get(name) != settings.get(name)]
        if changed:
            changes = "; ".join(
                f"{name}: {saved.get(name)!r} then, {settings.get(name)!r} now"
                for name in changed
            )
            raise ValueError(
                f"The run in {str(self.path)!r} was started with other settings, so it "
                f"cannot be resumed with these ({changes})"
            )

    def note(self, text):
        """Adds a line to `log.txt`, with the time."""
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        with (self.path / "log.txt").open("a") as file:
            file.write(f"{now} {text}\n")
        if self.echo:
            print(text)

    @contextlib.contextmanager
    def noting_end(self, left_by=None):
        """Notes in a `with` block's log that it began, and how it ended.

        Args:
            left_by: optional dict of the `pid` and `host` of a run that was killed.
        """
        if left_by is not None:
            self.note(
                f"Process {left_by['pid']} on {left_by['host']} was ended here while "
                "it trained; this one goes on"
            )
        try:
            yield
        except BaseException as error:
            # The disk may be what is wrong.
            with contextlib.suppress(OSError):
                self.note(f"Stopped by {type(error).__name__}")
            raise
        self.note("All phases are done")

    def _note_backend(self):
        about = _read_json(self._settings_path).get("about", {})
        before, backend = about.get("backend"), keras.config.backend()
        if before not in (None, backend):
            self.note(
                f"Started on {before}, goes on on {backend}: rounding and random "
                "numbers differ from a run on one backend"
            )

    def phase_path(self, name):
        """Gives the folder of a phase, made if it is missing."""
        path = self.path / "phases" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def is_done(self, name):
        """Tells whether a phase has come to its end."""
        return name in self._state["phases_done"]

    def mark_done(self, name):
        """Notes that a phase has come to its end."""
        self._state["phases_done"].append(name)
        _write_json(self._state_path, self._state)


def _read_json(path):
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it holds no JSON ({error})") from error


def _write_json(path, content):
    with atomic_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")


def as_history(logs):
    """Turns a dict for each epoch into the dict of lists that Keras calls history.

    Args:
        logs: list with a dict of floats for each epoch.

    Returns:
        A dict from name to a list of floats.
    """
    history: dict[str, list[float]] = {}
    for epoch_logs in logs:
        for name, value in epoch_logs.items():
            history.setdefault(name, []).append(value)
    return history


def write_history(path, logs):
    """Writes a line an epoch, anew each time: no line is lost or there twice.

    Args:
        path: `pathlib.Path` of a CSV file.
        logs: list with a dict of floats for each epoch.
    """
    names = list(dict.fromkeys(name for epoch_logs in logs for name in epoch_logs))
    with atomic_file(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", *names])
        writer.writeheader()
        writer.writerows({"epoch": i, **values} for i, values in enumerate(logs))


def cached_codes(tokenize, tokenizers, inputs, batch_size, folder=None):
    """Computes the codes of all examples, or finds those of an earlier start.

    The file has one or two bytes for each code, and a name that tells inputs and the
    tokenizer's weights apart.

    Args:
        tokenize: function of a batch of inputs that returns codes, -1 at padding.
        tokenizers: list of the tokenizers in it, which have a `quantizer`.
        inputs: array of shape `(num_examples, ...)`.
        batch_size: int, examples at a time: as in training, so that numbers are rounded
            in the same way.
        folder: optional path, where the file goes. Without one, codes stay in memory.

    Returns:
        Integer array of shape `(num_examples, num_patches, num_levels)`, or with a last
        axis more where several codes of a level count. Codes at padding are 0: they
        have no weight.
    """
    if folder is None:
        return _compute(tokenize, tokenizers, inputs, batch_size, np.empty)
    path = folder / f"codes_{_key(tokenizers, inputs, batch_size)}.npy"
    if not path.exists():
        with atomic_file(path) as unfinished:

            def new_file(shape, dtype):
                return np.lib.format.open_memmap(unfinished, "w+", dtype, shape)

            _compute(tokenize, tokenizers, inputs, batch_size, new_file).flush()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def delete_cached_codes(folder):
    """Removes the files of `cached_codes()` in a folder."""
    for path in folder.glob("codes_*.npy"):
        path.unlink()


def check_cacheable(batches, augmentation, tokenize):
    """Raises a `ValueError` where codes change from one look at an example to the next.

    Args:
        batches: what `fit()` is to be given.
        augmentation: the augmentation, or `None`.
        tokenize: string, what the tokenizer sees.
    """
    reasons = {
        "inputs must be an array: files are read at another place in each epoch. "
        f"Received: {type(batches).__name__}": isinstance(batches, ArrayBatches),
        "an augmentation changes inputs, and codes with them. "
        f"Received: augmentation={augmentation}": augmentation is None,
        "codes depend on the mask unless the tokenizer sees all patches. "
        f"Received: tokenize={tokenize!r}": tokenize == "all",
    }
    for reason, is_right in reasons.items():
        if not is_right:
            raise ValueError(f"`cache_codes=True` is not possible: {reason}")


def _compute(tokenize, tokenizers, inputs, batch_size, new_array):
    codebook_size = max(tokenizer.quantizer.codebook_size for tokenizer in tokenizers)
    dtype = np.min_scalar_type(codebook_size - 1)
    size, codes = min(batch_size, len(inputs)), None
    for start in range(0, len(inputs), size):
        # The last batch is full as well, with some examples once more.
        start = min(start, len(inputs) - size)
        batch = np.maximum(tokenize(in_floatx(inputs[start : start + size])), 0)
        if codes is None:
            codes = new_array((len(inputs), *batch.shape[1:]), dtype)
        codes[start : start + size] = batch
    return codes


def _key(tokenizers, inputs, batch_size):
    # A sum of all bytes is fast next to computing codes, and goes through files in
    # pieces that fit into memory.
    total = 0
    for start in range(0, len(inputs), batch_size):
        batch = np.ascontiguousarray(inputs[start : start + batch_size])
        total = zlib.crc32(batch.tobytes(), total)
    about = (inputs.shape, str(inputs.dtype), total)
    digest = hashlib.sha256(repr(about).encode())
    for tokenizer in tokenizers:
        for weight in tokenizer.get_weights():
            digest.update(np.asarray(weight).tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def open_run(directory, settings, options, resume=False):
    """Keeps a run's directory for itself in a `with` block.

    Args:
        directory: string or path; `None` keeps nothing on disk.
        settings: function that makes the dict of the run's settings, for JSON.
        options: `FitOptions`.
        resume: bool, whether to go on with the run in `directory`.

    Yields:
        A function of a `Phase` that gives its `PhaseFiles` (or `NoFiles`).

    Raises:
        FileExistsError: if `directory` holds a run and `resume` is `False`.
        ValueError: if the run that is there has other settings.
        BlockingIOError: if another process is at work in `directory`.
    """
    if directory is None:
        yield NoFiles
        return
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(RunLock(directory))
        run = RunDirectory(directory, settings(), resume, echo=options.verbose > 0)
        stack.enter_context(run.noting_end(lock.left_by))
        preemption = stack.enter_context(Preemption())
        yield functools.partial(PhaseFiles, run, options, preemption)


class PhaseFiles:
    """The files of one phase: its state while it trains, its weights at its end.

    Args:
        run: `RunDirectory`.
        options: `FitOptions`.
        preemption: `Preemption`.
        phase: `Phase`.

    Attributes:
        folder: path of the phase's folder.
        checkpoint: `PhaseCheckpoint` in it.
    """

    def __init__(self, run, options, preemption, phase):
        self.run = run
        self.preemption = preemption
        self.name = phase.name
        self.folder = run.phase_path(phase.name)
        self.checkpoint = PhaseCheckpoint(
            self.folder / "checkpoint.npz",
            every=options.checkpoint_every,
            every_steps=options.checkpoint_every_steps,
            # Processes that save together must not look at clocks of their own.
            minutes=options.checkpoint_minutes if is_alone() else None,
            preemption=preemption,
        )

    def is_done(self):
        """Tells whether the phase has come to its end."""
        return broadcast(self.run.is_done(self.name))

    def restore(self, trainer):
        """Puts the state at which the phase was stopped, if any, into a trainer.

        Args:
            trainer: `Pretrainer`, compiled.

        Returns:
            Whether there was one.
        """
        share_file(self.checkpoint.previous_path)
        share_file(self.checkpoint.path)
        self.checkpoint.restore(trainer)
        if self.checkpoint.is_restored:
            self.run.note(f"{self.name} goes on after {self.checkpoint.position}")
        return self.checkpoint.is_restored

    def save(self, parts, history):
        """Writes what the phase ends with.

        Args:
            parts: dict from names to networks.
            history: dict of lists.
        """
        for name, part in parts.items():
            with atomic_file(self._weights_path(name)) as unfinished:
                part.save_weights(unfinished)
        with atomic_file(self._history_path) as unfinished:
            text = json.dumps(history, default=float, indent=2)
            unfinished.write_text(text + "\n")

    def load(self, parts):
        """Puts what `save()` wrote into networks.

        Args:
            parts: dict from names to networks.

        Returns:
            The history.
        """
        for name, part in parts.items():
            share_file(self._weights_path(name))
            part.load_weights(self._weights_path(name))
        share_file(self._history_path)
        return json.loads(self._history_path.read_text())

    def mark_done(self):
        """Notes that the phase has come to its end."""
        self.run.mark_done(self.name)

    def close(self):
        """Removes what only a phase that goes on would need, then ends if asked to."""
        self.checkpoint.delete()
        delete_cached_codes(self.folder)
        self.preemption.stop_if_requested()

    def _weights_path(self, name):
        return self.folder / f"{name}.weights.h5"

    @property
    def _history_path(self):
        return self.folder / "history.json"


class NoFiles:
    """Stands in for `PhaseFiles` where nothing is kept on disk.

    Args:
        phase: `Phase`.
    """

    folder = None
    checkpoint = None

    def __init__(self, phase):
        self.name = phase.name

    def is_done(self):
        """No phase is ever done before."""
        return False

    def restore(self, trainer):
        """There is no state to restore."""
        return False

    def save(self, parts, history):
        """Keeps nothing."""

    def load(self, parts):
        """There is nothing to load."""
        raise FileNotFoundError(f"Nothing was kept of {self.name}")

    def mark_done(self):
        """Keeps nothing."""

    def close(self):
        """There is nothing to remove."""
