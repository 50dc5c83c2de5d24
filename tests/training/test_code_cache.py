"""Codes computed once: the same training as with codes computed in each step."""

import keras
import numpy as np
import pytest
from tiny_pretraining import all_weights, assert_same_bits, maps
from tiny_pretraining import pretraining as new_pretraining

from keras_bridle.layers.masks import RandomMask
from keras_bridle.models.tokenizers import RandomProjectionTokenizer
from keras_bridle.training.batches import ArrayBatches
from keras_bridle.training.run import cached_codes, check_cacheable

INPUTS = maps(10)
SETTINGS = {
    "rounds": 1,
    "encoder_epochs": 2,
    "tokenizer_epochs": 1,
    "batch_size": 4,
    "encoder_learning_rate": 1e-2,
    "tensorboard": False,
    "verbose": 0,
}


@pytest.fixture
def tokenized(monkeypatch):
    """Collects calls of the cold start's tokenizer; steps are traced once, or not."""
    calls, original = [], RandomProjectionTokenizer.call

    def counted(self, *args, **options):
        calls.append(options.get("visible"))
        return original(self, *args, **options)

    monkeypatch.setattr(RandomProjectionTokenizer, "call", counted)
    return calls


def train(**kwargs):
    pretraining = new_pretraining(mask=RandomMask(0.5, seed=1))
    pretraining.fit(INPUTS, **{**SETTINGS, **kwargs})
    return pretraining


def test_same_training_and_no_tokenizer_in_it(tmp_path, tokenized):
    files = {}

    def look(phase, pretraining):
        folder = tmp_path / "run" / "phases" / phase.name
        files[phase.name] = [np.load(path) for path in folder.glob("codes_*.npy")]

    plain = train()
    assert tokenized
    tokenized.clear()
    cached = train(on_phase_end=look, directory=tmp_path / "run", cache_codes=True)
    assert not tokenized
    assert plain.history == cached.history
    assert_same_bits(all_weights(plain), all_weights(cached))
    assert not files["1_tokenizer"]
    # Those of the cold start stay beside those of the tokenizer.
    assert "accuracy_4" in plain.history["2_encoder"]
    for name, levels in (("0_cold_start", 2), ("2_encoder", 4)):
        (codes,) = files[name]
        assert (codes.shape, codes.dtype) == ((10, 8, levels), np.uint8)
    np.testing.assert_array_equal(codes[..., :2], cached.codes(INPUTS, batch_size=4))
    # They are as large as they are easy to compute again.
    assert not list((tmp_path / "run").rglob("codes_*"))


def fake_tokenizer(size, weights):
    quantizer = type("Quantizer", (), {"codebook_size": size})()
    names = {"quantizer": quantizer, "get_weights": lambda self: weights}
    return type("Tokenizer", (), names)()


@pytest.mark.parametrize(
    ("size", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (8192, "uint16")]
)
def test_files(tmp_path, size, dtype):
    inputs = np.arange(30.0).reshape(10, 3)
    asked = []

    def tokenize(batch):
        asked.append(len(batch))
        assert batch.dtype == keras.config.floatx()
        codes = (batch[:, :, None].astype(int) % size).repeat(2, axis=2)
        codes[:, 2] = -1
        return codes

    tokenizer = fake_tokenizer(size, [np.ones(3)])
    other = fake_tokenizer(size, [np.zeros(3)])
    codes = cached_codes(tokenize, [tokenizer], inputs, 4, tmp_path)
    assert asked == [4, 4, 4]
    assert (codes.shape, codes.dtype) == ((10, 3, 2), dtype)
    expected = np.arange(30).reshape(10, 3) % size
    expected[:, 2] = 0
    for level in range(2):
        np.testing.assert_array_equal(codes[:, :, level], expected)
    # The next start finds them; other weights have others.
    again = cached_codes(tokenize, [tokenizer], inputs, 4, tmp_path)
    np.testing.assert_array_equal(again, codes)
    assert len(asked) == 3
    cached_codes(tokenize, [other], inputs, 4, tmp_path)
    assert len(asked) == 6
    # So have other inputs, also if a single number differs.
    inputs[7, 1] = 25
    changed = cached_codes(tokenize, [tokenizer], inputs, 4, tmp_path)
    assert len(asked) == 9
    assert changed[7, 1, 0] == 25 % size
    assert len(list(tmp_path.iterdir())) == 3
    in_memory = cached_codes(tokenize, [tokenizer], inputs, 4)
    np.testing.assert_array_equal(in_memory, changed)


@pytest.mark.parametrize(
    ("batches", "augmentation", "tokenize"),
    [
        ([INPUTS], None, "all"),
        (ArrayBatches(INPUTS, 4), "noise", "all"),
        (ArrayBatches(INPUTS, 4), None, "masked"),
    ],
)
def test_where_codes_change(batches, augmentation, tokenize):
    with pytest.raises(ValueError):
        check_cacheable(batches, augmentation, tokenize)
