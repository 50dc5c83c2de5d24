"""Keeps the memory that JAX frees on Linux' CPUs; imported before Keras.

JAX allocates a step's buffers in its own threads. Unless all of them share one arena,
and TensorFlow starts a second, glibc returns large blocks at once: a fifth of a step.
"""

import ctypes
import importlib.util
import os
import sys

if os.environ.get("KERAS_BACKEND") == "jax" and sys.platform == "linux":
    plugins = map(importlib.util.find_spec, ("jax_plugins", "libtpu"))
    is_on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(plugins)
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries lack it
    if is_on_cpu and not is_set and mallopt is not None:
        for option in ((-4, 0), (-8, 1), (-1, 2**31 - 1)):
            mallopt(*option)  # no mapped blocks, one arena, nothing is returned
