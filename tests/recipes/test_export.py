"""The recipe for exports, really run on tiny networks."""

import numpy as np
import pytest
from recipe_runs import fails_in_one_line, load_recipe
from tiny_pretraining import backbone as tiny_backbone

import keras_bridle as kb
from keras_bridle.export import load_exported


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("export")


def test_features_and_codes_of_a_run(recipe, tmp_path, capsys):
    encoder = tiny_backbone(input_dims=(16, 16, 3), front_end=kb.PixelNormalization())
    pretraining = kb.InterleavedPretraining(
        encoder, num_levels=2, codebook_size=8, code_dim=4
    )
    pixels = np.random.default_rng(0).uniform(0, 255, (8, 16, 16, 3)).astype("float32")
    options = {"rounds": 0, "cold_start_epochs": 1, "batch_size": 4, "verbose": 0}
    run, out = tmp_path / "run", tmp_path / "out"
    pretraining.fit(pixels, directory=run, tensorboard=False, **options)
    arguments = [f"--from={run}", f"--directory={out}", "--format=torch"]
    recipe.main([*arguments, "--segment-means=2"])
    found = load_exported(out / "model.pt2")(pixels)
    assert found["features"].shape == (8, 32) and found["codes"].shape == (8, 4, 2)
    np.testing.assert_array_equal(found["codes"], pretraining.codes(pixels))
    assert "features: differs by" in capsys.readouterr().out
    fails_in_one_line(recipe, arguments, "--overwrite", capsys)
    recipe.main([*arguments, "--overwrite", "--outputs", "patches"])
    (patches,) = load_exported(out / "model.pt2")(pixels).values()
    assert patches.shape == (8, 4, 16)


def test_a_classifier_of_clips_of_fixed_length(recipe, encoders, tmp_path):
    names = ["yes", "no", "noise"]
    kb.BridleAudioClassifier.from_preset(
        encoders["audio"], class_names=names
    ).save_to_preset(str(tmp_path / "tuned" / "preset"))
    out = tmp_path / "out"
    recipe.main(
        [
            *(f"--from={tmp_path / 'tuned'}", f"--directory={out}"),
            *("--format=torch", "--seconds=0.2"),
        ]
    )
    exported = load_exported(out / "model.pt2")
    assert exported(np.ones((2, 3200), "float32"))["outputs"].shape == (2, 3)
    with pytest.raises(AssertionError, match="3200"):
        exported(np.ones((2, 4800), "float32"))
    assert (out / "class_names.txt").read_text().split() == names
