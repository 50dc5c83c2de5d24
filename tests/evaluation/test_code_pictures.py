"""Pictures of codes from a real tokenizer, and the report that draws them."""

import errno
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from matplotlib.image import imread

from keras_bridle import (
    BridleBackbone,
    InterleavedPretraining,
    LogMelSpectrogram,
    PixelNormalization,
    TubeMask,
)
from keras_bridle.evaluation.plots import draw_codes
from keras_bridle.evaluation.report import RunReport
from keras_bridle.training.checkpoint import SaveError

SIZE = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}
FIT = {
    "rounds": 0,
    "cold_start_epochs": 1,
    "batch_size": 4,
    "encoder_learning_rate": 1e-3,
    "verbose": 0,
}


def pretrained(inputs, settings, **kwargs):
    backbone = BridleBackbone(**SIZE, **settings)
    pretraining = InterleavedPretraining(
        backbone, num_levels=2, codebook_size=8, code_dim=4, **kwargs
    )
    pretraining.fit(inputs, **FIT)
    return pretraining


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, "uint8")


def sound():
    waveforms = np.random.default_rng(0).normal(size=(8, 4800)).astype("float32") / 9
    front_end = LogMelSpectrogram(num_mel_bins=32)
    settings = {"patch_size": 8, "input_dims": (None,), "front_end": front_end}
    return waveforms, settings, {}


def images():
    settings = {"patch_size": 8, "input_dims": (24, 24, 3)}
    settings["front_end"] = PixelNormalization()
    # Pictures that are larger than what is trained on.
    smaller = keras.layers.Resizing(24, 24)
    return noise(8, 24, 24, 3), settings, {"augmentation": smaller}


def clips():
    settings = {"patch_size": (2, 8, 8), "input_dims": (4, 16, 16, 1)}
    settings |= {"use_class_token": False, "position_layout": "sequence"}
    settings["front_end"] = PixelNormalization(0.5, 0.25)
    options = {"mask": TubeMask(0.5), "quantizer_options": {"top_k": 2}}
    return noise(8, 4, 16, 16, 1), settings, options


@pytest.mark.parametrize("make", [sound, images, clips])
def test_every_modality(tmp_path, make):
    inputs, settings, options = make()
    pretraining = pretrained(inputs, settings, **options)
    paths = draw_codes(pretraining, inputs, tmp_path)
    assert [path.name for path in paths] == ["codes.png", "code_patches.png"]
    for path in paths:
        assert imread(path).std() > 0.02


def test_distances_are_to_the_first_code_vector():
    inputs, settings, _ = images()
    pretraining = pretrained(inputs, settings)
    codes, distances = pretraining.codes(inputs, with_distances=True)
    np.testing.assert_array_equal(codes, pretraining.codes(inputs))
    tokenizer = pretraining.tokenizer
    features, padding_mask = pretraining.backbone.features(inputs)
    vectors = ops.convert_to_numpy(tokenizer.vectors(features, padding_mask))
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    table = ops.convert_to_numpy(tokenizer.quantizer.code_vectors)[0]
    all_distances = np.linalg.norm(vectors[:, :, None] - table, axis=-1)
    np.testing.assert_allclose(distances, all_distances.min(axis=-1), 1e-4, 1e-5)


def test_report_goes_on_where_it_stopped(tmp_path):
    inputs, settings, _ = images()
    asked = []

    def probe(backbone):
        asked.append(backbone)
        return {"score": len(asked) / 10}

    def baseline():
        asked.append("pixels")
        return {"score": 0.5}

    def report(resume):
        return RunReport(
            tmp_path, inputs, probe, {"pixels": baseline}, "A title", resume=resume
        )

    pretraining = InterleavedPretraining(
        BridleBackbone(**SIZE, **settings), codebook_size=8, code_dim=4
    )
    first = report(resume=False)
    first.on_start(pretraining)
    assert [row["name"] for row in first.rows] == ["pixels", "untrained"]
    assert len(asked) == 2
    second = report(resume=True)
    second.on_start(pretraining)
    assert len(asked) == 2
    pretraining.fit(inputs, on_phase_end=second.on_phase_end, **FIT)
    second.finish(pretraining)
    state = json.loads((tmp_path / "results" / "report.json").read_text())
    names = [row["name"] for row in state["rows"]]
    assert names == ["pixels", "untrained", "0_cold_start"]
    assert state["rows"][-1]["score"] == 0.3
    anew = report(resume=False)
    anew.on_start(pretraining)
    assert len(asked) == 5


def test_report_on_a_full_disk(tmp_path, monkeypatch):
    report = RunReport(tmp_path, np.zeros((1, 8, 8, 1)))
    report.add_row("pixels", {"score": 0.5})
    before = (tmp_path / "results" / "report.json").read_bytes()

    def fail(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(SaveError, match=r"report\.json.*No space left on device"):
        report.add_row("encoder", {"score": 0.7})
    (file,) = (tmp_path / "results").iterdir()
    assert file.read_bytes() == before
