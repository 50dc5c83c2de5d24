"""Encoders at addresses of a hub, which is a folder here, or out of reach."""

import fnmatch
import shutil
import time

import huggingface_hub
import numpy as np
import pytest
from public_encoders import FOLDER

import keras_bridle as kb

BEATS = FOLDER.parent / "beats.pt"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder whose files are downloaded, all of them, from any address."""

    def snapshot(name, allow_patterns):
        assert name == "someone/encoder"
        for path in hub.rglob("*"):
            name = path.relative_to(hub).as_posix()
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cache / name)
        return str(cache)

    hub, cache = tmp_path / "hub", tmp_path / "cache"
    hub.mkdir()
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return hub


def test_folders_with_a_configuration(hub, capsys):
    shutil.copytree(FOLDER / "mae", hub, dirs_exist_ok=True)
    (hub / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    backbone = kb.BridleBackbone.from_preset("hf://someone/encoder")
    assert backbone.hidden_dim == 12
    assert "cc-by-nc-4.0" in capsys.readouterr().out
    classifier = kb.BridleImageClassifier.from_preset(
        "hf://someone/encoder", num_classes=2
    )
    assert classifier.backbone.hidden_dim == 12


@pytest.mark.parametrize("end", ["", "/models/beats.pt"])
def test_classifiers_of_beats(hub, end, capsys):
    """Folders have files of PyTorch alone, and fine-tuned ones a head and labels."""
    torch = pytest.importorskip("torch")
    content = torch.load(BEATS, weights_only=True)
    content["model"]["predictor.weight"] = torch.randn(5, 24)
    content["model"]["predictor.bias"] = torch.randn(5)
    content["cfg"] |= {"finetuned_model": True, "predictor_class": 5}
    content["label_dict"] = {index: f"/m/{index}" for index in range(5)}
    (hub / "models").mkdir()
    torch.save(content, hub / "models" / "beats.pt")
    if end:
        shutil.copy(BEATS, hub / "models" / "other.pt")
    expected = kb.BeatsBackbone.from_preset(BEATS)
    capsys.readouterr()
    backbone = kb.BridleBackbone.from_preset(f"hf://someone/encoder{end}")
    assert ": predictor\n" in capsys.readouterr().out
    classifier = kb.BridleAudioClassifier.from_preset(
        f"hf://someone/encoder{end}", class_names=["a", "b"]
    )
    for found in (backbone, classifier.backbone):
        weights = zip(found.get_weights(), expected.get_weights(), strict=True)
        assert all(np.array_equal(ours, right) for ours, right in weights)


def test_files_that_are_not_there(hub):
    with pytest.raises(ValueError, match=r"there is no beats\.pt"):
        kb.BridleBackbone.from_preset("hf://someone/encoder/beats.pt")
    with pytest.raises(FileNotFoundError):
        kb.BridleBackbone.from_preset("hf://someone/encoder")


def test_presets_of_keras_hub_are_left_to_it(hub):
    from keras_bridle.conversion.checkpoints import fetched

    (hub / "config.json").write_text('{"config": {}}')
    assert fetched("hf://someone/encoder") == "hf://someone/encoder"


@pytest.mark.parametrize("end", ["", "/beats.pt"])
def test_a_hub_out_of_reach_is_one_line_at_once(end, tmp_path, monkeypatch, capfd):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    capfd.readouterr()
    start = time.monotonic()
    with pytest.raises(ValueError, match="cannot be fetched") as error:
        kb.BridleBackbone.from_preset(f"hf://someone/encoder{end}")
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 5
    assert not "".join(capfd.readouterr())
