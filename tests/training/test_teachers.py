"""Runs whose first tokenizer learns from an encoder that is given."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import to_numpy
from tiny_pretraining import (
    INPUT_DIMS,
    AtBatch,
    Stop,
    all_weights,
    assert_same_bits,
    backbone,
    maps,
    num_changed,
    pretraining,
    stop,
    weights_of,
)

import keras_bridle as kb
from keras_bridle.config import ArgumentError
from keras_bridle.models.teachers import features_on_grid

INPUTS = maps(8)
PHASES = ["0_tokenizer", "1_encoder"]
SHORT = {
    "rounds": 1,
    "tokenizer_epochs": 2,
    "encoder_epochs": 1,
    "batch_size": 4,
    "tensorboard": False,
    "verbose": 0,
}


def teacher(**options):
    """An encoder of another width, for larger patches, with a front end of its own."""
    keras.utils.set_random_seed(11)
    front_end = kb.PixelNormalization(0.5, 0.5, scale=1.0)
    settings = {"patch_size": (16, 8), "hidden_dim": 24, "front_end": front_end}
    return backbone(**{**settings, **options})


@pytest.mark.full_matrix
def test_a_tokenizer_takes_the_place_of_the_cold_start(tmp_path):
    given = teacher()
    before = weights_of(given)
    run = pretraining(teacher=given)
    start, dims = weights_of(run.backbone), []
    history = run.fit(
        INPUTS,
        tmp_path / "run",
        **{**SHORT, "rounds": 2},
        on_phase_end=lambda phase, run: dims.append(run.estimator.output_dim),
    )
    assert list(history) == [*PHASES, "2_tokenizer", "3_encoder"]
    assert history["0_tokenizer"]["loss"][1] < history["0_tokenizer"]["loss"][0]
    assert_same_bits(weights_of(run.teacher), before)
    assert num_changed(weights_of(run.backbone), start) > 10
    # Later rounds learn from the encoder.
    assert dims == [24, 24, 16, 16]
    assert run.teacher.trainable
    loaded = kb.load_run(tmp_path / "run")
    np.testing.assert_array_equal(loaded.codes(INPUTS), run.codes(INPUTS))
    text = (tmp_path / "run" / "settings.json").read_text()
    assert json.loads(text)["settings"]["teacher"]["config"]["hidden_dim"] == 24


def test_forms_of_teachers(tmp_path):
    given = teacher()
    given.save_to_preset(str(tmp_path))
    for form in (kb.BridleImageClassifier(given, num_classes=3), tmp_path):
        found = pretraining(teacher=form).teacher
        assert_same_bits(weights_of(found), weights_of(given))


@pytest.mark.full_matrix
def test_killed_and_resumed(tmp_path):
    def train(name, actions=(), **options):
        run = pretraining(noise=0.1, teacher=teacher(**options))
        more = {"callbacks": list(actions), "checkpoint_every_steps": 1}
        run.fit(INPUTS, tmp_path / name, resume=True, **SHORT, **more)
        return run

    unbroken = train("unbroken")
    for count in (3, 3):
        with pytest.raises(Stop):
            train("run", [AtBatch(count, stop)])
    with pytest.raises(ValueError, match="teacher"):
        train("run", hidden_dim=32)
    resumed = train("run")
    assert resumed.history == unbroken.history
    assert_same_bits(all_weights(resumed), all_weights(unbroken))


@pytest.mark.full_matrix
def test_tokenizers_start_from_a_teacher_like_the_student():
    like = backbone()
    run = pretraining(teacher=like)
    short = {**SHORT, "tokenizer_epochs": 1, "tokenizer_learning_rate": 1e-12}
    run.fit(INPUTS, **short)
    pairs = zip(weights_of(run.tokenizer.backbone), weights_of(like), strict=True)
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("patch_size", [(16, 8), (8, 16), (4, 8), (2, 2), (16, 16)])
def test_features_on_another_grid(patch_size):
    given = teacher(patch_size=patch_size)
    found = to_numpy(features_on_grid(given, INPUTS, (4, 2)))
    patches = to_numpy(given.drop_class_token(given(INPUTS)))
    rows, columns = (
        side // step for side, step in zip(INPUT_DIMS, patch_size, strict=False)
    )
    patches = patches.reshape(8, rows, columns, 24)
    for row in range(4):
        for column in range(2):
            # The part of the teacher's grid that this patch covers, or lies in.
            top, left = row * rows // 4, column * columns // 2
            part = patches[:, top : top + max(1, rows // 4)]
            part = part[:, :, left : left + max(1, columns // 2)]
            expected = part.mean((1, 2))
            np.testing.assert_allclose(found[:, row * 2 + column], expected, atol=1e-5)


def test_sides_that_do_not_divide_evenly():
    given = backbone(input_dims=(None, 16, 1), patch_size=8, use_class_token=False)
    inputs = np.random.default_rng(0).normal(size=(2, 40, 16, 1)).astype("float32")
    patches = to_numpy(given(inputs)).reshape(2, 5, 2, 16)
    finer = to_numpy(features_on_grid(given, inputs, (9, 2))).reshape(2, 9, 2, 16)
    np.testing.assert_allclose(finer, patches[:, np.arange(9) // 2], atol=1e-6)
    coarser = to_numpy(features_on_grid(given, inputs, (3, 2))).reshape(2, 3, 2, 16)
    np.testing.assert_allclose(coarser[:, 2], patches[:, 4], atol=1e-6)
    np.testing.assert_allclose(coarser[:, 0], patches[:, :2].mean(1), atol=1e-6)


def test_gray_pictures_are_shown_to_encoders_of_colors():
    given = backbone(input_dims=(32, 16, 3))
    colored = np.repeat(INPUTS, 3, axis=-1)
    found = to_numpy(features_on_grid(given, INPUTS, (4, 2)))
    np.testing.assert_allclose(found, to_numpy(given(colored))[:, 1:], atol=1e-6)


def test_teachers_that_do_not_fit():
    with pytest.raises(ArgumentError):
        pretraining(teacher=teacher(input_dims=(48, 16, 1)))
    audio = kb.BridleBackbone.from_preset("bridle_audio_tiny", load_weights=False)
    public = Path(__file__).parents[1] / "fixtures"
    files = public / "beats.pt", public / "public_encoders" / "video_mae"
    for wrong in (audio, "no such folder", *files):
        with pytest.raises(ArgumentError) as raised:
            pretraining(teacher=wrong)
        assert raised.value.argument == "teacher"
    for wrong in ({"rounds": 0}, {"joint": True}):
        with pytest.raises(ArgumentError):
            pretraining(teacher=teacher()).fit(INPUTS, **{**SHORT, **wrong})
