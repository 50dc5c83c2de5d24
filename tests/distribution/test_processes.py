from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest

from keras_bridle import distribution
from keras_bridle.distribution import (
    Shard,
    WorkerLostError,
    bridle_layout_map,
    broadcast,
    broadcast_variables,
    distribute,
    gather,
    is_chief,
    local_function,
    num_devices,
    own_directory,
    process_shard,
)

BACKEND = keras.backend.backend()


def test_one_process_is_alone():
    assert process_shard() == (0, 1)
    assert is_chief()
    assert num_devices() == 1
    assert own_directory("runs/birds") == "runs/birds"
    assert own_directory(None) is None
    array = np.arange(3.0)
    for same in (broadcast(array), gather(array)[0]):
        np.testing.assert_array_equal(same, array)
    assert broadcast({"a": 1}) == {"a": 1}
    variable = keras.Variable([1.0, 2.0])
    broadcast_variables([variable])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), [1.0, 2.0])


def test_each_run_of_a_worker_has_a_directory_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(distribution, "is_chief", lambda: False)
    monkeypatch.chdir(tmp_path)
    first, second = own_directory("a"), own_directory("b")
    assert first != second
    assert tmp_path not in (Path(first).parent, Path(second).parent)
    assert own_directory(tmp_path / "a") == own_directory("b/../a") == first
    # What a recipe has asked for already.
    assert own_directory(first) == first
    assert own_directory(None) is None


@pytest.mark.skipif(BACKEND == "tensorflow", reason="has one process")
@pytest.mark.parametrize(
    "array",
    [
        np.array([1.5, -0.0, np.nan, -np.inf], "float32"),
        np.array([[2**63 - 1, -5]], "int64"),
        np.array([1.5, 0.1], ml_dtypes.bfloat16),
        np.array([True, False, True]),
        np.array(3, "int8"),
        np.zeros((0, 4), "float32"),
        np.arange(6, dtype="float64").reshape(2, 3).T,
    ],
)
def test_arrays_are_exchanged_bit_by_bit(array, monkeypatch):
    """With another process that has the same array."""
    monkeypatch.setattr(distribution, "process_shard", lambda: Shard(0, 2))
    monkeypatch.setattr(distribution, "_exchange", lambda own: np.stack([own, own]))
    found = gather(array)
    assert found.dtype == array.dtype
    assert found.shape == (2, *array.shape)
    assert found[1].tobytes() == np.ascontiguousarray(array).tobytes()


def test_outputs_are_those_of_the_batch():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    batch = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    expected = keras.ops.convert_to_numpy(model(batch))
    np.testing.assert_allclose(local_function(model)(batch), expected, 1e-6, 1e-6)


def test_devices_must_suffice():
    with pytest.raises(ValueError), distribute(model_devices=3):
        pass


@pytest.mark.skipif(BACKEND != "torch", reason="torch needs processes")
def test_torch_needs_processes(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError), distribute():
        pass


@pytest.mark.skipif(BACKEND == "torch", reason="torch needs processes")
def test_errors_of_one_process_stay_as_they_are():
    with pytest.raises(RuntimeError) as caught, distribute():
        raise RuntimeError("connection reset by peer")
    assert not isinstance(caught.value, WorkerLostError)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX alone divides networks")
def test_layouts_are_for_the_large_kernels():
    mesh = keras.distribution.DeviceMesh(
        (1, 1), ["batch", "model"], keras.distribution.list_devices()
    )
    layouts = bridle_layout_map(mesh)
    columns, rows = (None, "model"), ("model", None)
    expected = {
        "encoder/transformer_block_3/qkv/kernel": columns,
        "transformer_block_0/mlp_hidden/kernel": columns,
        "transformer_block_0/mlp_hidden/bias": ("model",),
        "decoder/transformer_block_1/mlp_output/kernel": rows,
        "decoder/transformer_block_1/attention_output/kernel": rows,
        "decoder/head/kernel": columns,
        "decoder/transformer_block_1/attention_output/bias": None,
        "patch_embedding/projection/kernel": None,
        "residual_quantizer/code_vectors": None,
    }
    for path, axes in expected.items():
        layout = layouts[path]
        assert (None if layout is None else tuple(layout.axes)) == axes, path
    with pytest.raises(ValueError):
        bridle_layout_map(mesh, axis="columns")
