"""The models, batches and training runs that the backends are compared on.

`python small_models.py FOLDER` saves them, and what comes out, with the backend of
`KERAS_BACKEND`.
"""

import contextlib
import sys
from pathlib import Path

import keras
import numpy as np
import tiny_pretraining
from keras import ops
from tiny_pretraining import FixedMask

import keras_bridle as kb
from keras_bridle.training.optimizers import adamw

LEVELS, CODES, DIM, CODE_DIM, STEPS = 2, 16, 16, 8, 3
SIZES = {"num_heads": 2, "mlp_dim": 32}


def waveforms():
    """Two clips of noise under a swell, the second one padded."""
    rng = np.random.default_rng(5)
    clips = rng.normal(size=(4, 5360)) * np.linspace(0.02, 0.3, 5360)
    clips[1, 3000:] = 0.0
    return np.clip(clips, -1.0, 1.0).astype("float32")


def backbone(name):
    front_end = kb.LogMelSpectrogram(num_mel_bins=16, name=f"{name}_log_mel")
    return kb.BridleBackbone(
        patch_size=(4, 8),
        hidden_dim=DIM,
        num_layers=2,
        input_dims=(None,),
        front_end=front_end,
        name=name,
        **SIZES,
    )


def quantizer():
    return kb.ResidualQuantizer(LEVELS, CODES, dim=CODE_DIM, decay=0.9, seed=3)


def tokenizer():
    return kb.BridleTokenizer(backbone("own"), quantizer(), name="tokenizer")


def random_projection():
    made = kb.RandomProjectionTokenizer((4, 8), DIM, quantizer(), name="cold")
    made.build((None, None, 16, 1))
    return made


def decoder():
    made = kb.CodeDecoder(LEVELS, CODES, DIM, 1, name="decoder", **SIZES)
    made.build((None, None, DIM))
    return made


def estimator():
    made = kb.FeatureEstimator(DIM, DIM, 1, name="estimator", **SIZES)
    made.build((None, None, CODE_DIM))
    return made


def with_weights(model, seed=0):
    """Draws a model's weights with NumPy: initializers differ between backends."""
    rng = np.random.default_rng(seed)
    for weight in model.trainable_variables:
        scale = (max(weight.shape[:-1]) if len(weight.shape) > 1 else 25) ** -0.5
        noise = rng.normal(size=weight.shape, scale=scale)
        is_gain = weight.name == "gamma"
        weight.assign((is_gain + noise).astype("float32"))
    return model


def encoder_phase():
    return kb.EncoderPretrainer(
        backbone("encoder"), decoder(), random_projection(), FixedMask(0.7)
    )


def tokenizer_phase():
    return kb.TokenizerPretrainer(tokenizer(), estimator(), backbone("teacher"))


def joint():
    return kb.JointPretrainer(
        backbone("encoder"),
        decoder(),
        tokenizer(),
        estimator(),
        tokenizer_every=2,
        mask=FixedMask(0.7),
    )


def pixel_backbone(patch_size, input_dims, **settings):
    return kb.BridleBackbone(
        patch_size=patch_size,
        hidden_dim=DIM,
        num_layers=2,
        input_dims=input_dims,
        front_end=kb.PixelNormalization(0.5, 0.25, name="pixels"),
        name="encoder",
        **settings,
        **SIZES,
    )


# For each modality the classes, an encoder, and settings of the converter.
CLASSIFIERS = {
    "audio": (
        kb.BridleAudioClassifier,
        kb.BridleAudioPreprocessor,
        lambda: backbone("encoder"),
        {"num_samples": 5000},
    ),
    "image": (
        kb.BridleImageClassifier,
        kb.BridleImagePreprocessor,
        lambda: pixel_backbone(4, (16, 12, 3)),
        {},
    ),
    "video": (
        kb.BridleVideoClassifier,
        kb.BridleVideoPreprocessor,
        lambda: pixel_backbone((2, 4, 4), (4, 12, 12, 3), position_layout="sequence"),
        {},
    ),
}


def raw_inputs(modality):
    """What people have: clips of unequal lengths, pixels of unequal sizes."""
    if modality == "audio":
        return [clip[: 4000 + 600 * index] for index, clip in enumerate(waveforms())]
    rng = np.random.default_rng(6)
    frames = {"image": (), "video": (5,)}[modality]
    return [
        rng.integers(0, 256, (*frames, 14 + 4 * index, 20, 3)).astype("uint8")
        for index in range(4)
    ]


def classifier(modality):
    kind, preprocessor, encoder, settings = CLASSIFIERS[modality]
    encoder = encoder()
    made = kind(
        encoder,
        class_names=["low", "middle", "high"],
        preprocessor=preprocessor.for_backbone(encoder, **settings),
        token_mask=FixedMask(0.5),
    )
    return with_weights(made)


def logits(model, modality):
    """What a classifier says about raw inputs, a NumPy array."""
    return model.predict(raw_inputs(modality), verbose=0)


def converted(converter, modality):
    """What a converter makes of raw inputs, a NumPy array."""
    return ops.convert_to_numpy(converter(raw_inputs(modality)))


def tokens(backbone, inputs):
    """What an encoder makes of converted inputs, a NumPy array."""
    return ops.convert_to_numpy(backbone(ops.convert_to_tensor(inputs)))


MODELS = {"encoder": encoder_phase, "tokenizer": tokenizer_phase, "joint": joint}
# With these weights no vector comes close to the border between two codes in any of
# the steps: a code that another rounding turns over is no disagreement of backends.
SEEDS = {"encoder": 5, "tokenizer": 16, "joint": 12}


def made(name):
    return with_weights(MODELS[name](), SEEDS[name])


def outputs(model):
    """What a trainer says about the batch, a dict of NumPy arrays."""
    found = model(ops.convert_to_tensor(waveforms()), training=False)
    return {name: ops.convert_to_numpy(value) for name, value in found.items()}


def trained(name):
    """Losses and weights of a few steps of `fit()`, as a dict of NumPy arrays."""
    model = made(name)
    model.set_trained_parts()
    optimizer = adamw(model, 1e-3, epsilon=1e-6)
    compiled = keras.backend.backend() == "jax"
    model.compile(optimizer, jit_compile=compiled)
    optimizer.build(model.trainable_variables)
    history = model.fit(
        waveforms(), batch_size=4, epochs=STEPS, shuffle=False, verbose=0
    )
    # Not by path, which counts how many layers of a kind were made before.
    weights = {
        f"weight {index:03} {weight.name}": ops.convert_to_numpy(weight)
        for index, weight in enumerate(model.weights)
    }
    return {"losses": np.array(history.history["loss"]), **weights}


class StopAfter(keras.callbacks.Callback):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch, logs=None):
        self.batches -= 1
        if self.batches == 0:
            raise KeyboardInterrupt


def pretrain(directory, callbacks=()):
    """Runs a cold start of nine batches, or resumes it."""
    pretraining = tiny_pretraining.pretraining(mask=FixedMask(0.5))
    pretraining.fit(
        tiny_pretraining.maps(12),
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
    for name in MODELS:
        model = made(name)
        np.savez(folder / f"{name}_outputs.npz", **outputs(model))
        model.save(folder / f"{name}.keras")
        model.save_weights(folder / f"{name}.weights.h5")
        np.savez(folder / f"{name}_trained.npz", **trained(name))
    for modality in CLASSIFIERS:
        model = classifier(modality)
        inputs = converted(model.preprocessor, modality)
        np.savez(
            folder / f"{modality}_outputs.npz",
            logits=logits(model, modality),
            converted=inputs,
            tokens=tokens(model.backbone, inputs),
        )
        model.save_to_preset(str(folder / f"{modality}_classifier"))
    pretrain(folder / "unbroken")
    with contextlib.suppress(KeyboardInterrupt):
        pretrain(folder / "stopped", [StopAfter(6)])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
