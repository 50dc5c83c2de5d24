"""The flag that spreads a recipe over devices."""

import keras
import pytest

from keras_bridle import cli as command_line
from keras_bridle.distribution import WorkerLostError, num_devices


def arguments(tmp_path, *flags):
    settings = {"batch_size": 8, "directory": str(tmp_path / "run")}
    parser = command_line.pretraining_parser("A recipe.", settings, settings)
    return command_line.parse_pretraining_arguments(parser, "audio", flags)


def test_flag_has_an_optional_number(tmp_path):
    assert arguments(tmp_path).distribute == 0
    assert arguments(tmp_path, "--distribute").distribute == 1
    assert arguments(tmp_path, "--distribute", "4").distribute == 4


def test_networks_are_made_within_the_scope(tmp_path):
    if keras.backend.backend() == "torch":
        pytest.skip("needs torchrun")
    args = arguments(tmp_path, "--distribute")
    with command_line.Setup(args):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        assert num_devices() == 1
        if keras.backend.backend() == "jax":
            assert keras.distribution.distribution() is not None
        else:
            assert model.distribute_strategy.num_replicas_in_sync == 1
    assert args.directory == str(tmp_path / "run")
    assert keras.distribution.distribution() is None


def test_torch_without_processes_ends_with_a_line(tmp_path, capsys):
    if keras.backend.backend() != "torch":
        pytest.skip("needs torch")
    with (
        pytest.raises(SystemExit),
        command_line.Setup(arguments(tmp_path, "--distribute")),
    ):
        pass
    assert "torchrun" in capsys.readouterr().err


def test_batches_must_divide(tmp_path, capsys, monkeypatch):
    if keras.backend.backend() == "torch":
        pytest.skip("needs torchrun")
    monkeypatch.setattr(command_line, "num_devices", lambda: 3)
    with (
        pytest.raises(SystemExit),
        command_line.Setup(arguments(tmp_path, "--distribute")),
    ):
        pass
    assert "multiple of the number of devices, 3" in capsys.readouterr().err


def test_a_lost_process_is_a_line_and_not_a_traceback(tmp_path):
    if keras.backend.backend() == "torch":
        pytest.skip("needs torchrun")
    setup = command_line.Setup(arguments(tmp_path, "--distribute"))
    with pytest.raises(SystemExit) as stop, setup:
        setup.is_over = True
        raise WorkerLostError("Connection closed by peer")
    assert "Another process of this run has died" in str(stop.value.code)
