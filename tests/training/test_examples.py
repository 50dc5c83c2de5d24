"""Labeled examples: split, sampled, read, seen in views and scored."""

import functools
import itertools
import types

import numpy as np
import pytest
from image_files import which, write_gray
from video_files import decode_all, scene, write_video

from keras_bridle.config import ArgumentError
from keras_bridle.data.files import FileList, ReadReport
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.readers import ImageReader
from keras_bridle.training.examples import (
    ArrayExamples,
    FileExamples,
    array_views,
    balanced_weights,
    draw_few,
    file_views,
    split_examples,
)
from keras_bridle.training.fine_tune import predict_examples

LABELS = np.repeat([0, 1, 2], [50, 10, 2])
READ = functools.partial(file_dataset, reader=ImageReader(4, channels=1))


@pytest.fixture
def files(tmp_path):
    paths = write_gray(tmp_path, 10)
    labels = [number % 3 for number in range(10)]
    return FileExamples(FileList("image", paths, labels, ["a", "b", "c"]), READ)


class Echo:
    """A model whose logits tell which picture it saw."""

    classifier = types.SimpleNamespace(num_classes=2, multi_label=False)
    sizes: list = []

    def predict_on_batch(self, inputs):
        self.sizes.append(len(inputs))
        value = np.asarray(inputs, "float64").reshape(len(inputs), -1).mean(axis=1)
        return {"logits": np.stack([np.zeros(len(value)), value], axis=1)}


def test_files_to_train_on(files):
    make, steps = files.training_batches(4, seed=3)
    assert steps == 2
    batches = list(itertools.islice(make(5), 4))
    for inputs, labels in batches:
        np.testing.assert_array_equal(np.array(which(inputs)) % 3, labels)
    # The third batch is the next epoch's first.
    again = next(iter(files.training_batches(4, seed=3)[0](6)))
    np.testing.assert_array_equal(again[0], batches[2][0])
    with pytest.raises(ArgumentError):
        files.training_batches(11)


def test_files_drawn_by_weight(files):
    weights = np.zeros(10)
    weights[[2, 7]] = 0.5
    make, steps = files.training_batches(4, weights=weights, epoch_length=12)
    assert steps == 3
    batches = list(itertools.islice(make(0), 6))
    seen = [which(inputs) for inputs, _ in batches]
    assert {number for batch in seen for number in batch} == {2, 7}
    np.testing.assert_array_equal(batches[0][1], np.array(seen[0]) % 3)
    # The second epoch draws anew, and is the same for who starts there.
    assert seen[:3] != seen[3:]
    assert [which(inputs) for inputs, _ in itertools.islice(make(1), 3)] == seen[3:]


def test_balanced_epochs_have_as_many_of_each_class():
    examples = ArrayExamples(np.arange(62.0), LABELS)
    weights = balanced_weights(LABELS)
    make, steps = examples.training_batches(50, 1, weights, epoch_length=600)
    batches = list(itertools.islice(make(0), steps))
    inputs, drawn = map(np.concatenate, zip(*batches, strict=True))
    # Six standard deviations; unbalanced would be 484, 97 and 19.
    np.testing.assert_allclose(np.bincount(drawn), 200, atol=70)
    places = inputs.astype(int)
    np.testing.assert_array_equal(LABELS[places], drawn)
    # Not the same few of the common class again and again.
    assert len(set(places[drawn == 0])) > 40 and len(set(places[drawn == 2])) == 2


def test_some_of_the_files_and_their_labels(files):
    some = files.subset(np.array([7, 1]))
    np.testing.assert_array_equal(some.labels, [1, 1])
    inputs, places = next(iter(some.batches_in_order(2)))
    assert which(inputs) == [7, 1] and places.tolist() == [0, 1]
    manifest = FileList("audio", ["x", "y"], [(0, 2), ()], ["a", "b", "c"])
    labels = FileExamples(manifest, READ).labels
    np.testing.assert_array_equal(labels, [[1, 0, 1], [0, 0, 0]])
    with pytest.raises(ValueError):
        FileExamples(FileList("audio", ["x"]), READ)


def test_some_inputs_are_not_the_first(files):
    arrays = ArrayExamples(np.arange(10.0), np.arange(10))
    drawn = arrays.some_inputs(4).tolist()
    assert len(drawn) == 4 and drawn == sorted(set(drawn)) != [0, 1, 2, 3]
    assert which(files.some_inputs(4)) == drawn
    assert arrays.some_inputs(4, seed=1).tolist() != drawn
    assert which(files.some_inputs(40)) == list(range(10))


def test_predictions_leave_out_what_cannot_be_read(files, tmp_path):
    (tmp_path / "003.png").write_text("no picture")
    report = ReadReport()
    files = FileExamples(files.manifest, READ, read_report=report)
    model = Echo()
    found = predict_examples(model, files, batch_size=4)
    assert found.indices.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    np.testing.assert_array_equal(found.labels, found.indices % 3)
    expected = 1 / (1 + np.exp(-2.0 * found.indices))
    np.testing.assert_allclose(found.scores[:, 1], expected)
    assert len(report.skipped) == 1
    # Each batch has the size that the step was compiled for.
    assert set(model.sizes) == {4}


def test_views_are_averaged():
    clips = np.random.default_rng(0).normal(size=(5, 7, 6, 9, 1))
    labels = np.arange(5)
    views = array_views(clips, labels, 4, 6, segments=2, crops=3)
    assert [view.inputs.shape for view in views] == [(5, 4, 6, 6, 1)] * 6
    np.testing.assert_array_equal(views[1].inputs, clips[:, :4, :, 2:8])
    np.testing.assert_array_equal(views[5].inputs, clips[:, 3:, :, 3:])
    (middle,) = array_views(clips, labels, 3, 5, segments=1, crops=1)
    np.testing.assert_array_equal(middle.inputs, clips[:, 2:5, :5, 2:7])
    found = predict_examples(Echo(), views, batch_size=2)
    each = [predict_examples(Echo(), view, batch_size=2).scores for view in views]
    np.testing.assert_allclose(found.scores, np.mean(each, axis=0))
    with pytest.raises(ValueError):
        array_views(clips, labels, 8, 6)


def test_split_takes_the_same_share_of_each_class():
    train, test = split_examples(LABELS, 0.2, seed=1)
    np.testing.assert_array_equal(np.bincount(LABELS[test]), [10, 2, 1])
    assert sorted([*train, *test]) == list(range(62))
    np.testing.assert_array_equal(test, split_examples(LABELS, 0.2, seed=1)[1])
    assert (split_examples(LABELS, 0.2, seed=2)[1] != test).any()
    train, test = split_examples(np.eye(4)[np.arange(40) % 4], 0.25)
    assert len(test) == 10 and not set(train) & set(test)
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


def test_views_of_files(tmp_path):
    path = write_video(tmp_path / "a.mp4", "libx264", scene(12))
    frames = np.stack(decode_all(path))
    manifest = FileList("video", [path], labels=[0], class_names=["a"])
    views = file_views(
        manifest, image_size=48, num_frames=4, sampling_rate=2, segments=3, crops=2
    )
    found = [next(iter(view.batches_in_order(1)))[0][0] for view in views]
    assert len(found) == 6
    # A view covers 7 of the 12 frames, and 48 of the 64 columns.
    starts = [(start, left) for start in (0, 3, 5) for left in (0, 16)]
    for view, (start, left) in zip(found, starts, strict=True):
        expected = frames[start : start + 7 : 2, :, left : left + 48]
        error = np.abs(view.astype(int) - expected.astype(int)).mean()
        assert error < 2, (start, left, error)
