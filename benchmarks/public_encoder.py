"""How long a public encoder takes to load beyond reading its file, and how much memory.

The file is a random one in the layout of transformers.
"""

import argparse
import os
import re
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import keras_bridle as kb
from keras_bridle.conversion.published_state import read_published_state


def resident():
    """Bytes that this process holds, without pages of files that it only looks at."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


class Peak:
    """The most bytes held within a `with`, over those before."""

    def __enter__(self):
        self.before = self.most = resident()
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.is_over.wait(0.002):
            self.most = max(self.most, resident())

    def __exit__(self, *_):
        self.is_over.set()
        self.thread.join()

    @property
    def bytes(self):
        return self.most - self.before


def write(size, folder):
    """Writes a random encoder, in a process of its own: its memory is not ours."""
    if os.fork():
        os.wait()
        return
    name = f"bridle_image_{size}"
    kb.to_transformers(kb.BridleBackbone.from_preset(name, load_weights=False), folder)
    os._exit(0)


def timed(function, *arguments):
    """Seconds by the clock and of the processor, and the peak."""
    clock, processor = time.perf_counter(), time.process_time()
    with Peak() as peak:
        function(*arguments)
    return time.perf_counter() - clock, time.process_time() - processor, peak.bytes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="base")
    parser.add_argument("--folder", type=Path, help="of an encoder that is there")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    if arguments.folder is None:
        write(arguments.size, folder)
    file = folder / "model.safetensors"
    size = file.stat().st_size
    # What a backend loads when it is first used is no part of it.
    small = kb.BridleBackbone(16, 16, 1, 2, 32, (32, 32, 3))
    small.save_to_preset(str(folder / "small"))
    kb.BridleBackbone.from_preset(str(folder / "small"))
    print(f"{keras.backend.backend()}: {size / 2**20:.0f} MB")
    reading = timed(read_published_state, file)
    loading = timed(kb.BridleBackbone.from_preset, str(folder))
    print(f"reading {reading[0]:.2f} s, of the processor {reading[1]:.2f}")
    print(f"loading {loading[0]:.2f} s, of the processor {loading[1]:.2f}")
    print(f"memory {loading[2] / size:.2f} times the file")
