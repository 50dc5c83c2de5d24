"""One tracked run of all phases, resumed where it stopped, without a network."""

import sys

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from keras_bridle.training.trackers import Tracker

pytestmark = pytest.mark.one_backend
PHASES = {"0_cold_start": [0, 1], "1_tokenizer": [2], "2_encoder": [3, 4]}


def fit(folder, kind, phases):
    """Trains phases of the plan, as one process does."""
    tracker = Tracker(kind, folder, {"rounds": 1, "name": "a|b"})
    for phase in phases:
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.phase = phase
        data = np.ones((4, 2)), np.ones((4, 1))
        epochs = len(PHASES[phase])
        model.fit(*data, epochs=epochs, callbacks=[tracker], verbose=0)
    tracker.close()
    return tracker


def losses(folder, kind):
    """Logs a run that was stopped after two phases, and resumed in the third."""
    fit(folder, kind, list(PHASES)[:2])
    return fit(folder, kind, list(PHASES)[2:])


def test_tensorboard(tmp_path):
    losses(tmp_path / "run", "tensorboard")
    steps, texts = {}, []
    for path in sorted((tmp_path / "run" / "tensorboard").glob("events*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                phase, _, name = value.tag.partition("/")
                if name == "loss":
                    steps.setdefault(phase, []).append(event.step)
                texts += value.tensor.string_val
    assert {phase: sorted(set(x)) for phase, x in steps.items()} == PHASES
    (text,) = texts
    assert b'"rounds": 1' in text


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    losses(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("keras-bridle")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"rounds": "1", "name": "a|b"}
    for phase, steps in PHASES.items():
        found = client.get_metric_history(run.info.run_id, f"{phase}/loss")
        assert sorted({metric.step for metric in found}) == steps


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged = []
    original = wandb.Run.log

    def log(self, metrics, step):
        logged.extend((self.id, name, step) for name in metrics)
        original(self, metrics, step=step)

    monkeypatch.setattr(wandb.Run, "log", log)
    losses(tmp_path / "run", "wandb")
    assert len({identity for identity, _, _ in logged}) == 1
    for phase, steps in PHASES.items():
        found = {step for _, name, step in logged if name == f"{phase}/loss"}
        assert sorted(found) == steps
    assert len(list(tmp_path.rglob("run-*.wandb"))) >= 1


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    pytest.importorskip("trackio")
    tracker = fit(tmp_path / "run", "trackio", PHASES)
    assert any(name.suffix == ".db" for name in (tmp_path / "store").rglob("*"))
    assert tracker._run is None


def test_unknown_and_missing_trackers(tmp_path, monkeypatch):
    with pytest.raises(ValueError):
        Tracker("paper", tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError):
        Tracker("wandb", tmp_path)
    assert not any(tmp_path.iterdir())
