"""Augmentation of images and clips."""

import math

import keras
from keras import ops

from keras_bridle.augmentation.base import Augmentation, Mixing
from keras_bridle.layers.base import ConfiguredLayer, check
from keras_bridle.replicas import draw_rows

INTERPOLATIONS = ("bilinear", "bicubic")


def as_pixels(images):
    """Checks the rank of images or clips, and casts them to float32."""
    images = ops.convert_to_tensor(images)
    expected = "(batch, height, width, channels), or clips with frames after the batch"
    check(len(images.shape) in (4, 5), "images", expected, tuple(images.shape))
    return ops.cast(images, "float32")


def crop_and_resize(images, boxes, size, interpolation):
    """Resizes a box `(top, left, height, width)` of each image, as Pillow does.

    Pixels outside a box have no influence. Results stay within the image's range, which
    bicubic filters alone would exceed at edges.
    """
    clips = images if len(images.shape) == 5 else images[:, None]
    height, width = ops.shape(clips)[2:4]
    rows = _weights(boxes[:, 0], boxes[:, 2], height, size[0], interpolation)
    columns = _weights(boxes[:, 1], boxes[:, 3], width, size[1], interpolation)
    result = ops.einsum("boh,bfhwc->bfowc", rows, clips)
    result = ops.einsum("bow,bfhwc->bfhoc", columns, result)
    if interpolation == "bicubic":
        options = {"axis": (1, 2, 3, 4), "keepdims": True}
        result = ops.maximum(result, ops.min(clips, **options))
        result = ops.minimum(result, ops.max(clips, **options))
    return result if len(images.shape) == 5 else result[:, 0]


def _weights(starts, lengths, size_in, size_out, interpolation):
    """Returns weights of input rows in output rows, `(batch, size_out, size_in)`."""
    starts, lengths = starts[:, None, None], lengths[:, None, None]
    # The center of pixel i is at i + 0.5.
    outputs = (ops.arange(size_out, dtype="float32") + 0.5)[None, :, None]
    inputs = (ops.arange(size_in, dtype="float32") + 0.5)[None, None, :]
    scale = lengths / size_out
    distance = (inputs - starts - outputs * scale) / ops.maximum(scale, 1.0)
    weights = _filter(ops.abs(distance), interpolation)
    inside = ops.logical_and(inputs > starts, inputs < starts + lengths)
    weights = ops.where(inside, weights, 0.0)
    return weights / ops.sum(weights, axis=-1, keepdims=True)


def _filter(distance, interpolation):
    if interpolation == "bilinear":
        return ops.maximum(1.0 - distance, 0.0)
    # Keys' cubic with a = -1/2.
    square, cube = distance**2, distance**3
    near = 1.5 * cube - 2.5 * square + 1.0
    far = -0.5 * cube + 2.5 * square - 4.0 * distance + 2.0
    return ops.where(distance < 1.0, near, ops.where(distance < 2.0, far, 0.0))


class _RandomCrop(Augmentation):
    """Base of the layers that crop to `random_boxes()` and resize."""

    checked = staticmethod(as_pixels)

    def __init__(self, arguments):
        super().__init__(arguments)
        size, interpolation = arguments["size"], arguments["interpolation"]
        sides = (size, size) if isinstance(size, int) else tuple(size)
        is_right = len(sides) == 2 and min(sides) >= 1
        check(is_right, "size", "a positive int or (height, width)", size)
        is_right = interpolation in INTERPOLATIONS
        check(is_right, "interpolation", f"one of {INTERPOLATIONS}", interpolation)
        self.size = int(sides[0]), int(sides[1])

    def augment(self, images):
        sides = images.shape[-3:-1]
        check(None not in sides, "images", "of one known size in training", sides)
        boxes = self.random_boxes(ops.shape(images)[0], *sides)
        return crop_and_resize(images, boxes, self.size, self.interpolation)

    def leave(self, images):
        """Resizes the largest centered box with the aspect ratio of the result."""
        # In a TensorFlow function traced for several sizes, these are tensors.
        rows, columns = (ops.cast(side, "float32") for side in ops.shape(images)[-3:-1])
        scale = ops.minimum(rows / self.size[0], columns / self.size[1])
        height, width = self.size[0] * scale, self.size[1] * scale
        box = ops.stack([(rows - height) / 2, (columns - width) / 2, height, width])
        boxes = box[None] + ops.zeros((ops.shape(images)[0], 1), dtype="float32")
        return crop_and_resize(images, boxes, self.size, self.interpolation)

    def compute_output_shape(self, images_shape):
        return (*images_shape[:-3], *self.size, images_shape[-1])


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomHorizontalFlip(Augmentation):
    """Flips left and right at random while training.

    Unlike `keras.layers.RandomFlip`, it also takes clips, whose frames are changed
    alike by all augmentations.

    Args:
        rate: float in [0, 1], the probability of a flip.
        seed: int or `None`.
        **kwargs: keyword arguments of `keras.layers.Layer`; `dtype` is float32 by
            default.

    Call arguments:
        images: images `(batch, height, width, channels)` or clips
            `(batch, frames, height, width, channels)`, of any dtype and range.
        training: bool.

    Returns:
        Float tensor of the same shape and range.

    Example:
    ```python
    import numpy as np
    from keras_bridle.augmentation.image import RandomHorizontalFlip

    clips = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), "uint8")
    print(RandomHorizontalFlip(seed=1)(clips, training=True).shape)
    ```
    """

    checked = staticmethod(as_pixels)

    def __init__(self, rate=0.5, seed=None, **kwargs):
        super().__init__(locals())
        check(0 <= rate <= 1, "rate", "in [0, 1]", rate)

    def augment(self, images):
        is_flipped = self.uniform((ops.shape(images)[0],)) < self.rate
        is_flipped = ops.reshape(is_flipped, (-1,) + (1,) * (len(images.shape) - 1))
        return ops.where(is_flipped, ops.flip(images, axis=-2), images)


# As other libraries do. With the usual scale and ratio, one in a million fails all.
_TRIES = 10


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomResizedCrop(_RandomCrop):
    """Crops a random box from each image and resizes it while training.

    The area and aspect ratio of the box are drawn for each image, then its position,
    all in whole pixels. A box larger than the image is drawn again, up to ten times;
    then it is the largest centered one with an allowed aspect ratio.

    Args:
        size: int or `(height, width)` of the result.
        scale: `(smallest, largest)` area as a share of the image's.
        ratio: `(smallest, largest)` width divided by height; their logarithm is
            uniform.
        interpolation: `"bicubic"` or `"bilinear"`, with antialiasing.
        seed: int or `None`.
        **kwargs: as for `RandomHorizontalFlip`.

    Call arguments:
        images: as for `RandomHorizontalFlip`.
        training: bool. Without training, the result is the largest centered box with
            the aspect ratio of `size`.

    Returns:
        Float tensor like `images`, with the height and width of `size`, in the same
        range.

    Example:
    ```python
    import numpy as np
    from keras_bridle.augmentation.image import RandomResizedCrop

    images = np.random.default_rng(0).integers(0, 256, (4, 40, 56, 3), "uint8")
    print(RandomResizedCrop(32, seed=1)(images, training=True).shape)
    ```

    Reference:
        - [Szegedy et al., 2014](https://arxiv.org/abs/1409.4842), section 6
    """

    def __init__(
        self,
        size,
        scale=(0.2, 1.0),
        ratio=(3 / 4, 4 / 3),
        interpolation="bicubic",
        seed=None,
        **kwargs,
    ):
        super().__init__(locals())
        is_right = 0 < scale[0] <= scale[1] <= 1
        check(is_right, "scale", "(smallest, largest), both in (0, 1]", scale)
        is_right = 0 < ratio[0] <= ratio[1]
        check(is_right, "ratio", "(smallest, largest), both positive", ratio)

    def random_boxes(self, batch_size, height, width):
        area = self.uniform((batch_size, _TRIES), *self.scale) * (height * width)
        ratio = ops.exp(self.uniform((batch_size, _TRIES), *map(math.log, self.ratio)))
        sizes = ops.stack([ops.sqrt(area / ratio), ops.sqrt(area * ratio)], axis=2)
        # The last candidate is the largest box with an allowed ratio: it always fits.
        widest = min(max(width / height, self.ratio[0]), self.ratio[1])
        last = (min(height, width / widest), min(width, height * widest))
        last = ops.convert_to_tensor(last, "float32") + ops.zeros_like(sizes[:, :1])
        sizes = ops.round(ops.concatenate([sizes, last], axis=1))
        sides = ops.convert_to_tensor((height, width), "float32")
        fits = ops.all(ops.logical_and(sizes >= 1, sizes <= sides), axis=2)
        chosen = ops.argmax(ops.cast(fits, "int32"), axis=1)[:, None]
        index = ops.repeat(chosen[:, :, None], 2, axis=2)
        size = ops.take_along_axis(sizes, index, axis=1)[:, 0]
        # The last candidate is centered.
        position = ops.where(chosen == _TRIES, 0.5, self.uniform((batch_size, 2)))
        corner = ops.floor(position * (sides - size + 1))
        return ops.concatenate([corner, size], axis=1)


# Positions of a box, in quarters of the room along height and width: the corners, the
# center, the middles of the sides, and those of the quadrants.
_POSITIONS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((2, 0), (2, 4), (4, 2), (0, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomMultiScaleCrop(_RandomCrop):
    """Crops a box from each clip, at one of a few scales, while training.

    Each side of the box is the clip's shorter side times one of `scales`. It lies at
    one of 13 positions: corners, center, middles of sides and of quadrants. Everything
    else is as in `RandomResizedCrop`.

    Args:
        size: int or `(height, width)` of the result.
        scales: floats in (0, 1].
        max_distortion: int, the largest distance in `scales` between the scales of
            height and width; 0 keeps boxes square.
        interpolation: `"bilinear"` or `"bicubic"`, with antialiasing.
        seed: int or `None`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.augmentation.image import RandomMultiScaleCrop

    clips = np.random.default_rng(0).integers(0, 256, (2, 8, 40, 56, 3), "uint8")
    print(RandomMultiScaleCrop(32, seed=1)(clips, training=True).shape)
    ```

    Reference:
        - [Wang et al., 2015](https://arxiv.org/abs/1507.02159), multi-scale cropping
        - [Tong et al., 2022](https://arxiv.org/abs/2203.12602), VideoMAE
    """

    def __init__(
        self,
        size,
        scales=(1.0, 0.875, 0.75, 0.66),
        max_distortion=1,
        interpolation="bilinear",
        seed=None,
        **kwargs,
    ):
        super().__init__(locals())
        is_right = scales and all(0 < scale <= 1 for scale in scales)
        check(is_right, "scales", "numbers in (0, 1]", scales)
        check(max_distortion >= 0, "max_distortion", "0 or more", max_distortion)

    def random_boxes(self, batch_size, height, width):
        sides = [max(int(scale * min(height, width)), 1) for scale in self.scales]
        boxes = [
            ((height - high) // 4 * down, (width - wide) // 4 * right, high, wide)
            for i, high in enumerate(sides)
            for j, wide in enumerate(sides)
            if abs(i - j) <= self.max_distortion
            for down, right in _POSITIONS
        ]
        draw, seed = keras.random.randint, self.seed_generator
        chosen = draw_rows(draw, (batch_size,), 0, len(boxes), seed=seed)
        return ops.take(ops.convert_to_tensor(boxes, dtype="float32"), chosen, axis=0)


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandAugment(Augmentation):
    """Applies a few random operations to each image while training.

    The operations are those of `keras.layers.RandAugment`, but:

    - Operations are drawn for each image, not for the batch.
    - A small `factor` makes small changes. Keras' own keeps 1 bit of 8 at 0.1.
    - Maximum strengths are those of the paper, such as 30 degrees.
    - Histograms are equalized per image, and compile quickly on JAX.

    For clips and gray images, wrap it in `ImageAugmentation`.

    Args:
        num_ops: int, operations on each image.
        factor: float in [0, 1], strength relative to the maximum. Magnitude 9 of the
            usual 10 is 0.9.
        seed: int or `None`.
        **kwargs: as for `RandomHorizontalFlip`.

    Call arguments:
        images: tensor of shape `(batch, height, width, 3)`, values from 0 to 255.
        training: bool.

    Returns:
        Float tensor of the same shape.

    Example:
    ```python
    import numpy as np
    from keras_bridle.augmentation.image import RandAugment

    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "uint8")
    print(RandAugment(factor=0.9, seed=0)(images, training=True).shape)
    ```

    Reference:
        - [Cubuk et al., 2019](https://arxiv.org/abs/1909.13719)
    """

    def __init__(self, num_ops=2, factor=0.9, seed=None, **kwargs):
        super().__init__(locals())
        check(num_ops >= 1, "num_ops", "1 or more", num_ops)
        check(0 <= factor <= 1, "factor", "in [0, 1]", factor)
        self.ways = _ways(factor, {"seed": seed, "dtype": self.dtype_policy})
        for way in self.ways:
            allow_compiling(way)

    def build(self, images_shape):
        for way in self.ways:
            way.build(images_shape)
        self.built = True

    def checked(self, images):
        return ops.cast(as_pixels(images), self.compute_dtype)

    def augment(self, images):
        return self.transform_images(images, self.get_random_transformation(images))

    def get_random_transformation(self, images, training=True):
        """Draws the operations for each image, and their strengths."""
        seed = self.seed_generator
        shape = (self.num_ops, ops.shape(images)[0], 1, 1, 1)
        chosen = keras.random.randint(shape, 0, len(self.ways), seed=seed)
        drawn = [
            way.get_random_transformation(images, training=True, seed=seed)
            for way in self.ways
        ]
        return {"chosen": chosen, "drawn": drawn}

    def transform_images(self, images, transformation, training=True):
        """Applies the operations that were drawn."""
        for chosen in ops.unstack(transformation["chosen"], self.num_ops):
            changed = images
            for number, way in enumerate(self.ways):
                found = transform_copy(way, images, transformation["drawn"][number])
                changed = ops.where(chosen == number, found, changed)
            images = changed
        return images


def _ways(factor, options):
    """Returns a layer for each operation, with a given strength.

    The ranges are from Cubuk et al., in the units of Keras' layers: fractions of a
    turn, of the image's sides and of its values. At least 4 of 8 bits stay.
    """
    layers = keras.layers
    shear, translation, spread = 0.3 * factor, 0.45 * factor, 0.45 * factor
    return [
        layers.RandomShear(shear, shear, **options),
        layers.RandomTranslation(translation, translation, **options),
        layers.RandomRotation(1 / 12 * factor, **options),
        layers.RandomBrightness(0.45 * factor, **options),
        layers.RandomColorDegeneration(0.9 * factor, **options),
        layers.RandomContrast(0.9 * factor, **options),
        # Keras blurs for factors below 0.5 and sharpens above.
        layers.RandomSharpness((0.5 - spread, 0.5 + spread), **options),
        layers.RandomPosterization((8 - round(4 * factor), 8), **options),
        _Solarization(factor, **options),
        layers.AutoContrast(dtype=options["dtype"]),
        _Equalization(dtype=options["dtype"]),
    ]


class _Solarization(keras.layers.Solarization):
    """Inverts pixels above a threshold, which falls from 256 with more strength."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.strength = factor

    def get_random_transformation(self, data, training=True, seed=None):
        # A threshold of 256 leaves all pixels as they are.
        low, shape = 256.0 * (1.0 - self.strength), (ops.shape(data)[0], 1, 1, 1)
        thresholds = keras.random.uniform(shape, low, 256.0, self.compute_dtype, seed)
        return {"additions": ops.zeros_like(thresholds), "thresholds": thresholds}


class _Equalization(keras.layers.Equalization):
    """Equalizes the histogram of each image and channel."""

    def transform_images(self, images, transformation, training=True):
        _, height, width, channels = images.shape
        num_pixels = height * width
        values = ops.transpose(ops.cast(images, "float32"), (0, 3, 1, 2))
        values = ops.reshape(values, (-1, num_pixels))
        number = ops.shape(values)[0]
        rows = ops.arange(number)[:, None] * 256
        bins = rows + ops.cast(ops.clip(values, 0.0, 255.0), "int32")
        flat_bins = ops.reshape(bins, (-1,))
        ones = ops.ones_like(flat_bins, dtype="float32")
        counts = ops.segment_sum(ones, flat_bins, num_segments=number * 256)
        counts = ops.reshape(counts, (-1, 256))
        # The number of pixels that are as dark or darker, minus the darkest ones.
        darker = ops.cumsum(counts, axis=1)
        lowest = ops.where(counts > 0, darker, num_pixels)
        lowest = ops.min(lowest, axis=1, keepdims=True)
        others = ops.maximum(num_pixels - lowest, 1)
        equalized = ops.round((darker - lowest) * 255.0 / others)
        found = ops.take(ops.reshape(equalized, (-1,)), bins)
        # An image with a single value has nothing to equalize.
        found = ops.where(lowest < num_pixels, found, values)
        found = ops.reshape(found, (-1, channels, height, width))
        return ops.cast(ops.transpose(found, (0, 2, 3, 1)), self.compute_dtype)


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomImageMix(Mixing):
    """Blends pairs of images (mixup) or pastes boxes of others (CutMix) while training.

    Unlike `keras.layers.MixUp` and `keras.layers.CutMix` it takes clips, chooses
    between the two for each image, and compiles with XLA.

    Args:
        mixup_alpha: float, both parameters of the Beta distribution of the shares of
            blended images; 0 turns mixup off.
        cutmix_alpha: float, likewise for pasting. With both, each image has equal
            chances of either.
        rate: float in [0, 1], the probability that an image is mixed.
        seed: int or `None`.
        **kwargs: as for `RandomHorizontalFlip`, and so are the call arguments.

    Returns:
        A `MixedBatch`. The share of an image with a pasted box is the exact share of
        the pixels outside it.

    Example:
    ```python
    import numpy as np
    from keras_bridle.augmentation.image import RandomImageMix

    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "uint8")
    mixed = RandomImageMix(seed=0)(images, training=True)
    print(mixed.inputs.shape, mixed.partners, mixed.shares)
    ```

    Reference:
        - [Zhang et al., 2017](https://arxiv.org/abs/1710.09412)
        - [Yun et al., 2019](https://arxiv.org/abs/1905.04899)
    """

    checked = staticmethod(as_pixels)

    def __init__(
        self, mixup_alpha=0.8, cutmix_alpha=1.0, rate=1.0, seed=None, **kwargs
    ):
        super().__init__(locals())

    def mix(self, images, partners):
        batch_size = ops.shape(images)[0]
        shape = (batch_size, 1, 1)
        others = ops.take(images, partners, axis=0)
        paste_rate = 0.5 if self.mixup_alpha and self.cutmix_alpha else 1.0
        is_pasted = self.uniform(shape) < (paste_rate if self.cutmix_alpha else 0.0)
        # The weight of an image's own pixels: MixUp has one weight for all of them,
        # CutMix has 0 inside the pasted box and 1 outside.
        weights = shares = ops.ones(shape, "float32")
        if self.mixup_alpha:
            weights = shares = self.beta("mixup_alpha", shape)
        if self.cutmix_alpha:
            outside = self._outside_boxes(batch_size, *ops.shape(images)[-3:-1])
            exact = ops.mean(outside, axis=(1, 2), keepdims=True)
            weights = ops.where(is_pasted, outside, weights)
            shares = ops.where(is_pasted, exact, shares)
        is_mixed = self.uniform(shape) < self.rate
        weights = ops.where(is_mixed, weights, 1.0)[..., None]
        shares = ops.where(is_mixed, shares, 1.0)
        if len(images.shape) == 5:
            weights = weights[:, None]
        return weights * images + (1.0 - weights) * others, shares[:, 0, 0]

    def _outside_boxes(self, batch_size, height, width):
        """Draws boxes: 1 outside and 0 inside, `(batch, height, width)`."""
        side = ops.sqrt(1.0 - self.beta("cutmix_alpha", (batch_size, 1)))
        inside = []
        for size in (height, width):
            # The center lies anywhere, so a box may reach over the edge.
            middle = self.uniform((batch_size, 1)) * size
            pixels = ops.arange(size, dtype="float32")[None] + 0.5
            inside.append(ops.abs(pixels - middle) < side * size / 2)
        box = ops.logical_and(inside[0][:, :, None], inside[1][:, None, :])
        return 1.0 - ops.cast(box, "float32")


def allow_compiling(layer):
    """Allows JAX to compile models with one of Keras' image augmentations.

    Geometric ones cannot be compiled on TensorFlow, so Keras rules compiling out on
    every backend, and each step would run operation by operation.
    """
    if keras.backend.backend() == "jax":
        layer.supports_jit = True


def transform_copy(layer, images, drawn):
    """Calls one of Keras' image augmentations on copies of its arguments.

    On torch, brightness changes its input in place, and rotation its angles.
    """
    drawn = keras.tree.map_structure(
        lambda value: ops.copy(value) if ops.is_tensor(value) else value, drawn
    )
    return layer.transform_images(ops.copy(images), drawn, training=True)


@keras.saving.register_keras_serializable(package="keras_bridle")
class ImageAugmentation(ConfiguredLayer):
    """Applies one of Keras' image augmentations to images or clips while training.

    `keras.layers.RandAugment`, `keras.layers.RandomErasing` and the like do not take
    clips or gray images. Here gray images pass as three equal channels.

    Args:
        layer: an image augmentation of Keras, such as `keras.layers.RandAugment`. Give
            it its own seed and `dtype="float32"`.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        images: images or clips of 1 or 3 channels, values from 0 to 255.
        training: bool.

    Returns:
        Float tensor of the same shape, in training within 0 to 255.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.augmentation.image import ImageAugmentation

    clips = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 1), "uint8")
    erase = keras.layers.RandomErasing(scale=(0.02, 0.33), seed=0, dtype="float32")
    print(ImageAugmentation(erase)(clips, training=True).shape)
    ```
    """

    def __init__(self, layer, **kwargs):
        if isinstance(layer, dict):
            layer = keras.saving.deserialize_keras_object(layer)
        kwargs.setdefault("dtype", "float32")
        super().__init__(locals())
        # Keras documents these methods for subclasses.
        methods = ("get_random_transformation", "transform_images")
        is_right = all(hasattr(layer, name) for name in methods)
        expected = "an image augmentation, such as `keras.layers.RandomErasing()`"
        check(is_right, "layer", expected, layer)
        allow_compiling(layer)

    def build(self, images_shape):
        if not self.layer.built:
            self.layer.build((images_shape[0], *images_shape[-3:-1], 3))
        self.built = True

    def call(self, images, training=None):
        images = as_pixels(images)
        channels = images.shape[-1]
        check(channels in (1, 3), "images", "of 1 or 3 channels", tuple(images.shape))
        if training:
            images = ops.repeat(images, 3, axis=-1) if channels == 1 else images
            images = self._augment(images)
            if channels == 1:
                images = ops.mean(images, axis=-1, keepdims=True)
            # Some of Keras' augmentations leave the range of pixels.
            images = ops.clip(images, 0.0, 255.0)
        return ops.cast(images, self.compute_dtype)

    def _augment(self, images):
        is_clip = len(images.shape) == 5
        first = images[:, 0] if is_clip else images
        drawn = self.layer.get_random_transformation(first, training=True)

        def transform(frames):
            return ops.cast(transform_copy(self.layer, frames, drawn), "float32")

        if not is_clip:
            return transform(images)
        frames = ops.map(transform, ops.swapaxes(images, 0, 1))
        return ops.swapaxes(frames, 0, 1)

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}
