"""A data set of files in training, its clock, and TensorFlow beside it."""

import time
from pathlib import Path

import keras
import numpy as np
import pytest
from sound_files import write_constants

from keras_bridle.data.files import FileList
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.readers import AudioReader, import_tensorflow

DELAY = 0.02


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


def test_waiting_is_what_reading_takes_and_the_model_does_not(slow):
    def clock(pause):
        dataset = slow(4)
        for _ in dataset:
            time.sleep(pause)
        return dataset.clock

    waited = clock(0)
    assert (waited.batches, waited.examples) == (4, 8)
    assert waited.seconds >= 8 * DELAY
    # But for the first batch. A busy machine only ever adds to it.
    fastest = min(clock(4 * DELAY).seconds for _ in range(3))
    assert 2 * DELAY <= fastest < 4 * DELAY


def test_reading_speed(slow):
    # A busy machine may be slower than the delay, and nothing makes it faster.
    fastest = max(slow(6).reading_speed() for _ in range(3))
    assert fastest == pytest.approx(1 / DELAY, rel=0.5)
    assert slow(1).reading_speed() is None


@pytest.mark.parametrize("repeat", [False, True])
def test_fit_sees_the_same_number_of_batches_every_epoch(tmp_path, repeat):
    paths = write_constants(tmp_path, 10)
    for path in (paths[1], paths[6]):
        Path(path).write_text("no sound in here")
    files = FileList("audio", paths, [i % 2 for i in range(10)], ["even", "odd"])
    reader = AudioReader(num_samples=800)
    train = file_dataset(files, reader, batch_size=3, shuffle=True, repeat=repeat)
    steps = []
    count = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: steps.append(0),
        on_train_batch_end=lambda batch, logs: steps.append(steps.pop() + 1),
    )
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(
        train,
        epochs=3,
        steps_per_epoch=3 if repeat else None,
        validation_data=file_dataset(files, reader, batch_size=3),
        callbacks=[count],
        shuffle=False,
        verbose=0,
    )
    assert steps == [3, 3, 3]
    assert np.isfinite(history.history["val_loss"]).all()
    # Keras may look at some batches before, which ends no epoch, or read ahead.
    assert train.clock.batches >= 9 and (repeat or train.clock.batches <= 9 + 3)
    assert train.clock.examples == 3 * train.clock.batches
    assert train.clock.seconds > 0 and train.epoch == (0 if repeat else 3)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("backend", "left"), [("jax", []), ("torch", []), ("tensorflow", ["GPU:0"])]
)
def test_gpus_are_hidden_unless_tensorflow_trains(monkeypatch, backend, left):
    tf = pytest.importorskip("tensorflow")
    # A machine with one GPU, as TensorFlow would see it.
    visible = {"GPU": ["GPU:0"]}

    def set_visible(devices, kind):
        visible[kind] = devices

    def started(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "get_visible_devices", visible.get)
    monkeypatch.setattr(tf.config, "set_visible_devices", set_visible)
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    import_tensorflow()
    assert visible["GPU"] == left
    if backend != "tensorflow":
        visible["GPU"] = ["GPU:0"]
        monkeypatch.setattr(tf.config, "set_visible_devices", started)
        with pytest.warns(UserWarning, match="holds the GPUs"):
            import_tensorflow()
