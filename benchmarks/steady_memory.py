"""Memory over a long phase that reads files.

    KERAS_BACKEND=jax python benchmarks/steady_memory.py --steps 1000

An encoder phase of the tiny preset on recordings that are decoded while it trains, with
states saved every 100 steps. What the process holds is written down every 50 steps;
after the first 200, in which engines compile and buffers fill, it should stay as it is.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_bridle as kb
from keras_bridle.data.layouts import list_files
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.readers import AudioReader
from keras_bridle.data.samples import extract_samples
from keras_bridle.training.progress import device_memory


class Memory(keras.callbacks.Callback):
    """Notes the process' memory every so many steps."""

    def __init__(self, every):
        super().__init__()
        self.every = every
        self.steps, self.found = 0, {}

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps % self.every == 0:
            self.found[self.steps] = device_memory()[0] / 1e6


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--settled", type=int, default=200, help="steps left out")
    return parser.parse_args()


def main():
    args = parse_arguments()
    keras.utils.set_random_seed(0)
    memory = Memory(every=50)
    with tempfile.TemporaryDirectory() as folder:
        recordings = Path(folder, "recordings")
        extract_samples(recordings)
        files, reader = list_files("audio", recordings), AudioReader(seconds=0.36)

        def inputs(epoch, first_batch=0):
            return file_dataset(
                files,
                reader,
                batch_size=args.batch_size,
                shuffle=True,
                repeat=True,
                labels=False,
                initial_epoch=epoch,
                first_batch=first_batch,
            )

        backbone = kb.BridleBackbone.from_preset(
            "bridle_audio_tiny", load_weights=False
        )
        kb.InterleavedPretraining(backbone, num_levels=2, codebook_size=64).fit(
            inputs,
            rounds=0,
            cold_start_epochs=5,
            steps_per_epoch=args.steps // 5,
            directory=Path(folder, "run"),
            checkpoint_every_steps=100,
            callbacks=[memory],
            verbose=0,
        )
    settled = {k: v for k, v in memory.found.items() if k > args.settled}
    slope = np.polyfit(list(settled), list(settled.values()), 1)[0]
    for step, megabytes in memory.found.items():
        print(f"step {step:5}: {megabytes:7.1f} MB")
    print(
        f"{keras.backend.backend()}: after step {args.settled} between "
        f"{min(settled.values()):.1f} and {max(settled.values()):.1f} MB, "
        f"{1000 * slope:+.1f} MB in 1,000 steps"
    )


if __name__ == "__main__":
    main()
