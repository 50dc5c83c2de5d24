"""The models, batches and training runs that the backends are compared on.

`python small_models.py FOLDER` saves them, and what comes out, with the backend of
`KERAS_BACKEND`.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.layers.masks import RandomMask
from keras_bridle.layers.pixels import PixelNormalization
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import (
    BridleAudioClassifier,
    BridleImageClassifier,
    BridleVideoClassifier,
)
from keras_bridle.models.converters import (
    BridleAudioPreprocessor,
    BridleImagePreprocessor,
    BridleVideoPreprocessor,
)
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
from keras_bridle.training.optimizers import adamw
from keras_bridle.training.trainers import (
    EncoderPretrainer,
    JointPretrainer,
    TokenizerPretrainer,
)

LEVELS, CODES, DIM, CODE_DIM, STEPS = 2, 16, 16, 8, 3
SIZES = {"num_heads": 2, "mlp_dim": 32}


@keras.saving.register_keras_serializable(package="keras_bridle_tests")
class SameMask(RandomMask):
    """Draws its noise with NumPy, so that every backend hides the same patches."""

    def call(self, patches, grid=None):
        shape = tuple(ops.shape(patches)[:2])
        length = int(shape[1])
        noise = np.random.default_rng(self.seed).uniform(size=(1, length))
        noise = ops.convert_to_tensor(noise.astype("float32"))
        return super().call(
            patches, grid, noise=ops.broadcast_to(noise, (shape[0], length))
        )


def waveforms():
    """Two clips of noise under a swell, the second one padded."""
    rng = np.random.default_rng(5)
    clips = rng.normal(size=(4, 5360)) * np.linspace(0.02, 0.3, 5360)
    clips[1, 3000:] = 0.0
    return np.clip(clips, -1.0, 1.0).astype("float32")


def backbone(name):
    front_end = LogMelSpectrogram(num_mel_bins=16, name=f"{name}_log_mel")
    return BridleBackbone(
        patch_size=(4, 8),
        hidden_dim=DIM,
        num_layers=2,
        input_dims=(None,),
        front_end=front_end,
        name=name,
        **SIZES,
    )


def quantizer():
    return ResidualQuantizer(LEVELS, CODES, dim=CODE_DIM, decay=0.9, seed=3)


def tokenizer():
    return BridleTokenizer(backbone("own"), quantizer(), name="tokenizer")


def random_projection():
    made = RandomProjectionTokenizer((4, 8), DIM, quantizer(), name="cold")
    made.build((None, None, 16, 1))
    return made


def decoder():
    made = CodeDecoder(LEVELS, CODES, DIM, 1, name="decoder", **SIZES)
    made.build((None, None, DIM))
    return made


def estimator():
    made = FeatureEstimator(DIM, DIM, 1, name="estimator", **SIZES)
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
    return EncoderPretrainer(
        backbone("encoder"), decoder(), random_projection(), SameMask(0.7, seed=2)
    )


def tokenizer_phase():
    return TokenizerPretrainer(tokenizer(), estimator(), backbone("teacher"))


def joint():
    return JointPretrainer(
        backbone("encoder"),
        decoder(),
        tokenizer(),
        estimator(),
        tokenizer_every=2,
        mask=SameMask(0.7, seed=2),
    )


def pixel_backbone(patch_size, input_dims, **settings):
    return BridleBackbone(
        patch_size=patch_size,
        hidden_dim=DIM,
        num_layers=2,
        input_dims=input_dims,
        front_end=PixelNormalization(0.5, 0.25, name="pixels"),
        name="encoder",
        **settings,
        **SIZES,
    )


# For each modality the classes, an encoder, and settings of the converter.
CLASSIFIERS = {
    "audio": (
        BridleAudioClassifier,
        BridleAudioPreprocessor,
        lambda: backbone("encoder"),
        {"num_samples": 5000},
    ),
    "image": (
        BridleImageClassifier,
        BridleImagePreprocessor,
        lambda: pixel_backbone(4, (16, 12, 3)),
        {},
    ),
    "video": (
        BridleVideoClassifier,
        BridleVideoPreprocessor,
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
        token_mask=SameMask(0.5, seed=2),
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
    history = model.fit(
        waveforms(), batch_size=4, epochs=STEPS, shuffle=False, verbose=0
    )
    # Not by path, which counts how many layers of a kind were made before.
    weights = {
        f"weight {index:03} {weight.name}": ops.convert_to_numpy(weight)
        for index, weight in enumerate(model.weights)
    }
    return {"losses": np.array(history.history["loss"]), **weights}


def main(folder):
    for name in MODELS:
        model = made(name)
        np.savez(folder / f"{name}_outputs.npz", **outputs(model))
        model.save(folder / f"{name}.keras")
        model.save_weights(folder / f"{name}.weights.h5")
        np.savez(folder / f"{name}_trained.npz", **trained(name))
    for modality in CLASSIFIERS:
        model = classifier(modality)
        np.save(folder / f"{modality}_logits.npy", logits(model, modality))
        inputs = converted(model.preprocessor, modality)
        np.save(folder / f"{modality}_converted.npy", inputs)
        np.save(folder / f"{modality}_tokens.npy", tokens(model.backbone, inputs))
        model.save_to_preset(str(folder / f"{modality}_classifier"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
