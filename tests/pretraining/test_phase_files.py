"""What is kept of each phase: everything, or nothing at all."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_bridle.training.checkpoint import SaveError
from keras_bridle.training.run import NoFiles, open_run

PHASE = SimpleNamespace(name="0_cold_start")
OPTIONS = SimpleNamespace(
    verbose=0,
    checkpoint_every=1,
    checkpoint_every_steps=None,
    checkpoint_minutes=None,
)


def settings():
    return {"rounds": 1}


def layer(value):
    made = keras.layers.Dense(2, kernel_initializer=keras.initializers.Constant(value))
    made.build((None, 3))
    return keras.Sequential([keras.Input((3,)), made])


def test_a_phase_is_read_as_it_was_written(tmp_path):
    saved, loaded = layer(1.5), layer(0.0)
    with open_run(tmp_path / "run", settings, OPTIONS) as files_of:
        files = files_of(PHASE)
        assert not files.is_done()
        files.save({"backbone": saved}, {"loss": [np.float32(2.5), 1]})
        files.mark_done()
        files.close()
    assert sorted(path.name for path in files.folder.iterdir()) == [
        "backbone.weights.h5",
        "history.json",
    ]
    with open_run(tmp_path / "run", settings, OPTIONS, resume=True) as files_of:
        files = files_of(PHASE)
        assert files.is_done()
        assert files.load({"backbone": loaded}) == {"loss": [2.5, 1.0]}
    np.testing.assert_array_equal(loaded.get_weights()[0], saved.get_weights()[0])


def test_a_disk_that_is_full_at_the_end_of_a_phase(tmp_path, monkeypatch):
    def fail(path, *args, **kwargs):
        path.write_bytes(b"half")
        # As HDF5 tells it.
        raise RuntimeError("Can't write data (error message = 'No space left')")

    model = layer(1.0)
    monkeypatch.setattr(model, "save_weights", fail)
    with open_run(tmp_path / "run", settings, OPTIONS) as files_of:
        files = files_of(PHASE)
        with pytest.raises(SaveError, match=r"backbone\.weights\.h5.*No space left"):
            files.save({"backbone": model}, {"loss": [1.0]})
        assert not files.is_done()
    assert not list(files.folder.iterdir())


def test_a_phase_goes_on_from_its_state(tmp_path):
    model, again = layer(1.0), layer(3.0)
    for one in (model, again):
        one.compile("adam", loss="mse")
    model.optimizer.build(model.trainable_variables)
    with open_run(tmp_path / "run", settings, OPTIONS) as files_of:
        files = files_of(PHASE)
        assert not files.restore(model)
        files.checkpoint.save(model, epoch=2)
    with open_run(tmp_path / "run", settings, OPTIONS, resume=True) as files_of:
        files = files_of(PHASE)
        assert files.restore(again)
        assert files.checkpoint.epoch == 2
        files.close()
        assert not files.checkpoint.path.exists()
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])
    assert (
        "0_cold_start goes on after 2 epochs"
        in (tmp_path / "run" / "log.txt").read_text()
    )


def test_a_directory_is_for_one_at_a_time(tmp_path):
    with (
        open_run(tmp_path, settings, OPTIONS),
        pytest.raises(BlockingIOError),
        open_run(tmp_path, settings, OPTIONS, resume=True),
    ):
        pass
    with (
        pytest.raises(FileExistsError, match="resume=True"),
        open_run(tmp_path, settings, OPTIONS),
    ):
        pass


def test_without_a_directory_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Settings need not be written, so that they need not be of a kind that can be.
    with open_run(None, None, OPTIONS) as files_of:
        files = files_of(PHASE)
        assert isinstance(files, NoFiles)
        files.save({"backbone": layer(1.0)}, {"loss": [1.0]})
        files.mark_done()
        assert not files.is_done()
        assert not files.restore(layer(1.0))
        assert files.folder is None and files.checkpoint is None
        files.close()
        with pytest.raises(FileNotFoundError, match="0_cold_start"):
            files.load({})
    assert not list(tmp_path.iterdir())
