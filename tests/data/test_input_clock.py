"""The clock at the end of an input pipeline, also inside compiled training."""

import time

import keras
import numpy as np
import pytest

from keras_bridle.data.pipeline import InputClock, reading_speed
from keras_bridle.data.readers import import_tensorflow

tf = import_tensorflow()
DELAY = 0.05


def slow(count=6, batch_size=2):
    """Batches that take their time, one after another."""

    def wait(value):
        time.sleep(DELAY)
        return value

    def batches(value):
        value = tf.numpy_function(wait, [value], tf.float32)
        return tf.fill((batch_size, 3), tf.ensure_shape(value, ()))

    return tf.data.Dataset.range(count, output_type=tf.float32).map(batches)


def test_batches_stay_as_they_are():
    dataset = tf.data.Dataset.range(10).batch(4).map(lambda x: (x, {"twice": 2 * x}))
    clock = InputClock()
    timed = clock.wrap(dataset)
    assert timed.element_spec == dataset.element_spec
    assert int(timed.cardinality()) == 3
    for (x, y), (first, second) in zip(timed, dataset, strict=True):
        np.testing.assert_array_equal(x, first)
        np.testing.assert_array_equal(y["twice"], second["twice"])
    assert (clock.batches, clock.examples) == (3, 10)


def test_waiting_is_what_reading_takes():
    clock = InputClock()
    for _ in clock.wrap(slow()):
        time.sleep(DELAY)
    assert 6 * DELAY <= clock.seconds < 12 * DELAY


def test_reading_in_the_background_is_no_waiting():
    def seconds():
        clock = InputClock()
        for _ in clock.wrap(slow().prefetch(2)):
            time.sleep(3 * DELAY)
        return clock.seconds

    # But for the first batch. A busy machine only ever adds to it.
    assert DELAY <= min(seconds() for _ in range(3)) < 4 * DELAY


def test_in_training_on_every_backend():

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    clock = InputClock()
    dataset = slow().map(lambda x: (x, x[:, :1]))
    model.fit(clock.wrap(dataset), epochs=2, verbose=0)
    # Keras may look at a batch before.
    assert clock.batches - 12 in (0, 1, 2)
    assert clock.examples == 2 * clock.batches
    assert clock.seconds > 0.8 * clock.batches * DELAY


def test_reading_speed():
    def fastest(count, **options):
        # A busy machine may be slower than the delay, and nothing makes it faster.
        return max(reading_speed(slow(count), **options) for _ in range(3))

    assert fastest(6) == pytest.approx(2 / DELAY, rel=0.4)
    assert fastest(100, seconds=0.5) == pytest.approx(2 / DELAY, rel=0.4)
    assert reading_speed(slow(1)) is None
    assert reading_speed(slow(0)) is None


# TensorFlow beside another backend


@pytest.fixture
def gpus(monkeypatch):
    """A machine with one GPU, as TensorFlow would see it."""
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
    assert import_tensorflow() is tf
    assert gpus["GPU"] == left


@pytest.mark.one_backend
def test_too_late_to_hide_is_a_warning(gpus, monkeypatch):
    def started(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(tf.config, "set_visible_devices", started)
    with pytest.warns(UserWarning, match="holds the GPUs"):
        import_tensorflow()
