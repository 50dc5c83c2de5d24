"""The guides, really run with small settings, and the notebooks made from them."""

import json
import re

import keras
import numpy as np
import programs
import pytest

import keras_bridle as kb

GUIDES = programs.ROOT / "guides"


def run_guide(name, **constants):
    """Executes a guide with other constants, returns its names."""
    source = (GUIDES / f"{name}.py").read_text(encoding="utf-8")
    for constant, value in constants.items():
        source, count = re.subn(
            rf"(?m)^{constant} = .*$", f"{constant} = {value}", source
        )
        assert count == 1, f"{name}.py has no line {constant} = ..."
    names = {"__name__": name}
    exec(compile(source, f"{name}.py", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_residual_quantizer(folder, capsys):
    names = run_guide("residual_quantizer", EPOCHS=1, EXAMPLES=512)
    lost = [
        float(x) for x in re.findall(r"a patch: ([\d.]+)%", capsys.readouterr().out)
    ]
    assert len(lost) == 8
    assert sorted(lost, reverse=True) == lost
    assert lost[-1] < 8 < lost[0] < 25
    assert list(names["histories"]) == ["1 x 256", "2 x 16", "4 x 256"]
    assert all(len(h["usage_1"]) == 1 for h in names["histories"].values())
    assert (folder / "quantized_pictures.png").stat().st_size > 10_000


def test_pretraining(folder, capsys):
    run_guide("pretraining", EPOCHS=1, SYLLABLES=160)
    said = capsys.readouterr().out
    assert "34 frames of 128 bands: (17, 4) patches" in said
    shares = [float(x) for x in re.findall(r"([\d.]+)%", said)]
    assert len(shares) == 6
    assert all(0 <= share <= 100 for share in shares)
    assert "['0_cold_start', '1_tokenizer', '2_encoder']" in said
    assert (folder / "codes.png").stat().st_size > 10_000


def test_public_encoders(folder, capsys):
    pytest.importorskip("safetensors")
    random = kb.BridleBackbone.from_preset(
        "bridle_image_tiny",
        load_weights=False,
        patch_size=16,
        input_dims=(224, 224, 3),
    )
    # In the layout of the encoder that the guide fetches.
    kb.to_transformers(random, folder / "mae")
    small = {"PER_CLASS": 10, "EPOCHS": 1, "SIDE": 32}
    run_guide("public_encoders", ENCODER=repr(str(folder / "mae")), **small)
    said = capsys.readouterr().out
    assert len(re.findall(r"clothes from .*: \d+\.\d%", said)) == 3
    assert "1_encoder: loss" in said and "model.safetensors" in said


@pytest.fixture(scope="module")
def notebooks():
    return programs.load("guides/make_notebooks.py")


def test_every_guide_has_its_notebook(notebooks):
    scripts = {path.stem for path in GUIDES.glob("*.py")} - {"make_notebooks"}
    assert set(notebooks.SCRIPTS) == scripts
    for name in scripts:
        made = notebooks.as_notebook((GUIDES / f"{name}.py").read_text("utf-8"))
        stored = (GUIDES / f"{name}.ipynb").read_text("utf-8")
        assert stored == made, "Run python guides/make_notebooks.py"


def test_form_of_a_notebook(notebooks):
    source = '"""A title.\n\nMore.\n"""\n\nx = 1\n\n# ## Text\n#\n# of two.\n\n'
    source += "\ndef f():\n    y = x\n\n    return y\n\n\nf()  # as code\n"
    cells = json.loads(notebooks.as_notebook(source))["cells"]
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    assert found == [
        ("markdown", "# A title\n\nMore."),
        ("code", "x = 1"),
        ("markdown", "## Text\n\nof two."),
        ("code", "def f():\n    y = x\n\n    return y\n\nf()  # as code"),
    ]
    assert cells[1]["outputs"] == []


new_modality = programs.load("guides/new_modality.py")


def test_new_modality(capsys, tmp_path):
    untrained, pretrained = new_modality.main(epochs=1, verbose=0)
    assert 0.2 < untrained < 1 and 0.2 < pretrained < 1
    assert "pretrained, 25.0% by chance" in capsys.readouterr().out
    readings, _ = new_modality.machines(4, seed=2)
    backbone = new_modality.make_backbone(readings)
    backbone.save_to_preset(str(tmp_path / "preset"))
    loaded = new_modality.kb.BridleBackbone.from_preset(str(tmp_path / "preset"))
    expected = keras.ops.convert_to_numpy(backbone.pooled_features(readings))
    found = keras.ops.convert_to_numpy(loaded.pooled_features(readings))
    np.testing.assert_allclose(found, expected, 1e-5, 1e-5)


def test_a_state_is_a_speed_and_shows_in_no_single_reading():
    readings, states = new_modality.machines(400, seed=0)
    assert readings.shape == (400, 64, 6)
    assert np.bincount(states).min() > 70
    by_state = [readings[states == state] for state in range(4)]
    spreads = [of_state[..., 3].std() for of_state in by_state]
    np.testing.assert_allclose(spreads, np.mean(spreads), 0.05)
    power = [np.abs(np.fft.rfft(x, axis=1))[:, 1:].mean(axis=(0, 2)) for x in by_state]
    assert [1 + spectrum.argmax() for spectrum in power] == [3, 4, 5, 6]
