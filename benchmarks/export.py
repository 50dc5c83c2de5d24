"""Exported encoders against `predict`: inputs per second on one core.

    KERAS_BACKEND=jax taskset -c 0 python benchmarks/export.py

The features of an encoder of each modality, by Keras and by ONNX Runtime,
in turns and the best of each, so that a busy machine slows neither alone.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import numpy as np
import onnxruntime

import keras_bridle as kb
from keras_bridle.models.feature_extractor import FeatureModel

SHAPES = {
    "audio": (4, 160_000),
    "image": (8, 224, 224, 3),
    "video": (1, 16, 224, 224, 3),
}


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small")
    parser.add_argument("--kinds", nargs="+", default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    print("| encoder | backend | predict, inputs/s | ONNX, inputs/s | ratio of times |")
    print("|---|---|---|---|---|")
    for kind in arguments.kinds:
        name = f"bridle_{kind}_{arguments.size}"
        backbone = kb.BridleBackbone.from_preset(name, load_weights=False)
        model, shape = FeatureModel(backbone), SHAPES[kind]
        inputs = np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "model.onnx"))
            model.export(path, format="onnx", verbose=False)
            session = onnxruntime.InferenceSession(path, options)
        functions = {
            "predict": lambda model=model, x=inputs: model.predict_on_batch(x),
            "onnx": lambda session=session, x=inputs: session.run(None, {"inputs": x}),
        }
        times = {key: [seconds(run)] for key, run in functions.items()}  # compiles
        for _ in range(arguments.repeats):
            for key, run in functions.items():
                times[key].append(seconds(run))
        best = {key: min(values) for key, values in times.items()}
        print(
            f"| {name} | {keras.backend.backend()} | {shape[0] / best['predict']:.2f} "
            f"| {shape[0] / best['onnx']:.2f} | {best['onnx'] / best['predict']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
