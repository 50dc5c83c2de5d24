import keras
import pytest
import tensorflow as tf

from keras_bridle.data.readers import import_tensorflow


@pytest.fixture
def gpus(monkeypatch):
    """A machine with one GPU, as TensorFlow would see it."""
    visible = {"GPU": ["GPU:0"]}
    monkeypatch.setattr(tf.config, "get_visible_devices", visible.get)
    monkeypatch.setattr(
        tf.config,
        "set_visible_devices",
        lambda devices, kind: visible.update({kind: devices}),
    )
    return visible


@pytest.mark.parametrize(
    ("backend", "left"), [("jax", []), ("torch", []), ("tensorflow", ["GPU:0"])]
)
def test_gpus_are_hidden_unless_tensorflow_trains(gpus, monkeypatch, backend, left):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    assert import_tensorflow() is tf
    assert gpus["GPU"] == left


def test_too_late_to_hide_is_a_warning(gpus, monkeypatch):
    def started(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(tf.config, "set_visible_devices", started)
    with pytest.warns(UserWarning, match="already started and holds the GPUs.*'jax'"):
        import_tensorflow()
