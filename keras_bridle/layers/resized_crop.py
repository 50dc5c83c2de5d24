"""Cuts a box out of each picture and resizes it, by two matrix products."""

import keras
from keras import ops

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
