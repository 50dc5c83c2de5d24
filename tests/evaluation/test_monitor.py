"""What the monitor of features tells, and when."""

import types

import numpy as np
import pytest
from tiny_pretraining import backbone, maps

from keras_bridle.evaluation import monitor as monitor_module
from keras_bridle.evaluation.features import PatchFeatures
from keras_bridle.evaluation.monitor import FeatureMonitor
from keras_bridle.training.interleaved import InterleavedPretraining


def measured(patches, labels=None, is_real=None):
    monitor = FeatureMonitor(np.zeros(len(patches)), labels)
    real = np.ones(patches.shape[:2], bool) if is_real is None else is_real
    monitor._extract = lambda inputs, size: PatchFeatures(patches, real)
    return monitor.measure()


def test_tokens_that_are_alike():
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(8, 50, 4)).astype("float32")
    alike = np.repeat(patches.mean(axis=1, keepdims=True), 50, axis=1)
    assert measured(alike)["token_deviation"] == pytest.approx(0.0, abs=1e-3)
    assert measured(patches)["token_deviation"] == pytest.approx(1.0, abs=0.05)
    mean = patches - patches.mean(axis=1, keepdims=True) + 1.0
    spread = mean.std()
    expected = spread / np.sqrt(spread**2 + 1)
    assert measured(mean)["token_deviation"] == pytest.approx(expected, rel=1e-2)
    padded = np.concatenate([mean, np.full_like(mean, 100.0)], axis=1)
    found = measured(padded, is_real=np.arange(100) < np.full((8, 1), 50))
    assert found["token_deviation"] == pytest.approx(expected, rel=1e-2)


def test_rank_is_how_many_directions_are_used():
    directions = np.eye(16, dtype="float32")[:, None]
    for count in (1, 4, 16):
        patches = directions[np.arange(16) % count]
        assert measured(patches)["rank"] == pytest.approx(count, rel=1e-3)


def test_knn_leaves_each_example_out():
    features = np.repeat(np.eye(2, 3, dtype="float32"), 10, axis=0)[:, None]
    names = np.repeat(["no", "yes"], 10)
    assert measured(features, names)["knn"] == 1.0
    # Its own label would make it right.
    alone = np.array(["no"] * 10 + ["yes"] * 9 + ["odd"])
    assert measured(features, alone)["knn"] == pytest.approx(0.95)


def test_in_pretraining(capsys):
    inputs = maps(10)
    monitor = FeatureMonitor(inputs, np.arange(10) % 2, share=1e-9)
    measures = []
    original = monitor.measure

    def measure():
        measures.append(original())
        return measures[-1]

    monitor.measure = measure
    options = {"cold_start_epochs": 3, "tokenizer_epochs": 1, "encoder_epochs": 2}
    history = InterleavedPretraining(backbone(), num_levels=1, codebook_size=8).fit(
        inputs, rounds=1, batch_size=4, callbacks=[monitor], **options
    )
    capsys.readouterr()
    cold, tokenizer, encoder = history.values()
    assert "rank" not in tokenizer
    assert len(cold["knn"]) == 3 and len(encoder["token_deviation"]) == 2
    # Before training, and at the end of each of the encoder's phases.
    assert len(measures) == 3
    assert cold["rank"][0] == cold["rank"][1] == measures[0]["rank"]
    assert cold["rank"][2] == encoder["rank"][0] == measures[1]["rank"]
    assert encoder["rank"][1] == measures[2]["rank"]


def test_it_takes_no_more_than_its_share_of_the_time(monkeypatch):
    """Epochs of 10 s, measured in 1 s: every fifth one, and the last."""
    now, measured = [0.0], []
    monkeypatch.setattr(monitor_module.time, "perf_counter", lambda: now[0])
    monitor = FeatureMonitor(maps(4))

    def measure():
        now[0] += 1.0
        measured.append(now[0])
        return {"token_deviation": 1.0}

    monitor.measure = measure
    monitor.set_model(types.SimpleNamespace(backbone=backbone()))
    monitor.set_params({"epochs": 203})
    monitor.on_train_begin()
    for epoch in range(203):
        now[0] += 10.0
        monitor.on_epoch_end(epoch, {})
    # Besides those before training and at its end.
    assert len(measured) - 2 == 41 <= 0.02 * now[0]
    assert measured[1] == 52.0


def test_a_warning_where_tokens_become_alike(capsys):
    monitor = FeatureMonitor(maps(10))
    monitor.set_model(types.SimpleNamespace(backbone=backbone()))
    monitor.set_params({"epochs": 1})
    monitor.on_train_begin()
    for alike in (False, True):
        monitor.measure = lambda alike=alike: {
            "token_deviation": monitor.before["token_deviation"] * (0.1 if alike else 1)
        }
        monitor.on_epoch_end(0, {})
        assert ("alike" in capsys.readouterr().out) == alike
    monitor.on_epoch_end(0, {})
    assert not capsys.readouterr().out
