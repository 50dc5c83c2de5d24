"""Names of version 0.1 at the addresses they had, for one more version."""

import functools
import importlib
import inspect
import warnings

# Where a name may be now, by the package that had it.
_ROOMS = {
    "layers": (
        "quantizer.residual_quantizer",
        "layers.log_mel",
        "layers.masks",
        "layers.patches",
        "layers.pixels",
        "layers.positions",
        "layers.transformer",
        "augmentation.audio",
        "augmentation.base",
        "augmentation.image",
    ),
    "models": (
        "models.backbone",
        "models.classifier",
        "models.converters",
        "models.heads",
        "models.tokenizers",
    ),
    "data": ("data.files", "data.pipeline", "data.samples"),
    "pretraining": (
        "training.trainers",
        "training.losses",
        "training.interleaved",
        "training.phases",
        "training.batches",
        "training.checkpoint",
        "training.run",
        "training.optimizers",
        "training.progress",
        "quantizer.usage",
    ),
    "fine_tuning": (
        "training.fine_tune",
        "training.examples",
        "training.batches",
        "training.optimizers",
        "evaluation.report",
    ),
    "evaluation": (
        "evaluation.features",
        "evaluation.metrics",
        "evaluation.plots",
        "evaluation.probes",
        "evaluation.report",
    ),
}
_NEW_NAMES = {
    "AudioManifest": "FileList",
    "ImageManifest": "FileList",
    "VideoManifest": "FileList",
    "LabeledBatches": "ArrayBatches",
    "PhaseCheckpoint": "Checkpoint",
}


def _dataset(kind, source, **options):
    """What `audio_dataset()`, `image_dataset()` and `video_dataset()` were."""
    import keras_bridle as kb

    reader_class = getattr(kb, f"{kind.title()}Reader")
    if "reader" in options:
        options["decoder"] = options.pop("reader")
    names = inspect.signature(reader_class).parameters.keys() & options.keys()
    reader = reader_class(**{name: options.pop(name) for name in names})
    files = kb.list_files(kind, source)
    return kb.file_dataset(files, reader, **options).as_tf_data()


def old_address(package):
    """Makes the `__getattr__` of a package that had public names in version 0.1.

    Args:
        package: string, the package's `__name__`.
    """

    def find(name):
        kind = name.removesuffix("_dataset")
        if package == "keras_bridle.data" and kind in ("audio", "image", "video"):
            text = f"Use `file_dataset(list_files({kind!r}, ...), {kind.title()}Reader"
            warnings.warn(f"{text}(...))`", DeprecationWarning, stacklevel=2)
            return functools.partial(_dataset, kind)
        new_name = _NEW_NAMES.get(name, name)
        for room in _ROOMS[package.rpartition(".")[2]]:
            module = importlib.import_module(f"keras_bridle.{room}")
            found = vars(module).get(new_name)
            if getattr(found, "__module__", None) == module.__name__:
                warnings.warn(
                    f"`{package}.{name}` is now `{module.__name__}.{new_name}`. "
                    "The old address goes with the next version",
                    DeprecationWarning,
                    stacklevel=2,
                )
                return found
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
