"""A whole run of three phases, with a directory, in one process of several.

`python whole_run.py DIRECTORY [TRAINER EVENT]` runs it within `distribute()`, going on
with what is in the directory. With `TRAINER`, the name of a class, the last process
dies or gets SIGTERM in that phase's second epoch, as `EVENT` says.
"""

import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import tiny_pretraining as tiny

import keras_bridle as kb

# More than fill whole batches, in an order that says which is which.
INPUTS = tiny.maps(18) + np.linspace(-1, 1, 18, dtype="float32")[:, None, None, None]


def run(directory, **options):
    """Runs all phases and returns losses and weights."""
    made = tiny.pretraining(
        quantizer_options={"restart_threshold": 0.3},
        augmentation=kb.RandomHorizontalFlip(seed=2),
        mask=kb.RandomMask(0.5, seed=1),
    )
    made.fit(
        INPUTS,
        rounds=1,
        encoder_epochs=2,
        tokenizer_epochs=2,
        cold_start_epochs=2,
        batch_size=8,
        directory=directory,
        tensorboard=False,
        verbose=0,
        **options,
    )
    found = {
        f"loss {name}": np.array(logs["loss"]) for name, logs in made.history.items()
    }
    codes = made.codes(INPUTS, batch_size=6)
    weights = [*made.backbone.weights, *made.tokenizer.weights]
    arrays = [keras.ops.convert_to_numpy(weight) for weight in weights]
    return {**found, "codes": codes} | {f"{i}": x for i, x in enumerate(arrays)}


def die():
    """Ends the process as a failing machine would."""
    os._exit(3)


def terminate():
    """Ends it as a scheduler would."""
    os.kill(os.getpid(), signal.SIGTERM)


class Event(keras.callbacks.Callback):
    """What happens to the process in an epoch of a phase."""

    def __init__(self, trainer_name, happen):
        super().__init__()
        self.trainer_name = trainer_name
        self.happen = happen

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1 and type(self.model).__name__ == self.trainer_name:
            self.happen()


EVENTS = {"die": die, "terminate": terminate}


def main(directory, trainer=None, event=None):
    from keras_bridle.distribution import distribute, is_chief, process_shard

    with distribute():
        part, parts = process_shard()
        is_meant = event is not None and part == parts - 1
        callbacks = [Event(trainer, EVENTS[event])] if is_meant else []
        resume = Path(directory, "settings.json").exists()
        found = run(directory, resume=resume, callbacks=callbacks)
        if is_chief():
            np.savez(Path(directory, "found.npz"), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
