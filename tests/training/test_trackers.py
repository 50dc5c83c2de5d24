"""One tracked run of all phases, resumed where it stopped, without a network."""

import sys

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tiny_pretraining import backbone, maps

from keras_bridle.training.interleaved import InterleavedPretraining
from keras_bridle.training.trackers import Tracker

pytestmark = pytest.mark.one_backend
PHASES = {"0_cold_start": [0, 1], "1_tokenizer": [2], "2_encoder": [3, 4]}


class StopHereError(Exception):
    pass


def pretrain(folder, kind, stop=False):
    """Trains three phases; with `stop`, two of them."""
    tracker = Tracker(kind, folder, {"rounds": 1, "name": "a|b"})

    def on_phase_end(phase, pretraining):
        if stop and phase.name == "1_tokenizer":
            raise StopHereError

    try:
        InterleavedPretraining(backbone(), num_levels=1, codebook_size=8).fit(
            maps(10),
            folder,
            resume=not stop,
            rounds=1,
            cold_start_epochs=2,
            tokenizer_epochs=1,
            encoder_epochs=2,
            batch_size=4,
            callbacks=[tracker],
            on_phase_end=on_phase_end,
            verbose=0,
        )
    except StopHereError:
        pass
    finally:
        tracker.close()
    return tracker


def losses(folder, kind):
    """Steps of the logged losses by phase, of a run that was stopped and resumed."""
    pretrain(folder, kind, stop=True)
    return pretrain(folder, kind)


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
    tracker = pretrain(tmp_path / "run", "trackio")
    assert any(name.suffix == ".db" for name in (tmp_path / "store").rglob("*"))
    assert tracker._run is None


def test_unknown_and_missing_trackers(tmp_path, monkeypatch):
    with pytest.raises(ValueError):
        Tracker("paper", tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError):
        Tracker("wandb", tmp_path)
    assert not any(tmp_path.iterdir())
