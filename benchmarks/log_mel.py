"""Log-mel clips per second: the layer against kaldi-native-fbank.

    KERAS_BACKEND=jax python benchmarks/log_mel.py

Clips of 10 s at 16 kHz. The layer runs as it does in a model, compiled where Keras
compiles by default; kaldi-native-fbank runs through Python, one clip after the other.
"""

import argparse
import time

import kaldi_native_fbank
import keras
import numpy as np
from keras import ops

from keras_bridle.layers.log_mel import LogMelSpectrogram

SAMPLE_RATE = 16000
SECONDS = 10


def kaldi_log_mel(waveform):
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = 128
    options.use_energy = False
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(SAMPLE_RATE, (waveform - waveform.mean()).tolist())
    bank.input_finished()
    return np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])


def compiled(layer):
    """Compiles a layer as `compile(jit_compile="auto")` would on a CPU."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(layer)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(layer)
    import torch

    return torch.no_grad()(layer)


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    shape = (arguments.batch_size, SECONDS * SAMPLE_RATE)
    rng = np.random.default_rng(0)
    waveforms = rng.normal(0, 0.1, shape).astype("float32")

    function = compiled(LogMelSpectrogram(mean=None, std=None))
    tensor = ops.convert_to_tensor(waveforms)
    log_mel = ops.convert_to_numpy(function(tensor))[0, :, :, 0]  # compiles
    expected = kaldi_log_mel(waveforms[0])
    # Nearer the floor, the values are ill-conditioned.
    difference = np.abs(log_mel - expected)[expected > -8].max()

    # In turns and the best of each, so that a busy machine slows neither alone.
    ours, kaldi = [], []
    for _ in range(arguments.repeats):
        ours.append(seconds(lambda: ops.convert_to_numpy(function(tensor))))
        kaldi.append(seconds(lambda: kaldi_log_mel(waveforms[0])))
    ours_rate = arguments.batch_size / min(ours)
    kaldi_rate = 1 / min(kaldi)
    print(
        f"| backend | clips/s, batches of {arguments.batch_size} "
        "| kaldi-native-fbank clips/s | ratio | largest difference above -8 |"
    )
    print("|---|---|---|---|---|")
    print(
        f"| {keras.backend.backend()} | {ours_rate:.0f} | {kaldi_rate:.0f} "
        f"| {ours_rate / kaldi_rate:.1f} | {difference:.1e} |"
    )


if __name__ == "__main__":
    main()
