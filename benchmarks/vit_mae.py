"""Times the encoder phase against Hugging Face's masked autoencoders.

    python benchmarks/vit_mae.py --model image --preset small
    python benchmarks/vit_mae.py --model video --preset small --batch-size 2

`ViTMAEForPreTraining` and `VideoMAEForPreTraining` of the package `transformers` (no
dependency of ours: `pip install transformers`) run on PyTorch with random weights and
the sizes of encoder and decoder, batch and mask ratio of our `EncoderPretrainer` on
each backend, each in a process of its own, in turns. A step is a whole one: forward,
loss, backward, AdamW; ours with its metrics and the normalization of raw pixels.

What BRIDLE does on top, the frozen tokenizer's forward pass, is timed by itself. The
step is therefore timed with codes that cost nothing, and once more with the tokenizer.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

PEER = "transformers"
WORKERS = (PEER, "jax", "tensorflow", "tensorflow-xla", "torch")
MASK_RATIO = {"image": 0.75, "video": 0.9}
LEVELS, CODES, CODE_DIM = 4, 256, 256


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=tuple(MASK_RATIO), default="image")
    add("--preset", default="small", help="tiny, small, base, ...")
    add("--batch-size", type=int, default=8)
    add("--steps", type=int, default=8, help="measured steps of each turn")
    add("--warm-up", type=int, default=3, help="steps before them")
    add("--turns", type=int, default=2, help="how often each one runs")
    add("--threads", type=int, help="as many as there are cores by default")
    add("--cpu-time", action="store_true", help="not wall time, on a busy machine")
    add("--only", nargs="+", choices=WORKERS, default=WORKERS)
    add("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = parse_arguments()
    if args.worker == PEER:
        print(json.dumps(time_peer(args)))
    elif args.worker is not None:
        print(json.dumps(time_ours(args)))
    else:
        compare(args)


def compare(args):
    results: dict[str, dict[str, float]] = {}
    for _ in range(args.turns):
        for worker in args.only:
            for name, seconds in run_worker(worker).items():
                best = results.setdefault(worker, {})
                best[name] = min(seconds, best.get(name, np.inf))
    print(
        f"{args.model} {args.preset}, batch {args.batch_size}, mask ratio "
        f"{MASK_RATIO[args.model]}; ms, the best turn's median step\n\n"
        f"| backend | step | relative to {PEER} | tokenizer alone "
        "| step with tokenizer |\n|---|---|---|---|---|"
    )
    peer = results.get(PEER, {}).get("step", np.nan)
    for worker, best in results.items():
        extra = [best.get(name) for name in ("tokenizer", "whole_step")]
        extra = [
            "-" if seconds is None else f"{1e3 * seconds:.0f}" for seconds in extra
        ]
        print(
            f"| {worker} | {1e3 * best['step']:.0f} | {best['step'] / peer:.2f} "
            f"| {extra[0]} | {extra[1]} |"
        )


def run_worker(worker):
    """Runs one in a process of its own; returns its times in seconds by name."""
    backend = "torch" if worker == PEER else worker.removesuffix("-xla")
    arguments = [sys.executable, *sys.argv, "--worker", worker]
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{worker} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def sizes_of(args):
    """The backbone of the preset and the size of its decoder."""
    from keras_bridle.models.backbone import BridleBackbone
    from keras_bridle.models.presets import decoder_size

    name = f"bridle_{args.model}_{args.preset}"
    backbone = BridleBackbone.from_preset(name, load_weights=False, name="encoder")
    return backbone, decoder_size(backbone)


def clock_of(args):
    return time.process_time if args.cpu_time else time.perf_counter


def median_time(step, args):
    """Runs a step some times; the median of all but the first times, in seconds."""
    times, clock = [], clock_of(args)
    for _ in range(args.warm_up + args.steps):
        start = clock()
        step()
        times.append(clock() - start)
    return float(np.median(times[args.warm_up :]))


def time_peer(args):
    import torch
    import transformers

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    backbone, decoder = sizes_of(args)
    sides = backbone.input_dims[:-1]
    settings = {
        "hidden_size": backbone.hidden_dim,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_heads,
        "intermediate_size": backbone.mlp_dim,
        "decoder_hidden_size": decoder["hidden_dim"],
        "decoder_num_hidden_layers": decoder["num_layers"],
        "decoder_num_attention_heads": decoder["num_heads"],
        "decoder_intermediate_size": decoder["mlp_dim"],
        "image_size": sides[-1],
        "patch_size": backbone.patch_size[-1],
    }
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {}
    if args.model == "image":
        config = transformers.ViTMAEConfig(**settings, mask_ratio=MASK_RATIO["image"])
        model = transformers.ViTMAEForPreTraining(config)
        shape = (args.batch_size, 3, *sides)
    else:
        config = transformers.VideoMAEConfig(**settings, num_frames=sides[0])
        model = transformers.VideoMAEForPreTraining(config)
        shape = (args.batch_size, sides[0], 3, *sides[1:])
        masked = tube_mask(backbone.grid(np.zeros((1, *backbone.input_dims))), rng)
        inputs["bool_masked_pos"] = torch.tensor(np.tile(masked, (args.batch_size, 1)))
    inputs["pixel_values"] = torch.tensor(rng.normal(size=shape).astype("float32"))
    optimizer = torch.optim.AdamW(
        model.parameters(), 1e-4, betas=(0.9, 0.95), weight_decay=1e-4
    )
    model.train()

    def step():
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return {"step": median_time(step, args)}


def tube_mask(grid, rng):
    """A mask of whole tubes, of as many patches as our `TubeMask` hides."""
    from keras_bridle.layers.masks import num_kept

    places = grid[1] * grid[2]
    masked = np.ones(places, bool)
    masked[rng.permutation(places)[: num_kept(places, MASK_RATIO["video"])]] = False
    return np.tile(masked, grid[0])


class Codes(NamedTuple):
    codes: Any


def free_codes(quantizer):
    """A tokenizer that gives every patch the same codes without computing anything."""
    import keras
    from keras import ops

    class FreeCodes(keras.Model):
        def __init__(self):
            super().__init__()
            self.quantizer = quantizer
            self.built = True

        def call(self, features, padding_mask=None, visible=None, training=False):
            if visible is not None:
                return Codes(ops.zeros((*ops.shape(visible), LEVELS), dtype="int32"))
            sides = np.array(features.shape[1:-1]) // self.patch_size
            shape = (ops.shape(features)[0], int(np.prod(sides)), LEVELS)
            return Codes(ops.zeros(shape, dtype="int32"))

    return FreeCodes()


def fit_time(trainer, inputs, args):
    """The median time of a step of `fit()` on one batch again and again, in seconds."""
    import keras

    class SameBatch(keras.utils.PyDataset):
        def __len__(self):
            return args.warm_up + args.steps

        def __getitem__(self, index):
            return inputs

    ends = []

    def on_train_batch_end(batch, logs):
        # A number of the step itself must be there before the step is over.
        float(keras.ops.convert_to_numpy(keras.tree.flatten(logs)[0]))
        ends.append(clock_of(args)())

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=on_train_batch_end)
    trainer.fit(SameBatch(), callbacks=[callback], verbose=0)
    return float(np.median(np.diff(ends)[args.warm_up - 1 :]))


def time_ours(args):
    import keras

    from keras_bridle.layers.masks import RandomMask, TubeMask
    from keras_bridle.models.backbone import BridleBackbone
    from keras_bridle.models.heads import CodeDecoder
    from keras_bridle.models.tokenizers import BridleTokenizer
    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
    from keras_bridle.training.optimizers import adamw
    from keras_bridle.training.trainers import EncoderPretrainer

    if args.threads is not None:
        set_threads(args.threads)
    options: dict[str, Any] = {"mask": RandomMask(MASK_RATIO["image"])}
    if args.model == "video":
        # As published: the tokenizer sees the masked patches alone.
        options = {"mask": TubeMask(MASK_RATIO["video"]), "tokenize": "masked"}
    xla = {"jax": True, "tensorflow-xla": True}.get(args.worker, False)
    quantizer = ResidualQuantizer(LEVELS, CODES, dim=CODE_DIM, seed=0)
    backbone, size = sizes_of(args)
    shape = (args.batch_size, *backbone.input_dims)
    inputs = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")

    def step_time(tokenizer, backbone):
        decoder = CodeDecoder(
            LEVELS, CODES, use_class_token=backbone.use_class_token, **size
        )
        trainer = EncoderPretrainer(backbone, decoder, tokenizer, **options)
        trainer.set_trained_parts()
        trainer.compile(adamw(trainer, 1e-4), jit_compile=xla)
        return fit_time(trainer, inputs, args)

    free = free_codes(quantizer)
    free.patch_size = backbone.patch_size
    times = {"step": step_time(free, backbone)}

    own = BridleBackbone.from_config({**backbone.get_config(), "name": "own_encoder"})
    tokenizer = BridleTokenizer(own, quantizer)
    backbone, _ = sizes_of(args)
    times["whole_step"] = step_time(tokenizer, backbone)

    class Tokenization(keras.Model):
        def __init__(self):
            super().__init__(autocast=False)
            self.tokenizer = tokenizer
            self.mask = options["mask"]

        def call(self, inputs):
            features, _ = own.maps(inputs)
            visible = None
            if "tokenize" in options:
                grid = own.grid(features)
                places = np.zeros((args.batch_size, np.prod(grid), 1), "float32")
                visible = self.mask(places, grid=grid).masked
            return self.tokenizer(features, visible=visible).codes

    model = Tokenization()
    model.compile(jit_compile=xla)
    times["tokenizer"] = median_time(lambda: model.predict_on_batch(inputs), args)
    return times


def set_threads(threads):
    import keras

    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
    elif backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)


if __name__ == "__main__":
    main()
