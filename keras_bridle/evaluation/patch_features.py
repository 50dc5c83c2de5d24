"""Features of every patch, for probes that choose where to look."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bridle.evaluation.feature_extractor import run_batches


class PatchFeatures(NamedTuple):
    """What an encoder gives for each patch.

    Args:
        patches: float16 array of shape `(examples, patches, dim)`, to save memory.
        is_real: bool array of shape `(examples, patches)`, `False` at padding.
    """

    patches: np.ndarray
    is_real: np.ndarray

    def mean(self):
        """Averages the real patches, float32 of shape `(examples, dim)`."""
        weights = self.is_real / self.is_real.sum(axis=1, keepdims=True)
        return np.einsum(
            "np,npd->nd", weights.astype("float32"), self.patches.astype("float32")
        )

    def take(self, rows):
        """Returns some of the examples."""
        return PatchFeatures(self.patches[rows], self.is_real[rows])


def extract_patches(
    backbone, inputs, batch_size=32, progress=False, description="patches"
):
    """Runs a frozen encoder over a data set and returns the features of each patch.

    All of them are kept in memory, at two bytes a number.

    Args:
        backbone: `BridleBackbone`.
        inputs: as of `extract_features`.
        batch_size: int, likewise.
        progress: bool, likewise.
        description: string, likewise.

    Returns:
        A `PatchFeatures`, without the class token.

    Raises:
        ValueError: if `inputs` is empty.

    Example:
    ```python
    import numpy as np
    from keras_bridle import BridleBackbone
    from keras_bridle.evaluation import extract_patches

    backbone = BridleBackbone.from_preset("bridle_image_tiny", load_weights=False)
    found = extract_patches(backbone, np.zeros((3, 32, 32, 3), "uint8"), batch_size=2)
    print(found.patches.shape)  # (3, 64, 128)
    ```
    """
    network = PatchModel(backbone)
    found = [
        (outputs["patches"].astype("float16"), outputs["is_real"])
        for outputs, _ in run_batches(
            network, inputs, batch_size, description if progress else None
        )
    ]
    if not found:
        raise ValueError("inputs must hold at least one example; received none")
    return PatchFeatures(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


class PatchModel(keras.Model):
    """Raw input to `patches` and `is_real`, see `PatchFeatures`.

    Args:
        backbone: `BridleBackbone`.
    """

    def __init__(self, backbone):
        super().__init__(autocast=False, name="patch_model")
        self.backbone = backbone

    def call(self, inputs):
        return patch_outputs(self.backbone, inputs)


def patch_outputs(backbone, inputs):
    """Encodes raw input, gives a dict as of `PatchModel`."""
    features, padding_mask = backbone.features(inputs)
    tokens = backbone.encode(features, padding_mask)
    patches = ops.cast(backbone.drop_class_token(tokens), "float32")
    is_real = backbone.patch_padding_mask(features, padding_mask)
    if is_real is None:
        is_real = ops.ones(ops.shape(patches)[:2], dtype="bool")
    return {"patches": patches, "is_real": is_real}
