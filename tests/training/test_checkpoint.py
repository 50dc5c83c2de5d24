"""The state of a phase on disk: bit-equal, safe, and clear about what is wrong."""

import errno

import keras
import numpy as np
import pytest
from tiny_pretraining import assert_same_bits, weights_of

from keras_bridle.training.checkpoint import Checkpoint, NonFiniteLoss, SaveError


def dense_model(units=1):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
    model.compile("adam", loss="mse")
    return model


def fit(model, epochs=1, **kwargs):
    x = np.arange(8.0).reshape(2, 4)
    model.fit(x, np.ones((2, 1)), epochs=epochs, verbose=0, **kwargs)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, error):
    model = dense_model()
    checkpoint = Checkpoint(tmp_path / "run" / "state.npz")
    fit(model, callbacks=[checkpoint])
    old = checkpoint.path.read_bytes()

    def fail_halfway(file, **arrays):
        file.write(b"PK half of an archive")
        raise error

    monkeypatch.setattr(np, "savez", fail_halfway)
    with pytest.raises((KeyboardInterrupt, SaveError)) as caught:
        fit(model, callbacks=[checkpoint])
    if isinstance(error, OSError):
        assert (caught.value.path, caught.value.reason) == (checkpoint.path, error)
    # Half a file would keep the disk full.
    assert [path.name for path in checkpoint.path.parent.glob("*.npz*")] == [
        "state.npz"
    ]
    assert checkpoint.path.read_bytes() == old
    monkeypatch.undo()
    assert Checkpoint(checkpoint.path).restore(model) == 1
    checkpoint.delete()
    assert not list(checkpoint.path.parent.glob("*.npz"))


def test_another_model(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.npz")
    assert checkpoint.restore(dense_model()) == 0
    fit(dense_model(), callbacks=[checkpoint])
    deeper = keras.Sequential([keras.Input((4,)), *map(keras.layers.Dense, (1, 1))])
    deeper.compile("adam", loss="mse")
    for other in (dense_model(units=3), deeper):
        before = weights_of(other)
        with pytest.raises(ValueError):
            checkpoint.restore(other)
        assert_same_bits(weights_of(other), before)


def test_damaged_files(tmp_path):
    path = tmp_path / "state.npz"
    model = dense_model()
    fit(model, epochs=1, callbacks=[Checkpoint(path)])
    expected, whole = weights_of(model), path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="damaged"):
        Checkpoint(path).restore(model)
    assert_same_bits(weights_of(model), expected)
    # With one before it, that one is restored.
    path.write_bytes(whole)
    fit(model, epochs=2, callbacks=[Checkpoint(path)], initial_epoch=1)
    content = path.read_bytes()[:-100]
    path.write_bytes(content)
    checkpoint, copy = Checkpoint(path), dense_model()
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoint.restore(copy) == 1
    assert_same_bits(weights_of(copy), expected)
    # What is saved next must not push out the only good one.
    fit(copy, epochs=2, callbacks=[checkpoint], initial_epoch=1)
    names = {file.name for file in tmp_path.glob("*.npz")}
    assert names == {"state.npz", "state.previous.npz", "state.damaged.npz"}
    assert (tmp_path / "state.damaged.npz").read_bytes() == content
    path.unlink()
    # As if killed between the two renamings of a save.
    assert Checkpoint(path).restore(dense_model()) == 1


def test_any_flipped_byte_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "state.npz"
    model = dense_model()
    checkpoint = Checkpoint(path)
    fit(model, callbacks=[checkpoint])
    content, expected = path.read_bytes(), weights_of(model)
    copy = dense_model()
    random = np.random.default_rng(0)
    noticed = 0
    for place in random.choice(len(content), 150, replace=False):
        changed = bytearray(content)
        changed[place] ^= 1 << random.integers(8)
        path.write_bytes(changed)
        try:
            checkpoint.restore(copy)
        except ValueError as error:
            assert "damaged" in str(error)
            noticed += 1
        else:
            assert_same_bits(weights_of(copy), expected)
    assert noticed > 75


def test_weights_that_are_not_finite_replace_nothing(tmp_path):
    model = dense_model()
    checkpoint = Checkpoint(tmp_path / "state.npz")
    fit(model, callbacks=[checkpoint])
    old = checkpoint.path.read_bytes()
    model.set_weights([np.full((4, 1), np.inf), np.zeros(1)])
    with pytest.raises(NonFiniteLoss):
        checkpoint.save(model, 2)
    assert checkpoint.path.read_bytes() == old


class Saves(keras.callbacks.Callback):
    """Notes what a checkpoint saves, and when."""

    def __init__(self, checkpoint):
        super().__init__()
        self.found = []
        checkpoint.save = lambda model, epoch, step: self.found.append((epoch, step))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every": 2}, [(2, 0), (3, 0)]),
        # At the end of an epoch its logs are saved with it.
        (
            {"every": 2, "every_steps": 2},
            [(0, 2), (0, 4), (1, 2), (1, 4), (2, 0), (2, 2), (2, 4), (3, 0)],
        ),
    ],
)
def test_every_few_epochs_or_steps(tmp_path, options, expected):
    x, y = np.ones((10, 4)), np.ones((10, 1))
    checkpoint = Checkpoint(tmp_path / "state.npz", **options)
    saves = Saves(checkpoint)
    dense_model().fit(
        x, y, batch_size=2, epochs=3, callbacks=[saves, checkpoint], verbose=0
    )
    assert saves.found == expected
    # An epoch that is run again takes the place of the first try.
    checkpoint.on_epoch_end(2, {"loss": np.float32(1)})
    assert len(checkpoint.logs) == 3 and checkpoint.logs[2] == {"loss": 1.0}
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert len(lines) == 4 and lines[3] == "2,1.0"


def test_every_few_minutes(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "state.npz", every=9, minutes=2)
    saves, now = Saves(checkpoint), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoint.set_params({"epochs": 9, "steps": 5})
    checkpoint.set_model(dense_model())
    checkpoint.on_train_begin()
    for epoch in range(2):
        checkpoint.on_epoch_begin(epoch)
        for step in range(5):
            now[0] += 50
            checkpoint.on_train_batch_end(step)
        checkpoint.on_epoch_end(epoch, {})
    assert saves.found == [(0, 3), (1, 1), (1, 4)]


def test_half_precision_variables(tmp_path):
    """NumPy's files know no bfloat16."""
    keras.config.set_dtype_policy("bfloat16")
    model = dense_model()
    model.optimizer.build(model.trainable_variables)
    checkpoint = Checkpoint(tmp_path / "state.npz")
    checkpoint.save(model, 1)
    copy = dense_model()
    assert checkpoint.restore(copy) == 1
    for one, other in zip(model.weights, copy.weights, strict=True):
        assert one.dtype == other.dtype == "bfloat16"
        assert bool(keras.ops.all(one == other))
