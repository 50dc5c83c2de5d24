import json

import keras
import numpy as np
import pytest
from tiny_pretraining import maps
from tiny_pretraining import pretraining as new_pretraining

from keras_bridle.training.interleaved import load_run


def _features(pretraining):
    return keras.ops.convert_to_numpy(pretraining.backbone.pooled_features(maps()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directory of a run, and its codes and features after each phase."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    pretraining, found = new_pretraining(seed=3), {}

    def keep(phase, pretraining):
        found[phase.name] = (pretraining.codes(maps()), _features(pretraining))

    pretraining.fit(
        maps(8),
        rounds=1,
        encoder_epochs=1,
        tokenizer_epochs=1,
        batch_size=4,
        encoder_learning_rate=0.01,
        tokenizer_learning_rate=0.01,
        verbose=0,
        directory=directory,
        tensorboard=False,
        on_phase_end=keep,
    )
    return directory, pretraining, found


def _check(directory, codes, features):
    loaded = load_run(directory)
    np.testing.assert_array_equal(loaded.codes(maps()), codes)
    np.testing.assert_allclose(_features(loaded), features, rtol=1e-5, atol=1e-6)


def test_after_each_phase(runs):
    directory, pretraining, found = runs
    state = directory / "state.json"
    whole = state.read_text()
    codes = [codes.tolist() for codes, _ in found.values()]
    assert codes[0] != codes[1]  # or any tokenizer would do
    # A tokenizer phase saves no encoder, and an encoder phase no new tokenizer.
    for done in range(3, 0, -1):
        names = list(found)[:done]
        state.write_text(json.dumps({**json.loads(whole), "phases_done": names}))
        _check(directory, *found[names[-1]])
    state.write_text(whole)
    # With a preset, the encoder keeps its name.
    pretraining.backbone.save_to_preset(str(directory / "preset"))
    _check(directory, *found["2_encoder"])


def test_no_run(runs, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_run(tmp_path)
    settings = (runs[0] / "settings.json").read_text()
    (tmp_path / "settings.json").write_text(settings)
    with pytest.raises(FileNotFoundError):
        load_run(tmp_path)
