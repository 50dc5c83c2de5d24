"""Some steps of each phase: `python training_steps.py FOLDER MODEL_DEVICES PHASE...`.

The chief saves losses, metrics and weights. Imported, it is what one device comes to.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tiny_pretraining as tiny

import keras_bridle as kb
from keras_bridle.distribution import (
    broadcast_variables,
    distribute,
    is_chief,
    process_shard,
)
from keras_bridle.training.batches import ArrayBatches
from keras_bridle.training.checkpoint import skipping
from keras_bridle.training.optimizers import adamw

BATCH, STEPS = 8, 3
TRAINERS = {
    "encoder": tiny.encoder_pretrainer,
    "tokenizer": tiny.tokenizer_pretrainer,
    "joint": tiny.joint_pretrainer,
}


def inputs():
    """Maps of which some are half padding, unevenly spread over halves of batches."""
    found = tiny.maps(BATCH * STEPS)
    found[1:4, 16:] = found[::5, 16:] = 2 * tiny.PADDING
    # One step of each epoch is skipped.
    found[6] = np.nan
    return found


def trained(phase, is_divided=False):
    """Losses, metrics and weights of two epochs of `fit()`."""
    keras.utils.set_random_seed(1)
    settings = {} if phase == "tokenizer" else {"mask": kb.RandomMask(0.6, seed=2)}
    model = TRAINERS[phase](
        front_end=tiny.PaddedMap(),
        augmentation=keras.Sequential(
            [kb.RandomHorizontalFlip(seed=4), kb.SpecAugment(4, 4, seed=5)]
        ),
        # Codes that restart at nearly every step.
        decay=0.5,
        restart_threshold=0.5,
        **settings,
    )
    model.set_trained_parts()
    broadcast_variables(model.variables)
    # Gradients that are nothing but rounding errors must not become steps.
    optimizer = adamw(model, 1e-3, epsilon=1e-4, global_clipnorm=0.5)
    model.compile(skipping(optimizer))
    model.optimizer.build(model.trainable_variables)
    model.skip_nonfinite_steps()
    batches = ArrayBatches(inputs(), BATCH, seed=3, shard=process_shard())
    history = model.fit(batches, epochs=2, shuffle=False, verbose=0).history
    if is_divided:
        kernels = (x for x in model.weights if x.path.endswith("mlp_output/kernel"))
        assert not next(kernels).value.sharding.is_fully_replicated
    found = {f"log {name}": np.array(values) for name, values in history.items()}
    for index, weight in enumerate(model.weights):
        found[f"{index:03} {weight.path}"] = keras.ops.convert_to_numpy(weight)
    return found


def main(folder, model_devices, *phases):
    with distribute(int(model_devices)):
        for phase in phases:
            found = trained(phase, is_divided=int(model_devices) > 1)
            if is_chief():
                np.savez(Path(folder, f"{phase}.npz"), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
