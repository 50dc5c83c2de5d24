"""Log-mel clips per second: the layer against kaldi-native-fbank.

    KERAS_BACKEND=jax python benchmarks/log_mel.py

Clips of 10 s at 16 kHz. The layer runs as it does in a model, compiled where Keras
compiles by default; kaldi-native-fbank runs through Python, one clip after the other.
"""

import argparse
import statistics
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


def clips_per_second(function, batches, batch_size):
    """Median over batches, waiting for each one's last number."""
    np.asarray(function(batches[0]))
    times = []
    for batch in batches:
        start = time.perf_counter()
        np.asarray(function(batch))
        times.append(time.perf_counter() - start)
    return batch_size / statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    shape = (arguments.batch_size, SECONDS * SAMPLE_RATE)
    rng = np.random.default_rng(0)
    waveforms = rng.normal(0, 0.1, shape).astype("float32")

    layer = LogMelSpectrogram(mean=None, std=None)
    function = compiled(layer)
    tensors = [ops.convert_to_tensor(waveforms)] * arguments.repeats
    ours = clips_per_second(
        lambda batch: ops.convert_to_numpy(function(batch)),
        tensors,
        arguments.batch_size,
    )
    kaldi = clips_per_second(kaldi_log_mel, waveforms[:3], 1)
    difference = np.abs(
        ops.convert_to_numpy(function(tensors[0]))[0, :, :, 0]
        - kaldi_log_mel(waveforms[0])
    ).max()
    print(
        f"| backend | clips/s (batch {arguments.batch_size}) | kaldi-native-fbank ",
        end="",
    )
    print("clips/s | ratio | largest difference |")
    print("|---|---|---|---|---|")
    print(
        f"| {keras.backend.backend()} | {ours:.0f} | {kaldi:.0f} | {ours / kaldi:.1f} "
        f"| {difference:.1e} |"
    )


if __name__ == "__main__":
    main()
