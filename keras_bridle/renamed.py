"""Names of version 0.1 at their old addresses, for one more version."""

import functools
import importlib
import inspect
import pkgutil
import warnings

# For each old package, the packages to look for its names in.
_ROOMS = {
    "layers": ("layers", "quantizer", "augmentation"),
    "models": ("models",),
    "data": ("data",),
    "pretraining": ("training", "quantizer"),
    "fine_tuning": ("training", "evaluation"),
    "evaluation": ("evaluation",),
}
_NEW_NAMES = {
    "AudioManifest": "FileList",
    "ImageManifest": "FileList",
    "VideoManifest": "FileList",
    "LabeledBatches": "ArrayBatches",
    "PhaseCheckpoint": "Checkpoint",
}


def _dataset(kind, source, **options):
    """The former `audio_dataset()`, `image_dataset()` and `video_dataset()`."""
    import keras_bridle as kb

    reader_class = getattr(kb, f"{kind.title()}Reader")
    if "reader" in options:
        options["decoder"] = options.pop("reader")
    names = inspect.signature(reader_class).parameters.keys() & options.keys()
    reader = reader_class(**{name: options.pop(name) for name in names})
    files = kb.list_files(kind, source)
    return kb.file_dataset(files, reader, **options).as_tf_data()


def _modules(package):
    """Lists the modules that may have a name of an old package now."""
    rooms = [f"keras_bridle.{room}" for room in _ROOMS[package.rpartition(".")[2]]]
    return [
        f"{room}.{module.name}"
        for room in rooms
        for module in pkgutil.iter_modules(importlib.import_module(room).__path__)
    ]


def old_address(package):
    """Makes the `__getattr__` of a package that had public names in version 0.1."""

    def find(name):
        kind = name.removesuffix("_dataset")
        if package == "keras_bridle.data" and kind in ("audio", "image", "video"):
            text = f"Use `file_dataset(list_files({kind!r}, ...), {kind.title()}Reader"
            warnings.warn(f"{text}(...))`", DeprecationWarning, stacklevel=2)
            return functools.partial(_dataset, kind)
        new_name = _NEW_NAMES.get(name, name)
        modules = _modules(package)
        # Python also asks for submodules and for its own names.
        is_own = name.startswith("__") or f"{package}.{name}" in modules
        for address in [] if is_own else modules:
            found = vars(importlib.import_module(address)).get(new_name)
            if getattr(found, "__module__", None) == address:
                warnings.warn(
                    f"`{package}.{name}` is now `{address}.{new_name}`. "
                    "The next version will remove the old name",
                    DeprecationWarning,
                    stacklevel=2,
                )
                return found
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
