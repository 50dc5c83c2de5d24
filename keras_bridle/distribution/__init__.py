"""Training on several devices, in one process or in several."""

from keras_bridle.distribution.layout_map import bridle_layout_map
from keras_bridle.distribution.processes import (
    Shard,
    all_examples,
    array_shard,
    broadcast,
    broadcast_variables,
    distributed_input,
    is_alone,
    is_chief,
    local_function,
    num_devices,
    process_shard,
    share_file,
    total,
)
from keras_bridle.distribution.scope import (
    WorkerLostError,
    distribute,
    own_directory,
)

__all__ = [
    "Shard",
    "WorkerLostError",
    "all_examples",
    "array_shard",
    "bridle_layout_map",
    "broadcast",
    "broadcast_variables",
    "distribute",
    "distributed_input",
    "is_alone",
    "is_chief",
    "local_function",
    "num_devices",
    "own_directory",
    "process_shard",
    "share_file",
    "total",
]
