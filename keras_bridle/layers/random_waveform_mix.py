"""Mixes waveforms of a batch in pairs."""

import keras
from keras import ops

from keras_bridle.layers.log_mel import as_waveforms, real_lengths
from keras_bridle.layers.mixed_batch import (
    BetaShares,
    MixedBatch,
    draw_partners,
    draw_uniform,
)


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomWaveformMix(keras.layers.Layer):
    """Adds up pairs of waveforms while training (mixup, on the sound itself).

    Both are freed of their mean first. Zeros at a clip's end are padding, as for
    `LogMelSpectrogram`: a mixture is as long as the longer of the two. The layer
    belongs inside the model, where it costs little and draws the same on every backend
    and after a resume; labels are mixed by what it returns.

    Args:
        rate: float in [0, 1], how likely a waveform is mixed with another.
        alpha: positive float, both parameters of the Beta distribution that shares are
            drawn from. The larger, the nearer they are to a half.
        seed: int or `None`, seed of the random numbers.
        dtype: dtype policy; float32 by default, since half precision is too coarse for
            waveforms.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        waveforms: float tensor of shape `(batch, samples)`.
        training: bool. Without training the waveforms stay as they are.

    Returns:
        A `MixedBatch`: waveforms of shape `(batch, samples)`, with which other one each
        was mixed, and the share that is its own.

    Raises:
        ValueError: for settings out of range, and waveforms that are not floats of
            shape `(batch, samples)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import RandomWaveformMix

    waveforms = np.random.default_rng(0).normal(size=(4, 16000)).astype("float32")
    mixed = RandomWaveformMix(rate=1.0, seed=0)(waveforms, training=True)
    print(mixed.inputs.shape, mixed.partners, mixed.shares)
    ```

    Reference:
        - [Zhang et al., 2017](https://arxiv.org/abs/1710.09412)
        - [Gong et al., 2021](https://arxiv.org/abs/2102.01243), of waveforms
    """

    def __init__(self, rate=0.5, alpha=10.0, seed=None, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        if not 0 <= rate <= 1:
            raise ValueError(f"`rate` must lie in [0, 1]. Received: {rate}")
        if alpha <= 0:
            raise ValueError(f"`alpha` must be positive. Received: {alpha}")
        self.rate = rate
        self.alpha = alpha
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._shares = BetaShares(alpha)

    def call(self, waveforms, training=None):
        waveforms = as_waveforms(waveforms, "RandomWaveformMix")
        batch_size = ops.shape(waveforms)[0]
        if not training:
            partners = ops.arange(batch_size, dtype="int32")
            shares = ops.ones((batch_size,), "float32")
        else:
            partners = draw_partners(batch_size, self.seed_generator)
            shares = self._shares.draw((batch_size,), self.seed_generator)
            drawn = draw_uniform((batch_size,), self.seed_generator)
            shares = ops.where(drawn < self.rate, shares, 1.0)
            centered = _without_mean(waveforms)
            own = shares[:, None]
            mixed = own * centered + (1.0 - own) * ops.take(centered, partners, axis=0)
            waveforms = ops.where(own < 1.0, mixed, waveforms)
        return MixedBatch(ops.cast(waveforms, self.compute_dtype), partners, shares)

    def compute_output_spec(self, waveforms, training=None):
        batch = tuple(waveforms.shape)[:1]
        return MixedBatch(
            keras.KerasTensor(waveforms.shape, dtype=self.compute_dtype),
            keras.KerasTensor(batch, dtype="int32"),
            keras.KerasTensor(batch, dtype="float32"),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "rate": self.rate,
            "alpha": self.alpha,
            "seed": self.seed,
        }


def _without_mean(waveforms):
    """Subtracts the mean of the real samples; the padding stays zero."""
    lengths = real_lengths(waveforms)[:, None]
    means = ops.sum(waveforms, axis=1, keepdims=True) / ops.cast(lengths, "float32")
    positions = ops.arange(ops.shape(waveforms)[1], dtype="int32")[None]
    return ops.where(positions < lengths, waveforms - means, 0.0)
