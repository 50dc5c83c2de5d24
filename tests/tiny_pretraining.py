"""Networks and trainers small enough to be trained in a test."""

import keras
import numpy as np
from keras import ops

from keras_bridle.layers.masks import RandomMask
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
from keras_bridle.training.interleaved import InterleavedPretraining
from keras_bridle.training.trainers import (
    EncoderPretrainer,
    JointPretrainer,
    TokenizerPretrainer,
)

INPUT_DIMS = (32, 16, 1)
NUM_PATCHES = 8
LEVELS, CODES, CODE_DIM = 2, 8, 4
# Rows of a map from here on down are padding.
PADDING = -50.0


@keras.saving.register_keras_serializable(package="keras_bridle_tests")
class FixedMask(RandomMask):
    """Hides the same patches at every call."""

    def call(self, patches, grid=None):
        # The first rows of a large batch, as TensorFlow does not always know how many.
        noise = np.random.default_rng(0).random((64, patches.shape[1]), "float32")
        noise = ops.convert_to_tensor(noise)[: ops.shape(patches)[0]]
        return super().call(patches, grid, noise=noise)


@keras.saving.register_keras_serializable(package="keras_bridle_tests")
class PaddedMap(keras.layers.Layer):
    """A front end that leaves maps as they are and takes very low rows for padding."""

    def call(self, inputs):
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def padding_mask(self, inputs):
        return ops.any(inputs > PADDING, axis=(2, 3))


def maps(count=4, seed=0):
    return (
        np.random.default_rng(seed).normal(size=(count, *INPUT_DIMS)).astype("float32")
    )


def padded_maps(padding, count=4, seed=0):
    """Maps whose second half of rows is padding in every other example."""
    inputs = maps(count, seed)
    inputs[::2, 16:] = padding * np.random.default_rng(1).uniform(1, 2, (16, 16, 1))
    return inputs


def backbone(**kwargs):
    settings = {
        "patch_size": 8,
        "hidden_dim": 16,
        "num_layers": 1,
        "num_heads": 2,
        "mlp_dim": 32,
        "input_dims": INPUT_DIMS,
    }
    return BridleBackbone(**{**settings, **kwargs})


def quantizer(**kwargs):
    return ResidualQuantizer(LEVELS, CODES, dim=CODE_DIM, **{"seed": 0, **kwargs})


def decoder():
    return CodeDecoder(LEVELS, CODES, 16, num_layers=1, num_heads=2, mlp_dim=32)


def estimator():
    return FeatureEstimator(16, 16, num_layers=1, num_heads=2, mlp_dim=32)


def encoder_pretrainer(front_end=None, mask=None, augmentation=None, **options):
    trainer = EncoderPretrainer(
        backbone(front_end=front_end),
        decoder(),
        RandomProjectionTokenizer(8, 16, quantizer(**options)),
        mask=mask or FixedMask(0.5),
        augmentation=augmentation,
    )
    set_codebooks(trainer.tokenizer)
    return trainer


def tokenizer_pretrainer(front_end=None, augmentation=None, **options):
    trainer = TokenizerPretrainer(
        BridleTokenizer(backbone(), quantizer(**options)),
        estimator(),
        backbone(front_end=front_end),
        augmentation=augmentation,
    )
    set_codebooks(trainer.tokenizer)
    return trainer


def joint_pretrainer(
    front_end=None, mask=None, augmentation=None, tokenizer_every=3, **options
):
    trainer = JointPretrainer(
        backbone(front_end=front_end),
        decoder(),
        BridleTokenizer(backbone(), quantizer(**options)),
        estimator(),
        tokenizer_every=tokenizer_every,
        mask=mask or FixedMask(0.5),
        augmentation=augmentation,
    )
    set_codebooks(trainer.tokenizer)
    return trainer


def pretraining(policy="float32", noise=None, **kwargs):
    """Pretraining as in a fresh process: the same start every time."""
    keras.utils.clear_session(free_memory=False)
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(7)
    settings = {
        "num_levels": LEVELS,
        "codebook_size": CODES,
        "code_dim": CODE_DIM,
        "decoder_options": {"num_layers": 1, "num_heads": 2, "mlp_dim": 32},
        "estimator_options": {"num_layers": 1, "num_heads": 2, "mlp_dim": 32},
    }
    if noise:
        settings["augmentation"] = keras.layers.GaussianNoise(noise)
    return InterleavedPretraining(backbone(), **{**settings, **kwargs})


def all_weights(pretraining):
    """Copies the weights of all networks that there are."""
    names = ("backbone", "decoder", "tokenizer", "estimator")
    parts = (getattr(pretraining, name) for name in names)
    return weights_of(*(part for part in parts if part is not None))


def set_codebooks(tokenizer):
    """Sets codebooks that use several codes, by k-means on random vectors."""
    vectors = np.random.default_rng(5).normal(size=(256, CODE_DIM))
    tokenizer.quantizer.adapt(vectors.astype("float32"))


def fit(trainer, inputs, **kwargs):
    """Trains on batches of 4 in the order they are in, and returns the history."""
    if not trainer.optimizer.built:
        # TensorFlow traces a step twice that makes variables.
        trainer.optimizer.build(trainer.trainable_variables)
    settings = {"batch_size": 4, "shuffle": False, "verbose": 0}
    return trainer.fit(inputs, **{**settings, **kwargs}).history


def weights_of(*parts):
    """Copies all weights."""
    return [np.copy(weight) for part in parts for weight in part.get_weights()]


def trainable_weights_of(*parts):
    """Copies the weights that gradients move."""
    variables = [v for part in parts for v in part.trainable_variables]
    return [np.copy(ops.convert_to_numpy(variable)) for variable in variables]


def assert_same_bits(first, second):
    assert len(first) == len(second)
    for x, y in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, y)


def num_changed(first, second):
    return sum((x != y).any() for x, y in zip(first, second, strict=True))


class EpochEnds(keras.callbacks.Callback):
    """Collects what a function of the model gives at the end of each epoch."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.values = []

    def on_epoch_end(self, epoch, logs=None):
        self.values.append(self.function(self.model))


def code_vectors(trainer):
    return np.copy(ops.convert_to_numpy(trainer.tokenizer.quantizer.code_vectors))


# References in float64.


def reference_code_loss(codes, logits, weights):
    """Cross-entropy as the sum it is; codes have an axis for several a level."""
    logits = np.asarray(logits, "float64")
    codes = np.asarray(codes).reshape(*logits.shape[:3], -1)
    total = 0.0
    for index in np.ndindex(logits.shape[:3]):
        shares = np.exp(logits[index]) / np.exp(logits[index]).sum()
        if weights[index[:2]]:
            total += weights[index[:2]] * -np.log(shares[codes[index]]).mean()
    return total / (np.sum(weights, dtype="float64") * logits.shape[2])


def reference_cosine(first, second, weights):
    first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    cosines = (first * second).sum(axis=-1) / lengths
    return (cosines * weights).sum() / np.sum(weights, dtype="float64")


def reference_usage(codes, weights, num_codes=CODES):
    """Usage and perplexity of each level."""
    found = {}
    for level in range(codes.shape[2]):
        picked = np.asarray(codes)[:, :, level][np.asarray(weights, bool)].ravel()
        shares = np.bincount(picked, minlength=num_codes) / len(picked)
        shares = shares[shares > 0]
        found[f"usage_{level + 1}"] = len(shares) / num_codes
        found[f"perplexity_{level + 1}"] = np.exp(-(shares * np.log(shares)).sum())
    return found


def assert_metrics(found, expected, tolerance=1e-5):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, tolerance, err_msg=name)


class Stop(Exception):
    """As sudden as a killed process, as far as the run's files go."""


class AtBatch(keras.callbacks.Callback):
    """Does something after so many batches of a `fit()` call, before they are saved."""

    def __init__(self, count, action):
        super().__init__()
        self.count, self.action = count, action

    def on_train_batch_end(self, batch, logs=None):
        self.count -= 1
        if self.count == 0:
            self.action()


def stop():
    raise Stop
