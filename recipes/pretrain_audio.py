r"""Pretrains an audio encoder with BRIDLE on a folder of recordings.

On the sample recordings that come with the package (5 minutes on 2 CPU cores):

    KERAS_BACKEND=jax python recipes/pretrain_audio.py

On your own recordings, with an encoder of the published size:

    KERAS_BACKEND=jax python recipes/pretrain_audio.py --data my_recordings/ \
        --preset base --directory runs/mine --dtype-policy mixed_bfloat16

The same command with `--resume` resumes a run that was stopped. A run without `--data`
ends with linear probes: how well one linear layer on the frozen encoder's features
classifies the initials of held-out syllables.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import functools

import numpy as np

import keras_bridle as kb
from keras_bridle.config import AudioReading, Natural, option
from keras_bridle.data import samples
from keras_bridle.evaluation.features import FeatureExtractor, InputFeatures
from keras_bridle.evaluation.probes import linear_probe
from keras_bridle.modalities import AUDIO
from keras_bridle.training.progress import tune_jax
from keras_bridle.workflows import Pretraining, PretrainingOptions

SAMPLE = {
    "preset": "tiny",
    "rounds": 1,
    "cold_start_epochs": 28,
    "tokenizer_epochs": 4,
    "encoder_epochs": 16,
    "batch_size": 32,
    "encoder_learning_rate": 1e-3,
    "codebook_size": 64,
    "code_dim": 64,
    "mask_ratio": 0.5,
    "seconds": 0.36,
    "decoder_dim": 96,
    "decoder_layers": 1,
    "directory": "runs/audio_sample",
}
OWN = {
    "seconds": 10.24,
    "directory": "runs/audio",
}


@dataclasses.dataclass(kw_only=True)
class Options(PretrainingOptions, AudioReading):
    """Options of this recipe."""

    sounds: Natural = option(1, "segments of each sample sound, besides the syllables")
    roll: bool = option(True, "roll waveforms in time")


def main(arguments=None):
    with Pretraining(AUDIO, Options, __doc__, SAMPLE, OWN, arguments) as recipe:
        options = recipe.options
        recipe.load(lambda reading: sample_recordings(reading, options.sounds))
        augmentation = [kb.RandomWaveformGain(seed=options.seed)]
        if options.roll:
            # Rolling further would destroy the order within a syllable.
            factor = 0.05 if options.data is None else 0.5
            augmentation.insert(0, kb.RandomWaveformRoll(factor, seed=options.seed))
        recipe.train(
            recipe.backbone(),
            mask=kb.RandomMask(options.mask_ratio, seed=options.seed),
            augmentation=augmentation,
            probes=syllable_probes,
            title="Linear probes on syllables never heard in training",
        )


def sample_recordings(reading, per_sound):
    """The training syllables, and segments of the sample sounds."""
    waveforms = AUDIO.sample(reading)[0][0]
    if per_sound:
        sounds = samples.load_sonic_pi(reading["seconds"], per_sound=per_sound)
        waveforms = np.concatenate([waveforms, sounds])
    return waveforms, waveforms


def syllable_probes(reading, backbone):
    """Linear probes for initials: eighths of a syllable in order, and their mean."""
    length = AUDIO.input_shape(reading)[0]
    train, labels, _ = samples.load_syllables("train", "initial", length)
    test, test_labels, _ = samples.load_syllables("test", "initial", length)
    syllables = samples.load_syllables("train", "syllable")[1]
    extract = FeatureExtractor(backbone, segments=8)

    def of_encoder():
        in_order = [extract(x, batch_size=89) for x in (train, test)]
        # Segments are equally long, so their mean is the mean of the syllable.
        return probes(in_order, [x.reshape(len(x), 8, -1).mean(1) for x in in_order])

    def of_log_mel():
        in_order = InputFeatures(backbone, shape=(64, 16))
        mean = InputFeatures(backbone)
        return probes([in_order(train), in_order(test)], [mean(train), mean(test)])

    def probes(in_order, mean):
        probe = functools.partial(
            linear_probe,
            groups=syllables,
            regularizations=(1e-3, 1e-2, 1e-1, 1.0),
            folds=3,
        )
        for name, (train, test) in (("in order", in_order), ("mean", mean)):
            yield f"initial, {name}", probe, train, labels, test, test_labels

    return of_encoder, {"log-mel": of_log_mel}


if __name__ == "__main__":
    tune_jax()
    main()
