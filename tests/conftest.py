"""Settings that every test shares."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("MPLBACKEND", "Agg")
# Most of the time on JAX goes into compiling what then runs for milliseconds.
flags = ["--xla_backend_optimization_level=0"]
if find_spec("jax") is not None:
    # TensorFlow of the age that tensorflow-io needs does not know it.
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(flags))
# Workers, and the programs that tests start, compile much the same, and share it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(autouse=True)
def clean_keras_state():
    """Gives every test the default policy, fresh names and the same random numbers."""
    # Here, as xdist's main process needs no Keras.
    import keras

    keras.config.set_dtype_policy("float32")
    # Without collecting garbage, which takes a third of a second each time.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def memory_given_back():
    """Forgets what a file of tests has compiled: it adds up to gigabytes on JAX."""
    yield
    import keras

    keras.utils.clear_session()
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()


def pytest_collection_finish():
    """Spares what was imported, millions of objects, from each garbage collection."""
    gc.collect()
    gc.freeze()


# Where little can differ from backend to backend that other tests do not see: these
# files and folders are marked `full_matrix`, but for what in them is marked
# `every_backend`. Each layer of each backend is compared with PyTorch's in
# `test_every_layer_and_model.py`, each phase in `cross_backend`.
FULL_MATRIX = (
    "augmentation",
    "cross_backend",
    "evaluation",
    "golden",
    "guides",
    "layers",
    "models",
    "quantizer",
    "recipes",
    "test_examples.py",
    "training/test_code_cache.py",
    "training/test_trainers.py",
    "training/test_fine_tune.py",
    "training/test_interleaved.py",
    "training/test_mixed_precision.py",
    "training/test_optimizers.py",
)
# What takes longest, so that no worker has such a file left at the end.
LONGEST = (
    "conversion",
    "cross_backend",
    "distribution",
    "recipes",
    "test_compatibility.py",
    "test_every_layer_and_model.py",
    "test_examples.py",
    "training/test_resume.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Runs on other backends than PyTorch only what can differ there.

    `one_backend` tests are deselected. `full_matrix` tests move to the slow run, before
    `-m` is applied. Where PyTorch is missing, JAX runs `one_backend` tests too. With
    `--no-loadscope-reorder`, the files that take longest come first.
    """
    import keras

    def is_in(item, places):
        path = item.path.relative_to(Path(__file__).parent)
        return any(path.is_relative_to(place) for place in places)

    items.sort(key=lambda item: not is_in(item, LONGEST))
    backend = keras.backend.backend()
    if backend == "torch":
        return
    if backend != "jax" or find_spec("torch") is not None:
        deselected = [item for item in items if item.get_closest_marker("one_backend")]
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]
    for item in items:
        is_listed = is_in(item, FULL_MATRIX)
        is_listed &= item.get_closest_marker("every_backend") is None
        if is_listed or item.get_closest_marker("full_matrix"):
            item.add_marker(pytest.mark.slow)
