"""Logs of runs for experiment trackers."""

import contextlib
import importlib
import json
import uuid
from pathlib import Path
from typing import Any

import keras

from keras_bridle.config import check
from keras_bridle.distribution import is_chief
from keras_bridle.training.checkpoint import write_json
from keras_bridle.training.progress import EventWriter

TRACKERS = ("wandb", "trackio", "mlflow", "tensorboard")


@contextlib.contextmanager
def tracked(options):
    """Returns a list with the tracker that options name, if any."""
    trackers = []
    if options.tracker is not None and is_chief():
        trackers = [Tracker(options.tracker, options.directory, options.settings())]
    try:
        yield trackers
    finally:
        for tracker in trackers:
            tracker.close()


class Tracker(keras.callbacks.Callback):
    """Logs the settings and metrics of all phases as one run of a tracker.

    The phases follow each other on one axis of epochs. What a tracker needs besides,
    such as an account, it takes from its own environment variables.
    """

    def __init__(self, kind, directory, settings=None, project="keras-bridle"):
        super().__init__()
        check(kind in TRACKERS, "kind", f"one of {TRACKERS}", kind)
        self.kind = kind
        self.directory = Path(directory)
        self.settings = dict(settings or {})
        self.project = project
        self._module: Any = None
        if kind != "tensorboard":
            # Fail now rather than after hours.
            self._module = importlib.import_module(kind)
        self._run: Any = None

    def on_train_begin(self, logs=None):
        """Opens the run, and finds the offset of this phase."""
        if self._run is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._state_path = self.directory / "tracker.json"
            self._state: dict[str, Any] = {"id": uuid.uuid4().hex[:12], "epochs": {}}
            is_resumed = self._state_path.exists()
            if is_resumed:
                self._state = json.loads(self._state_path.read_text())
            self._open(is_resumed)
        self._phase = getattr(self.model, "phase", self.model.name)
        epochs = self._state["epochs"]
        epochs[self._phase] = self.params["epochs"]
        before = list(epochs)[: list(epochs).index(self._phase)]
        self._first = sum(epochs[phase] for phase in before)
        write_json(self._state_path, self._state)

    def on_epoch_end(self, epoch, logs=None):
        """Logs the metrics of an epoch."""
        metrics = {f"{self._phase}/{k}": float(x) for k, x in (logs or {}).items()}
        step = self._first + epoch
        if self.kind == "mlflow":
            self._module.log_metrics(metrics, step)
        elif self.kind == "tensorboard":
            self._run.write(step, metrics)
        else:
            self._run.log(metrics, step=step)

    def close(self):
        """Ends the run."""
        if self._run is not None:
            self._module.end_run() if self.kind == "mlflow" else self._run.finish()
            self._run = None

    def _open(self, is_resumed):
        name, identity = self.directory.resolve().name, self._state["id"]
        if self.kind == "tensorboard":
            self._run = EventWriter(self.directory / "tensorboard")
            if not is_resumed:
                self._run.write_text("settings", json.dumps(self.settings, indent=2))
        elif self.kind == "mlflow":
            self._module.set_experiment(self.project)
            run_id = identity if is_resumed else None
            self._run = self._module.start_run(run_id=run_id, run_name=name)
            self._state["id"] = self._run.info.run_id
            if not is_resumed:
                self._module.log_params(self.settings)
        else:
            options = {"project": self.project, "config": self.settings}
            if self.kind == "wandb":
                options |= {"id": identity, "dir": str(self.directory)}
            else:
                name = f"{name}-{identity}"
            self._run = self._module.init(name=name, resume="allow", **options)
