"""Keeps the memory that JAX frees on Linux' CPUs; imported before Keras.

JAX allocates a step's buffers again each time, in its own threads. For these, glibc
takes large blocks from the system and returns them at once, which costs a fifth of a
step, unless all threads share an arena. Importing TensorFlow starts a second one.
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
        # No blocks of their own, one arena, and nothing is returned.
        for option in ((-4, 0), (-8, 1), (-1, 2**31 - 1)):
            mallopt(*option)
