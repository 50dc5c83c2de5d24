import numpy as np
import pytest

from keras_bridle.fine_tuning import (
    balanced_weights,
    draw_few,
    epoch_order,
    split_examples,
)

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


@pytest.mark.parametrize(("labels", "share"), [([0, 1], 0.3), ([0, 0], 1.0)])
def test_split_that_leaves_nothing(labels, share):
    with pytest.raises(ValueError, match="share"):
        split_examples(np.array(labels), share)


def test_few_of_each_class_or_all_there_are():
    few = draw_few(LABELS, 5, seed=0)
    np.testing.assert_array_equal(np.bincount(LABELS[few]), [5, 5, 2])
    assert (draw_few(LABELS, 5, seed=1) != few).any()
    with pytest.raises(ValueError, match="per_class"):
        draw_few(LABELS, 0)
    with pytest.raises(ValueError, match="shape"):
        draw_few(np.eye(3), 1)


def test_weights_are_as_published():
    weights = balanced_weights(LABELS)
    expected = np.array([1000 / (n + 0.01) for n in (50, 10, 2)])[LABELS]
    np.testing.assert_allclose(weights, expected / expected.sum())
    # Several labels add up; none weighs nothing.
    labels = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]])
    first, second = 1000 / 1.01, 1000 / 3.01
    expected = np.array([first + second, second, second, 0])
    np.testing.assert_allclose(balanced_weights(labels), expected / expected.sum())
    with pytest.raises(ValueError, match="class"):
        balanced_weights(np.zeros((2, 3)))


def test_orders_follow_from_seed_and_epoch():
    assert sorted(epoch_order(62, 0, 0)) == list(range(62))
    assert (epoch_order(62, 0, 0) != epoch_order(62, 0, 1)).any()
    np.testing.assert_array_equal(epoch_order(62, 5, 3), epoch_order(62, 5, 3))
    drawn = epoch_order(62, 0, 0, balanced_weights(LABELS), length=6000)
    shares = np.bincount(LABELS[drawn]) / 6000
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
    assert len(epoch_order(62, 0, 0, length=20)) == 20
    with pytest.raises(ValueError, match="weights"):
        epoch_order(62, 0, 0, length=63)
