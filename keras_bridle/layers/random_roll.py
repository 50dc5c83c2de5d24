"""Shifts waveforms in a circle by a random offset."""

import keras
from keras import ops

from keras_bridle.layers.log_mel import as_waveforms, real_lengths
from keras_bridle.layers.replicas import draw_rows


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomWaveformRoll(keras.layers.Layer):
    """Rolls each waveform in a circle by a random offset while training.

    What leaves at one end comes in at the other. Zeros at a clip's end are padding, as
    for `LogMelSpectrogram`: they stay where they are, and only the real samples roll.
    (If a real clip begins with exact zeros, these may come to its end and be padding
    afterwards.) The layer belongs inside the model, before `LogMelSpectrogram`; in a
    `tf.data` pipeline it works on the TensorFlow backend only.

    Args:
        factor: float in [0, 1], largest offset in either direction as a share of the
            clip's real length. 0.5 makes all offsets possible and equally likely.
        trailing_zeros_are_padding: bool. `False` rolls zeros at the end with the rest.
        seed: int or `None`, seed of the random numbers.
        dtype: dtype policy; float32 by default, since half precision is too coarse for
            waveforms.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        waveforms: float tensor of shape `(batch, samples)`.
        training: bool. Without training the waveforms stay as they are.

    Returns:
        Tensor of shape `(batch, samples)`.

    Raises:
        ValueError: for a factor out of range, and waveforms that are not floats of
            shape `(batch, samples)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import RandomWaveformRoll

    waveforms = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 0, 0]], "float32")
    print(RandomWaveformRoll(seed=1)(waveforms, training=True))
    ```
    """

    def __init__(
        self,
        factor=0.5,
        trailing_zeros_are_padding=True,
        seed=None,
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        if not 0 <= factor <= 1:
            raise ValueError(f"`factor` must lie in [0, 1]. Received: {factor}")
        self.factor = factor
        self.trailing_zeros_are_padding = trailing_zeros_are_padding
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, waveforms, training=None):
        waveforms = as_waveforms(waveforms, "RandomWaveformRoll")
        if not training:
            return ops.cast(waveforms, self.compute_dtype)
        batch_size, num_samples = ops.shape(waveforms)
        if self.trailing_zeros_are_padding:
            lengths = real_lengths(waveforms)[:, None]
        else:
            lengths = ops.full((batch_size, 1), num_samples, dtype="int32")
        share = draw_rows(
            keras.random.uniform,
            (batch_size, 1),
            -self.factor,
            self.factor,
            dtype="float32",
            seed=self.seed_generator,
        )
        offsets = ops.cast(
            ops.floor(share * ops.cast(lengths, "float32") + 0.5), "int32"
        )
        positions = ops.arange(num_samples, dtype="int32")[None]
        sources = ops.where(
            positions < lengths, ops.mod(positions - offsets, lengths), positions
        )
        # A flat look-up is the fastest gather on every backend.
        rows = ops.arange(batch_size, dtype="int32")[:, None] * num_samples
        rolled = ops.take(ops.reshape(waveforms, (-1,)), rows + sources)
        return ops.cast(rolled, self.compute_dtype)

    def compute_output_shape(self, waveforms_shape):
        return waveforms_shape

    def get_config(self):
        return {
            **super().get_config(),
            "factor": self.factor,
            "trailing_zeros_are_padding": self.trailing_zeros_are_padding,
            "seed": self.seed,
        }
