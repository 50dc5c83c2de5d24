import numpy as np
import pytest
from harness import to_numpy
from keras import ops

from keras_bridle.layers.masks import (
    PatchMask,
    check_mask_ratio,
    gather_patches,
    num_kept,
    restore_order,
)


@pytest.mark.parametrize("rest", [(), (5,), (2, 3)])
def test_gather_picks_each_examples_own(rest):
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(3, 7, *rest)).astype("float32")
    indices = np.stack([rng.permutation(7)[:4] for _ in range(3)]).astype("int32")
    picked = to_numpy(gather_patches(ops.convert_to_tensor(patches), indices))
    expected = np.stack(
        [row[index] for row, index in zip(patches, indices, strict=True)]
    )
    np.testing.assert_array_equal(picked, expected)


def test_gathered_patches_come_back_in_order():
    rng = np.random.default_rng(1)
    order = np.stack([rng.permutation(9) for _ in range(4)]).astype("int32")
    mask = PatchMask(*map(ops.convert_to_tensor, (order[:, :3], order[:, 3:])))
    patches = ops.convert_to_tensor(rng.normal(size=(4, 9, 2)).astype("float32"))
    shuffled = ops.concatenate(
        [gather_patches(patches, mask.visible), gather_patches(patches, mask.masked)],
        axis=1,
    )
    restored = gather_patches(shuffled, restore_order(mask))
    np.testing.assert_array_equal(to_numpy(restored), to_numpy(patches))
    assert to_numpy(restore_order(mask)).dtype == np.int32


@pytest.mark.parametrize(
    ("length", "ratio", "kept"),
    [(10, 0.8, 2), (100, 0.8, 20), (512, 0.8, 102), (4, 0.99, 1), (4, 0.01, 3)],
)
def test_num_kept(length, ratio, kept):
    assert num_kept(length, ratio) == kept


@pytest.mark.parametrize("value", [0.0, 1.0, -0.2, 1.5])
def test_ratio_out_of_range(value):
    with pytest.raises(ValueError, match=f"`share` must be .* share={value}"):
        check_mask_ratio("share", value)


def test_as_many_patches_picked_as_examples():
    # `keras.ops.add` takes a column for a bias here, on TensorFlow.
    patches = np.arange(12.0).reshape(3, 4)
    indices = np.int32([[0, 1, 2], [3, 2, 1], [1, 1, 3]])
    picked = to_numpy(gather_patches(ops.convert_to_tensor(patches), indices))
    np.testing.assert_array_equal(picked, np.take_along_axis(patches, indices, 1))
