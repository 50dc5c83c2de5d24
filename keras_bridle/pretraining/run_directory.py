"""The folder of one run: settings, state, and a folder for each phase."""

import contextlib
import datetime
import json
import platform
from pathlib import Path

import keras

from keras_bridle.pretraining.atomic_files import atomic_file
from keras_bridle.version import __version__


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
    from keras_bridle.pretraining import RunDirectory

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
