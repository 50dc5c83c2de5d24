"""Augmentation of waveforms and spectrograms."""

import keras
from keras import ops

from keras_bridle.augmentation.base import Augmentation, Mixing
from keras_bridle.layers.base import check
from keras_bridle.layers.log_mel import as_waveforms, real_lengths, without_mean


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomWaveformGain(Augmentation):
    """Multiplies each waveform by a random gain while training.

    The gain is `0.5 + Beta(concentration, concentration)`: between 0.5 and 1.5, and 1
    on average. Nothing is clipped.

    All augmentations of waveforms belong inside the model, before `LogMelSpectrogram`.
    There they cost little and draw the same on every backend and after a resume; in a
    `tf.data` pipeline they work on the TensorFlow backend only.

    Args:
        concentration: int, both parameters of the Beta distribution. Larger values give
            gains closer to 1; 1 is uniform.
        seed: int or `None`, seed of the random numbers.
        **kwargs: keyword arguments of `keras.layers.Layer`; `dtype` is float32 by
            default.

    Call arguments:
        waveforms: float tensor of shape `(batch, samples)`.
        training: bool. Without training the waveforms stay as they are.

    Returns:
        Tensor of shape `(batch, samples)`.

    Raises:
        ValueError: if `concentration` is not a positive int, or waveforms are not
            floats of shape `(batch, samples)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.augmentation.audio import RandomWaveformGain

    waveforms = np.full((4, 16000), 0.1, "float32")
    louder_or_softer = RandomWaveformGain(seed=0)(waveforms, training=True)
    print(louder_or_softer[:, 0])  # four numbers between 0.05 and 0.15
    ```
    """

    checked = staticmethod(as_waveforms)

    def __init__(self, concentration=10, seed=None, **kwargs):
        super().__init__(locals())
        is_right = concentration >= 1 and concentration == int(concentration)
        check(is_right, "concentration", "a positive int", concentration)
        self.concentration = int(concentration)

    def augment(self, waveforms):
        # The median of 2a - 1 uniform numbers follows Beta(a, a). TensorFlow cannot
        # compile `keras.random.beta`.
        middle = self.concentration - 1
        uniform = self.uniform((ops.shape(waveforms)[0], 2 * middle + 1))
        return waveforms * (0.5 + ops.sort(uniform, axis=1)[:, middle : middle + 1])


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomWaveformRoll(Augmentation):
    """Rolls each waveform in a circle by a random offset while training.

    Samples that leave at one end enter at the other. Zeros at a clip's end are padding,
    as for `LogMelSpectrogram`: they stay where they are. (Exact zeros at a clip's start
    may move to its end and become padding.) Everything else is as in
    `RandomWaveformGain`.

    Args:
        factor: float in [0, 1], largest offset in either direction as a share of the
            clip's real length. 0.5 makes all offsets equally likely.
        trailing_zeros_are_padding: bool. `False` rolls zeros at the end with the rest.
        seed: int or `None`, seed of the random numbers.

    Example:
    ```python
    import numpy as np
    from keras_bridle.augmentation.audio import RandomWaveformRoll

    waveforms = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 0, 0]], "float32")
    print(RandomWaveformRoll(seed=1)(waveforms, training=True))
    ```
    """

    checked = staticmethod(as_waveforms)

    def __init__(
        self, factor=0.5, trailing_zeros_are_padding=True, seed=None, **kwargs
    ):
        super().__init__(locals())
        check(0 <= factor <= 1, "factor", "in [0, 1]", factor)

    def augment(self, waveforms):
        batch_size, num_samples = ops.shape(waveforms)
        if self.trailing_zeros_are_padding:
            lengths = real_lengths(waveforms)[:, None]
        else:
            lengths = ops.full((batch_size, 1), num_samples, dtype="int32")
        share = self.uniform((batch_size, 1), -self.factor, self.factor)
        offsets = ops.floor(share * ops.cast(lengths, "float32") + 0.5)
        positions = ops.arange(num_samples, dtype="int32")[None]
        rolled = ops.mod(positions - ops.cast(offsets, "int32"), lengths)
        sources = ops.where(positions < lengths, rolled, positions)
        # A flat look-up is the fastest gather on every backend.
        rows = ops.arange(batch_size, dtype="int32")[:, None] * num_samples
        return ops.take(ops.reshape(waveforms, (-1,)), rows + sources)


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomWaveformMix(Mixing):
    """Adds up pairs of waveforms while training (mixup, on the recordings themselves).

    Their means are subtracted first. Zeros at a clip's end are padding, as for
    `LogMelSpectrogram`: a mixture is as long as the longer of the two. Everything else
    is as in `RandomWaveformGain`.

    Args:
        rate: float in [0, 1], the probability that a waveform is mixed with another.
        alpha: positive float, both parameters of the Beta distribution that shares are
            drawn from. Larger values give shares closer to a half.
        seed: int or `None`, seed of the random numbers.

    Returns:
        A `MixedBatch`, with which to mix labels, too.

    Example:
    ```python
    import numpy as np
    from keras_bridle.augmentation.audio import RandomWaveformMix

    waveforms = np.random.default_rng(0).normal(size=(4, 16000)).astype("float32")
    mixed = RandomWaveformMix(rate=1.0, seed=0)(waveforms, training=True)
    print(mixed.inputs.shape, mixed.partners, mixed.shares)
    ```

    Reference:
        - [Zhang et al., 2017](https://arxiv.org/abs/1710.09412)
        - [Gong et al., 2021](https://arxiv.org/abs/2102.01243), of waveforms
    """

    checked = staticmethod(as_waveforms)

    def __init__(self, rate=0.5, alpha=10.0, seed=None, **kwargs):
        super().__init__(locals())

    def mix(self, waveforms, partners):
        batch_size = ops.shape(waveforms)[0]
        shares = self.beta("alpha", (batch_size,))
        shares = ops.where(self.uniform((batch_size,)) < self.rate, shares, 1.0)
        centered = without_mean(waveforms, real_lengths(waveforms))
        own = shares[:, None]
        mixed = own * centered + (1.0 - own) * ops.take(centered, partners, axis=0)
        return ops.where(own < 1.0, mixed, waveforms), shares


@keras.saving.register_keras_serializable(package="keras_bridle")
class SpecAugment(Augmentation):
    """Hides random stripes of time and of frequency while training.

    A stripe's width is uniform from 0 to below the largest, its position uniform among
    those where it fits. Give it to a classifier as `feature_augmentation`.

    Args:
        max_bins: int, largest width of a frequency stripe in mel bins.
        max_frames: int, largest width of a time stripe in frames. It may hide all of a
            shorter map.
        num_masks: int, stripes of each kind.
        fill_value: float, the value of masked cells. 0 is the mean of a normalized
            spectrogram.
        seed: int or `None`, seed of the random numbers.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        features: tensor of shape `(batch, frames, bins, channels)`.
        training: bool. Without training the map stays as it is.

    Returns:
        Tensor of the same shape.

    Example:
    ```python
    import numpy as np
    from keras_bridle.augmentation.audio import SpecAugment

    log_mel = np.ones((2, 100, 128, 1), "float32")
    stripes = SpecAugment(max_bins=48, max_frames=20, seed=0)(log_mel, training=True)
    print(stripes.shape)
    ```

    Reference:
        - [Park et al., 2019](https://arxiv.org/abs/1904.08779)
    """

    def __init__(
        self,
        max_bins=48,
        max_frames=192,
        num_masks=1,
        fill_value=0.0,
        seed=None,
        **kwargs,
    ):
        # It only masks values, so any dtype is precise enough.
        kwargs.setdefault("dtype", None)
        super().__init__(locals())
        check(max_bins >= 0, "max_bins", "0 or more", max_bins)
        check(max_frames >= 0, "max_frames", "0 or more", max_frames)
        check(num_masks >= 1, "num_masks", "1 or more", num_masks)

    def checked(self, features):
        expected = "maps of shape (batch, frames, bins, channels)"
        check(len(features.shape) == 4, "features", expected, tuple(features.shape))
        return features

    def augment(self, features):
        batch_size, frames, bins = ops.shape(features)[:3]
        for _ in range(self.num_masks):
            rows = self._stripe(batch_size, frames, self.max_frames)[:, :, None, None]
            columns = self._stripe(batch_size, bins, self.max_bins)[:, None, :, None]
            fill = ops.cast(self.fill_value, features.dtype)
            features = ops.where(ops.logical_or(rows, columns), fill, features)
        return features

    def _stripe(self, batch_size, size, largest):
        """Draws a stripe along an axis: bool `(batch, size)`, `True` inside it."""
        width, start = (self.uniform((batch_size, 1)) for _ in range(2))
        positions = ops.arange(size, dtype="float32")[None]
        size = ops.cast(size, "float32")
        width = ops.floor(width * ops.minimum(ops.cast(largest, "float32"), size))
        start = ops.floor(start * (size - width + 1.0))
        return ops.logical_and(positions >= start, positions < start + width)
