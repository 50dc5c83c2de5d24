"""Times one training step of `ResidualQuantizer` against vector-quantize-pytorch.

A step is the forward pass, the gradient by the vectors and the moving of the codebooks
by moving averages, compiled as `fit()` would: jit on JAX, `tf.function` on TensorFlow
(with and without XLA), eager on torch. The other library's `ResidualVQ` (Euclidean and
cosine) does the same on torch. Each case runs in a process of its own, in turns, so
that a busy machine is busy for all of them. Still, a busy machine stalls torch's
threads by ten times and more, so the ratio is that of the fastest steps.

    KERAS_BACKEND=jax python benchmarks/quantizer.py
    KERAS_BACKEND=tensorflow python benchmarks/quantizer.py --codes 1024

Prints a Markdown table: milliseconds of the fastest and of the median step, how many
times as fast as Euclidean `ResidualVQ`, and by how much the process grew at its peak
over its size before the first step. Needs Linux and
`pip install vector-quantize-pytorch`.

November 2026, vector-quantize-pytorch 1.32, Keras 3.15.1, one core of a shared machine
(`taskset -c 0 ... --threads 1`), 1,024 codes: torch 251 ms (4.4 times as fast as
ResidualVQ), JAX 119 (8.9), TensorFlow 122 (11.1) and 111 with XLA (12.2), ResidualVQ
1,066-1,357. Two torch threads while the machine was quiet: 139 against 656 (4.7).
Peak growth at 8,192 codes: torch 367 MB, JAX 281, TensorFlow 524 (XLA 392), ResidualVQ
2,014-2,102.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def resident_megabytes(field):
    """Reads `VmRSS` or its peak `VmHWM`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {field} in /proc/self/status")


def measure(step, repeats):
    """Times `step()`, which must end when its numbers are there."""
    # Makes the peak start anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_megabytes("VmRSS")
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - start))
    return {
        "milliseconds": times,
        "growth": resident_megabytes("VmHWM") - before,
    }


def random_arrays(args):
    rng = np.random.default_rng(0)
    shape = (args.vectors, args.dim)
    return [rng.normal(size=shape).astype("float32") for _ in range(2)]


def our_step(args, xla):
    import keras
    from keras import ops

    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer

    vectors, cotangent = map(ops.convert_to_tensor, random_arrays(args))
    quantizer = ResidualQuantizer(args.levels, args.size, seed=0)
    quantizer.build(vectors.shape)

    def objective(vectors, state=None):
        output, state = quantizer.stateless_step(vectors, state=state)
        return ops.sum(output.quantized * cotangent) + output.loss, state

    if keras.backend.backend() == "jax":
        import jax

        moved = jax.jit(jax.grad(objective, has_aux=True), donate_argnums=1)
        # Copies, as the layer's own arrays must survive the donation.
        holder = [jax.tree.map(lambda x: x + 0, quantizer.state())]

        def step():
            gradient, holder[0] = moved(vectors, holder[0])
            jax.block_until_ready((gradient, holder[0]))

        return step
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=xla)
        def moved():
            with tf.GradientTape() as tape:
                tape.watch(vectors)
                value, state = objective(vectors)
            quantizer.assign_state(state)
            return tape.gradient(value, vectors)

        return lambda: moved().numpy()
    import torch

    torch.set_num_threads(args.threads)
    vectors.requires_grad_()

    def step():
        value, state = objective(vectors)
        with torch.no_grad():
            quantizer.assign_state(state)
        vectors.grad = None
        value.backward()

    return step


def their_step(args, cosine):
    import torch
    from vector_quantize_pytorch import ResidualVQ

    torch.set_num_threads(args.threads)
    vectors, cotangent = map(torch.from_numpy, random_arrays(args))
    vectors = vectors[None].requires_grad_()
    quantizer = ResidualVQ(
        dim=args.dim,
        num_quantizers=args.levels,
        codebook_size=args.size,
        decay=0.99,
        commitment_weight=0.25,
        use_cosine_sim=cosine,
    ).train()

    def step():
        quantized, _, losses = quantizer(vectors)
        vectors.grad = None
        ((quantized[0] * cotangent).sum() + losses.mean()).backward()

    return step


CASES = {
    "ours": lambda args: our_step(args, xla=False),
    "ours, XLA": lambda args: our_step(args, xla=True),
    "ResidualVQ": lambda args: their_step(args, cosine=False),
    "ResidualVQ, cosine": lambda args: their_step(args, cosine=True),
}


def run_apart(case, size, options):
    """Runs one case in a process of its own."""
    command = [sys.executable, __file__, *options, "--case", case, "--size", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(args, options):
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    cases = [case for case in CASES if backend == "tensorflow" or "XLA" not in case]
    print(
        f"{args.vectors} vectors of {args.dim}, {args.levels} levels, {backend}, "
        f"{args.threads} torch threads\n"
    )
    print(
        "| codes | case | fastest, ms | median, ms | times as fast | peak growth, MB |"
    )
    print("|---|---|---|---|---|---|")
    for size in args.codes:
        results = {case: [] for case in cases}
        for _ in range(args.rounds):
            for case in cases:
                results[case].append(run_apart(case, size, options))
        times = {
            case: [ms for result in found for ms in result["milliseconds"]]
            for case, found in results.items()
        }
        for case, found in results.items():
            fastest = min(times[case])
            ratio = min(times["ResidualVQ"]) / fastest
            growth = max(result["growth"] for result in found)
            print(
                f"| {size} | {case} | {fastest:.0f} | "
                f"{statistics.median(times[case]):.0f} | {ratio:.1f} | {growth:.0f} |"
            )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codes", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--vectors", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5, help="steps per process")
    parser.add_argument("--rounds", type=int, default=3, help="processes per case")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(CASES[args.case](args), args.repeats)))
    else:
        compare(args, sys.argv[1:])


if __name__ == "__main__":
    main()
