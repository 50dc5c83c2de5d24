"""Augmentation of images and clips."""

import math

import keras
from keras import ops

from keras_bridle.augmentation.base import (
    BetaShares,
    MixedBatch,
    draw_partners,
    draw_uniform,
)
from keras_bridle.replicas import draw_rows

# How far the filters reach, in pixels of the coarser of the two grids.
_RADIUS = {"bilinear": 1.0, "bicubic": 2.0}
INTERPOLATIONS = tuple(_RADIUS)


def as_pixels(images, layer):
    """Converts images or clips to float32 and checks their rank."""
    images = ops.convert_to_tensor(images)
    if len(images.shape) not in (4, 5):
        raise ValueError(
            f"{layer} expects images of shape (batch, height, width, channels) or "
            "clips of shape (batch, frames, height, width, channels). Received shape "
            f"{tuple(images.shape)}"
        )
    return ops.cast(images, "float32")


def check_size(size):
    """Returns an int or a pair as `(height, width)`."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(int(side) != side or side < 1 for side in pair):
        raise ValueError(
            f"`size` must be a positive int or (height, width). Received: {size}"
        )
    return int(pair[0]), int(pair[1])


def check_interpolation(interpolation):
    """Raises for a filter that there is not."""
    if interpolation not in _RADIUS:
        raise ValueError(
            f"`interpolation` must be one of {INTERPOLATIONS}. "
            f"Received: {interpolation!r}"
        )


def centered_boxes(batch_size, image_size, size):
    """Returns the largest box of the proportions of `size`, in the middle.

    Args:
        batch_size: int. How many.
        image_size: `(height, width)` of the pictures.
        size: `(height, width)` of what the boxes are resized to.

    Returns:
        float32 tensor of shape `(batch_size, 4)`, see `crop_and_resize`.
    """
    # Sizes are tensors where TensorFlow compiled one function for several.
    rows, columns = (ops.cast(side, "float32") for side in image_size)
    scale = ops.minimum(rows / size[0], columns / size[1])
    height, width = size[0] * scale, size[1] * scale
    box = ops.stack([(rows - height) / 2, (columns - width) / 2, height, width])
    return box[None] + ops.zeros((batch_size, 1), dtype="float32")


def crop_and_resize(images, boxes, size, interpolation):
    """Resizes a box of each picture, with antialiasing, as Pillow does.

    What lies outside a box has no influence. The result stays within the range of the
    picture's values, which bicubic filters alone would exceed at edges.

    Args:
        images: float32 tensor of shape `(batch, height, width, channels)`, or clips of
            shape `(batch, frames, height, width, channels)`: all frames of a clip have
            the same box.
        boxes: float32 tensor of shape `(batch, 4)`: `(top, left, height, width)` in
            pixels.
        size: `(height, width)` of the result.
        interpolation: `"bilinear"` or `"bicubic"`.

    Returns:
        float32 tensor, as `images` with `size` for height and width.
    """
    clips = images if len(images.shape) == 5 else images[:, None]
    height, width = ops.shape(clips)[2:4]
    rows = _weights(boxes[:, 0], boxes[:, 2], height, size[0], interpolation)
    columns = _weights(boxes[:, 1], boxes[:, 3], width, size[1], interpolation)
    result = ops.einsum("boh,bfhwc->bfowc", rows, clips)
    result = ops.einsum("bow,bfhwc->bfhoc", columns, result)
    if interpolation == "bicubic":
        axes = (1, 2, 3, 4)
        darkest = ops.min(clips, axis=axes, keepdims=True)
        brightest = ops.max(clips, axis=axes, keepdims=True)
        result = ops.minimum(ops.maximum(result, darkest), brightest)
    return result if len(images.shape) == 5 else result[:, 0]


def _weights(starts, lengths, size_in, size_out, interpolation):
    """Returns the share of each input row in each output row.

    Args:
        starts: tensor of shape `(batch,)`: where boxes begin, in pixels.
        lengths: tensor of shape `(batch,)`: how far they reach.
        size_in: int. Rows of the input.
        size_out: int. Rows of the output.
        interpolation: name of the filter.

    Returns:
        float32 tensor of shape `(batch, size_out, size_in)`; rows sum to 1.
    """
    starts, lengths = starts[:, None, None], lengths[:, None, None]
    # A pixel's middle lies at a half.
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


class RandomBoxCrop(keras.layers.Layer):
    """Base of the layers that cut a random box out of each picture and resize it.

    Subclasses draw the boxes, in `random_boxes()`.

    Args:
        size: int or `(height, width)` of the result.
        interpolation: `"bilinear"` or `"bicubic"`.
        seed: optional int.
        dtype: dtype of the result.
        **kwargs: keyword arguments of `keras.layers.Layer`.
    """

    def __init__(self, size, interpolation, seed=None, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        check_interpolation(interpolation)
        self.size = check_size(size)
        self.interpolation = interpolation
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def random_boxes(self, batch_size, height, width):
        """Draws a box for each picture, see `crop_and_resize`."""
        raise NotImplementedError

    def call(self, images, training=None):
        images = as_pixels(images, type(self).__name__)
        batch_size, image_size = ops.shape(images)[0], ops.shape(images)[-3:-1]
        if not training:
            boxes = centered_boxes(batch_size, image_size, self.size)
        elif None in images.shape[-3:-1]:
            raise ValueError(
                f"{type(self).__name__} needs inputs of one known size in training. "
                f"Received shape {tuple(images.shape)}"
            )
        else:
            boxes = self.random_boxes(batch_size, *image_size)
        result = crop_and_resize(images, boxes, self.size, self.interpolation)
        return ops.cast(result, self.compute_dtype)

    def compute_output_shape(self, images_shape):
        return (*images_shape[:-3], *self.size, images_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "interpolation": self.interpolation,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomHorizontalFlip(keras.layers.Layer):
    """Exchanges left and right at random while training.

    Unlike `keras.layers.RandomFlip` it also takes clips, all frames of which are
    mirrored or none.

    Args:
        rate: float in [0, 1], how likely a picture is mirrored.
        seed: int or `None`, seed of the random numbers.
        dtype: dtype policy; float32 by default, since half precision is too coarse for
            pixels.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        images: tensor of shape `(batch, height, width, channels)`, or clips of shape
            `(batch, frames, height, width, channels)`, of any dtype and range.
        training: bool. Without training the images stay as they are.

    Returns:
        Float tensor of the same shape and range.

    Raises:
        ValueError: for a rate out of range, and images of another rank.

    Example:
    ```python
    import numpy as np
    from keras_bridle.augmentation.image import RandomHorizontalFlip

    clips = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), "uint8")
    print(RandomHorizontalFlip(seed=1)(clips, training=True).shape)
    ```
    """

    def __init__(self, rate=0.5, seed=None, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        if not 0 <= rate <= 1:
            raise ValueError(f"`rate` must lie in [0, 1]. Received: {rate}")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, images, training=None):
        images = as_pixels(images, "RandomHorizontalFlip")
        if training:
            drawn = draw_rows(
                keras.random.uniform,
                (ops.shape(images)[0],),
                dtype="float32",
                seed=self.seed_generator,
            )
            mirrored = ops.reshape(
                drawn < self.rate, (-1,) + (1,) * (len(images.shape) - 1)
            )
            images = ops.where(mirrored, ops.flip(images, axis=-2), images)
        return ops.cast(images, self.compute_dtype)

    def compute_output_shape(self, images_shape):
        return images_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


# As many as usual: with the usual scale and ratio, one in a million fails them all.
_TRIES = 10


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomResizedCrop(RandomBoxCrop):
    """Cuts out a random part of each picture and resizes it while training.

    Keras has no such layer. Area and proportions of the part are drawn for each picture
    alone, then its place; sides and place are whole pixels. If it sticks out of the
    picture, it is drawn again, up to ten times; then the largest centered part of
    allowed proportions is taken. All frames of a clip get the same part.

    Args:
        size: int or `(height, width)` of the result.
        scale: `(smallest, largest)` area as a share of the picture's.
        ratio: `(smallest, largest)` width divided by height; their logarithm is
            uniform.
        interpolation: `"bicubic"` or `"bilinear"`, with antialiasing.
        seed: int or `None`, seed of the random numbers.
        dtype: dtype policy; float32 by default, since half precision is too coarse for
            pixels.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        images: tensor of shape `(batch, height, width, channels)`, or clips of shape
            `(batch, frames, height, width, channels)`, of any dtype and range.
        training: bool. Without training, the result is the largest centered part with
            the proportions of `size`.

    Returns:
        Float tensor, as `images` with `size` for height and width, in the same range.

    Raises:
        ValueError: for an argument out of range, and images of another rank.

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
        dtype="float32",
        **kwargs,
    ):
        super().__init__(size, interpolation, seed, dtype, **kwargs)
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                "`scale` must be (smallest, largest) with 0 < smallest <= largest <= "
                f"1. Received: {scale}"
            )
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                "`ratio` must be (smallest, largest) with 0 < smallest <= largest. "
                f"Received: {ratio}"
            )
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)

    def random_boxes(self, batch_size, height, width):
        def uniform(*shape, low=0.0, high=1.0):
            return draw_rows(
                keras.random.uniform,
                (batch_size, *shape),
                low,
                high,
                "float32",
                self.seed_generator,
            )

        smallest, largest = math.log(self.ratio[0]), math.log(self.ratio[1])
        area = uniform(_TRIES, low=self.scale[0], high=self.scale[1])
        area = area * (height * width)
        ratio = ops.exp(uniform(_TRIES, low=smallest, high=largest))
        # The largest part of allowed proportions comes last, and always fits.
        widest = min(max(width / height, self.ratio[0]), self.ratio[1])
        last = (min(height, width / widest), min(width, height * widest))
        heights = _with_last(ops.sqrt(area / ratio), last[0])
        widths = _with_last(ops.sqrt(area * ratio), last[1])
        fits = ops.logical_and(
            ops.logical_and(heights >= 1, heights <= height),
            ops.logical_and(widths >= 1, widths <= width),
        )
        chosen = ops.argmax(ops.cast(fits, "int32"), axis=1)[:, None]
        box_height = ops.take_along_axis(heights, chosen, axis=1)
        box_width = ops.take_along_axis(widths, chosen, axis=1)
        place = uniform(2)
        # The last one is centered.
        place = ops.where(chosen == _TRIES, 0.5, place)
        top = ops.floor(place[:, :1] * (height - box_height + 1))
        left = ops.floor(place[:, 1:] * (width - box_width + 1))
        return ops.concatenate([top, left, box_height, box_width], axis=1)

    def get_config(self):
        return {
            **super().get_config(),
            "scale": self.scale,
            "ratio": self.ratio,
        }


def _with_last(sides, last):
    """Rounds sides to whole pixels and puts one more behind each row."""
    return ops.round(ops.pad(sides, ((0, 0), (0, 1)), constant_values=last))


# Places of a part, in quarters of the room along height and width: the corners, the
# middle, the middles of the sides, and the middles of the quadrants.
_PLACES = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((2, 0), (2, 4), (4, 2), (0, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomMultiScaleCrop(RandomBoxCrop):
    """Cuts out a part of each clip, at one of a few scales, while training.

    The part's sides are the clip's shorter side times one of `scales` each, and it lies
    at one of 13 places: corners, center, middles of sides and quadrants. All frames of
    a clip get the same part. For images it does the same, each by itself.

    Args:
        size: int or `(height, width)` of the result.
        scales: floats in (0, 1]. Sides as shares of the shorter side.
        max_distortion: int. How many places in `scales` the scales of height and width
            may be apart; 0 keeps the parts square.
        interpolation: `"bilinear"` or `"bicubic"`, with antialiasing.
        seed: int or `None`, seed of the random numbers.
        dtype: dtype policy; float32 by default, since half precision is too coarse for
            pixels.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        images: clips of shape `(batch, frames, height, width, channels)`, or a tensor
            of shape `(batch, height, width, channels)`, of any dtype and range.
        training: bool. Without training, the result is the largest centered part with
            the proportions of `size`.

    Returns:
        Float tensor, as `images` with `size` for height and width, in the same range.

    Raises:
        ValueError: for an argument out of range, and images of another rank.

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
        dtype="float32",
        **kwargs,
    ):
        super().__init__(size, interpolation, seed, dtype, **kwargs)
        if not scales or not all(0 < scale <= 1 for scale in scales):
            raise ValueError(f"`scales` must lie in (0, 1]. Received: {scales}")
        if max_distortion < 0:
            raise ValueError(
                f"`max_distortion` must be at least 0. Received: {max_distortion}"
            )
        self.scales = tuple(scales)
        self.max_distortion = max_distortion

    def random_boxes(self, batch_size, height, width):
        sides = [max(int(scale * min(height, width)), 1) for scale in self.scales]
        pairs = [
            (sides[i], sides[j])
            for i in range(len(sides))
            for j in range(len(sides))
            if abs(i - j) <= self.max_distortion
        ]
        boxes = [
            (
                (height - box_height) // 4 * down,
                (width - box_width) // 4 * right,
                box_height,
                box_width,
            )
            for box_height, box_width in pairs
            for down, right in _PLACES
        ]
        chosen = draw_rows(
            keras.random.randint,
            (batch_size,),
            0,
            len(boxes),
            seed=self.seed_generator,
        )
        return ops.take(ops.convert_to_tensor(boxes, dtype="float32"), chosen, axis=0)

    def get_config(self):
        return {
            **super().get_config(),
            "scales": self.scales,
            "max_distortion": self.max_distortion,
        }


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
    from keras_bridle.augmentation.image import RandAugment

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


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomImageMix(keras.layers.Layer):
    """Blends pairs of pictures (mixup) or pastes boxes of others (CutMix) in training.

    Unlike `keras.layers.MixUp` and `keras.layers.CutMix` it also takes clips, all
    frames of which get the same box, chooses between the two for each picture, and can
    be compiled by XLA on every backend. Labels are mixed by what it returns.

    Args:
        mixup_alpha: float, both parameters of the Beta distribution of the shares of
            blended pictures; 0 leaves blending out.
        cutmix_alpha: float, likewise for pasting. With both, each picture is as likely
            to be blended as pasted into.
        rate: float in [0, 1], how likely a picture is mixed at all.
        seed: int or `None`, seed of the random numbers.
        dtype: dtype policy; float32 by default, since half precision is too coarse for
            pixels.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        images: tensor of shape `(batch, height, width, channels)`, or clips of shape
            `(batch, frames, height, width, channels)`, of any dtype and range.
        training: bool. Without training the images stay as they are.

    Returns:
        A `MixedBatch`: float images of the same shape, with which other one each was
        mixed, and the share that is its own. For a pasted box it is the exact share of
        the pixels outside it.

    Raises:
        ValueError: for settings out of range, and images of another rank.

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

    def __init__(
        self,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        rate=1.0,
        seed=None,
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        if not 0 <= rate <= 1:
            raise ValueError(f"`rate` must lie in [0, 1]. Received: {rate}")
        if min(mixup_alpha, cutmix_alpha) < 0 or mixup_alpha == cutmix_alpha == 0:
            raise ValueError(
                "`mixup_alpha` and `cutmix_alpha` must not be negative, nor both 0. "
                f"Received: mixup_alpha={mixup_alpha}, cutmix_alpha={cutmix_alpha}"
            )
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._blend_shares = BetaShares(mixup_alpha or 1.0)
        self._paste_shares = BetaShares(cutmix_alpha or 1.0)

    def call(self, images, training=None):
        images = as_pixels(images, "RandomImageMix")
        batch_size = ops.shape(images)[0]
        if not training:
            partners = ops.arange(batch_size, dtype="int32")
            shares = ops.ones((batch_size,), "float32")
        else:
            partners = draw_partners(batch_size, self.seed_generator)
            images, shares = self._mix(images, partners, batch_size)
        return MixedBatch(ops.cast(images, self.compute_dtype), partners, shares)

    def _mix(self, images, partners, batch_size):
        others = ops.take(images, partners, axis=0)
        pasting = self._is_pasted(batch_size)
        # Pixels of one's own: a share of each where pictures are blended, all of some
        # where a box is pasted.
        weights = shares = ops.ones((batch_size, 1, 1), "float32")
        if self.mixup_alpha:
            weights = shares = self._blend_shares.draw(
                (batch_size, 1, 1), self.seed_generator
            )
        if self.cutmix_alpha:
            outside = self._outside_boxes(batch_size, *ops.shape(images)[-3:-1])
            exact = ops.mean(outside, axis=(1, 2), keepdims=True)
            weights = ops.where(pasting, outside, weights)
            shares = ops.where(pasting, exact, shares)
        is_mixed = self._uniform((batch_size, 1, 1)) < self.rate
        weights = ops.where(is_mixed, weights, 1.0)
        shares = ops.where(is_mixed, shares, 1.0)
        weights = weights[..., None]
        if len(images.shape) == 5:
            weights = weights[:, None]
        return weights * images + (1.0 - weights) * others, shares[:, 0, 0]

    def _is_pasted(self, batch_size):
        likely = 0.5
        if 0 in (self.mixup_alpha, self.cutmix_alpha):
            likely = 1.0 if self.cutmix_alpha else 0.0
        return self._uniform((batch_size, 1, 1)) < likely

    def _outside_boxes(self, batch_size, height, width):
        """Draws boxes; 1 outside them and 0 inside, `(batch, height, width)`."""
        shares = self._paste_shares.draw((batch_size, 1), self.seed_generator)
        side = ops.sqrt(1.0 - shares)
        inside = []
        for size in (height, width):
            # The middle lies anywhere, so that a box may stand over the edge.
            middle = self._uniform((batch_size, 1)) * size
            pixels = ops.arange(size, dtype="float32")[None] + 0.5
            inside.append(ops.abs(pixels - middle) < side * size / 2)
        box = ops.logical_and(inside[0][:, :, None], inside[1][:, None, :])
        return 1.0 - ops.cast(box, "float32")

    def _uniform(self, shape):
        return draw_uniform(shape, self.seed_generator)

    def compute_output_spec(self, images, training=None):
        batch = tuple(images.shape)[:1]
        return MixedBatch(
            keras.KerasTensor(images.shape, dtype=self.compute_dtype),
            keras.KerasTensor(batch, dtype="int32"),
            keras.KerasTensor(batch, dtype="float32"),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "mixup_alpha": self.mixup_alpha,
            "cutmix_alpha": self.cutmix_alpha,
            "rate": self.rate,
            "seed": self.seed,
        }


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
    from keras_bridle.augmentation.image import ImageAugmentation

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
