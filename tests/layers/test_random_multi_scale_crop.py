import numpy as np
import pytest
from keras import ops

from keras_bridle.augmentation.image import RandomMultiScaleCrop


def ramps(batch_size, height, width):
    """Clips of one frame whose channels are the row and column of each pixel."""
    rows, columns = np.meshgrid(
        np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij"
    )
    image = np.stack([rows, columns], axis=-1).astype("float32")
    return np.repeat(image[None, None], batch_size, axis=0)


def boxes_of(results):
    """Tells which box each result of 64 x 64 pixels shows, larger than any box."""
    row, column = results[:, 0, 31:33, 31, 0], results[:, 0, 31, 31:33, 1]
    height, width = 64 * (row[:, 1] - row[:, 0]), 64 * (column[:, 1] - column[:, 0])
    top, left = row.mean(axis=1) - height / 2, column.mean(axis=1) - width / 2
    return np.round(np.stack([top, left, height, width], axis=1)).astype(int)


def test_parts_are_those_of_the_published_recipe():
    layer = RandomMultiScaleCrop(64, seed=0)
    results = ops.convert_to_numpy(layer(ramps(4000, 40, 60), training=True))
    boxes = [tuple(box) for box in boxes_of(results).tolist()]
    sides = [40, 35, 30, 26]
    expected = set()
    for i, height in enumerate(sides):
        for width in sides[max(i - 1, 0) : i + 2]:
            down, right = (40 - height) // 4, (60 - width) // 4
            places = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4)]
            places += [(2, 0), (1, 1), (3, 1), (1, 3), (3, 3)]
            expected |= {(down * a, right * b, height, width) for a, b in places}
    assert set(boxes) == expected
    # 10 pairs of sides, equally likely.
    counts = np.unique([box[2:] for box in boxes], axis=0, return_counts=True)[1]
    assert len(counts) == 10 and counts.min() > 320 and counts.max() < 480


def test_without_distortion_parts_are_square():
    layer = RandomMultiScaleCrop(64, max_distortion=0, seed=0)
    results = ops.convert_to_numpy(layer(ramps(200, 40, 60), training=True))
    boxes = boxes_of(results)
    np.testing.assert_array_equal(boxes[:, 2], boxes[:, 3])
    assert set(boxes[:, 2].tolist()) == {40, 35, 30, 26}


def test_frames_of_a_clip_have_the_same_part():
    clips = np.repeat(ramps(6, 30, 30), 4, axis=1)
    results = ops.convert_to_numpy(
        RandomMultiScaleCrop(64, seed=3)(clips, training=True)
    )
    np.testing.assert_array_equal(results, results[:, :1].repeat(4, axis=1))
    assert len({result.tobytes() for result in results}) > 2


def test_seed_and_inference():
    clips = ramps(8, 40, 60)
    first, second, other = (RandomMultiScaleCrop(64, seed=seed) for seed in (1, 1, 2))
    result = ops.convert_to_numpy(first(clips, training=True))
    np.testing.assert_array_equal(
        result, ops.convert_to_numpy(second(clips, training=True))
    )
    assert (result != ops.convert_to_numpy(other(clips, training=True))).any()
    centered = boxes_of(ops.convert_to_numpy(first(clips)))
    np.testing.assert_array_equal(centered, [(0, 10, 40, 40)] * 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": ()}, r"`scales` must lie in \(0, 1\]"),
        ({"scales": (1.2,)}, r"`scales` must lie in \(0, 1\]"),
        ({"max_distortion": -1}, "`max_distortion` must be at least 0"),
        ({"size": -3}, "`size` must be a positive int"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomMultiScaleCrop(**{"size": 8, **arguments})
