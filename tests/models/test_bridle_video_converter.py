import numpy as np
import pytest
import tensorflow as tf
from harness import to_numpy
from keras import ops
from video_files import write_video

from keras_bridle.data.video_reader import VideoReader
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.converters import (
    BridleImageConverter,
    BridleVideoConverter,
    BridleVideoPreprocessor,
)


def clip(frames, height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (frames, height, width, channels)).astype("uint8")


@pytest.mark.parametrize(
    ("frames", "kept"),
    [(4, [0, 1, 2, 3]), (9, [3, 4, 5, 6]), (3, [0, 1, 2, 2]), (1, [0, 0, 0, 0])],
)
def test_frames_are_cut_or_repeated(frames, kept):
    x = clip(frames, 6, 8)
    found = BridleVideoConverter(num_frames=4)(x[None])
    np.testing.assert_array_equal(found[0], x[kept])
    np.testing.assert_array_equal(BridleVideoConverter(num_frames=4)(x), x[kept])


@pytest.mark.parametrize(
    ("frames", "kept"), [(4, [0, 1, 2, 3]), (12, [1, 4, 7, 10]), (7, [0, 3, 6, 6])]
)
def test_every_third_frame_of_a_longer_clip(frames, kept):
    x = clip(frames, 6, 8)
    converter = BridleVideoConverter(num_frames=4, sampling_rate=3)
    np.testing.assert_array_equal(converter(x), x[kept])
    converter = BridleVideoConverter.from_config(converter.get_config())
    np.testing.assert_array_equal(converter(x), x[kept])
    np.testing.assert_array_equal(BridleVideoConverter(sampling_rate=3)(x), x[::3])


@pytest.mark.parametrize("count", [6, 10, 11, 12, 13, 23])
def test_frames_are_those_of_files(tmp_path, count):
    frames = np.tile(10 * np.arange(count).reshape(count, 1, 1, 1), (1, 16, 16, 3))
    frames = frames.astype("uint8")
    write_video(tmp_path / "clip.avi", "mjpeg", frames)
    reader = VideoReader(16, num_frames=4, sampling_rate=3)
    expected = reader(str(tmp_path / "clip.avi"))
    found = BridleVideoConverter(num_frames=4, sampling_rate=3)(frames)
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=5)


def test_frames_are_resized_as_pictures():
    x = np.stack([clip(3, 12, 10), clip(3, 12, 10, seed=1)])
    found = to_numpy(BridleVideoConverter((6, 6), channels=1)(x))
    pictures = BridleImageConverter((6, 6), channels=1)(x.reshape(6, 12, 10, 3))
    np.testing.assert_allclose(found.reshape(6, 6, 6, 1), to_numpy(pictures), 1e-5)


def test_list_of_clips():
    clips = [clip(3, 6, 8), clip(7, 12, 12)]
    converter = BridleVideoConverter((6, 6), num_frames=4)
    found = to_numpy(converter(clips))
    assert found.shape == (2, 4, 6, 6, 3)
    for x, result in zip(clips, found, strict=True):
        alone = to_numpy(converter(x))
        np.testing.assert_allclose(result, alone, 1e-5, 1e-3)


def test_pipelines_and_tensors_give_the_same():
    x = np.stack([clip(5, 12, 10), clip(5, 12, 10, seed=1)])
    converter = BridleVideoConverter((6, 6), channels=1, num_frames=4)
    expected = to_numpy(converter(x))
    found = to_numpy(converter(ops.convert_to_tensor(x)))
    np.testing.assert_allclose(found, expected, 1e-5, 1e-3)
    data = tf.data.Dataset.from_tensors(x).map(converter)
    assert data.element_spec.shape == (2, 4, 6, 6, 1)
    np.testing.assert_allclose(next(iter(data)).numpy(), expected, 1e-3, 0.5)


def test_clips_that_cannot_be_converted():
    with pytest.raises(ValueError, match=r"\(frames, height, width, channels\)"):
        BridleVideoConverter()(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"must be positive.*num_frames=0"):
        BridleVideoConverter(num_frames=0)
    with pytest.raises(ValueError, match=r"must be positive.*sampling_rate=0"):
        BridleVideoConverter(sampling_rate=0)
    spec = tf.TensorSpec((1, None, 6, 8, 3), tf.uint8)
    data = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    with pytest.raises(ValueError, match="number of frames must be known"):
        data.map(BridleVideoConverter(num_frames=4))


def test_preprocessor_of_an_encoder():
    backbone = BridleBackbone(
        (2, 4, 4), 8, 1, 1, 8, input_dims=(4, 8, 12, 1), position_layout="sequence"
    )
    preprocessor = BridleVideoPreprocessor.for_backbone(backbone)
    x, y = preprocessor([clip(5, 20, 20), clip(3, 9, 16)], [0, 1])
    assert x.shape == (2, 4, 8, 12, 1)
    assert y == [0, 1]
    copy = BridleVideoPreprocessor.from_config(preprocessor.get_config())
    assert copy.get_config() == preprocessor.get_config()
    pictures = BridleBackbone(4, 8, 1, 1, 8, input_dims=(8, 12, 1))
    with pytest.raises(ValueError, match=r"take clips.*\(8, 12, 1\)"):
        BridleVideoPreprocessor.for_backbone(pictures)
