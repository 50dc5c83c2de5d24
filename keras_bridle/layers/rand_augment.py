"""RandAugment, whose changes grow with its strength."""

import keras
from keras import ops

from keras_bridle.layers.image_augmentation import allow_compiling, transform_copy
from keras_bridle.layers.resized_crop import as_pixels

# The largest changes of Cubuk et al., as Keras' layers count them: shares of a turn, of
# the picture's sides and of its values.
_SHEAR, _TRANSLATION, _ROTATION = 0.3, 0.45, 1 / 12
_BRIGHTNESS, _CONTRAST, _COLOR, _SHARPNESS = 0.45, 0.9, 0.9, 0.45
_MOST_BITS_LOST = 4


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandAugment(keras.layers.Layer):
    """Changes each picture in a few ways, drawn at random, while training.

    The changes are those of `keras.layers.RandAugment`, made by Keras' layers: shear,
    translation, rotation, brightness, color, contrast, sharpness, posterization,
    solarization, autocontrast and equalization. Four things differ. Ways are drawn for
    each picture, not for the batch. A small `factor` makes small changes: Keras' own
    keeps 1 bit of 8 at 0.1, and turns dark what is bright. Their largest size is that
    of the paper, such as 30 degrees. And histograms are those of a picture, and compile
    in no time on JAX, where Keras' take minutes.

    For clips and gray pictures, wrap it in `ImageAugmentation`.

    Args:
        num_ops: int. Changes to each picture.
        factor: float in [0, 1]. Strength: how large changes may be, as a share of the
            largest. Magnitude 9 of the usual 10 is 0.9.
        seed: int or `None`, seed of the random numbers.
        dtype: dtype policy; float32 by default, since half precision is too coarse for
            pixels.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        images: tensor of shape `(batch, height, width, 3)`, values from 0 to 255.
        training: bool. Without training the images stay as they are.

    Returns:
        Float tensor of the same shape.

    Raises:
        ValueError: for arguments out of range.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import RandAugment

    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "uint8")
    print(RandAugment(factor=0.9, seed=0)(pictures, training=True).shape)
    ```

    Reference:
        - [Cubuk et al., 2019](https://arxiv.org/abs/1909.13719)
    """

    def __init__(self, num_ops=2, factor=0.9, seed=None, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        if num_ops < 1:
            raise ValueError(f"`num_ops` must be 1 or more. Received: {num_ops}")
        if not 0 <= factor <= 1:
            raise ValueError(f"`factor` must lie in [0, 1]. Received: {factor}")
        self.num_ops = num_ops
        self.factor = factor
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.ways = _ways(factor, {"seed": seed, "dtype": dtype})
        for way in self.ways:
            allow_compiling(way)

    def build(self, images_shape):
        for way in self.ways:
            way.build(images_shape)
        self.built = True

    def call(self, images, training=None):
        images = ops.cast(as_pixels(images, "RandAugment"), self.compute_dtype)
        if not training:
            return images
        return self.transform_images(images, self.get_random_transformation(images))

    def get_random_transformation(self, images, training=True):
        """Draws the ways of each picture, and how strong they are."""
        chosen = keras.random.randint(
            (self.num_ops, ops.shape(images)[0], 1, 1, 1),
            0,
            len(self.ways),
            seed=self.seed_generator,
        )
        return {
            "chosen": chosen,
            "drawn": [
                way.get_random_transformation(
                    images, training=True, seed=self.seed_generator
                )
                for way in self.ways
            ],
        }

    def transform_images(self, images, transformation, training=True):
        """Changes pictures as was drawn."""
        for chosen in ops.unstack(transformation["chosen"], self.num_ops):
            changed = images
            for number, way in enumerate(self.ways):
                found = transform_copy(way, images, transformation["drawn"][number])
                changed = ops.where(chosen == number, found, changed)
            images = changed
        return images

    def compute_output_shape(self, images_shape):
        return images_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_ops": self.num_ops,
            "factor": self.factor,
            "seed": self.seed,
        }


def _ways(factor, options):
    """Keras' layers, one for each way, at a strength."""
    layers = keras.layers
    bits = 8 - round(_MOST_BITS_LOST * factor)
    spread = _SHARPNESS * factor
    return [
        layers.RandomShear(_SHEAR * factor, _SHEAR * factor, **options),
        layers.RandomTranslation(
            _TRANSLATION * factor, _TRANSLATION * factor, **options
        ),
        layers.RandomRotation(_ROTATION * factor, **options),
        layers.RandomBrightness(_BRIGHTNESS * factor, **options),
        layers.RandomColorDegeneration(_COLOR * factor, **options),
        layers.RandomContrast(_CONTRAST * factor, **options),
        # Keras blurs below a half and sharpens above.
        layers.RandomSharpness((0.5 - spread, 0.5 + spread), **options),
        layers.RandomPosterization((bits, 8), **options),
        _Solarization(factor, **options),
        layers.AutoContrast(dtype=options["dtype"]),
        _Equalization(dtype=options["dtype"]),
    ]


class _Solarization(keras.layers.Solarization):
    """Turns pixels over a threshold around, which sinks as the strength grows.

    Keras' own starts from thresholds of 0, which turn the whole picture around.
    """

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.strength = factor

    def get_random_transformation(self, data, training=True, seed=None):
        thresholds = keras.random.uniform(
            (ops.shape(data)[0], 1, 1, 1),
            # At 256 all pixels stay.
            256.0 * (1.0 - self.strength),
            256.0,
            seed=seed,
            dtype=self.compute_dtype,
        )
        return {"additions": ops.zeros_like(thresholds), "thresholds": thresholds}


class _Equalization(keras.layers.Equalization):
    """Spreads values over the range, by the histogram of each picture and channel."""

    def transform_images(self, images, transformation, training=True):
        _, height, width, channels = images.shape
        values = ops.transpose(ops.cast(images, "float32"), (0, 3, 1, 2))
        values = ops.reshape(values, (-1, height * width))
        number = ops.shape(values)[0]
        rows = ops.arange(number)[:, None] * 256
        bins = rows + ops.cast(ops.clip(values, 0.0, 255.0), "int32")
        counts = ops.segment_sum(
            ops.ones_like(ops.reshape(values, (-1,))),
            ops.reshape(bins, (-1,)),
            num_segments=number * 256,
        )
        counts = ops.reshape(counts, (-1, 256))
        # How many pixels are as dark or darker, without the darkest.
        darker = ops.cumsum(counts, axis=1)
        room = height * width
        lowest = ops.min(ops.where(counts > 0, darker, room), axis=1, keepdims=True)
        equalized = ops.round((darker - lowest) * 255.0 / ops.maximum(room - lowest, 1))
        found = ops.take(ops.reshape(equalized, (-1,)), bins)
        # Where all pixels are alike there is nothing to spread.
        found = ops.where(lowest < room, found, values)
        found = ops.reshape(found, (-1, channels, height, width))
        return ops.cast(ops.transpose(found, (0, 2, 3, 1)), self.compute_dtype)
