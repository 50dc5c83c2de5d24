"""Exported models do what the models do, as the table in docs/export.md has it."""

import functools
import importlib.util
import itertools
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny_pretraining import backbone as tiny_backbone

import keras_bridle as kb
from keras_bridle.export import FORMATS, differences, load_exported
from keras_bridle.models.feature_extractor import FeatureModel

BACKENDS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
BACKEND = keras.backend.backend()
SIZES = {"audio": (None,), "image": (16, 16, 3), "video": (4, 16, 16, 3)}
PATCHES = {"audio": (2, 32), "image": 8, "video": (2, 8, 8)}


def documented():
    """The rows of the table, by format: dicts from a column to its text."""
    text = Path(__file__).parents[1].joinpath("docs", "export.md").read_text()
    lines = [line.strip("|\n").split("|") for line in text.splitlines() if "|" in line]
    header, _, *rows = ([cell.strip(" `") for cell in line] for line in lines)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


TABLE = documented()


def encoder(kind, **settings):
    front_end = kb.PixelNormalization()
    if kind == "audio":
        front_end = kb.LogMelSpectrogram(num_mel_bins=64)
    else:
        settings = {"trained_grid": "input"} | settings
    if kind == "video":
        settings |= {"position_layout": "sequence", "use_class_token": False}
    shapes = {"patch_size": PATCHES[kind], "input_dims": SIZES[kind]}
    return tiny_backbone(**shapes, front_end=front_end, **settings)


def tokens(kind):
    return encoder(kind, drop_path_rate=0.1)


def relative_tokens(kind):
    options = {"layer_scale": 0.5, "use_final_norm": False, "trained_grid": (2, 2)}
    model = encoder(kind, position_layout="relative", **options)
    for bias in model.position_biases:
        bias.positions.assign(np.random.default_rng(0).normal(size=(12, 2)))
    return model


def codes(kind, make_tokenizer=kb.BridleTokenizer):
    backbone, quantizer = encoder(kind), kb.ResidualQuantizer(2, 16, dim=8)
    if make_tokenizer is kb.BridleTokenizer:
        tokenizer = make_tokenizer(encoder(kind), quantizer)
    else:
        tokenizer = make_tokenizer(PATCHES[kind], 16, quantizer, center_patches=True)
        tokenizer.build(backbone.maps_shape)
    data = inputs_of(kind, 24)
    quantizer.adapt(keras.ops.convert_to_numpy(tokenizer.vectors(*backbone.maps(data))))
    wanted = ("features", "patches", "is_real", "codes")
    return FeatureModel(backbone, tokenizer, wanted, segments=2)


def classifier(kind):
    make = getattr(kb, f"Bridle{kind.capitalize()}Classifier")
    return make(encoder(kind), num_classes=3)


def inputs_of(kind, batch, length=4000):
    rng = np.random.default_rng(batch + length)
    if kind != "audio":
        return rng.uniform(0, 255, (batch, *SIZES[kind])).astype("float32")
    waveforms = rng.normal(0, 0.1, (batch, length)).astype("float32")
    waveforms[1::2, length // 2 :] = 0.0  # padding
    return waveforms


def skip_without(format):
    """Skips a format whose packages are missing, as where TensorFlow is."""
    for package in (FORMATS[format].backend, *FORMATS[format].packages):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{format} needs {package}")


def check_export(model, kind, format, folder, capsys):
    """Exports a model and compares what the table's row says."""
    skip_without(format)
    row, path = TABLE[format], folder / f"model{FORMATS[format].ending}"
    lengths = (4000,) if kind != "audio" else (4000, 1333, 9001)
    batches, signature = (1, 2, 5), None
    if row["batch"] == "1":
        batches = (1,)
    if row["length of audio"] == "fixed" and kind == "audio":
        with pytest.raises(ValueError, match="input_signature"):
            model.export(path, format)
        signature, lengths = [keras.InputSpec(shape=(1, 4000))], lengths[:1]
    model.export(path, format, input_signature=signature)
    said = capsys.readouterr().out
    writer = FORMATS[format].backend
    assert row[f"on {BACKENDS[BACKEND]}"] == (
        "yes" if writer == BACKEND else f"through {BACKENDS[writer]}"
    )
    assert ("in its own process" in said) == (writer != BACKEND)
    exported, unequal = load_exported(path), []
    for batch in batches:
        for length in lengths:
            found = differences(model, exported, inputs_of(kind, batch, length))
            unequal.append(found.pop("codes", 0.0))
            assert found.pop("is_real", 0.0) == 0.0
            assert max(found.values()) < 1e-4, found
    assert np.mean(unequal) < 1e-3


# One for each backend; the rest takes minutes.
QUICK = {
    "torch": (
        "onnx",
        "audio",
        functools.partial(codes, make_tokenizer=kb.RandomProjectionTokenizer),
    ),
    "tensorflow": ("litert", "audio", classifier),
    "jax": ("tf_saved_model", "image", relative_tokens),
}


def test_from_this_backend(tmp_path, capsys):
    format, kind, make = QUICK[BACKEND]
    check_export(make(kind), kind, format, tmp_path, capsys)


NETWORKS = [*itertools.product((tokens, codes, classifier), SIZES)]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "kind"), [*NETWORKS, (relative_tokens, "image")])
@pytest.mark.parametrize("format", FORMATS)
def test_all_networks(format, make, kind, tmp_path, capsys):
    check_export(make(kind), kind, format, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "tf_saved_model"])
def test_half_precision_is_exported_in_float32(format, tmp_path, capsys):
    skip_without(format)
    exact = codes("audio", kb.RandomProjectionTokenizer)
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = codes("audio", kb.RandomProjectionTokenizer)
    assert half.backbone.compute_dtype == "bfloat16"
    half.set_weights(exact.get_weights())
    path = tmp_path / f"model{FORMATS[format].ending}"
    half.export(path, format)
    found = differences(exact, load_exported(path), inputs_of("audio", 2))
    assert max(found.values()) < 1e-3, found


def test_the_table_has_every_format():
    assert TABLE.keys() == FORMATS.keys()


def test_wrong_arguments():
    model = tokens("image")
    for name, arguments in (("format", ("a.onnx", "coreml")), ("path", ("a", "onnx"))):
        with pytest.raises(ValueError, match=name):
            model.export(*arguments)


def test_an_export_leaves_the_front_end_as_it_was(tmp_path, monkeypatch):
    model, seen = tokens("audio"), []
    monkeypatch.setattr(
        "keras_bridle.export._write_by_torch",
        lambda model, *_: seen.append(model.front_end.fourier),
    )
    model._write(tmp_path / "model.onnx", "onnx", (None, None))
    assert seen == ["matmul"] and model.front_end.fourier == "rfft"
