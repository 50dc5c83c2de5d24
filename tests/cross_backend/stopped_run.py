"""A run that one backend stops within an epoch and another one ends.

`main(folder)` trains it on the backend of `KERAS_BACKEND`, to the end in the folder's
`unbroken`, and to its sixth batch in `stopped`.
"""

from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_bridle.layers import RandomMask
from keras_bridle.models import BridleBackbone
from keras_bridle.pretraining import InterleavedPretraining


@keras.saving.register_keras_serializable(package="keras_bridle_tests")
class OneMask(RandomMask):
    """Draws its noise with NumPy, the same at every call on every backend."""

    def call(self, patches, grid=None):
        # The first rows of a large batch, as TensorFlow does not always know how many.
        noise = np.random.default_rng(0).random((64, patches.shape[1]), "float32")
        noise = ops.convert_to_tensor(noise)[: ops.shape(patches)[0]]
        return super().call(patches, grid, noise=noise)


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
        mask=OneMask(0.5),
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
