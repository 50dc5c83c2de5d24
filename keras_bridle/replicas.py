"""Communication of the replicas of a model within a step.

Replicas are the devices of TensorFlow's `MirroredStrategy` or the processes of torch.
On JAX, and wherever there is one device, there is one replica and nothing to sum.
"""

import math
from typing import NamedTuple

import keras
from keras import ops

if keras.backend.backend() == "torch":
    import torch
elif keras.backend.backend() == "jax":
    import jax
elif keras.backend.backend() == "tensorflow":
    import tensorflow as tf


class WorkerLostError(RuntimeError):
    """Another process of the run has died or does not answer."""

    def __init__(self, reason):
        super().__init__(
            "Another process of this run has died or does not answer. Start all of "
            f"them again with `resume` to continue from the last checkpoint. {reason}"
        )
        self.reason = reason


class Shard(NamedTuple):
    """The equal part of every batch that a process reads, counted from 0."""

    part: int
    parts: int


def process_shard():
    """Returns the number of this process, and of all, as a `Shard`."""
    if keras.backend.backend() == "torch":
        group = torch.distributed
        if group.is_available() and group.is_initialized():
            return Shard(group.get_rank(), group.get_world_size())
    if keras.backend.backend() == "jax":
        return Shard(jax.process_index(), jax.process_count())
    return Shard(0, 1)


def num_replicas():
    """Counts the replicas among which the current step divides its batch."""
    if keras.backend.backend() == "torch":
        return process_shard().parts
    if keras.backend.backend() == "tensorflow":
        context = tf.distribute.get_replica_context()
        return 1 if context is None else context.num_replicas_in_sync
    return 1


def _replica_id():
    if keras.backend.backend() == "torch":
        return process_shard().part
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def _sum_vector(vector):
    if keras.backend.backend() == "tensorflow":
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, vector)
    # Keras infers shapes with tensors that have no data.
    if vector.device.type == "meta":
        return vector
    vector = vector.clone()
    try:
        torch.distributed.all_reduce(vector)
    except RuntimeError as error:
        raise WorkerLostError(error) from error
    return vector


def sum_over_replicas(tensors):
    """Sums nested tensors over replicas; without gradients."""
    if num_replicas() == 1:
        return tensors
    flat = [
        ops.stop_gradient(ops.convert_to_tensor(tensor))
        for tensor in keras.tree.flatten(tensors)
    ]
    summed = [None] * len(flat)
    # One exchange for each dtype, as each has a high fixed cost.
    for dtype in dict.fromkeys(tensor.dtype for tensor in flat):
        indices = [i for i, tensor in enumerate(flat) if tensor.dtype == dtype]
        joined = ops.concatenate([ops.reshape(flat[i], (-1,)) for i in indices])
        joined = _sum_vector(joined)
        start = 0
        for i in indices:
            shape = ops.shape(flat[i])
            size = math.prod(shape)
            summed[i] = ops.reshape(joined[start : start + size], shape)
            start += size
    return keras.tree.pack_sequence_as(tensors, summed)


def draw_rows(draw, shape, *args, **kwargs):
    """Calls `draw(shape, ...)` for the whole batch, and returns this replica's rows.

    As replicas share a seed, numbers are the same on any number of devices.
    """
    replicas = num_replicas()
    values = draw((replicas * shape[0], *shape[1:]), *args, **kwargs)
    if replicas == 1:
        return values
    return ops.reshape(values, (replicas, *shape))[_replica_id()]


def all_rows(values):
    """Gathers the rows of all replicas in batch order; without gradients."""
    replicas = num_replicas()
    if replicas == 1:
        return values
    is_own = ops.arange(replicas, dtype="int32") == _replica_id()
    is_own = ops.reshape(is_own, (replicas,) + (1,) * len(values.shape))
    rows = ops.where(is_own, ops.expand_dims(values, 0), ops.zeros_like(values))
    return ops.reshape(sum_over_replicas(rows), (-1, *values.shape[1:]))


def take_rows(values, rows):
    """Takes rows of the whole batch from any replica; without gradients."""
    if num_replicas() == 1:
        return ops.take(values, rows, axis=0)
    count = ops.shape(values)[0]
    index = rows - _replica_id() * count
    is_own = ops.logical_and(index >= 0, index < count)
    taken = ops.take(values, ops.clip(index, 0, count - 1), axis=0)
    is_own = ops.reshape(is_own, (-1,) + (1,) * (len(values.shape) - 1))
    return sum_over_replicas(ops.where(is_own, taken, ops.zeros_like(taken)))


def with_value_of_batch(share):
    """Returns a share of the loss with the value of the whole batch's loss.

    Gradients are those of the share, as they are summed over replicas. On TensorFlow
    Keras multiplies the value that it reports by the number of replicas.
    """
    if num_replicas() == 1:
        return share
    own = ops.stop_gradient(share)
    value = sum_over_replicas(own)
    if keras.backend.backend() == "tensorflow":
        value = value / num_replicas()
    return share - own + value


def metrics_are_summed():
    """Returns whether Keras sums metrics' states over replicas.

    It does on TensorFlow, and from version 3.16 on in torch's processes.
    """
    version = tuple(map(int, keras.__version__.split(".")[:2]))
    backend = keras.backend.backend()
    return backend == "tensorflow" or (backend == "torch" and version >= (3, 16))


def metric_share(value):
    """Returns what each replica adds to a metric of a number that all know."""
    return value / num_replicas() if metrics_are_summed() else value


def metric_increment(values):
    """Returns what each replica adds to a metric of its own counts."""
    return values if metrics_are_summed() else sum_over_replicas(values)


def cond(predicate, true_function, false_function):
    """Calls `keras.ops.cond`; the functions may sum over replicas.

    TensorFlow cannot exchange anything within a branch: there replicas compute both.
    """
    if keras.backend.backend() != "tensorflow" or num_replicas() == 1:
        return ops.cond(predicate, true_function, false_function)
    return keras.tree.map_structure(
        lambda x, y: ops.where(predicate, x, y), true_function(), false_function()
    )


def sum_gradients(variables):
    """Makes torch sum the variables' gradients over replicas.

    Keras does so on TensorFlow alone (see `SummedGradients`); JAX does it itself.
    """
    if keras.backend.backend() != "torch" or num_replicas() == 1:
        return
    for parameter in (variable.value for variable in variables):
        # An encoder is trained in several phases.
        if not hasattr(parameter, "sums_over_replicas"):
            parameter.sums_over_replicas = True
            parameter.register_post_accumulate_grad_hook(_sum_gradient)


def _sum_gradient(parameter):
    parameter.grad = sum_over_replicas(parameter.grad)


class SumsItself:
    """Mixin of models that Keras 3.16 must not wrap in torch's DDP.

    It would average gradients that `sum_gradients()` sums, and refuse frozen models.
    """

    @property
    def ddp_model(self):
        """The wrapper that Keras calls instead of the model: none."""
        return False

    @ddp_model.setter
    def ddp_model(self, value):
        pass


class SummedGradients:
    """Mixin of optimizers for TensorFlow: sums gradients before they are clipped.

    Keras sums them later, so each replica would clip, and check for overflows, only its
    own. An optimizer wrapped by another one leaves the sum to it.
    """

    is_within = False

    def apply(self, grads, trainable_variables=None):
        if not self.is_within:
            known = sum_over_replicas([grad for grad in grads if grad is not None])
            known = iter(known)
            grads = [None if grad is None else next(known) for grad in grads]
        super().apply(grads, trainable_variables)  # type: ignore[misc]

    def update_step(self, gradient, variable, learning_rate):
        # Keras has summed equal gradients of all replicas.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        gradient = gradient / replicas
        super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]


def summing(optimizer_class):
    """Adds `SummedGradients` to an optimizer's class if the backend needs it."""
    if keras.backend.backend() != "tensorflow":
        return optimizer_class
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return optimizer_class
    name = f"Summed{optimizer_class.__name__}"
    return type(name, (SummedGradients, optimizer_class), {})
