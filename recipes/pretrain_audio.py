"""Pretrains an audio encoder with BRIDLE on a folder of recordings.

On the sample recordings that come with the package (5 minutes on 2 CPU cores):

    KERAS_BACKEND=jax python recipes/pretrain_audio.py

On your own, with the published size and schedule:

    KERAS_BACKEND=jax python recipes/pretrain_audio.py --data my_recordings/ \
        --preset base --rounds 2 --directory runs/mine --dtype-policy mixed_bfloat16

A run that was stopped goes on with the same command and `--resume`. Everything it makes
lies in its directory: settings, weights and history of each phase, TensorBoard logs,
pictures, results, and in `preset/` the encoder, ready for
`BridleBackbone.from_preset("runs/mine/preset")`.

Without `--data`, the run ends with a table of linear probes: how well one linear layer
on the frozen encoder's features tells the initials and finals of held-out syllables.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
from threadpoolctl import threadpool_limits

import keras_bridle as kb
from keras_bridle import cli as command_line
from keras_bridle.cli import above_0, whole_number
from keras_bridle.data.layouts import AudioManifest
from keras_bridle.data.pipeline import audio_dataset
from keras_bridle.data.samples import load_sonic_pi, load_syllables
from keras_bridle.evaluation.features import FeatureExtractor, log_mel_features
from keras_bridle.evaluation.probes import linear_probe
from keras_bridle.training.progress import keep_freed_memory

SAMPLE_SETTINGS = {
    "preset": "tiny",
    "rounds": 1,
    "cold_start_epochs": 28,
    "keep_cold_start_codes": True,
    "tokenizer_epochs": 4,
    "encoder_epochs": 16,
    "batch_size": 32,
    "encoder_learning_rate": 1e-3,
    "tokenizer_learning_rate": 2e-4,
    "warmup": 0.05,
    "weight_decay": 1e-4,
    "num_levels": 4,
    "codebook_size": 64,
    "code_dim": 64,
    "restart_threshold": 0.1,
    "mask_ratio": 0.5,
    "seconds": 0.36,
    "decoder_dim": 96,
    "decoder_layers": 1,
    "directory": "runs/audio_sample",
}
PUBLISHED_SETTINGS = {
    "preset": "base",
    "rounds": 2,
    "cold_start_epochs": 140,
    # Not published, and better on the sample data.
    "keep_cold_start_codes": True,
    "tokenizer_epochs": 31,
    "encoder_epochs": 200,
    "batch_size": 64,
    "encoder_learning_rate": 5e-4,
    "tokenizer_learning_rate": 2e-4,
    "warmup": 0.05,
    "weight_decay": 1e-4,
    "num_levels": 4,
    "codebook_size": 256,
    "code_dim": 256,
    "restart_threshold": 0.1,
    "mask_ratio": 0.8,
    "seconds": 10.24,
    "directory": "runs/audio",
}


def parse_arguments(arguments=None):
    parser = command_line.pretraining_parser(
        __doc__, SAMPLE_SETTINGS, PUBLISHED_SETTINGS
    )
    parser.add_argument("--seconds", type=above_0, help="length of the clips")
    parser.add_argument(
        "--layout",
        default="folder",
        choices=("folder", "audioset", "esc50", "speech_commands"),
        help="how --data is laid out; folder: any folder, or a CSV file",
    )
    parser.add_argument(
        "--sounds",
        type=whole_number(0),
        default=1,
        help="without --data: segments of each sample sound to pretrain on as well",
    )
    parser.add_argument("--segments", help="AudioSet's CSV file of segments")
    parser.add_argument("--no-roll", action="store_true", help="do not roll waveforms")
    parser.add_argument("--reader", default="soundfile", help="or tensorflow-io")
    args = command_line.parse_pretraining_arguments(parser, "audio", arguments)
    if args.layout == "audioset" and args.segments is None:
        parser.error("--layout audioset needs --segments, AudioSet's CSV file")
    return args


def main(arguments=None):
    args = parse_arguments(arguments)
    with command_line.Setup(args) as setup:
        data = sample_recordings(args) if args.data is None else own_recordings(args)
        backbone = make_backbone(args, data.examples)
        command_line.pretrain(
            setup,
            backbone,
            data,
            probe=syllable_probes(args, backbone) if args.data is None else None,
            mask=kb.RandomMask(args.mask_ratio, seed=args.seed),
            augmentation=make_augmentation(args),
        )


def sample_recordings(args):
    """Loads the training syllables, and segments of the sample sounds."""
    if args.sample_rate != 16000:
        raise ValueError(
            f"--preset {args.preset} needs --data: it is for {args.sample_rate} "
            "samples a second, and sample recordings have 16000"
        )
    waveforms, _, _ = load_syllables("train", num_samples=num_samples(args.seconds))
    if args.sounds:
        sounds = load_sonic_pi(args.seconds, per_sound=args.sounds)
        waveforms = np.concatenate([waveforms, sounds])
    return command_line.RecipeData(waveforms, waveforms)


def own_recordings(args):
    """Makes the input pipeline of a folder or CSV file, and reads some examples."""
    make_dataset = functools.partial(
        audio_dataset,
        seconds=args.seconds,
        sample_rate=args.sample_rate,
        reader=args.reader,
    )
    return command_line.data_from_files(args, read_manifest(args), make_dataset)


def read_manifest(args):
    """Lists the recordings of `--data`, laid out as `--layout` says."""
    if args.layout == "audioset":
        return AudioManifest.from_audioset(args.segments, args.data)
    if args.layout == "esc50":
        return AudioManifest.from_esc50(args.data)
    if args.layout == "speech_commands":
        return AudioManifest.from_speech_commands(args.data, split="train")
    if Path(args.data).suffix == ".csv":
        return AudioManifest.from_csv(args.data)
    return AudioManifest.from_folder(args.data)


def make_backbone(args, examples):
    """Builds the encoder, its log-mel normalized by the statistics of examples."""
    return command_line.make_backbone(
        args,
        "audio",
        examples,
        functools.partial(kb.LogMelSpectrogram.for_data, name="log_mel"),
    )


def make_augmentation(args):
    """Changes loudness and the start: where clips are cut out of longer ones, any."""
    layers = [kb.RandomWaveformGain(seed=args.seed)]
    if not args.no_roll:
        # A syllable has an order, which rolling further would destroy.
        factor = 0.05 if args.data is None else 0.5
        layers.insert(0, kb.RandomWaveformRoll(factor, seed=args.seed))
    return keras.Sequential(layers, name="augmentation")


def syllable_probes(args, backbone):
    """Probes of the encoder, and of the spectrograms it starts from."""
    probe = SyllableProbe(args.seconds)
    return command_line.RecipeProbe(
        "Linear probes on syllables never heard in training",
        probe,
        {"log-mel": lambda: probe.of_log_mel(backbone.front_end)},
    )


class SyllableProbe:
    """Linear probes for initials and finals, on syllables that training never saw.

    A syllable has an order, so the probe sees eighths of it one after the other, and,
    for comparison, its mean over time.
    """

    segments = 8
    regularizations = (1e-3, 1e-2, 1e-1, 1.0)

    def __init__(self, seconds):
        # Compiled once for all phases.
        self.extractor_of = functools.cache(
            functools.partial(FeatureExtractor, segments=self.segments)
        )
        length = num_samples(seconds)
        self.waveforms, self.labels = {}, {}
        for split in ("train", "test"):
            for field in ("initial", "final", "syllable"):
                waveforms, labels, _ = load_syllables(split, field, length)
                self.waveforms[split] = waveforms
                self.labels[split, field] = labels

    def __call__(self, backbone):
        """Probes an encoder, returns accuracies by name."""
        extract = self.extractor_of(backbone)
        in_order = {
            split: extract(waveforms, batch_size=89)
            for split, waveforms in self.waveforms.items()
        }
        # The segments are equally long, so that their mean is that of the syllable.
        mean = {
            split: features.reshape(len(features), self.segments, -1).mean(axis=1)
            for split, features in in_order.items()
        }
        return self._accuracies(in_order, mean)

    def of_log_mel(self, front_end):
        """Probes plain log-mel spectrograms.

        In order, they are 64 frames of 16 bins, stretched to a common length: as many
        numbers as an encoder gives, and as little about the length.
        """

        def features_of(mode):
            return {
                split: log_mel_features(
                    front_end,
                    waveforms,
                    mode,
                    keras.ops.convert_to_numpy(front_end.padding_mask(waveforms)).sum(
                        axis=1
                    ),
                )
                for split, waveforms in self.waveforms.items()
            }

        return self._accuracies(features_of("resized"), features_of("statistics"))

    def _accuracies(self, in_order, mean):
        probes = {
            field + suffix: (features, field)
            for suffix, features in (("", in_order), (", mean", mean))
            for field in ("initial", "final")
        }
        # Two at a time, each of which has one thread.
        with threadpool_limits(1), ThreadPoolExecutor(2) as pool:
            found = pool.map(lambda probe: self._accuracy(*probe), probes.values())
            return dict(zip(probes, found, strict=True))

    def _accuracy(self, features, field):
        return linear_probe(
            features["train"],
            self.labels["train", field],
            features["test"],
            self.labels["test", field],
            groups=self.labels["train", "syllable"],
            regularizations=self.regularizations,
            folds=3,
        ).accuracy


def num_samples(seconds):
    return round(16000 * seconds)


if __name__ == "__main__":
    keep_freed_memory()
    main()
