"""Exports networks to formats that run without Keras."""

import contextlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bridle.config import ArgumentError, check


class Format(NamedTuple):
    """A format: its file ending, the backend that writes it, and other packages."""

    ending: str
    backend: str
    packages: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(".onnx", "torch", ("onnx", "onnxscript")),
    "openvino": Format(".xml", "torch", ("onnx", "onnxscript", "openvino")),
    "torch": Format(".pt2", "torch"),
    "tf_saved_model": Format("", "tensorflow"),
    "litert": Format(".tflite", "tensorflow"),
}
# The shape to trace. Sides must differ from each other, and from 0 and 1, which would
# be specialized.
_EXAMPLE = (3, 16411, 97, 113, 5)
_JOB = (
    "import sys, keras_bridle.models.feature_extractor; "
    "from keras_bridle.export import _run_job; _run_job(*sys.argv[1:])"
)


class Exportable:
    """A model of raw inputs that every backend can export to every format."""

    # Attributes of the model.
    compute_dtype: str
    input_dims: tuple
    save: Any

    def export(
        self, filepath, format="tf_saved_model", verbose=None, input_signature=None
    ):
        """Exports the model for inference, the front end included.

        The PyTorch backend writes ONNX, OpenVINO and `.pt2`, TensorFlow writes its own
        formats. On another backend, or on an accelerator, a separate process on the CPU
        with that backend writes the file. Exported models compute in float32 whatever
        the dtype policy and, except SavedModels, log-mel with `fourier="matmul"`.

        Args:
            filepath: string or path, the file to write: `.onnx`, `.xml` (OpenVINO),
                `.pt2` (PyTorch), `.tflite` (LiteRT); for a SavedModel a folder.
            format: string, `"onnx"`, `"openvino"`, `"torch"`, `"litert"` or
                `"tf_saved_model"`.
            verbose: bool. `False` prints nothing.
            input_signature: optional list of one `keras.InputSpec`, whose shape has
                `None` for sides of any length. The default is any number of inputs of
                `input_dims`. LiteRT needs known sides, and has batches of 1 unless the
                shape says otherwise.

        Raises:
            ValueError: for an unknown format, another ending, or sides that a format
                must know.
            ImportError: if packages or the backend of a format are missing.

        Example:
        ```python
        import keras_bridle as kb

        size = "bridle_image_tiny"
        backbone = kb.BridleBackbone.from_preset(size, load_weights=False)
        backbone.export("encoder.onnx", format="onnx")
        ```
        """
        check(format in FORMATS, "format", f"one of {tuple(FORMATS)}", format)
        kind = FORMATS[format]
        if not str(filepath).endswith(kind.ending):
            raise ArgumentError("filepath", f"a name with {kind.ending}", filepath)
        encoder = getattr(self, "backbone", self)
        shape = (None, *encoder.input_dims)
        if input_signature is not None:
            shape = tuple(keras.tree.flatten(input_signature)[0].shape)
        if format == "litert":
            shape = (shape[0] or 1, *shape[1:])
            check(None not in shape, "input_signature", "of known sides", shape)
        for package in (kind.backend, *kind.packages):
            if importlib.util.find_spec(package) is None:
                raise ImportError(
                    f'{format} needs {package}: pip install "keras-bridle[export]"'
                )
        # Absolute, as another process may write it.
        path = Path(filepath).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        model = self if encoder.compute_dtype == "float32" else _in_float32(self)
        # A program traced on an accelerator might not run without one.
        device = str(ops.zeros(()).device).lower()
        is_here = keras.backend.backend() == kind.backend and "cpu" in device
        (model._write if is_here else model._write_elsewhere)(path, format, shape)
        if verbose is not False:
            how = "" if is_here else f", converted by {kind.backend} in its own process"
            print(f"Saved {format} at {filepath}{how}")

    def _write_elsewhere(self, path, format, shape):
        """Exports in a process with another backend."""
        with tempfile.TemporaryDirectory() as folder:
            saved = str(Path(folder, "model.keras"))
            self.save(saved)
            job = saved, str(path), format, json.dumps(shape)
            environment = {
                "KERAS_BACKEND": FORMATS[format].backend,
                "KERAS_TORCH_DEVICE": "cpu",
                "CUDA_VISIBLE_DEVICES": "",
            }
            done = subprocess.run(
                [sys.executable, "-c", _JOB, *job],
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
            )
        if done.returncode:
            raise RuntimeError(f"{format} could not be written:\n{done.stderr[-2000:]}")

    def _write(self, path, format, shape):
        with _front_ends_for(format, self):
            if FORMATS[format].backend == "torch":
                _write_by_torch(self, path, format, shape)
                return
            signature = [keras.InputSpec(shape=shape, dtype="float32", name="inputs")]
            options = {"verbose": False, "input_signature": signature}
            super().export(str(path), format, **options)  # type: ignore[misc]


def _run_job(saved, path, format, shape):
    """The main function of the other process."""
    model = keras.saving.load_model(saved, compile=False)
    model._write(Path(path), format, tuple(json.loads(shape)))


def _in_float32(model):
    """Copies a half-precision model as a float32 one."""
    config = json.dumps(keras.saving.serialize_keras_object(model))
    config = re.sub(r'"(mixed_)?b?float16"', '"float32"', config)
    copy = keras.saving.deserialize_keras_object(json.loads(config))
    copy.set_weights(model.get_weights())
    return copy


def _front_ends_for(format, model):
    """Returns a context in which front ends only use operations of the format."""
    stack = contextlib.ExitStack()
    for name in ("backbone", "tokenizer"):
        if getattr(model, name, None) is not None:
            stack.enter_context(_front_ends_for(format, getattr(model, name)))
    front_end: Any = getattr(model, "front_end", None)
    if hasattr(front_end, "fourier") and format != "tf_saved_model":
        stack.callback(setattr, front_end, "fourier", front_end.fourier)
        front_end.fourier = "matmul"
    return stack


def _write_by_torch(model, path, format, shape):
    import torch

    names = ["outputs"]

    class Inference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, inputs):
            outputs = self.model(inputs, training=False)
            if isinstance(outputs, dict):
                names[:] = outputs
            return outputs

    sides = ("samples",) if len(shape) == 2 else ("side_1", "side_2", "side_3")
    axes = enumerate(zip(("batch", *sides), shape, strict=False))
    named = {axis: name for axis, (name, side) in axes if side is None}
    unknown = dict.fromkeys(named, torch.export.Dim.DYNAMIC)
    example = ops.zeros([x or y for x, y in zip(shape, _EXAMPLE, strict=False)])
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            Inference().eval(), (example,), dynamic_shapes=(unknown,), strict=False
        )
        if format == "torch":
            torch.export.save(program, path)
            return
        graph: Any = torch.onnx.export(
            program,
            input_names=["inputs"],
            output_names=names,
            dynamic_shapes=(named,),
            verbose=False,
        )
    if format == "onnx":
        graph.save(path)
        return
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        graph.save(Path(folder, "model.onnx"))
        converted = openvino.convert_model(Path(folder, "model.onnx"))
        openvino.save_model(converted, path, compress_to_fp16=False)


@contextlib.contextmanager
def _quiet():
    """Silences warnings and logs of the exporter."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def load_exported(path):
    """Loads an exported model into the runtime of its format.

    Args:
        path: string or path, as of `export()`.

    Returns:
        A function from an array of raw inputs to a dict of NumPy arrays: by name, or
        `"outputs"` if there is only one.
    """
    path = str(path)
    match Path(path).suffix:
        case ".onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(path)
            names = [output.name for output in session.get_outputs()]
            return lambda inputs: dict(
                zip(names, session.run(names, {"inputs": inputs}), strict=True)
            )
        case ".xml":
            import openvino

            # By default, OpenVINO uses half precision on devices where it is faster.
            precision = {"INFERENCE_PRECISION_HINT": "f32"}
            compiled = openvino.compile_model(path, "CPU", precision)
            return lambda inputs: {
                output.any_name: value
                for output, value in compiled(inputs).to_dict().items()
            }
        case ".pt2":
            import torch

            module = torch.export.load(path).module()
            run = torch.no_grad()(lambda inputs: module(torch.tensor(inputs)))
        case ".tflite":
            from ai_edge_litert.interpreter import Interpreter

            infer = Interpreter(path).get_signature_runner()

            def run(inputs):
                outputs = infer(inputs=inputs)
                # LiteRT names outputs that have no name.
                return outputs if len(outputs) > 1 else outputs.get("output_0", outputs)

        case _:
            import tensorflow

            # The function must keep the model alive.
            model = tensorflow.saved_model.load(path)

            def run(inputs):
                return model.serve(inputs)

    return lambda inputs: _arrays(run(inputs))


def differences(model, exported, inputs):
    """Compares an exported model with the original, by output.

    Args:
        model: a model with `export()`.
        exported: function, from `load_exported()`.
        inputs: array of raw inputs.

    Returns:
        Dict of floats: the norm of the difference relative to the norm of the model's
        output; for codes and masks, the share of unequal entries.
    """
    found, expected = exported(inputs), _arrays(model(inputs, training=False))
    return {
        name: float(np.linalg.norm(right - found[name]) / np.linalg.norm(right))
        if right.dtype.kind == "f"
        else float((right != found[name]).mean())
        for name, right in expected.items()
    }


def _arrays(outputs):
    outputs = outputs if isinstance(outputs, dict) else {"outputs": outputs}
    return {name: ops.convert_to_numpy(output) for name, output in outputs.items()}
