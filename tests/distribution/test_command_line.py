"""The flag that spreads a recipe over devices."""

import keras
import pytest

from keras_bridle import cli
from keras_bridle.distribution import WorkerLostError, num_devices
from keras_bridle.modalities import AUDIO
from keras_bridle.workflows import Pretraining, PretrainingOptions

IS_TORCH = keras.backend.backend() == "torch"
needs_torchrun = pytest.mark.skipif(IS_TORCH, reason="needs torchrun")


@pytest.fixture
def setup(tmp_path):
    settings = {"batch_size": 8, "directory": str(tmp_path / "run")}
    return Pretraining(
        AUDIO, PretrainingOptions, "A recipe.", settings, settings, ["--distribute"]
    )


@needs_torchrun
def test_networks_are_made_within_the_scope(setup, tmp_path):
    with setup:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        assert num_devices() == 1
        if keras.backend.backend() == "jax":
            assert keras.distribution.distribution() is not None
        else:
            assert model.distribute_strategy.num_replicas_in_sync == 1
    assert setup.options.directory == str(tmp_path / "run")
    assert keras.distribution.distribution() is None


@pytest.mark.skipif(not IS_TORCH, reason="needs torch")
def test_torch_without_workers_ends_with_a_line(setup, capsys):
    with pytest.raises(SystemExit), setup:
        pass
    assert "torchrun" in capsys.readouterr().err


@needs_torchrun
def test_batches_must_divide(setup, capsys, monkeypatch):
    monkeypatch.setattr(cli, "num_devices", lambda: 3)
    with pytest.raises(SystemExit), setup:
        pass
    assert "multiple of the number of devices, 3" in capsys.readouterr().err


@needs_torchrun
def test_a_lost_worker_is_a_line_and_not_a_traceback(setup):
    with pytest.raises(SystemExit) as stop, setup:
        setup.is_over = True
        raise WorkerLostError("Connection closed by peer")
    assert len(str(stop.value.code).splitlines()) == 1
