"""Files of weights are read, and what might run code is refused."""

import argparse
import zipfile

import numpy as np
import pytest

from keras_bridle.conversion.published_state import read_published_state

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.one_backend


class Trap:
    """Leaves a trace when a pickle of it is read."""

    ran: list[str] = []

    def __reduce__(self):
        return (Trap.ran.append, ("code ran",))


def weights():
    return {
        "norm.weight": torch.arange(3.0),
        "norm.half": torch.ones(2, dtype=torch.bfloat16) / 2,
        "steps": torch.tensor(7),
    }


def check(state):
    assert all(isinstance(value, np.ndarray) for value in state.values())
    np.testing.assert_array_equal(state["norm.weight"], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(state["norm.half"], [0.5, 0.5])
    assert state["norm.half"].dtype == state["norm.weight"].dtype == "float32"
    assert state["steps"] == 7


@pytest.mark.parametrize("name", ["model.pth", "model.bin", "model.safetensors"])
def test_plain_weights_and_damaged_files(tmp_path, name):
    path, save = tmp_path / name, torch.save
    if name.endswith("safetensors"):
        save = pytest.importorskip("safetensors.torch").save_file
    with pytest.raises(FileNotFoundError, match=name):
        read_published_state(path)
    save(weights(), path)
    check(read_published_state(str(path)))
    path.write_bytes(b"\x80no weights at all")
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_published_state(path)


def test_weights_within_a_checkpoint(tmp_path):
    """As training scripts save them."""
    path = tmp_path / "checkpoint-199.pth"
    checkpoint = {
        "model": weights(),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []},
        "epoch": 199,
        "args": argparse.Namespace(lr=1e-3),
    }
    torch.save(checkpoint, path)
    check(read_published_state(path))
    torch.save({**checkpoint, "model_ema": weights()}, path)
    check(read_published_state(path, key="model_ema"))
    for key in (None, "teacher", "epoch"):
        with pytest.raises(ValueError, match="one dictionary of weights"):
            read_published_state(path, key=key)


def test_objects_that_run_code_are_refused(tmp_path):
    torch.save({**weights(), "trap": Trap()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_published_state(tmp_path / "model.pth")
    assert Trap.ran == []


def test_pytorch_is_not_needed(tmp_path, monkeypatch):
    matrix = torch.arange(12.0).reshape(3, 4)
    state = {
        "parameter": torch.nn.Parameter(matrix),
        "transposed": matrix.t(),
        "part": matrix[1:, 2:],
        "none": torch.zeros(0, 3),
        "half": matrix.half(),
        "whole": matrix.long(),
    }
    torch.save(state, tmp_path / "model.pth")
    monkeypatch.setattr(torch, "load", None)
    found = read_published_state(tmp_path / "model.pth")
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value.detach().numpy())


def test_tensors_that_reach_beyond_their_numbers_are_refused(tmp_path):
    small = torch.zeros(4)
    torch.save({"weight": small}, tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "model.pth") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, b"" if name.endswith("data/0") else content)
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_published_state(tmp_path / "model.pth")
