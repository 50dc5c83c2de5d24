"""What it saves to compute a frozen tokenizer's codes once.

    KERAS_BACKEND=jax python benchmarks/code_cache.py --preset tiny

An encoder phase on waveforms in memory, with a tokenizer as large as the encoder, is
trained as it is and with its codes computed before. Seconds of a step are those of the
fastest epoch; the time that the codes take at the start of the phase is listed apart.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_bridle as kb
from keras_bridle.models.feature_extractor import FeatureModel
from keras_bridle.models.heads import CodeDecoder
from keras_bridle.models.presets import decoder_size
from keras_bridle.training.batches import ArrayBatches
from keras_bridle.training.optimizers import adamw
from keras_bridle.training.run import cached_codes


class EpochTimes(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._start)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", default="tiny", help="tiny, small, base or large")
    add("--batch-size", type=int, default=8)
    add("--seconds", type=float, default=2.56, help="of audio in an example")
    add("--examples", type=int, default=64)
    add("--epochs", type=int, default=4)
    return parser.parse_args()


def trained(args, waveforms, is_cached):
    """Trains, and returns losses, seconds of a step, and seconds before the first."""
    keras.utils.set_random_seed(0)

    def encoder(name):
        return kb.BridleBackbone.from_preset(
            f"bridle_audio_{args.preset}", load_weights=False, name=name
        )

    backbone = encoder("encoder")
    quantizer = kb.ResidualQuantizer(4, 256, dim=256, seed=0)
    tokenizer = kb.BridleTokenizer(encoder("tokenizer_encoder"), quantizer)
    decoder = CodeDecoder(4, 256, **decoder_size(backbone))
    trainer = kb.EncoderPretrainer(
        backbone, decoder, tokenizer, mask=kb.RandomMask(0.8, seed=1)
    )
    trainer.set_trained_parts()
    trainer.compile(adamw(trainer, 1e-4))
    codes, start = None, time.perf_counter()
    if is_cached:
        model = FeatureModel(backbone, tokenizer, ("codes",))
        codes = cached_codes(
            lambda batch: model.predict_on_batch(batch)["codes"],
            [tokenizer],
            waveforms,
            args.batch_size,
        )
    before = time.perf_counter() - start
    times = EpochTimes()
    batches = ArrayBatches(waveforms, args.batch_size, seed=0, codes=codes)
    losses = trainer.fit(
        batches, epochs=args.epochs, callbacks=[times], shuffle=False, verbose=0
    ).history["loss"]
    return losses, min(times.seconds) / len(batches), before


def main():
    args = parse_arguments()
    shape = (args.examples, round(16000 * args.seconds))
    waveforms = np.random.default_rng(0).normal(0, 0.1, shape).astype("float32")
    plain, plain_step, _ = trained(args, waveforms, is_cached=False)
    cached, cached_step, before = trained(args, waveforms, is_cached=True)
    print(
        "| backend | preset | batch | ms/step | with codes | times | codes, s | loss |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {keras.backend.backend()} | {args.preset} | {args.batch_size} "
        f"| {1000 * plain_step:.0f} | {1000 * cached_step:.0f} "
        f"| {plain_step / cached_step:.2f} | {before:.1f} "
        f"| {'the same' if plain == cached else f'{plain} / {cached}'} |"
    )


if __name__ == "__main__":
    main()
