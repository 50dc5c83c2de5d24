"""Some steps of each phase, on the devices that the environment names.

`python training_steps.py FOLDER MODEL_DEVICES PHASE...` trains within
`distribute(MODEL_DEVICES)`; the chief saves losses, metrics and weights. Imported, it
is what one device is to come to.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np

DEVICES = int(os.environ.get("KERAS_BRIDLE_DEVICES", "1"))
BATCH, STEPS = 8, 3
SIZES = {"num_heads": 2, "mlp_dim": 32}


def use_virtual_devices():
    """Gives TensorFlow several CPUs; JAX takes them from XLA_FLAGS."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES
        )


def waveforms():
    """Clips of noise, some of them half padding, and not evenly spread."""
    rng = np.random.default_rng(5)
    clips = rng.normal(size=(BATCH * STEPS, 3000)) * np.linspace(0.02, 0.3, 3000)
    clips[::5, 1500:] = 0.0
    clips[1:4, 1800:] = 0.0
    return np.clip(clips, -1.0, 1.0).astype("float32")


def small_parts():
    from keras_bridle.layers.log_mel import LogMelSpectrogram
    from keras_bridle.models.backbone import BridleBackbone
    from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
    from keras_bridle.models.tokenizers import (
        BridleTokenizer,
        RandomProjectionTokenizer,
    )
    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer

    def backbone(name):
        return BridleBackbone(
            patch_size=(4, 8),
            hidden_dim=16,
            num_layers=1,
            input_dims=(None,),
            front_end=LogMelSpectrogram(
                num_mel_bins=16, mean=2.0, std=3.0, name=f"{name}_log_mel"
            ),
            name=name,
            **SIZES,
        )

    def quantizer():
        # Codes that restart at nearly every step.
        return ResidualQuantizer(2, 16, dim=8, decay=0.5, restart_threshold=0.5, seed=3)

    cold = RandomProjectionTokenizer((4, 8), 16, quantizer(), name="cold")
    cold.build((None, None, 16, 1))
    decoder = CodeDecoder(2, 16, 16, 1, name="decoder", **SIZES)
    decoder.build((None, None, 16))
    estimator = FeatureEstimator(16, 16, 1, name="estimator", **SIZES)
    estimator.build((None, None, 8))
    return {
        "backbone": backbone("encoder"),
        "cold": cold,
        "decoder": decoder,
        "tokenizer": BridleTokenizer(backbone("own"), quantizer(), name="tokenizer"),
        "estimator": estimator,
        "teacher": backbone("teacher"),
    }


def trainers():
    """Makes the trainer of each phase, with real masks and augmentation."""
    import keras_bridle as kb

    def augmentation():
        return keras.Sequential(
            [kb.RandomWaveformRoll(seed=4), kb.RandomWaveformGain(seed=5)]
        )

    def encoder():
        parts = small_parts()
        return kb.EncoderPretrainer(
            parts["backbone"],
            parts["decoder"],
            parts["cold"],
            mask=kb.RandomMask(0.6, seed=2),
            augmentation=augmentation(),
        )

    def tokenizer():
        parts = small_parts()
        return kb.TokenizerPretrainer(
            parts["tokenizer"], parts["estimator"], parts["teacher"], augmentation()
        )

    def joint():
        parts = small_parts()
        return kb.JointPretrainer(
            parts["backbone"],
            parts["decoder"],
            parts["tokenizer"],
            parts["estimator"],
            tokenizer_every=2,
            mask=kb.RandomMask(0.6, seed=2),
            augmentation=augmentation(),
        )

    return {"encoder": encoder, "tokenizer": tokenizer, "joint": joint}


def trained(make, is_divided=False):
    """Losses, metrics and weights of a few steps of `fit()`."""
    from keras_bridle.distribution import broadcast_variables, process_shard
    from keras_bridle.training.batches import ArrayBatches
    from keras_bridle.training.optimizers import adamw

    keras.utils.set_random_seed(1)
    model = make()
    model.set_trained_parts()
    vectors = np.random.default_rng(5).normal(size=(256, 8)).astype("float32")
    model.tokenizer.quantizer.adapt(vectors)
    broadcast_variables(model.variables)
    # Gradients that are nothing but rounding errors must not become steps.
    model.compile(adamw(model, 1e-3, epsilon=1e-4, global_clipnorm=0.5))
    batches = ArrayBatches(waveforms(), BATCH, seed=3, shard=process_shard())
    history = model.fit(batches, epochs=2, shuffle=False, verbose=0).history
    if is_divided:
        kernels = (x for x in model.weights if x.path.endswith("mlp_output/kernel"))
        assert not next(kernels).value.sharding.is_fully_replicated
    found = {f"log {name}": np.array(values) for name, values in history.items()}
    for index, weight in enumerate(model.weights):
        found[f"{index:03} {weight.path}"] = keras.ops.convert_to_numpy(weight)
    return found


def main(folder, model_devices, *names):
    use_virtual_devices()
    from keras_bridle.distribution import distribute, is_chief

    with distribute(int(model_devices)):
        for name in names:
            found = trained(trainers()[name], is_divided=int(model_devices) > 1)
            if is_chief():
                np.savez(Path(folder, f"{name}_{model_devices}.npz"), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
