"""Makes waveforms louder or softer at random."""

import keras
from keras import ops

from keras_bridle.layers.log_mel import as_waveforms
from keras_bridle.layers.replicas import draw_rows


@keras.saving.register_keras_serializable(package="keras_bridle")
class RandomWaveformGain(keras.layers.Layer):
    """Multiplies each waveform by a random gain while training.

    The gain is `0.5 + Beta(concentration, concentration)`: between 0.5 and 1.5, and 1
    on average. Nothing is clipped. The layer belongs inside the model, before
    `LogMelSpectrogram`; in a `tf.data` pipeline it works on the TensorFlow backend
    only.

    Args:
        concentration: int, both parameters of the Beta distribution. The larger it is,
            the nearer the gains are to 1; 1 is uniform.
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
        ValueError: for a concentration that is no positive int, and waveforms that are
            not floats of shape `(batch, samples)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers import RandomWaveformGain

    waveforms = np.full((4, 16000), 0.1, "float32")
    louder_or_softer = RandomWaveformGain(seed=0)(waveforms, training=True)
    print(louder_or_softer[:, 0])  # four numbers between 0.05 and 0.15
    ```
    """

    def __init__(self, concentration=10, seed=None, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        if concentration != int(concentration) or concentration < 1:
            raise ValueError(
                f"`concentration` must be a positive int. Received: {concentration}"
            )
        self.concentration = int(concentration)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, waveforms, training=None):
        waveforms = as_waveforms(waveforms, "RandomWaveformGain")
        if not training:
            return ops.cast(waveforms, self.compute_dtype)
        # The median of 2a - 1 uniform numbers follows Beta(a, a). TensorFlow cannot
        # compile `keras.random.beta`.
        uniform = draw_rows(
            keras.random.uniform,
            (ops.shape(waveforms)[0], 2 * self.concentration - 1),
            dtype="float32",
            seed=self.seed_generator,
        )
        middle = self.concentration - 1
        gains = 0.5 + ops.sort(uniform, axis=1)[:, middle : middle + 1]
        return ops.cast(waveforms * gains, self.compute_dtype)

    def compute_output_shape(self, waveforms_shape):
        return waveforms_shape

    def get_config(self):
        return {
            **super().get_config(),
            "concentration": self.concentration,
            "seed": self.seed,
        }
