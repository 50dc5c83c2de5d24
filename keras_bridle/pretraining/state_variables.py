"""The variables that make up the state of a training run."""

import keras

# What layers draw from that were given no seed; Keras has no public name for it.
from keras.src.random.seed_generator import global_seed_generator


def state_variables(model):
    """Lists all variables that training changes, each once, without metrics.

    They come in the same order on every backend, however many layers of a kind were
    made before.

    Args:
        model: a compiled and built `keras.Model`.

    Returns:
        A list of `keras.Variable`: weights, states of layers and of seeds, optimizer.
    """
    metrics = {id(variable) for variable in model.metrics_variables}
    found: dict[int, keras.Variable] = {}
    variables = [*model.variables, *model.optimizer.variables]
    for variable in [*variables, global_seed_generator().state]:
        if id(variable) not in metrics:
            found.setdefault(id(variable), variable)
    return list(found.values())


def metric_variables(model):
    """Lists the variables of a model's metrics, each once."""
    found = {id(variable): variable for variable in model.metrics_variables}
    return list(found.values())


def as_plain_array(variable):
    """Gives a variable's value as an array that NumPy's files can hold."""
    array = keras.ops.convert_to_numpy(variable)
    # They know no bfloat16; float32 holds it exactly.
    return array if array.dtype.kind in "biuf" else array.astype("float32")


def first_difference(paths, shapes, variables):
    """Names the first variable that is not as it was saved, if there is one."""
    for path, shape, variable in zip(paths, shapes, variables, strict=False):
        if shape != tuple(variable.shape):
            return (
                f"; the first that differs is {path} of shape {shape}, expected "
                f"{variable.path} of shape {tuple(variable.shape)}"
            )
    return ""
