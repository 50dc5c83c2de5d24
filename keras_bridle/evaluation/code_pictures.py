"""Pictures of what a pretraining's tokenizer makes of its input."""

from pathlib import Path

import keras
import numpy as np

from keras_bridle.evaluation.nearest_patches import nearest_patches
from keras_bridle.evaluation.picture_plots import (
    cut_patches,
    fill_up,
    plot_code_patches,
    plot_picture_codes,
)
from keras_bridle.evaluation.plots import plot_masked_codes
from keras_bridle.layers.random_mask import RandomMask


def draw_codes(pretraining, inputs, folder, most_examples=512):
    """Draws an example with its mask and its codes, and the nearest patches of codes.

    Args:
        pretraining: `InterleavedPretraining`, after `fit()`.
        inputs: array of raw inputs; the first is the example.
        folder: string or path; it gets `codes.png` and `code_patches.png`.
        most_examples: int, how many inputs to look for patches in.

    Returns:
        The paths of both pictures.

    Example:
    ```python
    import tempfile
    import numpy as np
    from keras_bridle import BridleBackbone, InterleavedPretraining
    from keras_bridle.evaluation import draw_codes

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    pretraining = InterleavedPretraining(backbone, codebook_size=8, code_dim=8)
    images = np.random.rand(16, 32, 32, 1).astype("float32")
    pretraining.fit(images, rounds=0, cold_start_epochs=1, batch_size=8, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        draw_codes(pretraining, images, folder)
    ```
    """
    backbone, folder = pretraining.backbone, Path(folder)
    inputs = np.asarray(inputs[:most_examples])
    codes, distances = pretraining.codes(inputs, with_distances=True)
    # The nearest of soft codes.
    codes = codes.reshape(*codes.shape[:2], pretraining.num_levels, -1)[..., 0]
    pictures = _pictures(pretraining, inputs)
    grid = backbone.patch_embedding.grid(pictures.shape[1:-1])
    example = {
        "visible": _visible(pretraining, codes[:1], grid),
        "codes": codes[0],
        "grid": grid,
        "patch_size": backbone.patch_size,
        "path": folder / "codes.png",
    }
    if _is_sound(backbone):
        # The last row of patches may reach beyond the clip.
        whole = fill_up(pictures[0], grid, backbone.patch_size)
        path = plot_masked_codes(whole[..., 0], **example)
    else:
        path = plot_picture_codes(pictures[0], **example)
    return path, _draw_nearest(backbone, pictures, codes, distances, grid, folder)


def _is_sound(backbone):
    return len(backbone.input_dims) == 1


def _pictures(pretraining, inputs):
    """Raw input where it can be seen, else the map that is cut into patches."""
    backbone, augmentation = pretraining.backbone, pretraining.augmentation
    if augmentation is not None:
        # It may bring input to its size.
        inputs = keras.ops.convert_to_numpy(augmentation(inputs, training=False))
    if inputs.ndim == len(backbone.patch_size) + 2:
        return inputs
    # One after another, as a batch of long recordings would fill the memory.
    maps = [backbone.features(example[None])[0] for example in inputs]
    return np.concatenate([keras.ops.convert_to_numpy(x) for x in maps])


def _visible(pretraining, codes, grid):
    mask = RandomMask() if pretraining.mask is None else pretraining.mask
    return keras.ops.convert_to_numpy(mask(codes, grid=grid).visible)[0]


def _draw_nearest(backbone, pictures, codes, distances, grid, folder):
    found = nearest_patches(codes[:, :, 0], distances)
    patches = {}
    for code, places in found.items():
        cut = [
            cut_patches(pictures[example], grid, backbone.patch_size)[patch]
            for example, patch in places
        ]
        patches[f"code {code}"] = np.stack(cut)
    if _is_sound(backbone):
        # Time to the right and high notes at the top, as in spectrograms.
        patches = {name: x.swapaxes(1, 2)[:, ::-1] for name, x in patches.items()}
    title = "level 1: the patches nearest to a code, frequent codes first"
    return plot_code_patches(patches, folder / "code_patches.png", title=title)
