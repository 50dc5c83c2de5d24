"""Memory and traces of the device, which every engine gives in its own way."""

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
