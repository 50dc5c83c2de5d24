import numpy as np
import pytest

from keras_bridle.data.samples import load_fashion


def test_splits_have_the_documented_sizes_and_add_up():
    train, train_labels, names = load_fashion("train")
    test, test_labels, _ = load_fashion("test")
    both, both_labels, _ = load_fashion()
    assert train.shape == (8000, 28, 28, 1) and test.shape == (2000, 28, 28, 1)
    assert train.dtype == np.uint8 and train_labels.dtype == np.int32
    assert len(names) == 10 and names[9] == "Ankle boot"
    np.testing.assert_array_equal(both, np.concatenate([train, test]))
    np.testing.assert_array_equal(
        both_labels, np.concatenate([train_labels, test_labels])
    )
    assert np.bincount(train_labels).min() > 700
    assert np.bincount(test_labels).min() > 150


def test_splits_share_no_picture():
    train = {image.tobytes() for image in load_fashion("train")[0]}
    assert not any(image.tobytes() in train for image in load_fashion("test")[0])


def test_labels_fit_the_pictures():
    images, labels, names = load_fashion("train")
    means = images.reshape(len(images), -1).mean(axis=1)
    by_class = {name: means[labels == i].mean() for i, name in enumerate(names)}
    # Sandals are mostly background, pullovers fill the picture.
    assert min(by_class, key=by_class.get) == "Sandal"
    assert by_class["Pullover"] > 2 * by_class["Sandal"]


def test_so_many_per_class():
    images, labels, _ = load_fashion("train", per_class=20)
    assert images.shape == (200, 28, 28, 1)
    assert np.bincount(labels).tolist() == [20] * 10
    assert (load_fashion("train", per_class=20)[0] == images).all()
    assert (load_fashion("train", per_class=20, seed=1)[0] != images).any()
    everything = {image.tobytes() for image in load_fashion("train")[0]}
    assert all(image.tobytes() in everything for image in images)


def test_changing_the_result_does_not_change_the_next_one():
    load_fashion("test")[0][:] = 0
    assert load_fashion("test")[0].any()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`split` must be 'train', 'test' or None"):
        load_fashion("valid")
    for number in (0, 5000):
        with pytest.raises(ValueError, match=r"`per_class` must be from 1 to \d+"):
            load_fashion(per_class=number)
