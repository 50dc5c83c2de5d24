"""What tests share: runs and gradients on any backend, and checks of every layer.

A `Case` says how to make a layer and how to call it. The `check_...` functions put it
to the tests that every layer and model must pass: gradients, files, half precision,
compilation and training.
"""

import dataclasses
import functools
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
    """Differentiates a function without arguments by variables.

    It gives a float scalar, or a tuple of one and further outputs, and may change the
    variables of `state`. Gives its result and the gradients in NumPy. The gradient of
    a variable that the scalar does not depend on is `None`, on JAX zeros.
    """
    differentiate = {
        "jax": _jax_gradients,
        "tensorflow": _tensorflow_gradients,
        "torch": _torch_gradients,
    }[keras.backend.backend()]
    value, found = differentiate(function, list(variables), list(state))
    return to_numpy((value, list(found)))


def run(function, *parts):
    """Runs a function of layers that changes nothing; gives NumPy arrays.

    On JAX in one piece, which is much faster: `parts` are the layers whose weights the
    function reads.
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
        scalar = value[0] if isinstance(value, tuple) else value
        new_state = [scope.get_current_value(variable) for variable in state]
        return scalar, (value, new_state)

    values = [variable.value for variable in variables]
    state_values = [variable.value for variable in state]
    step = jax.jit(jax.value_and_grad(stateless, has_aux=True))
    (_, (value, new_state)), found = step(values, state_values)
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
            scalar = value[0] if isinstance(value, tuple) else value
        return value, tape.gradient(scalar, [variable.value for variable in variables])

    return step()


def _torch_gradients(function, variables, state):
    import torch

    values = [variable.value for variable in variables]
    for value in values:
        value.requires_grad_(True)
    value = function()
    if not values:
        return value, []
    scalar = value[0] if isinstance(value, tuple) else value
    return value, torch.autograd.grad(scalar, values, allow_unused=True)


def perturb(weights, seed=0, scale=0.2):
    """Draws float weights anew, the same on every backend: around 1 if they were 1.

    Fresh zeros and ones would hide what is forgotten.
    """
    rng = np.random.default_rng(seed)
    for weight in weights:
        noise = rng.normal(size=weight.shape, scale=scale)
        if is_float(weight):
            is_one = (to_numpy(weight) == 1.0).all()
            weight.assign((is_one + noise).astype("float32"))


def is_float(tensor):
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


@dataclasses.dataclass
class Case:
    """How to make a layer or model and to call it.

    `make(dtype=...)` makes a new one, `inputs` are NumPy arrays with a batch axis.
    """

    make: Callable
    inputs: Any
    call: Callable = lambda layer, inputs: layer(inputs)
    # Whether outputs differ from call to call.
    random: bool = False
    # Whether rounding changes outputs by as little: not where a code is chosen.
    continuous: bool = True
    # Of float outputs under any policy; `None`: the compute dtype, "mixed": several.
    output_dtype: str | None = None
    # How the paths of trainable weights without a gradient end.
    idle: tuple[str, ...] = ()
    # Whether to train it, which covers its gradients.
    fits: bool = False

    def built(self, dtype=None):
        """A new layer with weights of its own, the same ones each time."""
        layer = self.build(self.make(dtype=dtype))
        perturb(layer.weights)
        return layer

    def build(self, layer):
        """Builds a layer as a functional model does, without computing anything."""
        symbols = keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape, dtype=str(x.dtype)), self.inputs
        )
        self.call(layer, symbols)
        return layer

    def tensors(self, layer):
        """The outputs of a plain call, a flat list of tensors."""
        inputs = keras.tree.map_structure(ops.convert_to_tensor, self.inputs)
        return keras.tree.flatten(self.call(layer, inputs))

    def outputs(self, layer):
        """The outputs, a flat list of NumPy arrays."""
        if self.random:
            return to_numpy(self.tensors(layer))
        return run(lambda: self.tensors(layer), layer)

    @functools.cached_property
    def expected(self):
        """The outputs of a layer that is `built()`, in float32."""
        return self.outputs(self.built())

    @functools.cached_property
    def gradients(self):
        """Those of `loss()`, a dict by the numbers and names of trainable weights."""
        layer = self.built()
        weights = layer.trainable_variables
        if not weights:
            return {}
        _, found = gradients(lambda: self.loss(layer), weights)
        return {
            f"gradient {index} {weight.name}": gradient
            for index, (weight, gradient) in enumerate(zip(weights, found, strict=True))
            if not (self.idle and weight.path.endswith(self.idle))
        }

    def values(self):
        """Outputs, and gradients where it is not trained: a dict of arrays."""
        found = {f"output {index}": x for index, x in enumerate(self.expected)}
        return found if self.fits else found | self.gradients

    def loss(self, layer):
        """A scalar that all float outputs take part in, each number in its own way."""
        total = 0.0
        for index, output in enumerate(self.tensors(layer)):
            if is_float(output):
                weights = np.random.default_rng(index).normal(size=output.shape)
                output = ops.cast(output, "float32")
                total = total + ops.sum(ops.multiply(output, weights.astype("float32")))
        return total


@keras.saving.register_keras_serializable(package="keras_bridle_tests")
class Holder(keras.Model):
    """A model that is nothing but one layer, so that any layer can be saved or fit."""

    def __init__(self, layer, case=None, **kwargs):
        # Inputs arrive as they are, as they do when the layer is called by itself.
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.case = case
        self.built = True

    def call(self, inputs):
        outputs = keras.tree.flatten(self.case.call(self.layer, inputs))
        # `predict()` cannot concatenate what has no batch axis, such as a loss.
        return [output for output in outputs if len(output.shape) >= 2]

    def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
        floats = [ops.cast(output, "float32") for output in y_pred if is_float(output)]
        return sum(ops.mean(ops.square(output)) for output in floats)

    def get_config(self):
        return {"layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["layer"]))


def check_call(case):
    """Outputs are finite and of plain types; random ones differ the next time."""
    outputs = case.expected
    assert outputs
    assert all(np.isfinite(output).all() for output in outputs)
    assert all(output.dtype in (np.int32, np.float32, bool) for output in outputs)
    if case.random:
        layer = case.built()
        again = [case.outputs(layer) for _ in range(2)]
        assert any((x != y).any() for x, y in zip(*again, strict=True))


def check_gradients(case):
    """Every trainable weight gets a finite gradient that is not zero."""
    for name, gradient in case.gradients.items():
        assert gradient is not None, name
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0.0, name


def check_agreement(case, expected):
    """Outputs and gradients are those that another backend has in `values()`."""
    for name, ours in case.values().items():
        limit = 1e-5 * max(1.0, np.abs(expected[name]).max())
        np.testing.assert_allclose(ours, expected[name], 1e-4, limit, err_msg=name)


def check_saving(case, folder):
    """A saved layer is the same, from its configuration and from either kind of file.

    A random one starts again from its seed: Keras does not save how far it came.
    """
    layer = case.built()
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(copy)["config"] == config["config"]
    Holder(layer).save(folder / "model.keras")
    Holder(layer).save_weights(folder / "model.weights.h5")
    loaded = keras.saving.load_model(folder / "model.keras").layer
    assert _described(loaded) == _described(layer)
    _assert_same(case.outputs(loaded), case.expected)
    other = copy if copy.built else case.build(copy)
    Holder(other).load_weights(folder / "model.weights.h5")
    assert _described(other) == _described(layer)
    _assert_same(other.get_weights(), layer.get_weights())


def check_half_precision(case, policy):
    """Outputs have the policy's type, are finite and near those of float32."""
    layer = case.built(dtype=policy)
    announced = case.output_dtype or layer.compute_dtype
    found = []

    def floats():
        tensors = case.tensors(layer)
        found[:] = [keras.backend.standardize_dtype(x.dtype) for x in tensors]
        return [ops.cast(x, "float32") for x in tensors]

    # Compiled attention in float16 is unknown to JAX on CPUs.
    is_eager = case.random or layer.compute_dtype == "float16"
    outputs = to_numpy(floats()) if is_eager else run(floats, layer)
    for dtype, output, right in zip(found, outputs, case.expected, strict=True):
        if "float" not in dtype:
            continue
        assert announced in (dtype, "mixed"), (dtype, announced)
        assert np.isfinite(output).all()
        if case.continuous and not case.random:
            error = np.abs(output - right).max() / np.abs(right).max()
            assert error <= HALF_PRECISION[policy], error
    dtypes = {weight.dtype for weight in layer.weights if is_float(weight)}
    assert dtypes <= {"float32"}


def check_compiled(case):
    """`predict()` gives the outputs of a plain call, compiled by XLA or not."""
    model = Holder(case.built(), case)
    # Compiling takes torch a minute and more.
    model.compile(jit_compile=keras.backend.backend() != "torch")
    batch = len(keras.tree.flatten(case.inputs)[0])
    outputs = model.predict(case.inputs, batch_size=batch, verbose=0)
    expected = [output for output in case.expected if output.ndim >= 2]
    if case.random:
        assert [x.shape for x in outputs] == [x.shape for x in expected]
    else:
        _assert_same(outputs, expected, 2e-5)


def check_training(case):
    """Three compiled steps of `fit()` move every weight and lower the loss."""
    layer = case.built()
    weights = layer.trainable_variables
    before = to_numpy(weights)
    model = Holder(layer, case)
    model.compile(keras.optimizers.Adam(1e-3))
    model.optimizer.build(model.trainable_variables)
    batch = len(keras.tree.flatten(case.inputs)[0])
    history = model.fit(case.inputs, batch_size=batch, epochs=3, verbose=0)
    losses = history.history["loss"]
    assert losses[2] < losses[1] < losses[0]
    for old, weight in zip(before, weights, strict=True):
        if not (case.idle and weight.path.endswith(case.idle)):
            assert np.abs(to_numpy(weight) - old).max() > 0.0, weight.path


def _described(layer):
    return [(weight.name, tuple(weight.shape)) for weight in layer.weights]


def _assert_same(actual, expected, tolerance=1e-6):
    assert len(actual) == len(expected)
    for first, second in zip(actual, expected, strict=True):
        if second.dtype.kind in "ib":
            np.testing.assert_array_equal(first, second)
        else:
            np.testing.assert_allclose(first, second, tolerance, tolerance)
