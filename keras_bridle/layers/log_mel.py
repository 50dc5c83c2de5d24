"""Log-mel spectrograms as Kaldi computes them."""

import functools

import keras
import numpy as np
from keras import ops

from keras_bridle.layers.base import ConfiguredLayer, check, fitted

# Kaldi floors the mel energies here before the logarithm: float32's epsilon.
ENERGY_FLOOR = 1.1920929e-07
# Windows are powers of a Hann window.
_WINDOW_POWERS = {"hann": 1.0, "povey": 0.85}


@keras.saving.register_keras_serializable(package="keras_bridle")
class LogMelSpectrogram(ConfiguredLayer):
    """Turns waveforms into normalized log-mel spectrograms with Kaldi's arithmetic.

    The mean of the waveform is subtracted, then that of each whole frame of 25 ms,
    every 10 ms. Frames are pre-emphasized, weighted with a symmetric window and
    transformed; triangular mel filters sum the power spectrum. The result is `(log(mel)
    - mean) / (2 * std)`, computed in float32 whatever the dtype policy.

    Batches of clips of different lengths are padded with zeros at the end. Samples
    after the last nonzero one are padding, which does not affect real frames. A frame
    is real if all samples of it, or of its group of `multiple_of`, are; the first frame
    or group always is. Other frames are filled with one value. A clip of zeros alone is
    silence, not padding.

    Args:
        sample_rate: int, samples per second of the waveforms.
        num_mel_bins: int, number of mel filters.
        num_frames: int or `None`. Spectrograms are cropped or padded to this number of
            frames.
        frame_length_ms: float, length of a frame in milliseconds.
        frame_step_ms: float, from one frame's start to the next, in milliseconds.
        fft_length: int, samples that a frame is zero-padded to: the next power of two
            by default.
        min_frequency: float, where the lowest filter starts, in Hz.
        max_frequency: float, where the highest filter ends, in Hz: half the sample rate
            by default.
        preemphasis: float, share of the previous sample that is subtracted.
        mean: float or `None`, mean of the data's log-mel values. The default is
            AudioSet's. `None`, with `std=None`, leaves the values as they are.
        std: float or `None`, standard deviation of the data's log-mel values.
        trailing_zeros_are_padding: bool. `False` treats zeros at a clip's end as
            recorded silence.
        padding_value: float or `None`, log-mel value, before normalization, of padded
            frames. `None` is `mean`, or silence if nothing is normalized. The published
            code of BRIDLE has 0.
        fourier: string. `"rfft"` is the fast transform. `"matmul"` is within 1e-4 of
            it, and uses only operations that every export format has.
        window: string, `"hann"` or `"povey"`, Kaldi's default, a Hann window to the
            power of 0.85.
        scale: float, what waveforms are multiplied by: 32768 for encoders trained on
            16-bit numbers.
        multiple_of: int. Without `num_frames`, frames beyond the last whole group of
            this size, such as a patch's, are dropped; the first group is padded.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        waveforms: float tensor of shape `(batch, samples)`, in [-1, 1].

    Returns:
        Tensor of shape `(batch, frames, num_mel_bins, 1)`.

    Raises:
        ValueError: for settings that contradict each other, and waveforms that are not
            floats of shape `(batch, samples)`.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.log_mel import LogMelSpectrogram

    waveforms = np.random.default_rng(0).uniform(-1, 1, (2, 16000)).astype("float32")
    waveforms[1, 8000:] = 0.0  # a clip of half a second
    log_mel = LogMelSpectrogram(num_frames=128)
    print(log_mel(waveforms).shape)  # (2, 128, 128, 1)
    print(log_mel.padding_mask(waveforms).shape)  # (2, 128)
    ```

    Reference:
        - [Povey et al., 2011](https://kaldi-asr.org/doc/feat.html), Kaldi's features
        - [Gong et al., 2021](https://arxiv.org/abs/2104.01778), the normalization
    """

    def __init__(
        self,
        sample_rate=16000,
        num_mel_bins=128,
        num_frames=None,
        frame_length_ms=25.0,
        frame_step_ms=10.0,
        fft_length=None,
        min_frequency=20.0,
        max_frequency=None,
        preemphasis=0.97,
        mean=-4.4446096,
        std=3.3216383,
        trailing_zeros_are_padding=True,
        padding_value=None,
        fourier="rfft",
        window="hann",
        scale=1.0,
        multiple_of=1,
        **kwargs,
    ):
        # Half precision would lose quiet samples before they are analyzed.
        kwargs.setdefault("autocast", False)
        super().__init__(locals())
        self._frame_length = int(sample_rate * frame_length_ms / 1000)
        self._frame_step = int(sample_rate * frame_step_ms / 1000)
        self._check_settings()
        self._fft_length = fft_length or 1 << (self._frame_length - 1).bit_length()
        self._window = _window(window, self._frame_length).astype("float32")
        self._filters = mel_filters(
            num_mel_bins, self._fft_length, sample_rate, min_frequency, max_frequency
        ).astype("float32")

    @classmethod
    def for_data(cls, waveforms, **kwargs):
        """Makes a layer that normalizes such waveforms to mean 0 and deviation 0.5.

        Args:
            waveforms: float array of shape `(clips, samples)`. Padding does not count.
            **kwargs: arguments of the layer, except `mean` and `std`.
        """
        raw = cls(mean=None, std=None, **kwargs)
        values = ops.convert_to_numpy(ops.cast(raw(waveforms), "float32"))[..., 0]
        values = values[ops.convert_to_numpy(raw.padding_mask(waveforms))]
        return cls(mean=float(values.mean()), std=float(values.std()), **kwargs)

    def _check_settings(self):
        length, step = self._frame_length, self._frame_step
        nyquist = self.sample_rate / 2
        low, high = self.min_frequency, self.max_frequency
        high = nyquist if high is None else high
        fft_length = self.fft_length or length
        has_both = (self.mean is None) == (self.std is None)
        rules = {
            "sample_rate": (self.sample_rate >= 1, "at least 1"),
            "num_mel_bins": (self.num_mel_bins >= 1, "at least 1"),
            "num_frames": (self.num_frames is None or self.num_frames >= 1, "positive"),
            "multiple_of": (self.multiple_of >= 1, "at least 1"),
            "frame_length_ms": (length >= 2, "at least 2 samples"),
            "frame_step_ms": (step >= 1, "at least a sample"),
            "fft_length": (fft_length >= length, f"a frame's {length} samples or more"),
            "max_frequency": (high <= nyquist, f"at most {nyquist}, half the rate"),
            "min_frequency": (0 <= low < high, "at least 0 and below `max_frequency`"),
            "mean": (has_both, "given together with `std`, or both None"),
            "std": (self.std is None or self.std > 0, "positive"),
            "fourier": (self.fourier in ("rfft", "matmul"), "'rfft' or 'matmul'"),
            "window": (self.window in _WINDOW_POWERS, "'hann' or 'povey'"),
            "scale": (self.scale > 0, "positive"),
        }
        for name, (is_right, expected) in rules.items():
            check(is_right, name, expected, getattr(self, name))

    def call(self, waveforms):
        waveforms = as_waveforms(waveforms)
        num_frames = self._num_output_frames(ops.shape(waveforms)[1])
        lengths = self._real_lengths(waveforms)
        waveforms = without_mean(waveforms, lengths) * self.scale
        energies = self._mel_energies(self._spectra(waveforms, num_frames))
        log_mel = ops.log(ops.maximum(energies, ENERGY_FLOOR))
        log_mel = ops.reshape(log_mel, (-1, num_frames, self.num_mel_bins, 1))
        log_mel = self._normalize(log_mel)
        if self.trailing_zeros_are_padding or self.num_frames is not None:
            real = self._real_frames(lengths, num_frames)[:, :, None, None]
            log_mel = ops.where(real, log_mel, self._normalized_padding())
        return ops.cast(log_mel, self.compute_dtype)

    def padding_mask(self, waveforms):
        """Returns which frames are real rather than padding: bool `(batch, frames)`."""
        waveforms = as_waveforms(waveforms)
        num_frames = self._num_output_frames(ops.shape(waveforms)[1])
        return self._real_frames(self._real_lengths(waveforms), num_frames)

    def _num_output_frames(self, num_samples):
        """Returns `num_frames`, or the number of whole frames, at least a group."""
        if self.num_frames is not None or num_samples is None:
            return self.num_frames
        whole = 1 + (num_samples - self._frame_length) // self._frame_step
        groups = whole // self.multiple_of
        groups = ops.maximum(1, groups) if ops.is_tensor(groups) else max(1, groups)
        return groups * self.multiple_of

    def _real_lengths(self, waveforms):
        if self.trailing_zeros_are_padding:
            return real_lengths(waveforms)
        return ops.sum(ops.ones_like(waveforms, dtype="int32"), axis=1)

    def _real_frames(self, lengths, num_frames):
        frames = ops.arange(num_frames, dtype="int32")
        last = (frames // self.multiple_of + 1) * self.multiple_of - 1
        ends = last * self._frame_step + self._frame_length
        is_first = (frames < self.multiple_of)[None]
        return ops.logical_or(is_first, ends[None] <= lengths[:, None])

    def _spectra(self, waveforms, num_frames):
        """Returns real and imaginary parts of the frames' spectra."""
        if self.fourier == "rfft":
            frames = self._windowed_frames(waveforms, num_frames)
            return ops.rfft(frames, self._fft_length)
        length, step = self._frame_length, self._frame_step
        needed = (num_frames - 1) * step + length
        waveforms = fitted(waveforms, 1, needed, length)
        # A strided convolution multiplies each frame by the matrix without copies.
        matrix = _spectrum_matrix(
            self.window, length, self._fft_length, self.preemphasis
        )
        kernel = ops.convert_to_tensor(matrix[:, None])
        spectra = ops.conv(waveforms[..., None], kernel, strides=step)
        return ops.split(spectra, 2, axis=-1)

    def _windowed_frames(self, waveforms, num_frames):
        """Cuts the waveforms into frames ready for the Fourier transform.

        Pre-emphasis runs over the waveform instead of each frame. Kaldi's differs at a
        frame's first sample only, where the window is zero. It changes a frame's mean m
        to (1 - preemphasis) * m.
        """
        step = self._frame_step
        blocks_per_frame = -(-self._frame_length // step)
        num_blocks = num_frames + blocks_per_frame - 1
        samples = fitted(waveforms, 1, num_blocks * step, blocks_per_frame * step)
        # The first sample is its own predecessor.
        previous = ops.concatenate([samples[:, :1], samples[:, :-1]], axis=1)
        emphasized = samples - self.preemphasis * previous
        means = sum(
            ops.sum(piece, axis=-1, keepdims=True)
            for piece in self._frame_pieces(samples, num_blocks)
        ) * ((1 - self.preemphasis) / self._frame_length)
        frames = ops.concatenate(self._frame_pieces(emphasized, num_blocks), axis=-1)
        return (frames - means) * ops.convert_to_tensor(self._window)

    def _frame_pieces(self, samples, num_blocks):
        """Cuts frames into pieces of one step each."""
        step = self._frame_step
        blocks = ops.reshape(samples, (-1, num_blocks, step))
        blocks_per_frame = -(-self._frame_length // step)
        num_frames = num_blocks - blocks_per_frame + 1
        return [
            blocks[:, i : i + num_frames, : self._frame_length - i * step]
            for i in range(blocks_per_frame)
        ]

    def _mel_energies(self, spectra):
        real, imaginary = spectra
        power = ops.square(real) + ops.square(imaginary)
        # One large product is faster than a batch of small ones.
        power = ops.reshape(power, (-1, self._fft_length // 2 + 1))
        return ops.matmul(power, ops.convert_to_tensor(self._filters))

    def _normalize(self, log_mel):
        is_raw = self.mean is None
        return log_mel if is_raw else (log_mel - self.mean) / (2 * self.std)

    def _normalized_padding(self):
        if self.padding_value is not None:
            return self._normalize(float(self.padding_value))
        return 0.0 if self.mean is not None else float(np.log(ENERGY_FLOOR))

    def compute_output_shape(self, waveforms_shape):
        batch, num_samples = waveforms_shape
        return (batch, self._num_output_frames(num_samples), self.num_mel_bins, 1)


def mel_filters(
    num_mel_bins, fft_length, sample_rate, min_frequency=20.0, max_frequency=None
):
    """Builds Kaldi's triangular mel filters, `(fft_length // 2 + 1, num_mel_bins)`."""
    highest = sample_rate / 2 if max_frequency is None else max_frequency
    edges = np.linspace(_mel(min_frequency), _mel(highest), num_mel_bins + 2)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    frequencies = np.arange(fft_length // 2 + 1) * (sample_rate / fft_length)
    mels = _mel(frequencies)[:, None]
    rising = (mels - left) / (center - left)
    falling = (right - mels) / (right - center)
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if fft_length % 2 == 0:
        filters[-1] = 0.0  # Kaldi leaves out the Nyquist frequency.
    return filters


def _window(name, frame_length):
    return np.hanning(frame_length) ** _WINDOW_POWERS[name]


@functools.lru_cache(maxsize=4)
def _spectrum_matrix(window, frame_length, fft_length, preemphasis):
    """Returns the matrix from a frame to its spectrum, real parts first."""
    samples = np.arange(frame_length)
    # Reduced modulo whole turns as integers, so that angles are exact.
    turns = np.outer(samples, np.arange(fft_length // 2 + 1)) % fft_length
    angles = turns * (2 * np.pi / fft_length)
    waves = np.concatenate([np.cos(angles), -np.sin(angles)], axis=1)
    matrix = _window(window, frame_length)[:, None] * waves
    # Pre-emphasis and mean removal, transposed; the first sample has no predecessor.
    matrix[:-1] -= preemphasis * matrix[1:]
    return (matrix - matrix.mean(axis=0)).astype("float32")


def as_waveforms(waveforms):
    """Checks that waveforms are floats `(batch, samples)`, and casts to float32."""
    waveforms = ops.convert_to_tensor(waveforms)
    dtype = keras.backend.standardize_dtype(waveforms.dtype)
    is_right = len(waveforms.shape) == 2 and "float" in dtype
    expected = "floats in [-1, 1] of shape (batch, samples); divide 16-bit by 32768"
    received = f"{dtype} of shape {tuple(waveforms.shape)}"
    check(is_right, "waveforms", expected, received)
    return ops.cast(waveforms, "float32")


def real_lengths(waveforms):
    """Counts samples up to the last nonzero one, or all of a silent clip."""
    positions = ops.arange(1, ops.shape(waveforms)[1] + 1, dtype="int32")[None]
    lengths = ops.max(ops.where(waveforms != 0, positions, 0), axis=1)
    return ops.where(lengths == 0, positions[:, -1], lengths)


def without_mean(waveforms, lengths):
    """Subtracts the mean of the real samples and leaves the padding at zero."""
    lengths = lengths[:, None]
    means = ops.sum(waveforms, axis=1, keepdims=True) / ops.cast(lengths, "float32")
    positions = ops.arange(ops.shape(waveforms)[1], dtype="int32")[None]
    return ops.where(positions < lengths, waveforms - means, 0.0)


def _mel(frequency):
    return 1127.0 * np.log1p(np.asarray(frequency) / 700.0)
