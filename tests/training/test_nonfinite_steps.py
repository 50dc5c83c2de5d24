"""Batches that give no finite loss: kept for inspection, skipped without a trace."""

import keras
import numpy as np
import pytest
from tiny_pretraining import (
    assert_same_bits,
    encoder_pretrainer,
    maps,
    num_changed,
    tokenizer_pretrainer,
    weights_of,
)

from keras_bridle.training.checkpoint import NonFiniteLoss, NonFiniteSteps, skipping
from keras_bridle.training.optimizers import adamw

BATCHES = [maps(4, seed) for seed in range(4)]
BAD = np.full_like(BATCHES[0], np.nan)


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def compiled(make, may_skip=True, **kwargs):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)
    trainer = make(**kwargs)
    trainer.set_trained_parts()
    optimizer = adamw(trainer, 1e-2, global_clipnorm=1.0)
    trainer.compile(skipping(optimizer) if may_skip else optimizer)
    trainer.optimizer.build(trainer.trainable_variables)
    if may_skip:
        trainer.skip_nonfinite_steps()
    return trainer


def fit(trainer, batches, folder=None, max_steps=1, **kwargs):
    steps = NonFiniteSteps(
        lambda epoch, first_batch: batches[first_batch:], max_steps, folder
    )
    return trainer.fit(
        Batches(batches), callbacks=[steps], shuffle=False, verbose=0, **kwargs
    ).history


@pytest.mark.parametrize(
    "make",
    [
        encoder_pretrainer,
        pytest.param(tokenizer_pretrainer, marks=pytest.mark.full_matrix),
    ],
)
def test_a_skipped_step_leaves_no_trace(make, tmp_path):
    expected = compiled(make)
    history = fit(expected, BATCHES[:2])
    assert history["skipped_steps"] == [0.0]
    trainer = compiled(make)
    start = weights_of(trainer)
    found = fit(trainer, [BATCHES[0], BAD, BATCHES[1]], tmp_path)
    assert found["skipped_steps"] == [1.0]
    assert num_changed(start, weights_of(trainer)) > 10
    assert_same_bits(weights_of(*trained(trainer)), weights_of(*trained(expected)))
    assert int(keras.ops.convert_to_numpy(trainer.optimizer.iterations)) == 2
    for name in ("loss", "cosine", "quantizer_loss"):
        assert found.get(name) == history.get(name)
    (path,) = tmp_path.iterdir()
    assert path.name == "epoch_0_step_1.npz"
    with np.load(path) as file:
        np.testing.assert_array_equal(file["inputs"], BAD)


def trained(trainer):
    return [getattr(trainer, name) for name in (*trainer.trained_parts, "tokenizer")]


@pytest.mark.full_matrix
def test_the_guard_changes_nothing_else():
    """Without bad batches, bits are those of the plain optimizer."""
    plain, guarded = compiled(encoder_pretrainer, False), compiled(encoder_pretrainer)
    plain.fit(Batches(BATCHES), shuffle=False, verbose=0)
    fit(guarded, BATCHES)
    assert_same_bits(weights_of(plain), weights_of(guarded))


@pytest.mark.full_matrix
def test_too_many(tmp_path):
    trainer = compiled(encoder_pretrainer)
    batches = [BAD, BATCHES[0], BAD, BATCHES[1]]
    with pytest.raises(NonFiniteLoss, match=r"epoch 1, step 3; .*step_2\.npz.*2 such"):
        fit(trainer, batches, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert all(np.isfinite(array).all() for array in weights_of(trainer))


@pytest.mark.full_matrix
def test_the_first_one_stops_unless_asked_otherwise(tmp_path):
    trainer = compiled(encoder_pretrainer, may_skip=False)
    with pytest.raises(
        NonFiniteLoss, match=r"epoch 1, step 2; .*max_nonfinite_steps=0"
    ):
        fit(trainer, [BATCHES[0], BAD, BATCHES[1]], tmp_path / "a" / "b", max_steps=0)
    assert (tmp_path / "a" / "b" / "epoch_0_step_1.npz").exists()
    # Also where it is the last step of an epoch, and nothing is to be kept.
    trainer = compiled(encoder_pretrainer, may_skip=False)
    with pytest.raises(NonFiniteLoss, match=r"epoch 1, step 2\. 1 such"):
        fit(trainer, [BATCHES[0], BAD], max_steps=0)
