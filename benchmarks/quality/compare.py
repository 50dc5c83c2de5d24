"""Compares ways to pretrain, at one budget, by what linear probes find in the features.

    KERAS_BACKEND=jax python benchmarks/quality/compare.py audio objectives --jobs 2
    KERAS_BACKEND=jax python benchmarks/quality/compare.py image levels --jobs 2
    KERAS_BACKEND=jax python benchmarks/quality/compare.py video settings --jobs 2

Every way of BRIDLE trains the encoder for as many steps, with the same examples,
encoder, decoder, mask and augmentation; only what its name says differs. What has no
tokenizer to train, masked regression and the cold start alone, trains the encoder in
its epochs, too, and supervised training has as many steps. Each of the seeds draws
weights, masks and order anew. Ways that begin with the same cold start share it, which
changes nothing but their minutes. Results go to one JSON file a run, beside the
encoder's weights, and a run that is there is not repeated, so that a stopped comparison
resumes. `--jobs 2` runs two ways at a time, each with one thread. `--ways` runs others
than those of a table, `--budget 2` trains twice as long, `--normalize input` brings
vectors to unit length once and not the residuals of each level, and `--development`
takes other data than the samples (see `development_sets.py`).

Ways: the untrained encoder; supervised from scratch, the whole network trained with the
labels that the probes have, for as many steps; BRIDLE with 1, 2, 4 and 8 levels,
without k-means, without restarts, with the cold start's codes given up, from a cold
start on centered patches and on patches as they are, with a lower learning rate in the
last phase, in two rounds of half the epochs, jointly; the cold start alone for all
epochs; regression of masked patches (MAE). `tables.py` prints what was found, the
modalities side by side.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from cold_starts import InterleavedFromKeptColdStart
from development_sets import other_clothes, other_pans, other_speaker
from masked_regression import MaskedRegression

import keras_bridle as kb
from keras_bridle.data.samples import load_fashion, load_syllables, synthetic_pans
from keras_bridle.evaluation.features import FeatureExtractor
from keras_bridle.evaluation.probes import linear_probe
from keras_bridle.models.presets import decoder_size
from keras_bridle.training.examples import ArrayExamples, draw_few
from keras_bridle.training.fine_tune import FineTuner, fine_tune
from keras_bridle.training.optimizers import adamw, warmup_cosine
from keras_bridle.training.progress import tune_jax

DECODER = {"hidden_dim": 96, "num_layers": 1, "num_heads": 3, "mlp_dim": 384}


# A decade apart: what lies between the best two is met by their mean.
probe_linearly = functools.partial(linear_probe, regularizations=(1e-2, 1e-1, 1.0))


class Syllables:
    """Mandarin syllables; probed for their initials, in order of time."""

    classifier_class = kb.BridleAudioClassifier
    epochs = {"cold_start": 14, "tokenizer": 2, "encoder": 8}
    batch_size = 8
    centered = False

    def __init__(self, development=None):
        if development is None:
            self.train = load_syllables("train", "initial", 5760)[:2]
            self.test = load_syllables("test", "initial", 5760)[:2]
            self.mean, self.std = -6.8, 5.2
        else:
            self.train, self.test = other_speaker(development, 5760)
            fitted = kb.LogMelSpectrogram.for_data(self.train[0])
            self.mean, self.std = fitted.mean, fitted.std
        self.inputs = self.train[0]

    def backbone(self):
        front_end = kb.LogMelSpectrogram(mean=self.mean, std=self.std, name="log_mel")
        return kb.BridleBackbone.from_preset(
            "bridle_audio_tiny", load_weights=False, front_end=front_end
        )

    def mask(self, seed):
        return kb.RandomMask(0.5, seed=seed)

    def augmentation(self, seed):
        return kb.RandomWaveformGain(seed=seed)

    def labeled(self, seed):
        return {"initials, mean": self.train}

    def probe(self, backbone):
        sets = [
            (FeatureExtractor(backbone, segments=8)(waveforms), labels)
            for waveforms, labels in (self.train, self.test)
        ]
        mean = [
            (features.reshape(len(features), 8, -1).mean(axis=1), labels)
            for features, labels in sets
        ]
        return {
            "initials, in order": probe_linearly(*sets[0], *sets[1]).accuracy,
            "initials, mean": probe_linearly(*mean[0], *mean[1]).accuracy,
        }


class Clothes:
    """Fashion-MNIST; probed with few labels of each class."""

    classifier_class = kb.BridleImageClassifier
    epochs = {"cold_start": 5, "tokenizer": 2, "encoder": 4}
    batch_size = 32
    centered = True

    def __init__(self, development=None):
        if development is None:
            self.train, self.test = load_fashion("train")[:2], load_fashion("test")[:2]
        else:
            self.train, self.test = other_clothes(development, 8000)
        self.inputs = self.train[0]

    def backbone(self):
        return kb.BridleBackbone.from_preset(
            "bridle_image_tiny",
            load_weights=False,
            input_dims=(28, 28, 1),
            patch_size=(7, 7),
            front_end=kb.PixelNormalization(0.286, 0.353, name="pixel_normalization"),
        )

    def mask(self, seed):
        return kb.RandomMask(0.5, seed=seed)

    def augmentation(self, seed):
        crop = kb.RandomResizedCrop(28, scale=(0.9, 1.0), seed=seed)
        return keras.Sequential([crop, kb.RandomHorizontalFlip(seed=seed)])

    def labeled(self, seed):
        images, labels = self.train
        found = {}
        for per_class in (20, 100):
            rows = draw_few(labels, per_class, seed=seed)
            found[f"{per_class} labels a class"] = images[rows], labels[rows]
        return found

    def probe(self, backbone):
        test = FeatureExtractor(backbone)(self.test[0])
        scores = {}
        for draw in range(3):
            for name, (images, labels) in self.labeled(draw).items():
                train = FeatureExtractor(backbone)(images)
                probe = probe_linearly(train, labels, test, self.test[1])
                scores.setdefault(name, []).append(probe.accuracy)
        return {name: float(np.mean(values)) for name, values in scores.items()}


class Pans:
    """Camera pans over two videos, which are synthetic; probed for their direction."""

    classifier_class = kb.BridleVideoClassifier
    epochs = {"cold_start": 5, "tokenizer": 2, "encoder": 4}
    batch_size = 4
    centered = True

    def __init__(self, development=None):
        pans = synthetic_pans
        if development is not None:
            pans = functools.partial(other_pans, development)
        self.train, self.test = pans("train", 800)[:2], pans("test", 400)[:2]
        self.inputs = self.train[0]

    def backbone(self):
        return kb.BridleBackbone.from_preset(
            "bridle_video_tiny", load_weights=False, input_dims=(8, 64, 64, 3)
        )

    def mask(self, seed):
        return kb.TubeMask(0.75, seed=seed)

    def augmentation(self, seed):
        return None

    def labeled(self, seed):
        return {"direction": self.train}

    def probe(self, backbone):
        sets = [(FeatureExtractor(backbone)(x), y) for x, y in (self.train, self.test)]
        return {"direction": probe_linearly(*sets[0], *sets[1]).accuracy}


DATA = {"audio": Syllables, "image": Clothes, "video": Pans}


def rq(
    levels=4,
    codes=256,
    joint=False,
    rounds=1,
    adapt_batches=25,
    centered=None,
    keep=True,
    encoder_learning_rate=1e-3,
    **quantizer,
):
    """A way: BRIDLE with these settings."""

    def pretrain(data, backbone, seed):
        epochs = data.epochs
        pretraining = interleaved(
            data, backbone, seed, levels, codes, quantizer, centered, keep
        )
        pretraining.fit(
            data.inputs,
            rounds=rounds,
            joint=joint,
            cold_start_epochs=epochs["cold_start"],
            tokenizer_epochs=epochs["tokenizer"] // rounds,
            encoder_epochs=epochs["encoder"] // rounds,
            batch_size=data.batch_size,
            cold_start_learning_rate=1e-3,
            encoder_learning_rate=encoder_learning_rate,
            tokenizer_learning_rate=2e-4,
            adapt_batches=adapt_batches,
            cache_codes=data.augmentation(seed) is None,
            verbose=0,
        )
        last = list(pretraining.history.values())[-1]
        usage = [values[-1] for name, values in last.items() if "usage_" in name]
        return {"least usage": min(usage)}

    return pretrain


def interleaved(
    data,
    backbone,
    seed,
    levels=4,
    codes=256,
    quantizer=(),
    centered=None,
    keep=True,
):
    """The networks and settings of one way to pretrain by BRIDLE."""
    return InterleavedFromKeptColdStart(
        backbone,
        num_levels=levels,
        codebook_size=codes,
        code_dim=64,
        quantizer_options={
            "normalize": data.normalize,
            "restart_threshold": 0.1,
            **dict(quantizer),
        },
        mask=data.mask(seed),
        augmentation=data.augmentation(seed),
        decoder_options=DECODER,
        cold_start_centered=data.centered if centered is None else centered,
        keep_cold_start_codes=keep,
        seed=seed,
        cold_starts=data.cold_starts,
    )


def cold_start_alone(levels=4, codes=256):
    """A way: the codes of the random projection from the first step to the last."""

    def pretrain(data, backbone, seed):
        pretraining = interleaved(data, backbone, seed, levels, codes)
        pretraining.fit(
            data.inputs,
            rounds=0,
            cold_start_epochs=sum(data.epochs.values()),
            encoder_epochs=1,
            batch_size=data.batch_size,
            encoder_learning_rate=1e-3,
            adapt_batches=25,
            cache_codes=data.augmentation(seed) is None,
            verbose=0,
        )
        return {}

    return pretrain


def masked_regression(data, backbone, seed):
    """A way: values of masked patches, for all epochs, the tokenizer's included."""
    trainer = MaskedRegression(
        backbone,
        {**decoder_size(backbone), **DECODER},
        data.mask(seed),
        data.augmentation(seed),
    )
    epochs = sum(data.epochs.values())
    steps = epochs * -(-len(data.inputs) // data.batch_size)
    trainer.compile(adamw(trainer, warmup_cosine(1e-3, steps, steps // 20)))
    trainer.fit(data.inputs, batch_size=data.batch_size, epochs=epochs, verbose=0)
    return {}


def supervised(data, backbone, seed):
    """A way: no pretraining, but all steps with the labels that the probes have."""
    steps = sum(data.epochs.values()) * -(-len(data.inputs) // data.batch_size)
    untrained, found = backbone.get_weights(), {}
    for name, (inputs, labels) in data.labeled(seed).items():
        backbone.set_weights(untrained)
        tuner = FineTuner(
            data.classifier_class(backbone, num_classes=int(labels.max()) + 1),
            data.augmentation(seed),
        )
        # What does not fill a batch is left out of an epoch.
        epochs = max(1, round(steps / (len(inputs) // data.batch_size)))
        fine_tune(
            tuner,
            ArrayExamples(inputs, labels),
            epochs=epochs,
            batch_size=data.batch_size,
            learning_rate=1e-3,
            warmup_epochs=epochs / 20,
            layer_decay=1.0,
            seed=seed,
            verbose=0,
        )
        logits = tuner.classifier.predict(data.test[0], verbose=0)
        found[name] = float(np.mean(logits.argmax(axis=-1) == data.test[1]))
    return found


WAYS = {
    "untrained": lambda data, backbone, seed: {},
    "supervised": supervised,
    "masked regression": masked_regression,
    "cold start alone": cold_start_alone(),
    "cold start alone, VQ": cold_start_alone(1, 1024),
    "VQ 1 x 1024": rq(1, 1024),
    "RQ 1 x 256": rq(1),
    "RQ 2 x 256": rq(2),
    "RQ 4 x 256": rq(),
    "RQ 8 x 256": rq(8),
    "RQ 4 x 64": rq(4, 64),
    "no k-means": rq(adapt_batches=0),
    "no restarts": rq(restart_threshold=None),
    "new codes alone": rq(keep=False),
    "centered patches": rq(centered=True),
    "patches as they are": rq(centered=False),
    "lower rate at the end": rq(encoder_learning_rate=3e-4),
    "two rounds": rq(rounds=2),
    "joint": rq(joint=True),
}
# Those that predict no codes.
WITHOUT_QUANTIZER = ("untrained", "supervised", "masked regression")
TABLES = {
    "objectives": [
        "untrained",
        "supervised",
        "masked regression",
        "cold start alone",
        "cold start alone, VQ",
        "VQ 1 x 1024",
        "RQ 4 x 256",
    ],
    "levels": [
        "RQ 1 x 256",
        "RQ 2 x 256",
        "RQ 4 x 256",
        "RQ 8 x 256",
        "RQ 4 x 64",
        "VQ 1 x 1024",
    ],
    "settings": [
        "RQ 4 x 256",
        "new codes alone",
        "no k-means",
        "no restarts",
        "two rounds",
        "joint",
    ],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modality", choices=DATA)
    parser.add_argument("table", nargs="?", choices=TABLES, default="objectives")
    parser.add_argument("--ways", nargs="+", choices=WAYS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--budget", type=int, default=1, help="times the epochs")
    parser.add_argument("--normalize", choices=("level", "input"), default="level")
    parser.add_argument("--directory", default="runs/quality")
    parser.add_argument("--development", metavar="FOLDER", help="of other data")
    args = parser.parse_args()
    args.ways = args.ways or TABLES[args.table]
    paths = {
        (way, seed): result_path(args, way, seed)
        for seed in args.seeds
        for way in args.ways
    }
    missing = {
        way: [seed for seed in args.seeds if not paths[way, seed].exists()]
        for way in args.ways
    }
    missing = {way: seeds for way, seeds in missing.items() if seeds}
    if args.jobs > 1:
        run_side_by_side(args, missing)
    elif missing:
        tune_jax()
        data = DATA[args.modality](args.development)
        data.epochs = {k: args.budget * count for k, count in data.epochs.items()}
        kind = "other_cold_starts" if args.development else "cold_starts"
        data.cold_starts = Path(args.directory, kind)
        data.normalize = args.normalize
        for way, seeds in missing.items():
            for seed in seeds:
                path = paths[way, seed]
                path.parent.mkdir(parents=True, exist_ok=True)
                result = run(data, WAYS[way], seed, path.with_suffix(".weights.h5"))
                path.write_text(json.dumps(result) + "\n")
                print(way, seed, result, flush=True)
    found = {
        way: [json.loads(paths[way, seed].read_text()) for seed in args.seeds]
        for way in args.ways
    }
    print_table(found, len(args.seeds))


def result_path(args, way, seed):
    backend, name = keras.backend.backend(), re.sub(r"\W+", "_", way)
    if args.normalize == "input" and way not in WITHOUT_QUANTIZER:
        name += "_input"
    data = f"other_{args.modality}" if args.development else args.modality
    if args.budget != 1:
        data += f"_{args.budget}_times"
    return Path(args.directory, f"{data}_{backend}_{name}_{seed}.json")


def run_side_by_side(args, missing):
    """Runs each way in a process of its own, some at a time."""
    directory = Path(args.directory)
    alone = {
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        # Seeds differ in numbers, not in what is compiled.
        "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }

    def run_one(way):
        seeds = [str(seed) for seed in missing[way]]
        command = [sys.executable, __file__, args.modality, "--ways", way]
        command += ["--directory", args.directory, "--seeds", *seeds]
        command += ["--budget", str(args.budget), "--normalize", args.normalize]
        if args.development:
            command += ["--development", args.development]
        with (directory / "log.txt").open("a") as log:
            subprocess.run(command, check=True, env=os.environ | alone, stdout=log)
        for seed in missing[way]:
            found = result_path(args, way, seed).read_text().strip()
            print(way, seed, found, flush=True)

    directory.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run_one, missing))


def run(data, pretrain, seed, path):
    """Pretrains in one way with one seed, returns probes and minutes."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    backbone = data.backbone()
    start = time.perf_counter()
    extra = pretrain(data, backbone, seed)
    minutes = (time.perf_counter() - start) / 60
    backbone.save_weights(path)
    # What training with labels reached stands in the place of a probe.
    probes = {} if pretrain is supervised else data.probe(backbone)
    return {**probes, **extra, "minutes": round(minutes, 2)}


def print_table(found, seeds):
    """Prints mean and standard deviation over the seeds, in percent."""
    names = {name: None for results in found.values() for name in results[0]}
    last = ("least usage", "minutes")
    columns = [*(name for name in names if name not in last), *last]
    print(f"\n| {seeds} seeds | {' | '.join(columns)} |")
    print("|---" * (1 + len(columns)) + "|")
    for way, results in found.items():
        cells = []
        for column in columns:
            values = np.array([r[column] for r in results if column in r])
            factor = 1 if column == "minutes" else 100
            if not len(values):
                cells.append("")
            elif len(values) == 1 or column == "minutes":
                cells.append(f"{factor * values.mean():.1f}")
            else:
                cells.append(
                    f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}"
                )
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
