"""What the trainers of all phases share."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny_pretraining import (
    FixedMask,
    assert_same_bits,
    backbone,
    decoder,
    encoder_pretrainer,
    estimator,
    fit,
    joint_pretrainer,
    maps,
    num_changed,
    quantizer,
    tokenizer_pretrainer,
    trainable_weights_of,
    weights_of,
)

from keras_bridle.config import ArgumentError
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.training.trainers import (
    EncoderPretrainer,
    JointPretrainer,
    TokenizerPretrainer,
)

TRAINERS = {
    "encoder": encoder_pretrainer,
    "tokenizer": tokenizer_pretrainer,
    "joint": joint_pretrainer,
}


@pytest.mark.parametrize("kind", TRAINERS)
def test_parts_and_config(kind):
    trainer = TRAINERS[kind]()
    trainer.set_trained_parts()
    for name in trainer.parts:
        part = getattr(trainer, name)
        if part is not None and part.variables:
            assert part.trainable == (name in trainer.trained_parts), name
    copy = type(trainer).from_config(trainer.get_config())
    assert sorted(copy.get_config()) == sorted(trainer.get_config())
    shapes = [tuple(weight.shape) for weight in trainer.weights]
    assert [tuple(weight.shape) for weight in copy.weights] == shapes
    copy.set_weights(trainer.get_weights())
    assert_same_bits(weights_of(copy), weights_of(trainer))


def test_compile_trains_what_was_frozen():
    """As parts are handed from phase to phase, frozen by the one before."""
    trainer = encoder_pretrainer()
    trainer.backbone.trainable = False
    trainer.tokenizer.trainable = True
    trainer.compile("sgd")
    assert trainer.backbone.trainable
    assert not trainer.tokenizer.trainable_variables
    before = trainable_weights_of(trainer)
    fit(trainer, maps())
    assert num_changed(trainable_weights_of(trainer), before) == len(before)


def test_gradients_do_not_add_up():
    """Two steps from the same weights are the same, whatever came before."""
    trainer = tokenizer_pretrainer(codebook_update="gradient")
    trainer.compile(keras.optimizers.SGD(0.1))
    start, steps = weights_of(trainer), []
    for _ in range(2):
        trainer.set_weights(start)
        fit(trainer, maps())
        steps.append(trainable_weights_of(trainer))
    assert_same_bits(*steps)


def test_raw_input_is_not_rounded():
    """Half precision begins behind the front end."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    seen = []

    class FrontEnd(keras.layers.Layer):
        def call(self, inputs):
            seen.append(keras.backend.standardize_dtype(inputs.dtype))
            return inputs

    trainer = encoder_pretrainer(FrontEnd(dtype="float32"))
    trainer(keras.Input(shape=maps().shape[1:], batch_size=4))
    assert set(seen) == {"float32"}


@pytest.mark.parametrize("kind", ["encoder", "tokenizer"])
def test_blocks_are_skipped_in_training_alone(kind):
    def encoder():
        return backbone(drop_path_rate=0.9, num_layers=2)

    if kind == "encoder":
        tokenizer = RandomProjectionTokenizer(8, 16, quantizer())
        mask = FixedMask(0.5)
        trainer = EncoderPretrainer(encoder(), decoder(), tokenizer, mask=mask)
    else:
        tokenizer = BridleTokenizer(encoder(), quantizer())
        trainer = TokenizerPretrainer(tokenizer, estimator(), teacher=encoder())
    inputs = ops.convert_to_tensor(maps(16))

    def twice(name, training):
        outputs = [trainer(inputs, training=training)[name] for _ in range(2)]
        return map(ops.convert_to_numpy, outputs)

    name = "logits" if kind == "encoder" else "estimate"
    first, second = twice(name, training=True)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(*twice(name, training=False))
    if kind == "tokenizer":
        np.testing.assert_array_equal(*twice("teacher", training=True))


def test_parts_must_fit():
    shared, size = backbone(), {"num_layers": 1, "num_heads": 2, "mlp_dim": 32}
    cold, own = RandomProjectionTokenizer(8, 16, quantizer()), BridleTokenizer
    tokenizer = own(backbone(), quantizer())
    other = FeatureEstimator(24, 16, **size)
    for name, trainer, *parts in (
        ("num_levels", EncoderPretrainer, CodeDecoder(3, 8, 16, **size), cold),
        ("codebook_size", EncoderPretrainer, CodeDecoder(2, 9, 16, **size), cold),
        (
            "use_class_token",
            EncoderPretrainer,
            CodeDecoder(2, 8, 16, use_class_token=False, **size),
            cold,
        ),
        ("backbone", EncoderPretrainer, decoder(), own(shared, quantizer())),
        ("output_dim", JointPretrainer, decoder(), tokenizer, other),
        ("tokenizer_every", JointPretrainer, decoder(), tokenizer, estimator(), 0),
    ):
        with pytest.raises(ArgumentError) as caught:
            trainer(shared, *parts)
        assert caught.value.argument.endswith(name)
    with pytest.raises(ArgumentError):
        TokenizerPretrainer(tokenizer, other, backbone())
    with pytest.raises(ArgumentError):
        TokenizerPretrainer(own(shared, quantizer()), estimator(), shared)
    with pytest.raises(ArgumentError):
        EncoderPretrainer(backbone(), decoder(), cold, tokenize="some")
