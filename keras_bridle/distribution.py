"""Training on several devices, in one process or in several."""

import contextlib
import datetime
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

if keras.backend.backend() == "torch":
    import torch
elif keras.backend.backend() == "jax":
    import jax
    from jax.experimental import multihost_utils
else:
    import tensorflow as tf


# Bytes of a file that are shared at a time.
_PIECE = 2**26


class Shard(NamedTuple):
    """The part of every batch that a process reads.

    Attributes:
        part: int, which part, from 0.
        parts: int, how many there are.
    """

    part: int
    parts: int


def process_shard():
    """Tells which of how many processes this one is.

    Returns:
        A `Shard`; `Shard(0, 1)` for a run of one process, on any number of devices.

    Example:
    ```python
    from keras_bridle.distribution import process_shard

    print(process_shard())  # Shard(part=0, parts=1)
    ```
    """
    if keras.backend.backend() == "torch":
        group = torch.distributed
        if group.is_available() and group.is_initialized():
            return Shard(group.get_rank(), group.get_world_size())
        return Shard(0, 1)
    if keras.backend.backend() == "jax":
        return Shard(jax.process_index(), jax.process_count())
    resolver = getattr(tf.distribute.get_strategy(), "cluster_resolver", None)
    if resolver is None or not resolver.cluster_spec().as_dict():
        return Shard(0, 1)
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    return Shard(index, len(resolver.cluster_spec().as_dict()["worker"]))


def array_shard():
    """Tells which part of its batches an array in memory has to give.

    Returns:
        A `Shard`. TensorFlow divides such batches itself; where several processes have
        several devices each, in another order than that in which masks are drawn.

    Example:
    ```python
    from keras_bridle.distribution import array_shard

    print(array_shard())
    ```
    """
    return Shard(0, 1) if keras.backend.backend() == "tensorflow" else process_shard()


def is_chief():
    """Tells whether this process is the one that writes.

    Returns:
        bool.

    Example:
    ```python
    from keras_bridle.distribution import is_chief

    print(is_chief())  # True
    ```
    """
    return process_shard().part == 0


def is_alone():
    """Tells whether there are no other processes.

    Returns:
        bool.

    Example:
    ```python
    from keras_bridle.distribution import is_alone

    print(is_alone())  # True
    ```
    """
    return process_shard().parts == 1


def num_devices():
    """Counts the devices among which a batch is divided, those of all processes.

    Returns:
        int.

    Example:
    ```python
    from keras_bridle.distribution import num_devices

    print(num_devices())
    ```
    """
    if keras.backend.backend() == "tensorflow":
        return tf.distribute.get_strategy().num_replicas_in_sync
    if keras.backend.backend() == "jax":
        distribution = keras.distribution.distribution()
        return 1 if distribution is None else distribution.num_model_replicas
    return process_shard().parts


def broadcast(value):
    """Gives every process the chief's value.

    Args:
        value: a NumPy array, of the same shape and dtype everywhere; or anything that
            JSON can hold.

    Returns:
        The chief's value.

    Example:
    ```python
    from keras_bridle.distribution import broadcast

    print(broadcast({"epochs": 3}))
    ```
    """
    if is_alone():
        return value
    if isinstance(value, np.ndarray):
        return _summed_bits(value if is_chief() else np.zeros_like(value))
    text = np.frombuffer(json.dumps(value).encode(), "uint8")
    length = int(broadcast(np.array(len(text))))
    text = broadcast(text if is_chief() else np.zeros(length, "uint8"))
    return json.loads(text.tobytes().decode())


def total(numbers):
    """Adds up what all processes say, which none of them knows before all have said it.

    Args:
        numbers: int32 NumPy array, of the same shape everywhere.

    Returns:
        int32 NumPy array, the same everywhere.

    Example:
    ```python
    import numpy as np
    from keras_bridle.distribution import total

    print(total(np.array([2, 3], "int32")))  # [2 3]
    ```
    """
    if is_alone():
        return numbers
    return np.asarray(_SUMS[keras.backend.backend()](numbers))


def broadcast_variables(variables):
    """Gives the variables of every process the chief's values.

    Args:
        variables: list of `keras.Variable`, the same everywhere.

    Example:
    ```python
    import keras
    from keras_bridle.distribution import broadcast_variables

    broadcast_variables([keras.Variable([1.0, 2.0])])
    ```
    """
    if is_alone():
        return
    for variable in variables:
        value = keras.ops.convert_to_numpy(variable)
        # Neither NumPy's sums nor all backends know bfloat16; float32 holds it.
        is_plain = value.dtype.kind in "biuf"
        variable.assign(broadcast(value if is_plain else value.astype("float32")))


def share_file(path):
    """Gives every process a file that the chief has.

    Args:
        path: `pathlib.Path`, for each process in a directory of its own. Nothing is
            done if the chief has no such file.

    Example:
    ```python
    from pathlib import Path
    from keras_bridle.distribution import share_file

    share_file(Path("checkpoint.npz"))
    ```
    """
    if is_alone():
        return
    size = path.stat().st_size if is_chief() and path.exists() else -1
    size = int(broadcast(np.array(size)))
    if size < 0:
        return
    with path.open("rb" if is_chief() else "wb") as file:
        for start in range(0, size, _PIECE):
            piece = bytes(min(_PIECE, size - start))
            if is_chief():
                piece = file.read(len(piece))
            # Numbers of 4 bytes travel as they are.
            padded = np.frombuffer(piece + bytes(-len(piece) % 4), "int32")
            shared = broadcast(padded).tobytes()[: len(piece)]
            if not is_chief():
                file.write(shared)


def all_examples(batch):
    """Joins the parts of a batch that the processes have read.

    Args:
        batch: NumPy array of shape `(examples, ...)`, of the same shape everywhere.

    Returns:
        NumPy array with the examples of all processes, in their order.

    Example:
    ```python
    import numpy as np
    from keras_bridle.distribution import all_examples

    print(all_examples(np.ones((4, 2))).shape)  # (4, 2)
    ```
    """
    shard = process_shard()
    if shard.parts == 1:
        return batch
    parts = np.zeros((shard.parts, *batch.shape), batch.dtype)
    parts[shard.part] = batch
    return _summed_bits(parts).reshape(-1, *batch.shape[1:])


def distributed_input(batches):
    """Tells TensorFlow that every process reads its own part of a `tf.data` pipeline.

    Args:
        batches: whatever `fit()` takes.

    Returns:
        What `fit()` is to be given.

    Example:
    ```python
    import numpy as np
    from keras_bridle.distribution import distributed_input

    batches = distributed_input(np.ones((8, 4)))
    ```
    """
    if keras.backend.backend() != "tensorflow" or is_alone():
        return batches
    if not isinstance(batches, tf.data.Dataset):
        return batches
    replicas = num_devices() // process_shard().parts
    if replicas > 1:
        # The devices of this process take turns.
        size = tf.nest.flatten(batches.element_spec)[0].shape[0]
        batches = batches.rebatch(size // replicas)
    strategy = tf.distribute.get_strategy()
    return strategy.distribute_datasets_from_function(lambda context: batches)


def local_function(model):
    """Makes the function that computes a model's outputs in each process by itself.

    Args:
        model: `keras.Model`.

    Returns:
        A function of a NumPy batch, the same in all processes, that returns what
        `predict_on_batch()` does on one device.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.distribution import local_function

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    print(local_function(model)(np.ones((3, 4))).shape)  # (3, 2)
    ```
    """
    if keras.backend.backend() != "tensorflow" or num_devices() == 1:
        return model.predict_on_batch
    # There Keras would join what all devices return, but for booleans.
    strategy = tf.distribute.get_strategy()
    compute = tf.function(lambda batch: model.predict_step((batch,)))

    def first_result(values):
        return strategy.experimental_local_results(values)[0].numpy()

    def outputs(batch):
        found = strategy.run(compute, args=(tf.constant(batch),))
        return keras.tree.map_structure(first_result, found)

    return outputs


def _summed_bits(array):
    """Adds up arrays that are zero in all processes but one, element by element.

    The bits are added, as integers that every backend knows, whatever they stand for.
    """
    # Contiguous arrays have an axis at least.
    numbers = np.ascontiguousarray(array).reshape(-1)
    is_whole = array.dtype.itemsize % 4 == 0
    numbers = (
        numbers.view("int32") if is_whole else numbers.view("uint8").astype("int32")
    )
    numbers = np.asarray(_SUMS[keras.backend.backend()](numbers))
    numbers = numbers if is_whole else numbers.astype("uint8")
    return numbers.view(array.dtype).reshape(array.shape)


def _torch_sum(array):
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(array, device=device)
    torch.distributed.all_reduce(tensor)
    return tensor.cpu().numpy()


def _jax_sum(array):
    return multihost_utils.process_allgather(array).sum(axis=0, dtype="int32")


def _tensorflow_sum(array):
    strategy = tf.distribute.get_strategy()
    replicas = num_devices() // process_shard().parts

    def of_replica(context):
        is_first = context.replica_id_in_sync_group % replicas == 0
        return tf.constant(array if is_first else np.zeros_like(array))

    values = strategy.experimental_distribute_values_from_function(of_replica)
    return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy()


_SUMS = {"torch": _torch_sum, "jax": _jax_sum, "tensorflow": _tensorflow_sum}


def bridle_layout_map(mesh, axis="model"):
    """Divides the large kernels of all networks among devices; for JAX.

    In each block the kernels that widen (attention's query, key and value, the MLP's
    hidden layer) are divided by columns and those that narrow (attention's output, the
    MLP's) by rows, so that what lies between them stays divided; the decoder's head is
    divided by columns. Everything else, codebooks included, is on every device. The
    optimizer's averages are divided as their weights are.

    Args:
        mesh: `keras.distribution.DeviceMesh` with an axis for batches and one for
            kernels.
        axis: string, the name of the axis for kernels. Its size must divide
            `hidden_dim` and `mlp_dim` of the networks, and the decoder's
            `num_levels * codebook_size`.

    Returns:
        A `keras.distribution.LayoutMap`, for `keras.distribution.ModelParallel`.

    Raises:
        ValueError: if the mesh has no such axis.

    Example:
    ```python
    import keras
    from keras_bridle.distribution import bridle_layout_map

    if keras.backend.backend() == "jax":
        devices = keras.distribution.list_devices()
        mesh = keras.distribution.DeviceMesh(
            (1, len(devices)), ["batch", "model"], devices
        )
        distribution = keras.distribution.ModelParallel(
            layout_map=bridle_layout_map(mesh), batch_dim_name="batch"
        )
        with distribution.scope():
            pass  # make networks and train them
    ```

    Reference:
        - [Shoeybi et al., 2019](https://arxiv.org/abs/1909.08053)
    """
    if axis not in mesh.axis_names:
        raise ValueError(
            "`mesh` must have an axis for kernels. "
            f"Received: axis={axis!r}, a mesh of the axes {list(mesh.axis_names)}"
        )
    layout_map = keras.distribution.LayoutMap(mesh)
    layout_map[r"(.*/)?(qkv|mlp_hidden|head)/kernel"] = (None, axis)
    layout_map[r"(.*/)?(qkv|mlp_hidden|head)/bias"] = (axis,)
    layout_map[r"(.*/)?(attention_output|mlp_output)/kernel"] = (axis, None)
    return layout_map


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
