"""Pretrains an audio encoder with BRIDLE on a folder of recordings.

On the sample recordings that come with the package (5 to 8 minutes on 2 CPU cores):

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

from pathlib import Path

import keras
import numpy as np
from rich.console import Console

import keras_bridle as kb
from keras_bridle.data import (
    AudioManifest,
    ReadReport,
    audio_dataset,
    load_sonic_pi,
    load_syllables,
)
from keras_bridle.evaluation import (
    RunReport,
    extract_features,
    linear_probe,
    log_mel_features,
    plot_masked_codes,
)
from keras_bridle.pretraining import command_line

SAMPLE_SETTINGS = {
    "preset": "tiny",
    "rounds": 1,
    "cold_start_epochs": 40,
    "tokenizer_epochs": 15,
    "encoder_epochs": 40,
    "batch_size": 32,
    "encoder_learning_rate": 1e-3,
    "tokenizer_learning_rate": 5e-4,
    "warmup": 0.05,
    "weight_decay": 1e-4,
    "num_levels": 4,
    "codebook_size": 64,
    "code_dim": 64,
    "restart_threshold": 0.1,
    "mask_ratio": 0.75,
    "seconds": 0.44,
    "directory": "runs/audio_sample",
}
PUBLISHED_SETTINGS = {
    "preset": "base",
    "rounds": 2,
    "cold_start_epochs": 140,
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
    parser.add_argument("--seconds", type=float, help="length of the clips")
    parser.add_argument(
        "--layout",
        default="folder",
        choices=("folder", "audioset", "esc50", "speech_commands"),
        help="how --data is laid out; folder: any folder, or a CSV file",
    )
    parser.add_argument(
        "--with-sounds",
        action="store_true",
        help="without --data: pretrain on the sample sounds as well",
    )
    parser.add_argument("--segments", help="AudioSet's CSV file of segments")
    parser.add_argument("--no-roll", action="store_true", help="do not roll waveforms")
    parser.add_argument(
        "--strict", action="store_true", help="stop at unreadable files"
    )
    parser.add_argument("--reader", default="soundfile", help="or tensorflow-io")
    return command_line.parse_pretraining_arguments(parser, arguments)


def main(arguments=None):
    args = parse_arguments(arguments)
    console = Console()
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.dtype_policy)

    read_report = ReadReport()
    if args.data is None:
        inputs, examples, steps = sample_recordings(args)
    else:
        inputs, examples, steps = own_recordings(args, read_report)
    backbone = make_backbone(args, examples)
    pretraining = command_line.pretraining_from_arguments(
        args,
        backbone,
        mask=kb.RandomMask(args.mask_ratio, seed=args.seed),
        augmentation=make_augmentation(args),
    )
    probe = SyllableProbe(args.seconds) if args.data is None else None
    report = RunReport(args.directory, examples, probe, args.resume, console)
    if probe is not None:
        report.add_row("log-mel", probe.of_log_mel(backbone.front_end))
        report.add_backbone("untrained", backbone)

    command_line.fit_from_arguments(
        pretraining,
        args,
        inputs,
        steps_per_epoch=steps,
        on_phase_end=report.on_phase_end,
    )

    backbone.save_to_preset(str(Path(args.directory, "preset")))
    report.finish(pretraining)
    draw_codes(pretraining, examples[0], report.folder / "codes.png")
    if read_report.skipped:
        path = read_report.write(args.directory)
        console.print(f"{len(read_report.skipped)} files could not be read: {path}")
    console.print(f"Everything is in {args.directory}, pictures in {report.folder}")


def sample_recordings(args):
    """Loads the training syllables and, if asked, the sounds that come along."""
    waveforms, _, _ = load_syllables("train", num_samples=num_samples(args.seconds))
    if args.with_sounds:
        # Music and noises take half of the time and teach nothing about syllables.
        waveforms = np.concatenate([waveforms, load_sonic_pi(args.seconds)])
    return waveforms, waveforms, None


def own_recordings(args, read_report):
    """Makes the input pipeline of a folder or CSV file, and reads some examples."""
    manifest = read_manifest(args)

    def batches(epoch, **options):
        return audio_dataset(
            manifest,
            batch_size=args.batch_size,
            seconds=args.seconds,
            labels=False,
            seed=args.seed,
            initial_epoch=epoch,
            strict=args.strict,
            report=read_report,
            reader=args.reader,
            **options,
        )

    examples = np.concatenate([batch.numpy() for batch in batches(0).take(4)])
    steps = len(manifest) // args.batch_size
    return lambda epoch: batches(epoch, shuffle=True, repeat=True), examples, steps


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
    if Path(args.preset).exists():
        return kb.BridleBackbone.from_preset(args.preset)
    log_mel = kb.LogMelSpectrogram(mean=None, std=None)
    values = keras.ops.convert_to_numpy(log_mel(examples))[..., 0]
    values = values[keras.ops.convert_to_numpy(log_mel.padding_mask(examples))]
    return kb.BridleBackbone.from_preset(
        f"bridle_audio_{args.preset}",
        load_weights=False,
        front_end=kb.LogMelSpectrogram(
            mean=float(values.mean()), std=float(values.std()), name="log_mel"
        ),
    )


def make_augmentation(args):
    """Changes loudness and, where clips are cut out of something longer, the start."""
    layers = [kb.RandomWaveformGain(seed=args.seed)]
    # A syllable has an order that rolling would destroy.
    if args.data is not None and not args.no_roll:
        layers.insert(0, kb.RandomWaveformRoll(seed=args.seed))
    return keras.Sequential(layers, name="augmentation")


class SyllableProbe:
    """Linear probes for initials and finals, on syllables that training never saw."""

    def __init__(self, seconds):
        length = num_samples(seconds)
        self.waveforms, self.labels = {}, {}
        for split in ("train", "test"):
            for field in ("initial", "final", "syllable"):
                waveforms, labels, _ = load_syllables(split, field, length)
                self.waveforms[split] = waveforms
                self.labels[split, field] = labels

    def __call__(self, backbone):
        """Probes an encoder, returns accuracies by name."""
        return self._accuracies(
            lambda waveforms: extract_features(backbone, waveforms, batch_size=89)
        )

    def of_log_mel(self, front_end):
        """Probes plain log-mel spectrograms, 64 frames of 16 bins."""
        return self._accuracies(
            lambda waveforms: log_mel_features(front_end, waveforms, "resized")
        )

    def _accuracies(self, features_of):
        features = {
            split: features_of(self.waveforms[split]) for split in self.waveforms
        }
        return {
            field: linear_probe(
                features["train"],
                self.labels["train", field],
                features["test"],
                self.labels["test", field],
                groups=self.labels["train", "syllable"],
            ).accuracy
            for field in ("initial", "final")
        }


def draw_codes(pretraining, waveform, path):
    """Draws a spectrogram, a mask and the codes of each level."""
    backbone = pretraining.backbone
    features, _ = backbone.features(waveform[None])
    spectrogram = keras.ops.convert_to_numpy(features)[0, ..., 0]
    grid = backbone.grid(features)
    # The last row of patches may reach beyond the clip.
    missing = grid[0] * backbone.patch_size[0] - len(spectrogram)
    spectrogram = np.pad(spectrogram, ((0, missing), (0, 0)))
    codes = pretraining.codes(waveform[None])[0]
    patch_mask = pretraining.mask(codes[None], grid=grid)
    plot_masked_codes(
        spectrogram,
        keras.ops.convert_to_numpy(patch_mask.visible)[0],
        codes,
        grid=grid,
        patch_size=backbone.patch_size,
        path=path,
    )


def num_samples(seconds):
    return round(16000 * seconds)


if __name__ == "__main__":
    main()
