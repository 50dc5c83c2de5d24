"""A short audio run, for the kill test to kill: `python short_run.py DIRECTORY`.

All that can be random or kept in a run is on: files that are read and cropped at
random, roll and gain, random masks, dead codes that are re-seated, moving averages of
weights, accumulated gradients.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from pathlib import Path

import keras
import numpy as np

import keras_bridle as kb
from keras_bridle.data.layouts import list_files
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.readers import AudioReader

BATCH_SIZE = 8


def main(recordings, directory, epochs):
    files, reader = list_files("audio", recordings), AudioReader(seconds=0.25)

    def inputs(epoch, first_batch=0):
        return file_dataset(
            files,
            reader,
            batch_size=BATCH_SIZE,
            shuffle=True,
            repeat=True,
            seed=3,
            initial_epoch=epoch,
            first_batch=first_batch,
        )

    keras.utils.set_random_seed(1)
    backbone = kb.BridleBackbone(
        patch_size=(4, 32),
        hidden_dim=32,
        num_layers=2,
        num_heads=2,
        mlp_dim=64,
        input_dims=(None,),
        front_end=kb.LogMelSpectrogram(),
    )
    pretraining = kb.InterleavedPretraining(
        backbone,
        num_levels=2,
        codebook_size=32,
        code_dim=16,
        quantizer_options={"restart_threshold": 0.1},
        keep_cold_start_codes=True,
        mask=kb.RandomMask(0.5, seed=5),
        augmentation=keras.Sequential(
            [kb.RandomWaveformRoll(seed=6), kb.RandomWaveformGain(seed=7)]
        ),
    )
    pretraining.fit(
        inputs,
        rounds=1,
        cold_start_epochs=epochs,
        tokenizer_epochs=epochs,
        encoder_epochs=epochs,
        steps_per_epoch=len(files) // BATCH_SIZE,
        encoder_learning_rate=1e-3,
        tokenizer_learning_rate=1e-3,
        ema_momentum=0.9,
        gradient_accumulation_steps=2,
        directory=directory,
        resume=True,
        checkpoint_every=2,
        checkpoint_every_steps=7,
        tensorboard=False,
        verbose=0,
    )
    # What a run leaves, to be compared with that of another one.
    arrays = {
        f"{name}_{index:03}": np.asarray(weight)
        for name in ("backbone", "decoder", "tokenizer", "estimator")
        for index, weight in enumerate(getattr(pretraining, name).get_weights())
    }
    for phase, history in pretraining.history.items():
        arrays |= {f"{phase}_{name}": np.array(x) for name, x in history.items()}
    np.savez(Path(directory) / "end.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
