"""Steps per second and memory of the trainers of all phases.

    KERAS_BACKEND=jax python benchmarks/pretraining_steps.py --preset small

Waveforms of noise go into whole trainers, log-mel included, through `fit()`. The first
steps, in which backends compile, are left out; a phase's time is the median of the
steps after them (in joint mode their mean, as every fourth does more). Memory is the
process' peak since the benchmark began, so run phases by themselves with `--phases`
where it matters; on GPUs it is the device's, where the backend tells.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

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

SAMPLE_RATE = 16000
PHASES = ("encoder", "tokenizer", "joint")


class StepTimes(keras.callbacks.Callback):
    """Measures the time from the end of a step to that of the next."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        # A number of the step itself must be there before the step is over.
        float(keras.ops.convert_to_numpy(keras.tree.flatten(logs)[0]))
        self.ends.append(time.perf_counter())


def make_trainer(phase, args):
    def encoder(name):
        return BridleBackbone.from_preset(
            f"bridle_audio_{args.preset}", load_weights=False, name=name
        )

    backbone = encoder("encoder")
    quantizer = ResidualQuantizer(args.levels, args.codes, dim=args.code_dim, seed=0)
    if phase == "encoder":
        tokenizer = RandomProjectionTokenizer(
            backbone.patch_size, backbone.hidden_dim, quantizer
        )
    else:
        tokenizer = BridleTokenizer(encoder("tokenizer_encoder"), quantizer)
        estimator = FeatureEstimator(backbone.hidden_dim, **estimator_size(backbone))
    if phase == "tokenizer":
        return TokenizerPretrainer(tokenizer, estimator, teacher=backbone)
    decoder = CodeDecoder(args.levels, args.codes, **decoder_size(backbone))
    mask = RandomMask(args.mask_ratio)
    if phase == "encoder":
        return EncoderPretrainer(backbone, decoder, tokenizer, mask=mask)
    return JointPretrainer(backbone, decoder, tokenizer, estimator, mask=mask)


def seconds_per_step(phase, args):
    trainer = make_trainer(phase, args)
    trainer.set_trained_parts()
    trainer.compile(adamw(trainer, 1e-4))
    shape = (args.batch_size, round(args.seconds * SAMPLE_RATE))
    waveforms = np.random.default_rng(0).normal(0, 0.1, shape).astype("float32")
    steps = args.warm_up + args.steps
    times = StepTimes()
    trainer.fit(
        np.tile(waveforms, (steps, 1)),
        batch_size=args.batch_size,
        callbacks=[times],
        verbose=0,
    )
    differences = np.diff(times.ends)[args.warm_up - 1 :]
    return differences.mean() if phase == "joint" else np.median(differences)


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
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", default="tiny", help="tiny, small, base or large")
    add("--batch-size", type=int, default=8)
    add("--seconds", type=float, default=10.24, help="of audio in an example")
    add("--dtype-policy", default="float32", help="such as mixed_bfloat16")
    add("--phases", nargs="+", choices=PHASES, default=PHASES)
    add("--levels", type=int, default=4)
    add("--codes", type=int, default=256)
    add("--code-dim", type=int, default=256)
    add("--mask-ratio", type=float, default=0.8)
    add("--steps", type=int, default=12, help="measured steps, a multiple of 4")
    add("--warm-up", type=int, default=4, help="steps before, a multiple of 4")
    args = parser.parse_args()
    if args.steps % 4 or args.warm_up % 4 or min(args.steps, args.warm_up) < 4:
        parser.error("--steps and --warm-up must be multiples of 4")
    return args


def main():
    args = parse_arguments()
    keras.config.set_dtype_policy(args.dtype_policy)
    print(
        "| backend | phase | preset | batch | seconds | policy | steps/s | examples/s "
        "| peak GB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for phase in args.phases:
        keras.utils.set_random_seed(0)
        seconds = seconds_per_step(phase, args)
        print(
            f"| {keras.backend.backend()} | {phase} | {args.preset} "
            f"| {args.batch_size} | {args.seconds:g} | {args.dtype_policy} "
            f"| {1 / seconds:.2f} | {args.batch_size / seconds:.1f} "
            f"| {peak_memory():.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
