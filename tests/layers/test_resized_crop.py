import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from keras_bridle.augmentation.image import (
    RandomMultiScaleCrop,
    centered_boxes,
    crop_and_resize,
)

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def smooth(*shape):
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


def resize(images, boxes, size, interpolation):
    boxes = ops.convert_to_tensor(boxes, dtype="float32")
    return ops.convert_to_numpy(
        crop_and_resize(ops.convert_to_tensor(images), boxes, size, interpolation)
    )


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((3, 5, 20, 24), (10, 8)),  # smaller, antialiased
        ((3, 5, 6, 7), (16, 30)),  # larger
        ((0, 0, 31, 41), (16, 60)),  # one of each
        ((30, 40, 1, 1), (3, 4)),  # one pixel in the corner
        ((2, 3, 9, 12), (9, 12)),  # as it is
    ],
)
def test_equals_pillow(interpolation, box, size):
    image = smooth(31, 41)
    top, left, height, width = box
    cut = Image.fromarray(image[top : top + height, left : left + width])
    expected = np.asarray(cut.resize(size[::-1], FILTERS[interpolation]))
    expected = np.clip(expected, image.min(), image.max())
    actual = resize(image[None, :, :, None], [box], size, interpolation)
    np.testing.assert_allclose(actual[0, ..., 0], expected, atol=2e-3)


def test_every_picture_has_a_box_of_its_own_and_all_frames_of_a_clip_the_same():
    clips = smooth(2, 3, 20, 20, 3)
    boxes = [(0, 0, 8, 8), (5, 7, 12, 9)]
    together = resize(clips, boxes, (6, 5), "bicubic")
    assert together.shape == (2, 3, 6, 5, 3)
    for clip, box, result in zip(clips, boxes, together, strict=True):
        frames = [
            resize(np.clip(frame, 0, 255)[None], [box], (6, 5), "bicubic")[0]
            for frame in clip
        ]
        # Only the range to stay in is the clip's, not the frame's.
        np.testing.assert_allclose(result, frames, atol=0.5)


def test_bicubic_stays_in_range():
    edge = np.zeros((1, 8, 8, 1), "float32")
    edge[:, :, 4:] = 255
    result = resize(edge, [(0, 0, 8, 8)], (32, 32), "bicubic")
    assert result.min() == 0 and result.max() == 255
    assert 0 < result[0, 0, 15, 0] < result[0, 0, 16, 0] < 255


@pytest.mark.parametrize(
    ("image_size", "size", "box"),
    [
        ((20, 30), (10, 10), (0, 5, 20, 20)),
        ((30, 20), (5, 10), (10, 0, 10, 20)),
        ((8, 8), (8, 8), (0, 0, 8, 8)),
    ],
)
def test_centered_boxes(image_size, size, box):
    boxes = ops.convert_to_numpy(centered_boxes(3, image_size, size))
    np.testing.assert_array_equal(boxes, [box] * 3)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own")
def test_sizes_that_are_known_when_the_function_runs():
    import tensorflow as tf

    crop = RandomMultiScaleCrop(16)
    compiled = tf.function(
        lambda clips: crop(clips, training=False),
        input_signature=[tf.TensorSpec((None, 2, None, None, 3))],
    )
    for side in (16, 18, 23):
        clips = smooth(2, 2, side, side, 3)
        expected = ops.convert_to_numpy(crop(clips, training=False))
        np.testing.assert_allclose(compiled(clips), expected, atol=1e-3)
    with pytest.raises(ValueError, match="one known size in training"):
        tf.function(
            lambda clips: crop(clips, training=True),
            input_signature=[tf.TensorSpec((None, 2, None, None, 3))],
        )(smooth(2, 2, 8, 8, 3))
