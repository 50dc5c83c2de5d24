"""Training on several devices, in one process or several."""

import contextlib
import datetime
import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_bridle.config import ArgumentError
from keras_bridle.replicas import Shard as Shard
from keras_bridle.replicas import WorkerLostError, process_shard

if keras.backend.backend() == "torch":
    import torch
elif keras.backend.backend() == "jax":
    import jax
    from jax.experimental import multihost_utils
else:
    import tensorflow as tf

# Bytes of a file to send at a time.
_PIECE = 2**22


def is_chief():
    """Returns whether this process is the one that writes."""
    return process_shard().part == 0


def is_alone():
    """Returns whether there are no other processes."""
    return process_shard().parts == 1


def num_devices():
    """Counts the devices of all processes, which share a batch."""
    if keras.backend.backend() == "tensorflow":
        return tf.distribute.get_strategy().num_replicas_in_sync
    if keras.backend.backend() == "jax":
        distribution = keras.distribution.distribution()
        return 1 if distribution is None else distribution.num_model_replicas
    return process_shard().parts


def gather(array):
    """Stacks the arrays of all processes, of equal shapes and dtypes."""
    array = np.asarray(array)
    if is_alone():
        return array[None]
    # Send raw bytes, so that any dtype works.
    found = _exchange(np.frombuffer(array.tobytes(), "uint8"))
    shape = (process_shard().parts, *array.shape)
    return np.asarray(found).view(array.dtype).reshape(shape)


def _exchange(own):
    """Stacks the bytes of all processes."""
    if keras.backend.backend() == "jax":
        return multihost_utils.process_allgather(own)
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    own = torch.tensor(own, device=device)
    found = [torch.empty_like(own) for _ in range(process_shard().parts)]
    try:
        torch.distributed.all_gather(found, own)
    except RuntimeError as error:
        raise WorkerLostError(error) from error
    return torch.stack(found).cpu().numpy()


def broadcast(value):
    """Returns the chief's value in every process: an array, or JSON-compatible."""
    if is_alone():
        return value
    if isinstance(value, np.ndarray):
        return gather(value)[0]
    text = np.frombuffer(json.dumps(value).encode(), "uint8")
    length = int(gather(len(text))[0])
    text = gather(text if is_chief() else np.zeros(length, "uint8"))[0]
    return json.loads(text.tobytes().decode())


def broadcast_variables(variables):
    """Assigns the chief's values to the variables of every process."""
    if is_alone():
        return
    for variable in variables:
        variable.assign(broadcast(keras.ops.convert_to_numpy(variable)))


def share_file(path):
    """Copies a file of the chief, if it exists, to every process."""
    if is_alone():
        return
    size = broadcast(path.stat().st_size if is_chief() and path.exists() else None)
    if size is None:
        return
    with path.open("rb" if is_chief() else "wb") as file:
        for start in range(0, size, _PIECE):
            length = min(_PIECE, size - start)
            piece = file.read(length) if is_chief() else bytes(length)
            piece = broadcast(np.frombuffer(piece, "uint8"))
            if not is_chief():
                file.write(piece.tobytes())


def local_function(model):
    """Returns a function of NumPy batches that runs on one device."""
    if keras.backend.backend() != "tensorflow" or num_devices() == 1:
        return model.predict_on_batch

    # `predict_on_batch()` would join the outputs of all devices.
    return lambda batch: keras.tree.map_structure(
        keras.ops.convert_to_numpy, model(batch, training=False)
    )


@functools.cache
def _scratch():
    return tempfile.TemporaryDirectory(prefix="keras_bridle_worker_")


def own_directory(directory):
    """Returns a directory for each process; only the chief's outlives the process."""
    if directory is None or is_chief():
        return directory
    scratch, path = Path(_scratch().name).resolve(), Path(directory).resolve()
    if path.is_relative_to(scratch):
        return str(directory)
    return str(scratch / hashlib.sha256(str(path).encode()).hexdigest()[:16])


def bridle_layout_map(mesh, axis="model"):
    """Shards the large kernels of all networks over devices, on JAX.

    In each block, the kernels of attention's query, key and value and of the MLP's
    hidden layer are sharded by columns, and those that follow by rows, so that
    activations between them stay sharded. The decoder's head is sharded by columns. All
    else is replicated.

    Args:
        mesh: `keras.distribution.DeviceMesh` with an axis for batches and one for
            kernels.
        axis: string, the name of the axis for kernels. Its size must divide
            `hidden_dim` and `mlp_dim` of the networks, and the decoder's
            `num_levels * codebook_size`.

    Returns:
        A `keras.distribution.LayoutMap`, for `keras.distribution.ModelParallel`.

    Example:
    ```python
    import keras
    import keras_bridle as kb

    if keras.backend.backend() == "jax":
        devices = keras.distribution.list_devices()
        mesh = keras.distribution.DeviceMesh(
            (1, len(devices)), ["batch", "model"], devices
        )
        distribution = keras.distribution.ModelParallel(
            layout_map=kb.bridle_layout_map(mesh), batch_dim_name="batch"
        )
    ```

    Reference:
        - [Shoeybi et al., 2019](https://arxiv.org/abs/1909.08053)
    """
    if axis not in mesh.axis_names:
        raise ArgumentError("axis", f"one of the mesh's axes {mesh.axis_names}", axis)
    layout_map = keras.distribution.LayoutMap(mesh)
    layout_map[r"(.*/)?(qkv|mlp_hidden|head)/kernel"] = (None, axis)
    layout_map[r"(.*/)?(qkv|mlp_hidden|head)/bias"] = (axis,)
    layout_map[r"(.*/)?(attention_output|mlp_output)/kernel"] = (axis, None)
    return layout_map


@contextlib.contextmanager
def distribute(model_devices=1, timeout=600.0):
    """Distributes what is built and trained in a `with` block over all devices.

    Each batch is sharded over the devices, which learn from the whole batch. Create all
    networks within the block, and train and evaluate them in all processes, or these
    wait for each other. The backends find devices in different ways:

    - JAX: all devices of this machine (`keras.distribution.DataParallel`). For several
      processes, start each with Keras' `KERAS_DISTRIBUTION_JOB_ADDRESSES`,
      `KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`.
    - TensorFlow: all GPUs of this machine, or its logical CPUs
      (`tf.distribute.MirroredStrategy`), in one process.
    - PyTorch: one process for each device, started with `torchrun`; NCCL for GPUs and
      Gloo for CPUs.

    Args:
        model_devices: int, devices that share one copy of the networks, each with a
            shard of the large kernels; the batch is divided among the copies. More than
            1 needs JAX in one process.
        timeout: float, seconds to wait for the other processes, on PyTorch.

    Raises:
        WorkerLostError: if another process is lost.

    Example:
    ```python
    import keras
    import keras_bridle as kb

    if keras.backend.backend() != "torch":  # which needs torchrun
        with kb.distribute():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    ```
    """
    backend = keras.backend.backend()
    if model_devices > 1 and backend != "jax":
        raise ArgumentError("model_devices", f"1 on {backend}", model_devices)
    if backend == "tensorflow":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        with tf.distribute.MirroredStrategy(devices).scope():
            yield
    elif backend == "torch":
        with _torch_processes(timeout):
            yield
    else:
        with _jax_distribution(model_devices).scope():
            try:
                yield
            except jax.errors.JaxRuntimeError as error:
                if is_alone():
                    raise
                raise WorkerLostError(error) from error


@contextlib.contextmanager
def _torch_processes(timeout):
    if "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "On PyTorch, several devices need a process each: start the program with "
            "`torchrun --nproc-per-node=DEVICES program.py ...`"
        )
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group(
        "nccl" if on_gpus else "gloo", timeout=datetime.timedelta(seconds=timeout)
    )
    try:
        yield
    except torch.distributed.DistError as error:
        raise WorkerLostError(error) from error
    finally:
        torch.distributed.destroy_process_group()


def _jax_distribution(model_devices):
    if "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ:
        keras.distribution.initialize()
    devices = keras.distribution.list_devices()
    if model_devices == 1:
        # Each process reads its own shard of a batch.
        return keras.distribution.DataParallel(
            devices=devices, auto_shard_dataset=False
        )
    if len(devices) % model_devices or not is_alone():
        expected = f"a divisor of {len(devices)} devices, all of one process"
        raise ArgumentError("model_devices", expected, model_devices)
    mesh = keras.distribution.DeviceMesh(
        (len(devices) // model_devices, model_devices), ["batch", "model"], devices
    )
    return keras.distribution.ModelParallel(
        layout_map=bridle_layout_map(mesh), batch_dim_name="batch"
    )
