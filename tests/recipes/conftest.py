"""Encoders, pictures and sample data that the tests of several recipes use."""

import numpy as np
import PIL.Image
import pytest
from recipe_runs import ENCODERS, save_encoder

from keras_bridle.data import samples


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """The folders of small encoders, by modality."""
    root = tmp_path_factory.mktemp("encoders")
    return {modality: save_encoder(root / modality, modality) for modality in ENCODERS}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Dark and bright pictures in class folders, one of them broken, and a table."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = ["file,kind"]
    for index in range(20):
        name, low = (("bright", 150), ("dark", 0))[index % 2]
        (folder / name).mkdir(exist_ok=True)
        pixels = rng.integers(low, low + 100, (28, 28, 3)).astype("uint8")
        PIL.Image.fromarray(pixels).save(folder / name / f"{index}.png")
        rows.append(f"{name}/{index}.png,{name}")
    (folder / "dark" / "broken.png").write_text("no picture")
    (folder / "table.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture
def few_samples(monkeypatch):
    """Little of all sample data: syllables with two initials, four kinds of clothes."""
    load = {name: getattr(samples, f"load_{name}") for name in ("syllables", "fashion")}
    sonic_pi, pans = samples.load_sonic_pi, samples.synthetic_pans

    def few_syllables(split, field="initial", num_samples=5760):
        waveforms, labels, names = load["syllables"](split, field, num_samples)
        initials = load["syllables"](split, "initial")[1]
        common = np.argsort(np.bincount(load["syllables"]("test", "initial")[1]))[-2:]
        some = np.concatenate([np.flatnonzero(initials == x)[:20] for x in common])
        return waveforms[some], labels[some], names

    def few_pictures(split):
        images, labels, names = load["fashion"](split)
        some = np.flatnonzero(labels < 4)[:120]
        return images[some], labels[some], names

    def few_pans(split, num_clips, **options):
        return pans(split, num_clips=24, **options)

    few = {
        "load_syllables": few_syllables,
        "load_sonic_pi": lambda *args, **kwargs: sonic_pi(*args, **kwargs)[:24],
        "load_fashion": few_pictures,
        "synthetic_pans": few_pans,
        "load_clips": lambda *_, sampling_rate, **size: few_pans("train", 8, **size)[0],
    }
    for name, function in few.items():
        monkeypatch.setattr(samples, name, function)
