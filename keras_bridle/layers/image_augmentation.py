"""Keras' own image augmentations, for gray pictures and clips as well."""

import keras
from keras import ops

from keras_bridle.layers.resized_crop import as_pixels


def allow_compiling(layer):
    """Lets models with one of Keras' image augmentations be compiled on JAX.

    Those that move pixels cannot be on TensorFlow, and rule it out on every backend:
    each step would be run operation by operation.

    Args:
        layer: a Keras layer.
    """
    if keras.backend.backend() == "jax":
        layer.supports_jit = True


def transform_copy(layer, images, drawn):
    """Lets one of Keras' image augmentations change images, and nothing else.

    On torch, brightness changes the tensor that it is given, and rotation the angles.

    Args:
        layer: an image augmentation of Keras.
        images: float tensor of shape `(batch, height, width, channels)`.
        drawn: what its `get_random_transformation()` returned.

    Returns:
        Tensor of the same shape.
    """
    drawn = keras.tree.map_structure(
        lambda value: ops.copy(value) if ops.is_tensor(value) else value, drawn
    )
    return layer.transform_images(ops.copy(images), drawn, training=True)


@keras.saving.register_keras_serializable(package="keras_bridle")
class ImageAugmentation(keras.layers.Layer):
    """Applies one of Keras' image augmentations to pictures or clips while training.

    What `keras.layers.RandAugment`, `keras.layers.RandomErasing` and the like do not
    take by themselves: clips, all frames of which are changed alike, and gray pictures,
    which pass as three equal channels.

    Args:
        layer: an image augmentation of Keras, such as `keras.layers.RandAugment`. Give
            it a seed of its own and `dtype="float32"`.
        dtype: dtype policy; float32 by default, since half precision is too coarse for
            pixels.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        images: tensor of shape `(batch, height, width, channels)`, or clips of shape
            `(batch, frames, height, width, channels)`, with 1 or 3 channels.
        training: bool. Without training the images stay as they are.

    Returns:
        Float tensor of the same shape, in training within 0 to 255.

    Raises:
        ValueError: for a layer of another kind, and images of another rank or another
            number of channels.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.layers import ImageAugmentation

    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 1), "uint8")
    erase = keras.layers.RandomErasing(scale=(0.02, 0.33), seed=0, dtype="float32")
    print(ImageAugmentation(erase)(clips, training=True).shape)
    ```
    """

    def __init__(self, layer, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        if isinstance(layer, dict):
            layer = keras.saving.deserialize_keras_object(layer)
        # Keras' public methods for whoever writes such a layer.
        if not all(
            hasattr(layer, name)
            for name in ("get_random_transformation", "transform_images")
        ):
            raise ValueError(
                "`layer` must be an image augmentation of Keras, such as "
                f"keras.layers.RandAugment(). Received: {layer!r}"
            )
        self.layer = layer
        allow_compiling(layer)

    def build(self, images_shape):
        frames_shape = (images_shape[0], *images_shape[-3:-1], 3)
        if not self.layer.built:
            self.layer.build(frames_shape)
        self.built = True

    def call(self, images, training=None):
        images = as_pixels(images, "ImageAugmentation")
        channels = images.shape[-1]
        if channels not in (1, 3):
            raise ValueError(
                "ImageAugmentation expects 1 or 3 channels. "
                f"Received shape: {tuple(images.shape)}"
            )
        if not training:
            return ops.cast(images, self.compute_dtype)
        if channels == 1:
            images = ops.repeat(images, 3, axis=-1)
        images = self._augment(images)
        if channels == 1:
            images = ops.mean(images, axis=-1, keepdims=True)
        # Not all of Keras' augmentations stay within the range of pixels.
        images = ops.clip(images, 0.0, 255.0)
        return ops.cast(images, self.compute_dtype)

    def _augment(self, images):
        is_clip = len(images.shape) == 5
        pictures = images[:, 0] if is_clip else images
        drawn = self.layer.get_random_transformation(pictures, training=True)

        def transform(frames):
            return ops.cast(transform_copy(self.layer, frames, drawn), "float32")

        if not is_clip:
            return transform(images)
        frames = ops.map(transform, ops.swapaxes(images, 0, 1))
        return ops.swapaxes(frames, 0, 1)

    def compute_output_shape(self, images_shape):
        return images_shape

    def get_config(self):
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
        }
