import numpy as np
from harness import perturb, to_numpy

from keras_bridle.layers.masks import TubeMask
from keras_bridle.layers.pixels import PixelNormalization
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import BridleVideoClassifier
from keras_bridle.models.converters import BridleVideoPreprocessor


def backbone():
    made = BridleBackbone(
        (2, 4, 4),
        16,
        1,
        2,
        32,
        input_dims=(4, 8, 8, 1),
        front_end=PixelNormalization(0.5, 0.25),
        use_class_token=False,
        position_layout="sequence",
    )
    perturb(made.weights)
    return made


def clips():
    """Bright at the start or at the end, of unequal lengths and sizes."""
    rng = np.random.default_rng(0)
    made, labels = [], []
    for index in range(8):
        clip = rng.integers(0, 100, (4 + index % 2, 8 + index, 12, 1))
        label = index % 2
        clip[len(clip) // 2 :] += 150 * label
        clip[: len(clip) // 2] += 150 * (1 - label)
        made.append(clip.astype("uint8"))
        labels.append(label)
    return made, labels


def test_fit_raw_clips_and_keep_the_classifier(tmp_path):
    backbone().save_to_preset(str(tmp_path / "encoder"))
    model = BridleVideoClassifier.from_preset(
        str(tmp_path / "encoder"),
        class_names=["falling", "rising"],
        token_mask=TubeMask(0.5, seed=1),
    )
    seen, labels = clips()
    model.optimizer.learning_rate = 5e-3
    model.fit(seen, labels, batch_size=4, epochs=25, verbose=0)
    names = [model.class_names[label] for label in labels]
    assert [best.name for (best,) in model.predict_classes(seen)] == names
    model.save_to_preset(str(tmp_path / "classifier"))
    loaded = BridleVideoClassifier.from_preset(str(tmp_path / "classifier"))
    assert loaded.preprocessor.video_converter.num_frames == 4
    np.testing.assert_allclose(
        loaded.predict(seen, verbose=0), model.predict(seen, verbose=0), 1e-5, 1e-5
    )


def test_from_the_preset_of_a_run(tmp_path):
    encoder = backbone()
    encoder.save_to_preset(str(tmp_path / "runs" / "preset"))
    for folder in (tmp_path / "runs", tmp_path / "runs" / "preset"):
        model = BridleVideoClassifier.from_preset(
            str(folder), num_classes=5, drop_path_rate=0.2
        )
        assert model.backbone.drop_path_rate == 0.2
        assert isinstance(model.preprocessor, BridleVideoPreprocessor)
        converter = model.preprocessor.video_converter
        assert (converter.num_frames, converter.image_size) == (4, (8, 8))
        for ours, right in zip(model.backbone.weights, encoder.weights, strict=True):
            np.testing.assert_array_equal(to_numpy(ours), to_numpy(right))
        assert model.predict(clips()[0][:2], verbose=0).shape == (2, 5)
    fresh = BridleVideoClassifier.from_preset(
        str(tmp_path / "runs"), load_weights=False, num_classes=5
    )
    kernel = to_numpy(fresh.backbone.blocks[0].qkv.kernel)
    assert np.abs(kernel - to_numpy(encoder.blocks[0].qkv.kernel)).max() > 0.1
