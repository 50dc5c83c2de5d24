"""How near each phase comes to what the machine can do, and how long it takes to start.

    KERAS_BACKEND=jax taskset -c 0 python benchmarks/pretraining_steps.py --preset small

Noise goes into whole trainers, front end included, through `fit()`. The script counts
the floating-point operations of a step's matrix products, forward and backward, and
measures how fast the backend multiplies matrices of these very shapes. The share of the
peak is the time that the products alone would take, of the time that the step takes. On
GPUs, and with `--peak`, the peak is the data sheet's instead.

The first steps are left out of the times, which are medians (in joint mode means, as
every fourth step does more). Memory is the process' peak since it began, so run phases
by themselves with `--phases` where it matters; on GPUs it is the device's.
"""

import os
import time

START = time.perf_counter()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import resource
from collections import Counter
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_bridle.layers.masks import RandomMask
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.presets import decoder_size, estimator_size
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
from keras_bridle.training.optimizers import adamw
from keras_bridle.training.trainers import (
    EncoderPretrainer,
    JointPretrainer,
    TokenizerPretrainer,
)

IMPORTED = time.perf_counter()
SAMPLE_RATE = 16000
PHASES = ("cold_start", "tokenizer", "encoder", "joint")
# Dense products a second of the data sheets, by type.
DATA_SHEETS = {
    "H100": {"float32": 67e12, "bfloat16": 989e12, "float16": 989e12},
    "H200": {"float32": 67e12, "bfloat16": 989e12, "float16": 989e12},
    "A100": {"float32": 19.5e12, "bfloat16": 312e12, "float16": 312e12},
}


class StepTimes(keras.callbacks.Callback):
    """Notes when steps end, by the clock and by the processor's time."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        # A number of the step itself must be there before the step is over.
        float(ops.convert_to_numpy(keras.tree.flatten(logs)[0]))
        self.ends.append((time.perf_counter(), time.process_time()))


class Products:
    """The matrix products of a step: how often each `(rows, inner, columns)` is made.

    Training makes three of each, forward and for two gradients.
    """

    def __init__(self, batch_size):
        self.batch_size = batch_size
        self.counts = Counter()
        self.attention = 0

    def add(self, tokens, inner, columns, times=1):
        self.counts[self.batch_size * tokens, inner, columns] += times

    def add_blocks(self, model, tokens, times):
        dim, mlp = model.hidden_dim, model.mlp_dim
        for inner, columns in ((dim, 3 * dim), (dim, dim), (dim, mlp), (mlp, dim)):
            self.add(tokens, inner, columns, times * model.num_layers)
        pairs = self.batch_size * tokens**2
        self.attention += times * model.num_layers * 4 * pairs * dim

    def add_quantizer(self, quantizer, tokens):
        """Distances to all codes, then the sums of each code's vectors."""
        for _ in range(quantizer.num_levels):
            self.add(tokens, quantizer.dim, quantizer.codebook_size, 2)

    def operations(self):
        dense = sum(2 * m * k * n * times for (m, k, n), times in self.counts.items())
        return dense + self.attention

    def seconds(self):
        """The time of all products alone; attention at their mean rate."""
        dense = sum(times * product_time(*x) for x, times in self.counts.items())
        return dense * self.operations() / (self.operations() - self.attention)


def product_time(rows, inner, columns, repeats=8):
    """The fastest time of one product, as the backend makes it."""
    random = np.random.default_rng(0)
    left = ops.convert_to_tensor(random.normal(size=(rows, inner)).astype("float32"))
    right = ops.convert_to_tensor(
        random.normal(size=(inner, columns)).astype("float32")
    )
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        wait_for(ops.matmul(left, right))
        times.append(time.perf_counter() - start)
    return min(times)


def wait_for(tensor):
    if keras.backend.backend() == "jax":
        tensor.block_until_ready()
    else:
        float(tensor[0, 0])


def encoder(args, name):
    preset = f"bridle_{args.modality}_{args.preset}"
    return BridleBackbone.from_preset(preset, load_weights=False, name=name)


def make_trainer(phase, args):
    backbone = encoder(args, "encoder")
    quantizer = ResidualQuantizer(args.levels, args.codes, dim=args.code_dim, seed=0)
    if phase == "cold_start":
        tokenizer = RandomProjectionTokenizer(
            backbone.patch_size, backbone.hidden_dim, quantizer
        )
    else:
        tokenizer = BridleTokenizer(encoder(args, "tokenizer_encoder"), quantizer)
        estimator = FeatureEstimator(backbone.hidden_dim, **estimator_size(backbone))
    if phase == "tokenizer":
        return TokenizerPretrainer(tokenizer, estimator, teacher=backbone)
    size = decoder_size(backbone) | {"use_class_token": backbone.use_class_token}
    decoder = CodeDecoder(args.levels, args.codes, **size)
    mask = RandomMask(args.mask_ratio)
    if phase == "joint":
        return JointPretrainer(backbone, decoder, tokenizer, estimator, mask=mask)
    tokenize = args.tokenize if phase == "encoder" else "all"
    return EncoderPretrainer(backbone, decoder, tokenizer, mask=mask, tokenize=tokenize)


def products_of(phase, args, trainer, inputs):
    """Counts what a step multiplies, on the average of joint steps."""
    found = Products(args.batch_size)
    backbone = trainer.teacher if phase == "tokenizer" else trainer.backbone
    tokenizer, quantizer = trainer.tokenizer, trainer.tokenizer.quantizer
    maps, _ = backbone.maps(inputs[:1])
    count, token = int(np.prod(backbone.grid(maps))), int(backbone.use_class_token)
    pixels = int(np.prod(backbone.patch_size)) * maps.shape[-1]
    masked = round(count * args.mask_ratio)
    dim, code_dim = backbone.hidden_dim, quantizer.dim
    found.add_quantizer(quantizer, count)
    if phase == "cold_start":
        found.add(count, pixels, dim)
        found.add(count, dim, code_dim)
    if phase == "encoder":
        seen = masked if args.tokenize == "masked" else count
        found.add(seen, pixels, dim)
        found.add_blocks(tokenizer.backbone, seen + token, 1)
        found.add(seen, dim, code_dim)
    if phase in ("tokenizer", "joint"):
        share = 0.25 if phase == "joint" else 1
        # In joint training the codes come from a pass of their own.
        passes = 3 * share + (1 if phase == "joint" else 0)
        found.add(count, pixels, dim, share + 2 * share)
        found.add_blocks(tokenizer.backbone, count + token, passes)
        found.add_blocks(backbone, count + token, share)
        estimator = trainer.estimator
        found.add(count, dim, code_dim, passes)
        found.add(count, code_dim, estimator.hidden_dim, 3 * share)
        found.add_blocks(estimator, count, 3 * share)
        found.add(count, estimator.hidden_dim, dim, 3 * share)
    if phase != "tokenizer":
        decoder, visible = trainer.decoder, count - masked
        found.add(visible, pixels, dim, 2)
        found.add_blocks(backbone, visible + token, 3)
        found.add(visible + token, dim, decoder.hidden_dim, 3)
        found.add_blocks(decoder, count + token, 3)
        found.add(masked, decoder.hidden_dim, args.levels * args.codes, 3)
    return found


def example_shape(args):
    if args.modality == "audio":
        return (round(args.seconds * SAMPLE_RATE),)
    return encoder(args, "sizes").input_dims


def measure(phase, args):
    """Trains a phase for some steps, and gives a row of the table."""
    keras.utils.set_random_seed(0)
    start = time.perf_counter()
    shape = (args.batch_size, *example_shape(args))
    random = np.random.default_rng(0)
    if args.modality == "audio":
        inputs = random.normal(0, 0.1, shape).astype("float32")
    else:
        inputs = random.integers(0, 256, shape, "uint8")
    steps = args.warm_up + args.steps
    inputs = np.tile(inputs, (steps, *[1] * (len(shape) - 1)))
    data = time.perf_counter()
    trainer = make_trainer(phase, args)
    trainer.set_trained_parts()
    jit_compile = "auto" if args.jit_compile == "auto" else args.jit_compile == "yes"
    trainer.compile(adamw(trainer, 1e-4), jit_compile=jit_compile)
    built = time.perf_counter()
    times = StepTimes()
    trainer.fit(inputs, batch_size=args.batch_size, callbacks=[times], verbose=0)
    memory = peak_memory()
    middle = np.mean if phase == "joint" else np.median
    wall, processor = middle(np.diff(times.ends, axis=0)[args.warm_up - 1 :], axis=0)
    products = products_of(phase, args, trainer, inputs)
    peak = args.peak or data_sheet(args.dtype_policy)
    alone = products.operations() / peak if peak else products.seconds()
    return {
        "backend": keras.backend.backend(),
        "modality": args.modality,
        "preset": args.preset,
        "phase": phase,
        "batch": args.batch_size,
        "policy": args.dtype_policy,
        "GFLOP": products.operations() / 1e9,
        "ms": 1e3 * wall,
        "processor ms": 1e3 * processor,
        "examples/s": args.batch_size / wall,
        "peak GFLOP/s": products.operations() / alone / 1e9,
        "share of peak": alone / wall,
        "GB": memory,
        "import s": IMPORTED - START,
        "data s": data - start,
        "building s": built - data,
        "compiling s": times.ends[0][0] - built - wall,
    }


def data_sheet(policy):
    """The peak of a known GPU, or `None`."""
    name = ""
    if keras.backend.backend() == "jax":
        import jax

        name = jax.devices()[0].device_kind
    if keras.backend.backend() == "torch":
        import torch

        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    kind = policy.removeprefix("mixed_")
    return next((x[kind] for key, x in DATA_SHEETS.items() if key in name), None)


def peak_memory():
    """The device's peak in GB where the backend tells, else the process'."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        statistics = jax.devices()[0].memory_stats()
        if statistics is not None:
            return statistics["peak_bytes_in_use"] / 1e9
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e9
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.get_visible_devices("GPU"):
            return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--modality", default="audio", choices=("audio", "image", "video"))
    add("--preset", default="tiny", help="tiny, small, base or large")
    add("--batch-size", type=int, default=8)
    add("--seconds", type=float, default=10.24, help="of audio in an example")
    add("--dtype-policy", default="float32", help="such as mixed_bfloat16")
    add("--phases", nargs="+", choices=PHASES, default=PHASES)
    add("--levels", type=int, default=4)
    add("--codes", type=int, default=256)
    add("--code-dim", type=int, default=256)
    add("--mask-ratio", type=float, default=0.8)
    add("--tokenize", default="all", choices=("all", "masked"))
    add("--steps", type=int, default=12, help="measured steps, a multiple of 4")
    add("--warm-up", type=int, default=4, help="steps before, a multiple of 4")
    add("--jit-compile", default="auto", choices=("auto", "yes", "no"))
    add("--peak", type=float, help="operations a second of the data sheet")
    add("--json", type=Path, help="file to which rows are added, a line each")
    args = parser.parse_args()
    if args.steps % 4 or args.warm_up % 4 or min(args.steps, args.warm_up) < 4:
        parser.error("--steps and --warm-up must be multiples of 4")
    return args


def main():
    args = parse_arguments()
    keras.config.set_dtype_policy(args.dtype_policy)
    for number, phase in enumerate(args.phases):
        row = measure(phase, args)
        if number == 0:
            print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}", flush=True)
        cells = (f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values())
        print(f"| {' | '.join(cells)} |", flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
