"""A run that one backend stops within an epoch and another one ends.

`main(folder)` trains it on the backend of `KERAS_BACKEND`, to the end in the folder's
`unbroken`, and to its sixth batch in `stopped`.
"""

from pathlib import Path

import keras
import numpy as np
from tiny_pretraining import FixedMask

from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.training.interleaved import InterleavedPretraining


class StopAfter(keras.callbacks.Callback):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch, logs=None):
        self.batches -= 1
        if self.batches == 0:
            raise KeyboardInterrupt


def train(directory, callbacks=()):
    keras.utils.set_random_seed(1)
    pretraining = InterleavedPretraining(
        BridleBackbone(
            patch_size=8,
            hidden_dim=16,
            num_layers=1,
            num_heads=2,
            mlp_dim=32,
            input_dims=(32, 16, 1),
        ),
        num_levels=2,
        codebook_size=8,
        code_dim=4,
        mask=FixedMask(0.5),
        decoder_options={"num_layers": 1, "num_heads": 2, "mlp_dim": 32},
    )
    inputs = np.random.default_rng(2).normal(size=(12, 32, 16, 1)).astype("float32")
    pretraining.fit(
        inputs,
        rounds=0,
        cold_start_epochs=3,
        batch_size=4,
        encoder_learning_rate=1e-3,
        ema_momentum=0.9,
        gradient_accumulation_steps=2,
        directory=directory,
        resume=True,
        checkpoint_every_steps=1,
        tensorboard=False,
        callbacks=callbacks,
        verbose=0,
    )
    return pretraining


def main(folder):
    folder = Path(folder)
    train(folder / "unbroken")
    try:
        train(folder / "stopped", [StopAfter(6)])
    except KeyboardInterrupt:
        return
    raise SystemExit("the run was not stopped")
