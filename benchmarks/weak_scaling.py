"""Weak scaling: the same work for each device, on more and more of them.

    KERAS_BACKEND=jax taskset -c 0 python benchmarks/weak_scaling.py --devices 1 2 4

Each count of devices is a program of its own that trains an encoder phase on noise,
within `distribute()`: JAX and TensorFlow in one process, torch in one for each device
(`torchrun`). Without GPUs the devices are virtual. Pinned to one core, as above, the
best that can be is not a step of the same time but one N times as long, and what the
table shows is how much dividing and summing add to that ("overhead"). Only real devices
tell how training scales; there, "efficiency" is the share of N times the examples per
second of one.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
FOLDER = Path(__file__).resolve().parent
BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--devices", type=int, nargs="+", default=[1, 2, 4])
    add("--gpus", action="store_true", help="on GPUs, not on virtual CPU devices")
    add("--batch-size", type=int, default=4, help="examples on each device")
    add("--phase", default="encoder", choices=("encoder", "tokenizer", "joint"))
    add("--preset", default="tiny")
    add("--seconds", type=float, default=2.56, help="of audio in an example")
    add("--dtype-policy", default="float32")
    add("--levels", type=int, default=4)
    add("--codes", type=int, default=256)
    add("--code-dim", type=int, default=256)
    add("--mask-ratio", type=float, default=0.8)
    add("--steps", type=int, default=12)
    add("--warm-up", type=int, default=4)
    add("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def command_of(devices, args):
    """The program for so many devices, and its environment."""
    environment = dict(os.environ)
    visible = ",".join(map(str, range(devices)))
    environment["CUDA_VISIBLE_DEVICES"] = visible if args.gpus else ""
    program = [str(FOLDER / "weak_scaling.py"), *sys.argv[1:], f"--worker={devices}"]
    if BACKEND == "torch":
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        return [*launcher, f"--nproc-per-node={devices}", *program], environment
    if BACKEND == "jax" and not args.gpus:
        flag = f"--xla_force_host_platform_device_count={devices}"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
        environment["JAX_PLATFORMS"] = "cpu"
    return program, environment


def work(devices, args):
    """Measures the steps of one process of a program."""
    if BACKEND == "tensorflow" and not args.gpus:
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * devices
        )
    import keras
    import numpy as np

    sys.path.insert(0, str(FOLDER))
    from pretraining_steps import SAMPLE_RATE, StepTimes, make_trainer

    from keras_bridle.distribution import (
        distribute,
        is_chief,
        num_devices,
        process_shard,
    )
    from keras_bridle.training.batches import ArrayBatches
    from keras_bridle.training.optimizers import adamw

    with distribute():
        if num_devices() != devices:
            raise ValueError(f"There are {num_devices()} devices, not {devices}")
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(args.dtype_policy)
        trainer = make_trainer(args.phase, args)
        trainer.set_trained_parts()
        trainer.compile(adamw(trainer, 1e-4))
        batch_size, steps = args.batch_size * devices, args.warm_up + args.steps
        shape = (batch_size, round(args.seconds * SAMPLE_RATE))
        noise = np.random.default_rng(0).normal(0, 0.1, shape).astype("float32")
        inputs = np.broadcast_to(noise, (steps, *shape)).reshape(-1, shape[1])
        times = StepTimes()
        trainer.fit(
            ArrayBatches(inputs, batch_size, shard=process_shard()),
            shuffle=False,
            callbacks=[times],
            verbose=0,
        )
        if is_chief():
            seconds = float(np.mean(np.diff(times.ends)[args.warm_up - 1 :]))
            print(json.dumps({"seconds": seconds}), flush=True)


def main():
    args = parse_arguments()
    if args.worker is not None:
        work(args.worker, args)
        return
    print("| backend | devices | batch | s/step | examples/s | efficiency | overhead |")
    print("|---|---|---|---|---|---|---|")
    first = None
    for devices in args.devices:
        command, environment = command_of(devices, args)
        done = subprocess.run(
            [sys.executable, *command],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        (line,) = [x for x in done.stdout.splitlines() if x.startswith('{"seconds"')]
        seconds = json.loads(line)["seconds"]
        batch = args.batch_size * devices
        first = first or (devices, seconds)
        efficiency = first[1] / seconds
        # So many times the work, on the same cores.
        overhead = seconds / (first[1] * devices / first[0]) - 1.0
        print(
            f"| {BACKEND} | {devices} | {batch} | {seconds:.3f} "
            f"| {batch / seconds:.1f} | {efficiency:.0%} "
            f"| {'' if args.gpus else f'{overhead:+.0%}'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
