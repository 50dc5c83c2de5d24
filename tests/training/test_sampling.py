import numpy as np
import pytest

from keras_bridle import BridleBackbone, BridleImageClassifier
from keras_bridle.config import ArgumentError
from keras_bridle.training.batches import epoch_order
from keras_bridle.training.examples import (
    ArrayExamples,
    balanced_weights,
    draw_few,
    split_examples,
)
from keras_bridle.training.fine_tune import FineTuner, fine_tune

LABELS = np.repeat([0, 1, 2], [50, 10, 2])


def test_split_takes_the_same_share_of_each_class():
    train, test = split_examples(LABELS, 0.2, seed=1)
    np.testing.assert_array_equal(np.bincount(LABELS[test]), [10, 2, 1])
    assert sorted([*train, *test]) == list(range(62))
    again = split_examples(LABELS, 0.2, seed=1)
    np.testing.assert_array_equal(test, again[1])
    assert (split_examples(LABELS, 0.2, seed=2)[1] != test).any()


def test_split_of_multi_label_data():
    labels = np.eye(4)[np.arange(40) % 4]
    train, test = split_examples(labels, 0.25)
    assert len(test) == 10 and not set(train) & set(test)


def test_split_that_leaves_nothing():
    with pytest.raises(ArgumentError):
        split_examples(np.array([0, 1]), 0.3)


def test_few_of_each_class_or_all_there_are():
    few = draw_few(LABELS, 5, seed=0)
    np.testing.assert_array_equal(np.bincount(LABELS[few]), [5, 5, 2])
    assert (draw_few(LABELS, 5, seed=1) != few).any()


def test_weights_are_as_published():
    weights = balanced_weights(LABELS)
    expected = np.array([1000 / (n + 0.01) for n in (50, 10, 2)])[LABELS]
    np.testing.assert_allclose(weights, expected / expected.sum())
    # Several labels add up; none weighs nothing.
    labels = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]])
    first, second = 1000 / 1.01, 1000 / 3.01
    expected = np.array([first + second, second, second, 0])
    np.testing.assert_allclose(balanced_weights(labels), expected / expected.sum())
    with pytest.raises(ValueError):
        balanced_weights(np.zeros((2, 3)))


def test_orders_follow_from_seed_and_epoch():
    assert sorted(epoch_order(62, 0, 0)) == list(range(62))
    assert (epoch_order(62, 0, 0) != epoch_order(62, 0, 1)).any()
    np.testing.assert_array_equal(epoch_order(62, 5, 3), epoch_order(62, 5, 3))
    drawn = epoch_order(62, 0, 0, balanced_weights(LABELS), length=6000)
    shares = np.bincount(LABELS[drawn]) / 6000
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
    assert len(epoch_order(62, 0, 0, length=20)) == 20


def test_epochs_of_several_labels_are_balanced():
    labels = np.zeros((62, 4), int)
    labels[np.arange(60), LABELS[:60]] = 1
    labels[60:, 2] = 1
    # One in five has the common class beside its own.
    labels[50:60:2, 0] = 1
    drawn = epoch_order(62, 0, 0, balanced_weights(labels), length=6000)
    times = labels[drawn].sum(axis=0)
    assert times[3] == 0 and times[:3].min() > 0.25 * times.sum()


class Watched(ArrayExamples):
    """Keeps the labels of the first epoch that is asked for."""

    def training_batches(self, *args, **kwargs):
        make, steps = super().training_batches(*args, **kwargs)
        batches = make(0)
        self.drawn = np.concatenate([batches[i][1] for i in range(steps)])
        return make, steps


@pytest.mark.parametrize("balanced", [False, True])
def test_fine_tuning_draws_classes_alike_if_asked(balanced):
    backbone = BridleBackbone(4, 8, 1, 1, 8, input_dims=(4, 4, 1))
    tuner = FineTuner(BridleImageClassifier(backbone, num_classes=3))
    examples = Watched(np.zeros((62, 4, 4, 1), "float32"), LABELS)
    fine_tune(
        tuner,
        examples,
        epochs=1,
        batch_size=60,
        balanced=balanced,
        epoch_length=600 if balanced else None,
        verbose=0,
    )
    counts = np.bincount(examples.drawn, minlength=3)
    if balanced:
        np.testing.assert_allclose(counts, 200, atol=70)
    else:
        assert counts.sum() == 60 and counts[0] >= 48
