"""The clock of a data set of files, also in training, and TensorFlow beside it."""

import time

import keras
import numpy as np
import pytest

from keras_bridle.data.files import FileList
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.readers import import_tensorflow

DELAY = 0.05


class SlowReader:
    """A reader that takes its time."""

    shape, dtype = (3,), "float32"

    def __call__(self, path, position, segment, report):
        time.sleep(DELAY)
        return np.full(3, position[0], "float32")


@pytest.fixture
def slow(tmp_path):
    """Makes a data set of so many batches of two, which one thread reads."""
    file = tmp_path / "a.wav"
    file.touch()

    def make(count, num_parallel=1):
        files = FileList("audio", [str(file)] * 2 * count, [0, 1] * count, ["a", "b"])
        return file_dataset(
            files, SlowReader(), batch_size=2, num_parallel=num_parallel
        )

    return make


def test_waiting_is_what_reading_takes(slow):
    dataset = slow(4)
    for _ in dataset:
        pass
    assert (dataset.clock.batches, dataset.clock.examples) == (4, 8)
    assert dataset.clock.seconds >= 8 * DELAY


def test_reading_in_the_background_is_no_waiting(slow):
    def seconds():
        dataset = slow(4)
        for _ in dataset:
            time.sleep(4 * DELAY)
        return dataset.clock.seconds

    # But for the first batch. A busy machine only ever adds to it.
    assert 2 * DELAY <= min(seconds() for _ in range(3)) < 4 * DELAY


def test_in_training_on_every_backend(slow):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    dataset = slow(4)
    model.fit(dataset, epochs=2, shuffle=False, verbose=0)
    # Keras may look at some batches before.
    assert 8 <= dataset.clock.batches <= 8 + 3
    assert dataset.clock.examples == 2 * dataset.clock.batches
    assert dataset.clock.seconds > 8 * DELAY
    # Which ends no epoch.
    assert dataset.epoch == 2


def test_reading_speed(slow):
    # A busy machine may be slower than the delay, and nothing makes it faster.
    fastest = max(slow(6).reading_speed() for _ in range(3))
    assert fastest == pytest.approx(1 / DELAY, rel=0.5)
    assert slow(1).reading_speed() is None


# TensorFlow beside another backend


@pytest.fixture
def gpus(monkeypatch):
    """A machine with one GPU, as TensorFlow would see it."""
    tf = pytest.importorskip("tensorflow")
    visible = {"GPU": ["GPU:0"]}

    def set_visible(devices, kind):
        visible[kind] = devices

    monkeypatch.setattr(tf.config, "get_visible_devices", visible.get)
    monkeypatch.setattr(tf.config, "set_visible_devices", set_visible)
    return visible


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("backend", "left"), [("jax", []), ("torch", []), ("tensorflow", ["GPU:0"])]
)
def test_gpus_are_hidden_unless_tensorflow_trains(gpus, monkeypatch, backend, left):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    import_tensorflow()
    assert gpus["GPU"] == left


@pytest.mark.one_backend
def test_too_late_to_hide_is_a_warning(gpus, monkeypatch):
    def started(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    tf = pytest.importorskip("tensorflow")
    monkeypatch.setattr(tf.config, "set_visible_devices", started)
    with pytest.warns(UserWarning, match="holds the GPUs"):
        import_tensorflow()
