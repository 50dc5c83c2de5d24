"""Presets are shared with a card, up to the call that needs a network."""

import json
import re

import keras_hub
import pytest
import yaml

import keras_bridle as kb
from keras_bridle.config import ArgumentError
from keras_bridle.evaluation.report import write_results

huggingface_hub = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.one_backend
URI = "hf://me/syllables"


@pytest.fixture
def uploads(monkeypatch):
    """What would go to the hub, in order: names of files, then whole folders."""
    found = []

    class Created:
        repo_id = "me/syllables"

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda repo_id, **_: Created)
    monkeypatch.setattr(
        huggingface_hub,
        "upload_file",
        lambda path_in_repo, **_: found.append(path_in_repo),
    )
    monkeypatch.setattr(keras_hub, "upload_preset", lambda *x: found.append(x))
    return found


@pytest.fixture
def run(tmp_path):
    """The folder of a run, as far as the card looks at it."""
    backbone = kb.BridleBackbone.from_preset("bridle_image_tiny", load_weights=False)
    backbone.save_to_preset(str(tmp_path / "preset"))
    recipe = {"data": "/home/me/pictures", "preset": "hf://facebook/vit", "rounds": 1}
    (tmp_path / "settings.json").write_text(json.dumps({"recipe": recipe}))
    rows = [{"name": "untrained", "linear": 0.5}, {"name": "2_encoder", "linear": 0.7}]
    write_results(tmp_path / "results" / "probes", rows)
    return tmp_path


@pytest.mark.parametrize("given", ["", "preset"])
def test_the_card_of_a_run(run, uploads, given):
    kb.upload_preset(run / given, URI, "apache-2.0")
    assert uploads == ["README.md", (URI, str(run / "preset"))]
    card = (run / "preset" / "README.md").read_text("utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "facebook/vit"
    assert "| 2_encoder | 70.0 % |" in card
    assert "`pictures`" in card and "/home/me" not in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    compile(code, "card", "exec")
    assert f'kb.BridleBackbone.from_preset("{URI}")' in code
    # A card that is there is kept.
    (run / "preset" / "README.md").write_text("Mine.")
    kb.upload_preset(run, URI)
    assert (run / "preset" / "README.md").read_text() == "Mine."


def test_a_classifier(tmp_path, uploads):
    backbone = kb.BridleBackbone.from_preset("bridle_image_tiny", load_weights=False)
    classifier = kb.BridleImageClassifier(backbone, num_classes=2)
    classifier.save_to_preset(str(tmp_path / "preset"))
    kb.upload_preset(tmp_path / "preset", URI)
    card = (tmp_path / "preset" / "README.md").read_text("utf-8")
    assert "kb.BridleImageClassifier.from_preset(" in card


def test_folders_without_a_preset(tmp_path, uploads):
    with pytest.raises(FileNotFoundError):
        kb.upload_preset(tmp_path, URI)
    (tmp_path / "config.json").write_text(json.dumps({"config": {"input_dims": [1]}}))
    with pytest.raises(ArgumentError):
        kb.upload_preset(tmp_path, URI)
    assert uploads == []
