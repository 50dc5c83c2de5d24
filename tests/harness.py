"""What the tests of every layer and model share: gradients, and one run of checks.

A `Case` says how to make a layer and how to call it. The `check_...` functions run it
through what every layer and model must stand: gradients, configuration, files, half
precision and compilation.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

# By how much outputs may differ from float32's, relative to the largest of them.
HALF_PRECISION = {"mixed_float16": 0.02, "mixed_bfloat16": 0.1}


def to_numpy(tree):
    """Brings all tensors of a nested structure to NumPy."""
    return keras.tree.map_structure(
        lambda x: None if x is None else ops.convert_to_numpy(x), tree
    )


def relative_error(actual, expected):
    """Norm of the difference over the norm of what is expected."""
    actual, expected = np.asarray(actual, "float64"), np.asarray(expected, "float64")
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    difference = np.linalg.norm((actual - expected).ravel())
    return difference / max(np.linalg.norm(expected.ravel()), 1e-30)


def gradients(function, variables, state=()):
    """Runs a function and differentiates it.

    Args:
        function: function without arguments that returns a float scalar.
        variables: list of `keras.Variable`.
        state: list of other variables that the function may change, which then have
            their new values afterwards.

    Returns:
        Tuple `(value, gradients)` of NumPy arrays. The gradient of a variable that the
        value does not depend on is `None`, on JAX zeros.
    """
    differentiate = {
        "jax": _jax_gradients,
        "tensorflow": _tensorflow_gradients,
        "torch": _torch_gradients,
    }[keras.backend.backend()]
    value, found = differentiate(function, list(variables), list(state))
    return ops.convert_to_numpy(value), to_numpy(list(found))


def run(function, *parts):
    """Runs a function of layers, in one piece on JAX, where that is much faster.

    Args:
        function: function without arguments that returns a nested structure of tensors
            and changes nothing.
        *parts: the layers and models whose weights the function reads.

    Returns:
        The same structure of NumPy arrays.
    """
    if keras.backend.backend() != "jax":
        return to_numpy(function())
    import jax

    variables = [variable for part in parts for variable in part.variables]

    def stateless(values):
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function()

    return to_numpy(jax.jit(stateless)([variable.value for variable in variables]))


def _jax_gradients(function, variables, state):
    import jax

    def stateless(values, state_values):
        mapping = [*zip(variables, values, strict=True)]
        mapping += zip(state, state_values, strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            value = function()
        return value, [scope.get_current_value(variable) for variable in state]

    values = [variable.value for variable in variables]
    state_values = [variable.value for variable in state]
    step = jax.jit(jax.value_and_grad(stateless, has_aux=True))
    (value, new_state), found = step(values, state_values)
    for variable, new in zip(state, new_state, strict=True):
        variable.assign(new)
    return value, found


def _tensorflow_gradients(function, variables, state):
    import tensorflow as tf

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch([variable.value for variable in variables])
            value = function()
        return value, tape.gradient(value, [variable.value for variable in variables])

    return step()


def _torch_gradients(function, variables, state):
    import torch

    values = [variable.value for variable in variables]
    for value in values:
        value.requires_grad_(True)
    value = function()
    if not values:
        return value, []
    return value, torch.autograd.grad(value, values, allow_unused=True)


def perturb(weights, seed=0, scale=0.1):
    """Adds noise to float weights, the same on every backend.

    Zeros of a fresh layer would otherwise hide what is forgotten.
    """
    rng = np.random.default_rng(seed)
    for weight in weights:
        noise = rng.normal(size=weight.shape, scale=scale)
        if "float" in keras.backend.standardize_dtype(weight.dtype):
            weight.assign(ops.convert_to_numpy(weight) + noise.astype("float32"))


@dataclasses.dataclass
class Case:
    """How to make a layer or model and to call it.

    Attributes:
        make: function that makes a new one; its keyword arguments go on to the
            constructor (`dtype`).
        inputs: nested structure of NumPy arrays with a batch axis.
        call: function of the layer and the inputs that returns a nested structure of
            tensors.
        same_in_half: whether half precision gives near the same outputs. It may not
            where a choice decides, such as that of a code.
        output_dtype: dtype of float outputs; `None` means the compute dtype.
        trains: whether there is anything to train.
        idle: names of trainable weights that have no gradient.
    """

    make: Callable
    inputs: Any
    call: Callable = lambda layer, inputs: layer(inputs)
    same_in_half: bool = True
    output_dtype: str | None = None
    trains: bool = True
    idle: tuple = ()

    def built(self, **kwargs):
        """A new layer with weights of its own, the same ones each time."""
        layer = self.make(**kwargs)
        self.outputs(layer)
        perturb(layer.weights)
        return layer

    def outputs(self, layer):
        """The outputs, a flat list of NumPy arrays."""
        return keras.tree.flatten(to_numpy(self.call(layer, self._tensors())))

    def loss(self, layer):
        """A scalar that all float outputs take part in, each in its own way."""
        total = 0.0
        for index, output in enumerate(
            keras.tree.flatten(self.call(layer, self._tensors()))
        ):
            if "float" in keras.backend.standardize_dtype(output.dtype):
                output = ops.cast(output, "float32")
                weights = np.random.default_rng(index).normal(size=output.shape)
                total = total + ops.sum(output * weights.astype("float32"))
        return total

    def _tensors(self):
        return keras.tree.map_structure(ops.convert_to_tensor, self.inputs)


class Holder(keras.Model):
    """A model that is nothing but one layer, so that any layer can be saved or fit."""

    def __init__(self, layer, case=None, **kwargs):
        # Inputs arrive as they are, as they do when the layer is called by itself.
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.case = case
        self.built = True

    def call(self, inputs):
        batch = ops.shape(keras.tree.flatten(inputs)[0])[0]
        outputs = keras.tree.flatten(self.case.call(self.layer, inputs))
        # What has no batch axis, such as a loss, `predict()` cannot put together.
        return [x for x in outputs if len(x.shape) and x.shape[0] == batch]

    def compute_loss(self, x=None, y=None, y_pred=None, **kwargs):
        floats = [x for x in y_pred if "float" in str(x.dtype)]
        return sum(ops.mean(ops.square(ops.cast(x, "float32"))) for x in floats)

    def get_config(self):
        return {"layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["layer"]))


def check_call(case):
    """Outputs are finite, the same again, and of the shape that was announced."""
    layer = case.built()
    outputs = case.outputs(layer)
    assert all(np.isfinite(output).all() for output in outputs)
    assert all(x.dtype in (np.int32, np.float32, np.bool_) for x in outputs)
    if case.trains:
        for first, second in zip(outputs, case.outputs(layer), strict=True):
            np.testing.assert_array_equal(first, second)


def check_gradients(case):
    """Every trainable weight gets a finite gradient that is not zero."""
    layer = case.built()
    weights = layer.trainable_variables
    assert bool(weights) == case.trains
    if not case.trains:
        return
    _, found = gradients(lambda: case.loss(layer), weights)
    for weight, gradient in zip(weights, found, strict=True):
        if weight.path.endswith(case.idle) and case.idle:
            continue
        assert gradient is not None, weight.path
        assert np.isfinite(gradient).all(), weight.path
        assert np.abs(gradient).max() > 0.0, weight.path


def check_config(case):
    """A layer made from another one's configuration is like it."""
    layer = case.built()
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    again = keras.saving.serialize_keras_object(copy)
    assert again["config"] == config["config"]
    if not copy.built:
        case.outputs(copy)
    shapes = [(weight.name, tuple(weight.shape)) for weight in layer.weights]
    assert [(w.name, tuple(w.shape)) for w in copy.weights] == shapes
    copy.set_weights(layer.get_weights())
    _assert_same(case.outputs(copy), case.outputs(layer))


def check_saving(case, folder):
    """A saved layer gives the same outputs, from either kind of file."""
    layer = case.built()
    expected = case.outputs(layer)
    Holder(layer).save(folder / "model.keras")
    loaded = keras.saving.load_model(
        folder / "model.keras", custom_objects={"Holder": Holder}
    )
    # Random layers go on from the saved state, so one call later than the first.
    if not case.trains and layer.weights:
        expected = case.outputs(layer)
    _assert_same(case.outputs(loaded.layer), expected)
    if case.trains:
        Holder(layer).save_weights(folder / "model.weights.h5")
        other = case.make()
        case.outputs(other)
        Holder(other).load_weights(folder / "model.weights.h5")
        _assert_same(case.outputs(other), expected)


def check_half_precision(case, policy):
    """Outputs have the policy's type, are finite and near those of float32."""
    reference = case.built()
    layer = case.built(dtype=policy)
    expected, outputs = case.outputs(reference), case.outputs(layer)
    announced = case.output_dtype or layer.compute_dtype
    tensors = keras.tree.flatten(case.call(layer, case._tensors()))
    for tensor, output, right in zip(tensors, outputs, expected, strict=True):
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if "float" not in dtype:
            continue
        assert dtype == announced, (dtype, announced)
        output = output.astype("float32")
        assert np.isfinite(output).all()
        if case.same_in_half:
            error = np.abs(output - right).max() / np.abs(right).max()
            assert error <= HALF_PRECISION[policy], error
    if case.trains and case.same_in_half:
        assert all(
            keras.backend.standardize_dtype(weight.dtype) != layer.compute_dtype
            for weight in layer.weights
        )


def check_compiled(case):
    """`predict()` gives the outputs of a plain call, compiled by XLA or not."""
    layer = case.built()
    expected = Holder(layer, case)(case._tensors())
    batch = len(keras.tree.flatten(case.inputs)[0])
    compilers = [False] if keras.backend.backend() == "torch" else [False, True]
    for jit_compile in compilers:
        model = Holder(layer, case)
        model.compile(jit_compile=jit_compile)
        outputs = model.predict(case.inputs, batch_size=batch, verbose=0)
        if case.trains or not layer.weights:
            _assert_same(outputs, to_numpy(expected), 2e-5)
        else:
            shapes = [tuple(output.shape) for output in outputs]
            assert shapes == [tuple(output.shape) for output in expected]


def check_training(case):
    """Three compiled steps of `fit()` move the weights and lower the loss."""
    layer = case.built()
    before = [weight.copy() for weight in layer.get_weights()]
    model = Holder(layer, case)
    model.compile(keras.optimizers.Adam(1e-3), jit_compile="auto")
    batch = len(keras.tree.flatten(case.inputs)[0])
    history = model.fit(case.inputs, batch_size=batch, epochs=3, verbose=0)
    losses = history.history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    moved = [
        np.abs(old - ops.convert_to_numpy(new)).max() > 0
        for old, new in zip(before, layer.weights, strict=True)
    ]
    assert any(moved)


def _assert_same(actual, expected, tolerance=1e-6):
    for first, second in zip(actual, expected, strict=True):
        first, second = np.asarray(first), np.asarray(second)
        if first.dtype.kind in "ib":
            np.testing.assert_array_equal(first, second)
        else:
            np.testing.assert_allclose(first, second, tolerance, tolerance)
