"""Labeled examples in memory and in files: splits, sampling, batches and views."""

import copy
import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from keras_bridle.config import check
from keras_bridle.data.files import ReadReport
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.video_reader import VideoReader
from keras_bridle.models.data_sets import LaterBatches, Opened
from keras_bridle.models.inputs import PixelCheck, as_array, as_examples
from keras_bridle.training.batches import ArrayBatches, epoch_order


def split_examples(labels, share, seed=0):
    """Splits examples in two, stratified by class; returns sorted indices."""
    second: list[int] = []
    for indices in _shuffled_classes(labels, seed):
        count = round(share * len(indices))
        if len(indices) > 1:
            count = min(max(count, 1), len(indices) - 1)
        second.extend(indices[:count])
    is_second = np.zeros(len(labels), bool)
    is_second[second] = True
    expected = f"such that it splits {len(labels)} examples in two"
    check(not is_second.all() and is_second.any(), "share", expected, share)
    return np.flatnonzero(~is_second), np.flatnonzero(is_second)


def draw_few(labels, per_class, seed=0):
    """Draws a number of examples of each class, or all; returns sorted indices."""
    drawn = [indices[:per_class] for indices in _shuffled_classes(labels, seed)]
    return np.sort(np.concatenate(drawn))


def _shuffled_classes(labels, seed):
    """Yields the shuffled indices of each class, or of all of multi-label data."""
    labels = np.asarray(labels)
    random = np.random.default_rng(seed)
    if labels.ndim == 2:
        yield random.permutation(len(labels))
        return
    for label in np.unique(labels):
        yield random.permutation(np.flatnonzero(labels == label))


def balanced_weights(labels, num_classes=None):
    """Weighs examples so that rare classes are drawn as often (arXiv 2102.01243)."""
    labels = np.asarray(labels)
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=num_classes or 0)
        weights = 1000.0 / (counts[labels] + 0.01)
    else:
        of_class = 1000.0 / (np.count_nonzero(labels, axis=0) + 0.01)
        # In chunks, as products are in float64.
        chunks = np.array_split(labels, 1 + len(labels) // 10_000)
        weights = np.concatenate([(chunk > 0) @ of_class for chunk in chunks])
    if not weights.sum() > 0:
        raise ValueError("No example has a class, so none can be drawn")
    return weights / weights.sum()


class Examples:
    """Base of examples in memory and in files."""

    read_report = None
    inputs: Any
    labels: Any
    subset: Any

    def __len__(self):
        return len(self.labels)

    def for_classifier(self, classifier):
        """Returns the examples with checked labels, as numbers."""
        PixelCheck(classifier)(self.inputs)
        found = copy.copy(self)
        found.labels = classifier.labels(self.labels)
        return found

    def some_inputs(self, count, seed=0):
        """Returns the inputs of some random examples."""
        # Not the first ones, as neighbors often share a class.
        drawn = np.random.default_rng(seed).permutation(len(self))[:count]
        batches = self.subset(np.sort(drawn)).batches_in_order(32)
        return np.concatenate([inputs for inputs, _ in batches])


class ArrayExamples(Examples):
    """Labeled examples in memory: ints, or 0/1 of shape `(examples, classes)`."""

    def __init__(self, inputs, labels):
        if len(inputs) != len(labels):
            raise ValueError(
                "There must be a label for each example. "
                f"Received: {len(inputs)} inputs and {len(labels)} labels"
            )
        self.inputs = as_examples(inputs)
        self.labels = as_array(labels, "labels")

    def subset(self, indices):
        """Returns the examples at `indices`, in their order."""
        return ArrayExamples(self.inputs[indices], self.labels[indices])

    def training_batches(self, batch_size, seed=0, weights=None, epoch_length=None):
        """Returns a function from a first epoch to batches, and an epoch's length."""
        make = functools.partial(
            ArrayBatches,
            self.inputs,
            batch_size,
            seed,
            labels=self.labels,
            weights=weights,
            epoch_length=epoch_length,
        )
        return make, len(make(0))

    def batches_in_order(self, batch_size):
        """Yields batches `(inputs, indices)`, each example once."""
        for start in range(0, len(self), batch_size):
            indices = np.arange(start, min(start + batch_size, len(self)))
            yield self.inputs[indices], indices


class FileExamples(Examples):
    """Labeled examples that `make_dataset` reads, called with files and options."""

    def __init__(self, manifest, make_dataset, strict=False, read_report=None):
        if manifest.labels is None:
            raise ValueError("`manifest` must have labels. Received one without")
        self.manifest = manifest
        self.make_dataset = make_dataset
        self.strict = strict
        self.read_report = read_report

    @functools.cached_property
    def labels(self):
        """The labels, as in `ArrayExamples`."""
        return self.manifest.all_labels()

    def __len__(self):
        return len(self.manifest)

    def subset(self, indices):
        """Returns the examples at `indices`, in their order."""
        return FileExamples(
            self._take(indices), self.make_dataset, self.strict, self.read_report
        )

    def for_classifier(self, classifier):
        """Checks labels, which are numbers already."""
        classifier.labels(self.labels)
        return self

    def check_readable(self):
        """Raises a ValueError if no file can be read; `strict`: if the first cannot."""
        self._dataset(self.manifest, batch_size=1, drop_remainder=False)

    def training_batches(self, batch_size, seed=0, weights=None, epoch_length=None):
        """Returns batches to train on, as in `ArrayExamples`."""
        length = len(self) if epoch_length is None else epoch_length
        steps = length // batch_size
        expected = f"at most {length}, the files of an epoch"
        check(steps != 0, "batch_size", expected, batch_size)
        read = functools.partial(self._dataset, batch_size=batch_size, seed=seed)
        if weights is None and epoch_length is None:
            shuffled = functools.partial(read, shuffle=True, repeat=True)
            return lambda epoch: shuffled(self.manifest, initial_epoch=epoch), steps

        def batches_from(first):
            # Each epoch is its own data set, as its files differ.
            for epoch in itertools.count(first):
                order = epoch_order(len(self), seed, epoch, weights, epoch_length)
                yield from read(
                    self._take(order),
                    initial_epoch=epoch,
                    crop="random",
                    drop_remainder=True,
                )

        # Keras would lose the batch that it reads to inspect a generator.
        return lambda epoch: LaterBatches(Opened(batches_from, epoch)), steps

    def batches_in_order(self, batch_size):
        """Yields batches `(inputs, indices)` with each readable file once."""
        yield from self._dataset(
            self.manifest.numbered(),
            batch_size=batch_size,
            crop="center",
            drop_remainder=False,
        )

    def _dataset(self, manifest, **options):
        return self.make_dataset(
            manifest, strict=self.strict, report=self.read_report, **options
        )

    def _take(self, indices):
        # Missing files were reported before.
        return dataclasses.replace(self.manifest.take(indices), missing=())


def array_views(clips, labels, num_frames, image_size, segments=5, crops=3):
    """Crops evenly spread views from longer or larger clips; a list of examples."""
    size = np.array([num_frames, image_size, image_size])
    room = np.array(clips.shape[1:4]) - size
    if room.min() < 0:
        raise ValueError(
            f"Views of {num_frames} frames of {image_size} x {image_size} do not fit "
            f"into clips of shape {clips.shape[1:]}"
        )
    views = []
    for position in _positions(segments, crops):
        first = np.round(room * position).astype(int)
        cut = tuple(map(slice, first, first + size))
        views.append(ArrayExamples(clips[(slice(None), *cut)], labels))
    return views


def file_views(
    manifest, segments=5, crops=3, strict=False, read_report=None, **reading
):
    """Reads several views of each video file, a list of `FileExamples`."""
    reader = VideoReader(**reading)
    read_report = ReadReport() if read_report is None else read_report

    def view(position):
        def make_dataset(files, crop=None, **options):
            return file_dataset(files, reader, crop=position, **options)

        return FileExamples(manifest, make_dataset, strict, read_report)

    return [view(position) for position in _positions(segments, crops)]


def _positions(segments, crops):
    """Returns the position of each view along time, height and width, from 0 to 1."""
    times, crops = (
        np.linspace(0.0, 1.0, count) if count > 1 else np.array([0.5])
        for count in (segments, crops)
    )
    return [(float(time), float(crop), float(crop)) for time in times for crop in crops]
