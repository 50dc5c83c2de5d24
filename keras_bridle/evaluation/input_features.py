"""Plain features of the input: what a probe reaches without any learning."""

import keras
from keras import ops


class InputFeatures(keras.Model):
    """Features of raw input that no network has learned.

    Of waveforms: the mean and standard deviation of every log-mel bin in each segment,
    padding left out. Of images and clips: gray pixels, averaged down to a small size.

    Args:
        backbone: `BridleBackbone`, whose `features()` are the log-mel spectrogram or
            the pixels.
        segments: int, equal parts of a recording.
        size: int, rows and columns of the small pictures.

    Call arguments:
        inputs: tensor of shape `(batch, *input_dims)`.

    Returns:
        float32 tensor of shape `(batch, segments * 2 * bins)` or
        `(batch, [frames *] size * size)`.
    """

    def __init__(self, backbone, segments=1, size=16):
        super().__init__(autocast=False, name="input_features")
        self.backbone = backbone
        self.segments = segments
        self.size = size

    def call(self, inputs):
        features, padding_mask = self.backbone.features(inputs)
        features = ops.cast(features, "float32")
        if len(self.backbone.input_dims) == 1:
            return self._statistics(features, padding_mask)
        gray = ops.mean(features, axis=-1, keepdims=True)
        if len(gray.shape) == 5:
            shape = ops.shape(gray)
            gray = self._small(ops.reshape(gray, (-1, *shape[2:])))
            return ops.reshape(gray, (-1, shape[1] * self.size**2))
        return ops.reshape(self._small(gray), (-1, self.size**2))

    def _small(self, pictures):
        if max(pictures.shape[1:3]) <= self.size:
            return _padded(pictures, self.size)
        return ops.image.resize(
            pictures,
            (self.size, self.size),
            antialias=True,
            data_format="channels_last",
        )

    def _statistics(self, features, padding_mask):
        rows, bins = features.shape[1:3]
        values = ops.reshape(features, (-1, rows, bins))
        if padding_mask is None:
            padding_mask = ops.ones(ops.shape(features)[:2], dtype="bool")
        lengths = ops.sum(ops.cast(padding_mask, "float32"), axis=1, keepdims=True)
        # In which segment of the real rows each row begins.
        places = ops.arange(rows, dtype="float32") / ops.maximum(lengths, 1.0)
        found = []
        for segment in range(self.segments):
            inside = ops.logical_and(
                ops.floor(places * self.segments) == segment, padding_mask
            )
            weights = ops.cast(inside, "float32")[:, :, None]
            weights /= ops.maximum(ops.sum(weights, axis=1, keepdims=True), 1.0)
            mean = ops.sum(weights * values, axis=1, keepdims=True)
            variance = ops.sum(weights * ops.square(values - mean), axis=1)
            found += [mean[:, 0], ops.sqrt(variance)]
        return ops.concatenate(found, axis=-1)


def _padded(pictures, size):
    rows, columns = pictures.shape[1:3]
    return ops.pad(pictures, ((0, 0), (0, size - rows), (0, size - columns), (0, 0)))
