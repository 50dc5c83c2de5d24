"""Pretraining on recordings, phase by phase.

BRIDLE trains two networks in turn. The *encoder* sees some of the patches of a
spectrogram and predicts the codes of the others. The codes come from a *tokenizer*,
which learns from the encoder: a small network must be able to estimate the encoder's
features from its codes. At first there is no encoder to learn from, so the *cold start*
takes codes of random projections of the patches.

    cold start -> tokenizer -> encoder -> tokenizer -> encoder ...

This guide runs the phases by hand, then in one call, on spoken Mandarin syllables that
come with the package. It takes about two minutes on two CPU cores:

    KERAS_BACKEND=jax python guides/pretraining.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_bridle as kb
from keras_bridle.data.samples import load_syllables
from keras_bridle.evaluation.features import FeatureExtractor
from keras_bridle.evaluation.plots import plot_codes
from keras_bridle.evaluation.probes import linear_probe
from keras_bridle.training.optimizers import adamw, warmup_cosine

EPOCHS = 12
SYLLABLES = 801
LEVELS, CODES, BATCH = 4, 64, 32
keras.utils.set_random_seed(0)

# ## The data and the encoder
#
# The data are 801 waveforms of 0.36 s at 16 kHz. The log-mel spectrogram is the
# encoder's first layer, so the encoder takes raw audio. Its mean and standard deviation
# are those of the data.

waveforms, initials, names = load_syllables("train", "initial", num_samples=5760)
waveforms, initials = waveforms[:SYLLABLES], initials[:SYLLABLES]
print(waveforms.shape, "initials:", " ".join(names))

backbone = kb.BridleBackbone.from_preset(
    "bridle_audio_tiny",
    load_weights=False,
    front_end=kb.LogMelSpectrogram(mean=-6.8, std=5.2, name="log_mel"),
)
maps, padding_mask = backbone.maps(waveforms[:4])
grid = backbone.grid(maps)
print(f"{maps.shape[1]} frames of {maps.shape[2]} bands: {grid} patches")


def probe():
    """The accuracy of a linear probe for the initials of held-out syllables."""
    test = load_syllables("test", "initial", num_samples=5760)[:2]
    found = {}
    for name, sounds in (("train", waveforms), ("test", test[0])):
        found[name] = FeatureExtractor(backbone, segments=8)(sounds)
    return linear_probe(found["train"], initials, found["test"], test[1]).accuracy


untrained = probe()
print(f"initials from the untrained encoder: {untrained:.1%}")

# ## The cold start
#
# A random projection tokenizer needs no training. Only its codebooks are set, by
# k-means on its vectors. From here on, each phase is one Keras model.


def quantizer():
    """A quantizer, the same in each phase."""
    return kb.ResidualQuantizer(
        LEVELS, CODES, dim=64, restart_threshold=0.1, seed=0, name="quantizer"
    )


def decoder():
    """The head that predicts codes; each phase has a new one here."""
    return kb.CodeDecoder(
        LEVELS, CODES, hidden_dim=96, num_layers=1, num_heads=3, mlp_dim=384
    )


def set_codebooks(tokenizer):
    """Starts the codebooks from k-means on some of the data."""
    maps, padding_mask = backbone.maps(waveforms[:256])
    vectors = tokenizer.vectors(maps, padding_mask)
    tokenizer.quantizer.adapt(
        [(vectors, backbone.patch_padding_mask(maps, padding_mask))]
    )


def train(trainer, epochs, learning_rate=1e-3):
    """One phase: AdamW, warm-up and half a cosine."""
    steps = epochs * -(-len(waveforms) // BATCH)
    trainer.set_trained_parts()
    trainer.compile(adamw(trainer, warmup_cosine(learning_rate, steps, steps // 20)))
    history = trainer.fit(waveforms, batch_size=BATCH, epochs=epochs, verbose=0)
    return {name: round(values[-1], 3) for name, values in history.history.items()}


random_projection = kb.RandomProjectionTokenizer(
    backbone.patch_size, backbone.hidden_dim, quantizer()
)
random_projection.build(tuple(maps.shape))
set_codebooks(random_projection)

mask = kb.RandomMask(0.5, seed=0)
cold_start = kb.EncoderPretrainer(
    backbone,
    decoder(),
    random_projection,
    mask=mask,
    augmentation=kb.RandomWaveformGain(seed=0),
)
ended = train(cold_start, EPOCHS)
print(f"cold start: loss {ended['loss']}, level 1 right at {ended['accuracy_1']:.0%}")
print(f"initials: {untrained:.1%} untrained, {probe():.1%} after the cold start")

# The plot shows one syllable: the spectrogram, the patches that the encoder sees, and
# the codes of all patches at each level, which are its targets.

codes = keras.ops.convert_to_numpy(random_projection(maps, padding_mask).codes)
hidden = mask(np.zeros((4, grid[0] * grid[1], 1), "float32"), grid=grid)
plot_codes(
    keras.ops.convert_to_numpy(maps)[0, ..., 0],
    keras.ops.convert_to_numpy(hidden.visible)[0],
    codes[0],
    grid,
    backbone.patch_size,
    "codes.png",
)

# ## The tokenizer, and the encoder again
#
# The tokenizer starts as a copy of the encoder. The encoder is its teacher and stays
# frozen.

own_encoder = kb.BridleBackbone.from_config(
    {**backbone.get_config(), "name": "tokenizer_backbone"}
)
own_encoder.set_weights(backbone.get_weights())
tokenizer = kb.BridleTokenizer(own_encoder, quantizer())
set_codebooks(tokenizer)
estimator = kb.FeatureEstimator(
    backbone.hidden_dim, hidden_dim=128, num_layers=2, num_heads=4, mlp_dim=512
)
phase = kb.TokenizerPretrainer(tokenizer, estimator, teacher=backbone)
ended = train(phase, max(1, EPOCHS // 4))
print(
    f"tokenizer: cosine to the teacher {ended['cosine']}, in use {ended['usage_1']:.0%}"
)

backbone.trainable = True
phase = kb.EncoderPretrainer(backbone, decoder(), tokenizer, mask=mask)
ended = train(phase, max(1, EPOCHS // 2))
print(f"encoder: loss {ended['loss']}; initials: {probe():.1%}")

# ## In one call
#
# `kb.InterleavedPretraining` does all of this, for any number of rounds. With
# `directory=`, it saves weights, histories and settings, and can resume a stopped run.
# Pass arrays to `fit()`, or a `PyDataset` such as `kb.file_dataset()` returns for a
# folder of recordings.

pretraining = kb.InterleavedPretraining(
    backbone,
    mask,
    num_levels=LEVELS,
    codebook_size=CODES,
    code_dim=64,
    seed=0,
)
pretraining.fit(
    waveforms[:128],
    rounds=1,
    cold_start_epochs=1,
    tokenizer_epochs=1,
    encoder_epochs=1,
    batch_size=BATCH,
    verbose=0,
)
print(list(pretraining.history))
