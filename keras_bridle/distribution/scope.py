"""Spreads a program over the devices of a machine, or of several."""

import contextlib
import datetime
import hashlib
import os
import tempfile
from pathlib import Path

import keras

from keras_bridle.distribution.layout_map import bridle_layout_map
from keras_bridle.distribution.processes import is_chief, process_shard

if keras.backend.backend() == "torch":
    import torch
elif keras.backend.backend() == "jax":
    import jax
else:
    import tensorflow as tf


class WorkerLostError(RuntimeError):
    """Another process of the run has died or does not answer.

    Example:
    ```python
    from keras_bridle.distribution import WorkerLostError, distribute

    def train():
        try:
            with distribute():
                ...  # networks are made and trained
        except WorkerLostError as error:
            raise SystemExit(str(error))
    ```
    """


@contextlib.contextmanager
def distribute(model_devices=1, timeout=600.0):
    """Spreads what is built and trained in a `with` block over all devices.

    Each batch is divided among the devices, and what they learn is that of the whole
    batch: gradients, codebooks, restarts of dead codes, losses and metrics. Make all
    networks within the block. All processes run the same program: whatever trains or
    evaluates networks must be done in all of them, or they wait for each other. How the
    devices are found is the backend's way:

    - JAX: all devices of this machine (`keras.distribution.DataParallel`). For several
      processes, start each with Keras' `KERAS_DISTRIBUTION_JOB_ADDRESSES`,
      `KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`.
    - TensorFlow: all GPUs of this machine, or its logical CPUs
      (`tf.distribute.MirroredStrategy`). For several processes, start each with
      `TF_CONFIG` (`MultiWorkerMirroredStrategy`).
    - PyTorch: one process for each device, started with `torchrun`; NCCL for GPUs and
      Gloo for CPUs.

    Args:
        model_devices: int, devices that share one copy of the networks, each with a
            part of the large kernels; the batch is divided among the copies. More than
            1 is for JAX in one process.
        timeout: float, seconds to wait for the other processes, on PyTorch.

    Raises:
        ValueError: if the devices cannot be used so.
        WorkerLostError: if another process is lost.

    Example:
    ```python
    import keras
    from keras_bridle.distribution import distribute

    if keras.backend.backend() != "torch":  # which needs torchrun
        with distribute():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    ```
    """
    if model_devices > 1 and keras.backend.backend() != "jax":
        raise ValueError(
            "Networks can be divided among devices on JAX only. Received: "
            f"model_devices={model_devices}, backend={keras.backend.backend()!r}"
        )
    scope = {"torch": _torch_scope, "jax": _jax_scope, "tensorflow": _tensorflow_scope}
    with scope[keras.backend.backend()](model_devices, timeout):
        try:
            yield
        except Exception as error:
            if _is_loss(error):
                raise WorkerLostError(
                    "Another process of this run has died or does not answer: "
                    f"{_first_line(error)}. Start all of them again with `resume`: the "
                    "run goes on from its last checkpoint"
                ) from error
            raise


def own_directory(directory):
    """Gives every process a directory of its own; only the chief's is kept.

    Args:
        directory: string or path of the run's directory, or `None`.

    Returns:
        It, for the chief; for the others a temporary one in its place, the same each
        time, which goes with the process.

    Example:
    ```python
    from keras_bridle.distribution import own_directory

    print(own_directory("runs/birds"))
    ```
    """
    if directory is None or is_chief():
        return directory
    if not _SCRATCH:
        _SCRATCH.append(tempfile.TemporaryDirectory(prefix="keras_bridle_worker_"))
    scratch, path = Path(_SCRATCH[0].name).resolve(), Path(directory).resolve()
    if path.is_relative_to(scratch):
        return str(directory)
    return str(scratch / hashlib.sha256(str(path).encode()).hexdigest()[:16])


_SCRATCH: list[tempfile.TemporaryDirectory] = []


@contextlib.contextmanager
def _torch_scope(model_devices, timeout):
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
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _jax_scope(model_devices, timeout):
    if "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ:
        keras.distribution.initialize()
    devices = keras.distribution.list_devices()
    if len(devices) % model_devices:
        raise ValueError(
            "`model_devices` must divide the number of devices, "
            f"{len(devices)}. Received: model_devices={model_devices}"
        )
    if model_devices == 1:
        # Every process reads its own part of each batch.
        distribution = keras.distribution.DataParallel(
            devices=devices, auto_shard_dataset=False
        )
    elif jax.process_count() > 1:
        raise ValueError(
            "Networks can be divided among the devices of one process only. Received: "
            f"model_devices={model_devices} and {jax.process_count()} processes"
        )
    else:
        mesh = keras.distribution.DeviceMesh(
            (len(devices) // model_devices, model_devices), ["batch", "model"], devices
        )
        distribution = keras.distribution.ModelParallel(
            layout_map=bridle_layout_map(mesh), batch_dim_name="batch"
        )
    with distribution.scope():
        yield


@contextlib.contextmanager
def _tensorflow_scope(model_devices, timeout):
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope():
        yield


def _is_loss(error):
    """Whether an error tells that another process is gone."""
    if process_shard().parts == 1:
        return False
    text = f"{type(error).__name__}: {error}".lower()
    return any(sign in text for sign in _SIGNS)


def _first_line(error):
    return str(error).strip().partition("\n")[0].rstrip(".")


# How Gloo, NCCL, JAX and TensorFlow put it.
_SIGNS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "timed out waiting",
    "distbackenderror",
    "unavailable",
    "deadline_exceeded",
    "deadlineexceeded",
    "collective ops is aborted",
    "task heartbeat",
    "gloo",
)
