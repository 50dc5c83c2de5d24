"""What the processes of a run tell each other between the steps."""

import json
import os
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
