"""Masks that hide patches anywhere."""

import keras
from keras import ops

from keras_bridle.layers.patch_mask import check_mask_ratio, num_kept, split_patches
from keras_bridle.layers.replicas import draw_rows


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomMask(keras.layers.Layer):
    """Hides a fixed share of the patches, picked at random for each example.

    Args:
        mask_ratio: float between 0 and 1, the share of patches to hide.
        seed: optional int, makes the masks reproducible.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        patches: tensor of shape `(batch, num_patches, ...)`; only its shape counts.
        grid: tuple of ints, the grid of patches (not used here; other masks do).
        noise: optional float tensor of shape `(batch, num_patches)`, used instead of
            random numbers: the patches of smallest noise stay visible.

    Returns:
        `PatchMask`, patches in the order of their noise.

    Raises:
        ValueError: for a ratio outside (0, 1), or fewer than 2 patches.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import RandomMask

    mask = RandomMask(mask_ratio=0.75, seed=1)(np.zeros((2, 16, 8), "float32"))
    print(mask.visible.shape, mask.masked.shape)  # (2, 4) (2, 12)
    ```

    Reference:
        - [He et al., 2021](https://arxiv.org/abs/2111.06377)
    """

    def __init__(self, mask_ratio=0.8, seed=None, **kwargs):
        super().__init__(**kwargs)
        check_mask_ratio("mask_ratio", mask_ratio)
        self.mask_ratio = mask_ratio
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, patches, grid=None, noise=None):
        batch, num_patches = ops.shape(patches)[:2]
        if num_patches < 2:
            raise ValueError(
                "Masking needs at least 2 patches. "
                f"Received: patches of shape {tuple(patches.shape)}"
            )
        if noise is None:
            noise = draw_rows(
                keras.random.uniform,
                (batch, num_patches),
                dtype="float32",
                seed=self.seed_generator,
            )
        noise = ops.convert_to_tensor(noise, dtype="float32")
        visible_count = num_kept(num_patches, self.mask_ratio)
        return split_patches(noise, visible_count)

    def get_config(self):
        return {
            **super().get_config(),
            "mask_ratio": self.mask_ratio,
            "seed": self.seed,
        }
