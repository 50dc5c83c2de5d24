"""Memory and traces, which every engine gives in its own way."""

import ctypes
import os
import resource
import sys
from pathlib import Path

import keras


def device_memory():
    """Tells how much memory is in use.

    Returns:
        A tuple of the bytes, and `"device"` or `"process"`: the peak of the first
        accelerator where the engine tells, else what the process holds now.
    """
    used = _PEAKS[keras.backend.backend()]()
    return (_process_memory(), "process") if used is None else (used, "device")


def start_trace(folder):
    """Starts to record what the engine does.

    Args:
        folder: path; TensorBoard's profile plugin, Perfetto or `chrome://tracing` show
            what will be there.

    Returns:
        A function that ends the recording and writes it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    return _TRACES[keras.backend.backend()](str(folder))


def keep_freed_memory():
    """Lets this process keep the memory that it frees, for the next step.

    JAX on a CPU allocates what a step needs anew each time. glibc gives so large blocks
    back to the system at once, and to get them again, page by page, took a third of the
    time of a step on the sample syllables. Other backends keep their buffers.

    Call it before anything is computed: threads that have memory of their own by then
    keep to it.

    Returns:
        bool, whether there was something to do, and it was done.

    Example:
    ```python
    from keras_bridle.pretraining.device import keep_freed_memory

    keep_freed_memory()
    ```
    """
    if keras.backend.backend() != "jax" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    no_mapped_blocks, never_trim = (-4, 0), (-1, 2**31 - 1)
    # One for all threads makes them wait for each other, many keep too much.
    arenas = (-8, os.cpu_count() or 1)
    settings = (no_mapped_blocks, arenas, never_trim)
    return all(mallopt(*setting) for setting in settings)


def _jax_peak():
    import jax

    statistics = jax.local_devices()[0].memory_stats()
    return statistics and statistics.get("peak_bytes_in_use")


def _tensorflow_peak():
    import tensorflow as tf

    if not tf.config.get_visible_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def _torch_peak():
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated()


def _jax_trace(folder):
    import jax

    jax.profiler.start_trace(folder)
    return jax.profiler.stop_trace


def _tensorflow_trace(folder):
    import tensorflow as tf

    tf.profiler.experimental.start(folder)
    return tf.profiler.experimental.stop


def _torch_trace(folder):
    import torch

    profile = torch.profiler.profile()
    profile.start()

    def stop():
        profile.stop()
        profile.export_chrome_trace(f"{folder}/trace.json")

    return stop


def _process_memory():
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    # The most it ever held, in bytes on macOS and in KiB elsewhere.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


_PEAKS = {"jax": _jax_peak, "tensorflow": _tensorflow_peak, "torch": _torch_peak}
_TRACES = {"jax": _jax_trace, "tensorflow": _tensorflow_trace, "torch": _torch_trace}
