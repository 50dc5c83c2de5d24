"""What replicas of a model that share a batch must agree on within a step."""

import math

import keras
from keras import ops

if keras.backend.backend() == "torch":
    import torch
elif keras.backend.backend() == "tensorflow":
    import tensorflow as tf


def num_replicas():
    """Counts the replicas among which the current step divides its batch.

    Returns:
        int; 1 on JAX, and wherever there is nothing to sum.

    Example:
    ```python
    from keras_bridle.replicas import num_replicas

    print(num_replicas())  # 1
    ```
    """
    if keras.backend.backend() == "torch":
        return torch.distributed.get_world_size() if _has_process_group() else 1
    if keras.backend.backend() == "tensorflow":
        context = tf.distribute.get_replica_context()
        return 1 if context is None else context.num_replicas_in_sync
    return 1


def sum_over_replicas(tensors):
    """Adds up what each replica has computed of its rows; no gradient goes through.

    Args:
        tensors: nested structure of tensors of numbers, of the same shapes everywhere.

    Returns:
        The same structure; as it came where there is but one replica.

    Example:
    ```python
    import keras
    from keras_bridle.replicas import sum_over_replicas

    print(sum_over_replicas({"count": keras.ops.ones((2,))}))
    ```
    """
    if num_replicas() == 1:
        return tensors
    flat = [
        ops.stop_gradient(ops.convert_to_tensor(tensor))
        for tensor in keras.tree.flatten(tensors)
    ]
    summed = [None] * len(flat)
    # One exchange for each dtype: its time is mostly that of getting started.
    for dtype in dict.fromkeys(tensor.dtype for tensor in flat):
        places = [i for i, tensor in enumerate(flat) if tensor.dtype == dtype]
        joined = ops.concatenate([ops.reshape(flat[i], (-1,)) for i in places])
        joined = _sum_vector(joined)
        start = 0
        for i in places:
            shape = ops.shape(flat[i])
            size = math.prod(shape)
            summed[i] = ops.reshape(joined[start : start + size], shape)
            start += size
    return keras.tree.pack_sequence_as(tensors, summed)


def draw_rows(draw, shape, *args, **kwargs):
    """Draws random numbers for the rows of a batch: the same on any number of devices.

    Numbers are drawn for the whole batch, from the seed that all replicas share, and
    each replica takes those of its rows.

    Args:
        draw: function of a shape, such as `keras.random.uniform`.
        shape: tuple, the rows of this replica in front.
        *args: more arguments of `draw`.
        **kwargs: likewise.

    Returns:
        Tensor of that shape.

    Example:
    ```python
    import keras
    from keras_bridle.replicas import draw_rows

    seed = keras.random.SeedGenerator(0)
    print(draw_rows(keras.random.uniform, (4, 2), dtype="float32", seed=seed))
    ```
    """
    replicas = num_replicas()
    if replicas == 1:
        return draw(shape, *args, **kwargs)
    return own_rows(draw((replicas * shape[0], *shape[1:]), *args, **kwargs))


def own_rows(values):
    """Takes this replica's rows of what is known of the whole batch.

    Args:
        values: tensor whose first axis is that of the whole batch's rows.

    Returns:
        Tensor with fewer rows, or as it came where there is but one replica.

    Example:
    ```python
    import keras
    from keras_bridle.replicas import own_rows

    print(own_rows(keras.ops.arange(4)))
    ```
    """
    replicas = num_replicas()
    if replicas == 1:
        return values
    rows = ops.shape(values)[0] // replicas
    parts = ops.reshape(values, (replicas, rows, *values.shape[1:]))
    return parts[_replica_id()]


def all_rows(values):
    """Joins the rows of all replicas, in their order in the batch; no gradient.

    Args:
        values: tensor with this replica's rows.

    Returns:
        Tensor with more rows, or as it came where there is but one replica.

    Example:
    ```python
    import keras
    from keras_bridle.replicas import all_rows

    print(all_rows(keras.ops.arange(4)))
    ```
    """
    replicas = num_replicas()
    if replicas == 1:
        return values
    is_own = ops.arange(replicas, dtype="int32") == _replica_id()
    is_own = ops.reshape(is_own, (replicas,) + (1,) * len(values.shape))
    parts = ops.where(is_own, ops.expand_dims(values, 0), ops.zeros_like(values))
    return ops.reshape(sum_over_replicas(parts), (-1, *values.shape[1:]))


def take_rows(values, rows):
    """Takes rows of the whole batch, each from the replica that has it; no gradient.

    Args:
        values: float tensor with this replica's rows.
        rows: int32 tensor of shape `(count,)`, rows of the whole batch, the same on
            all replicas.

    Returns:
        Tensor of shape `(count, ...)`.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.replicas import take_rows

    print(take_rows(keras.ops.eye(3), np.int32([2, 0])))
    ```
    """
    if num_replicas() == 1:
        return ops.take(values, rows, axis=0)
    count = ops.shape(values)[0]
    place = rows - _replica_id() * count
    is_own = ops.logical_and(place >= 0, place < count)
    taken = ops.take(values, ops.clip(place, 0, count - 1), axis=0)
    is_own = ops.reshape(is_own, (-1,) + (1,) * (len(values.shape) - 1))
    return sum_over_replicas(ops.where(is_own, taken, ops.zeros_like(taken)))


def with_value_of_batch(share):
    """Lets a replica's share of the loss be reported as the loss of the whole batch.

    Losses are computed as shares that add up to the loss of the whole batch, as
    gradients are added up. What is not finite in one share is so on all replicas.

    Args:
        share: float tensor.

    Returns:
        Tensor with the share's gradient. Its value is that of the batch, on TensorFlow
        divided by the number of replicas, by which Keras multiplies what it reports.

    Example:
    ```python
    import keras
    from keras_bridle.replicas import with_value_of_batch

    print(with_value_of_batch(keras.ops.ones(())))
    ```
    """
    if num_replicas() == 1:
        return share
    own = ops.stop_gradient(share)
    return share - own + metric_share(sum_over_replicas(own))


def metric_share(value):
    """Makes of a number that all replicas know what each adds to a metric's state.

    Args:
        value: tensor.

    Returns:
        Tensor: the number's part on TensorFlow, where Keras sums metrics over replicas
        when they are read, and else all of it.

    Example:
    ```python
    import keras
    from keras_bridle.replicas import metric_share

    print(metric_share(keras.ops.ones(())))
    ```
    """
    if keras.backend.backend() != "tensorflow":
        return value
    return value / num_replicas()


def metric_increment(values):
    """Makes of a replica's counts what a metric adds to its state.

    On TensorFlow a metric's state is summed over replicas when it is read; on torch the
    counts are summed here.

    Args:
        values: nested structure of tensors.

    Returns:
        The same structure.

    Example:
    ```python
    import keras
    from keras_bridle.replicas import metric_increment

    print(metric_increment(keras.ops.ones((3,))))
    ```
    """
    if keras.backend.backend() == "torch":
        return sum_over_replicas(values)
    return values


def logs_of_replica(logs):
    """Gives logs the form that Keras wants of a step's replicas.

    TensorFlow joins those of several workers along their first axis.

    Args:
        logs: dict of scalars.

    Returns:
        A dict of scalars, or of tensors of shape `(1,)`.

    Example:
    ```python
    from keras_bridle.replicas import logs_of_replica

    print(logs_of_replica({"loss": 0.5}))
    ```
    """
    if keras.backend.backend() != "tensorflow" or not tf.distribute.has_strategy():
        return logs
    strategy = tf.distribute.get_strategy()
    has_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if not has_workers or tf.distribute.in_cross_replica_context():
        return logs
    return {name: ops.reshape(value, (1,)) for name, value in logs.items()}


def sum_gradients(optimizer):
    """Lets an optimizer begin with summing the gradients of all replicas.

    Keras sums them on TensorFlow only, and only after they were clipped and checked for
    overflow, where each replica would come to another result.

    Args:
        optimizer: compiled `keras.optimizers.Optimizer`, as yet unused. Changed.

    Example:
    ```python
    import keras
    from keras_bridle.replicas import sum_gradients

    sum_gradients(keras.optimizers.Adam())  # nothing to do on one device
    ```
    """
    if keras.backend.backend() == "jax" or hasattr(optimizer, "sums_gradients"):
        return
    if keras.backend.backend() == "tensorflow":
        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        inner._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    elif num_replicas() == 1:
        return
    apply = optimizer.apply

    def apply_sum(grads, trainable_variables=None):
        known = sum_over_replicas([grad for grad in grads if grad is not None])
        known = iter(known)
        grads = [None if grad is None else next(known) for grad in grads]
        return apply(grads, trainable_variables)

    optimizer.apply = apply_sum
    optimizer.sums_gradients = True


def cond(predicate, true_function, false_function):
    """Is `keras.ops.cond`, also where the functions sum over replicas.

    TensorFlow cannot exchange anything within a branch, so that replicas compute both
    there and choose.

    Args:
        predicate: bool tensor, the same on all replicas.
        true_function: function that returns a nested structure of tensors.
        false_function: function that returns the same structure.

    Returns:
        What the chosen function returns.

    Example:
    ```python
    import keras
    from keras_bridle.replicas import cond

    print(cond(keras.ops.ones((), "bool"), lambda: 1.0, lambda: 2.0))
    ```
    """
    if keras.backend.backend() != "tensorflow" or num_replicas() == 1:
        return ops.cond(predicate, true_function, false_function)
    return keras.tree.map_structure(
        lambda x, y: ops.where(predicate, x, y), true_function(), false_function()
    )


def _has_process_group():
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _replica_id():
    if keras.backend.backend() == "torch":
        return torch.distributed.get_rank()
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def _sum_vector(vector):
    if keras.backend.backend() == "tensorflow":
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, vector)
    # Keras finds out shapes with tensors that hold nothing.
    if vector.device.type != "meta":
        vector = vector.clone()
        torch.distributed.all_reduce(vector)
    return vector
