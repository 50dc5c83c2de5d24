"""Conversion and checks of raw inputs and labels."""

import importlib

import numpy as np
from keras import ops

from keras_bridle.config import ArgumentError, check
from keras_bridle.layers.pixels import PixelNormalization, as_pixels


def is_symbolic(values):
    """Returns whether something is a symbolic tensor of a `tf.data` pipeline."""
    is_tensorflow = type(values).__module__.startswith("tensorflow")
    return is_tensorflow and not hasattr(values, "numpy")


def as_array(values, name="inputs"):
    """Converts an array or tensor of any library to NumPy; pads ragged ones.

    Symbolic tensors of a `tf.data` pipeline stay as they are.
    """
    if is_symbolic(values):
        return values
    if hasattr(values, "to_tensor"):
        values = values.to_tensor()
    if isinstance(values, np.ndarray):
        return values
    if ops.is_tensor(values):
        return ops.convert_to_numpy(values)
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        values = values.float() if "bfloat16" in str(values.dtype) else values
    try:
        return np.asarray(values)
    except ValueError:
        raise ArgumentError(name, "of one shape", "lists of several lengths") from None


# Errors raised in `tf.data` pipelines, which TensorFlow wraps in its own.
PIPELINE_ERRORS: list[ArgumentError] = []


def in_pipeline(function, tensor, dtype, shape):
    """Applies a function of arrays to a tensor of a `tf.data` pipeline."""
    tf = importlib.import_module("tensorflow")

    def run(array):
        try:
            return function(array)
        except ArgumentError as error:
            PIPELINE_ERRORS.append(error)
            raise

    return tf.ensure_shape(tf.numpy_function(run, [tensor], dtype), shape)


def as_samples(numbers, name="inputs"):
    """Returns waveforms as floats; 16-bit integers are scaled to [-1, 1]."""
    if numbers.dtype == "int16":
        return numbers.astype("float32") / 32768.0
    expected = "waveforms of floats from -1 to 1, or 16-bit integers"
    check(numbers.dtype.kind not in "biu", name, expected, f"{numbers.dtype}")
    return numbers


class PixelCheck:
    """Returns inputs, the first of them only if a model can take them as pixels.

    Floats up to 1 and normalized pixels would pass as nearly black.
    """

    def __init__(self, model):
        for part in ("classifier", "backbone", "teacher"):
            model = getattr(model, part, None) or model
        layer = getattr(model, "front_end", None)
        self.is_due = isinstance(layer, PixelNormalization) and layer.scale == 255

    def __call__(self, inputs):
        if not self.is_due or isinstance(inputs, dict):
            return inputs
        if is_symbolic(inputs):
            about = (inputs, inputs.dtype, inputs.shape)
            return in_pipeline(self, *about) if inputs.dtype.is_floating else inputs
        self.is_due = False
        # A sample of the examples, which may lie on disk.
        step = max(1, len(inputs) // 32)
        some = [as_array(inputs[i]) for i in range(0, len(inputs), step)]
        floats = [x.ravel() for x in some if x.dtype.kind == "f"]
        numbers = np.concatenate([np.zeros(1, "float32"), *floats])
        least, most = numbers.min(), numbers.max()
        # Bicubic filters overshoot.
        if not (least == most == 0 or (1 < most < 320 and least >= -most / 4)):
            received = f"floats from {least:g} to {most:g}"
            raise ArgumentError("inputs", "pixels from 0 to 255", received)
        return inputs


def as_examples(inputs, name="inputs"):
    """Returns raw inputs as one array of examples; memory maps stay on disk.

    Lists of examples of equal shapes are stacked, tensors of any library are converted,
    integers of images and clips become pixels, and 16-bit waveforms become floats.
    """
    if is_symbolic(inputs):
        return inputs
    dtype = getattr(inputs, "dtype", None)
    if isinstance(inputs, (list, tuple)) or dtype == np.dtype("O"):
        inputs = [as_array(example) for example in inputs]
        shapes = sorted({example.shape for example in inputs})
        received = f"a list with examples of shapes {str(shapes[:3])[1:-1]}"
        check(len(shapes) <= 1, name, "examples of one shape", received)
        inputs = np.stack(inputs) if inputs else np.zeros(0)
    elif ops.is_tensor(inputs) or not isinstance(dtype, np.dtype):
        inputs = as_array(inputs)
    if inputs.dtype.name == "bfloat16":
        inputs = inputs.astype("float32")
    if not inputs.shape or 0 in inputs.shape or inputs.dtype.kind not in "biuf":
        received = f"{inputs.dtype} of shape {tuple(inputs.shape)}"
        raise ArgumentError(name, "an array of numbers with examples", received)
    if len(inputs.shape) == 2:
        return as_samples(inputs, name)
    is_whole = len(inputs.shape) > 3 and inputs.dtype.kind in "biu"
    return as_pixels(inputs, name) if is_whole else inputs


def are_batches(inputs, input_dims):
    """Returns whether a list holds batches rather than examples."""
    first = inputs[0] if isinstance(inputs, (list, tuple)) and inputs else 0
    return isinstance(first, (tuple, dict)) or np.ndim(first) == len(input_dims) + 1


def as_batch(inputs, input_dims, name="inputs"):
    """Returns raw inputs, maybe a single one, as an array `(examples, *input_dims)`."""
    inputs = as_examples(inputs, name)
    if is_symbolic(inputs):
        return inputs
    if len(inputs.shape) == len(input_dims):
        inputs = as_examples(inputs[None], name)
    check_shape(inputs.shape, input_dims, name)
    return inputs


def open_sides(input_dims):
    """Returns input dims with unknown sides; only channels are kept."""
    sides = max(1, len(input_dims) - 1)
    return (*[None] * sides, *input_dims[sides:])


def check_shape(shape, input_dims, name="inputs"):
    """Raises an `ArgumentError` unless a shape is `(examples, *input_dims)`."""
    sides = tuple(shape)[1:]
    pairs = zip(sides, input_dims, strict=False)
    fits = all(None in pair or pair[0] == pair[1] for pair in pairs)
    expected = f"of shape (examples, *input_dims), with input_dims={input_dims}"
    check(fits and len(sides) == len(input_dims), name, expected, f"shape {(*shape,)}")


def as_labels(labels, num_classes, class_names=None, rows=None, name="labels"):
    """Converts classes, numbers or names, to int32, or rows of numbers to float32.

    `rows` says whether labels are rows; `None` accepts both.
    """
    if is_symbolic(labels):
        is_rows = rows or (labels.shape.rank == 2 and labels.shape[1] != 1)
        shape = [labels.shape[0] if labels.shape.rank else None]
        return in_pipeline(
            lambda x: as_labels(x, num_classes, class_names, rows, name),
            labels,
            "float32" if is_rows else "int32",
            [*shape, num_classes] if is_rows else shape,
        )
    choices = [f"whole numbers from 0 to {num_classes - 1}"]
    if class_names is not None:
        choices.append("names in `class_names`")
    row = f"rows of {num_classes} numbers from 0 to 1"
    choices = [row] if rows else choices if rows is False else [*choices, row]
    expected = " or ".join(choices)
    labels = np.atleast_1d(as_array(labels, name))
    try:
        labels = _numbers_of(labels, class_names or ())
    except (TypeError, ValueError) as error:
        raise ArgumentError(name, expected, f"{error}") from None
    if rows and num_classes == 1:
        labels = labels.reshape(len(labels), -1)
    elif labels.shape[1:] == (1,):
        labels = labels[:, 0]
    is_rows = labels.shape[1:] == (num_classes,) and rows is not False
    fits = labels.dtype.kind in "biuf" and (is_rows or (labels.ndim == 1 and not rows))
    check(fits, name, expected, f"{labels.dtype} of shape {labels.shape}")
    most = 1 if is_rows else num_classes - 1
    is_right = (labels >= 0) & (labels <= most)
    is_right &= is_rows | (labels == np.floor(labels))
    if not is_right.all():
        raise ArgumentError(name, expected, np.unique(labels[~is_right])[:5].tolist())
    return labels.astype("float32" if is_rows else "int32")


def _numbers_of(labels, class_names):
    """Replaces class names, as strings, bytes or objects, by numbers."""
    if labels.dtype.kind not in "OSU":
        return labels
    numbers = {name: number for number, name in enumerate(class_names)}
    names = [x.decode() if isinstance(x, bytes) else x for x in labels.ravel().tolist()]
    unknown = {x for x in names if isinstance(x, str) and x not in numbers}
    if unknown:
        raise ValueError(f"{sorted(unknown)[:5]}")
    found = [numbers.get(x, x) for x in names]
    return np.array(found, "float64").reshape(labels.shape)


def filled_up(batch, size):
    """Repeats the last row up to the batch size, so that shapes stay the same."""
    filling = np.repeat(batch[-1:], max(0, size - len(batch)), axis=0)
    return np.concatenate([batch, filling])
