"""The files that an encoder can read, as it wants them."""

from collections.abc import Callable

import numpy as np

from keras_bridle.data.audio import audio_dataset
from keras_bridle.data.image import image_dataset
from keras_bridle.data.labeled_files import MANIFESTS
from keras_bridle.data.video import video_dataset
from keras_bridle.models.presets import MODALITIES_BY_RANK

_DATASETS: dict[str, Callable] = {
    "audio": audio_dataset,
    "image": image_dataset,
    "video": video_dataset,
}


def modality_of(backbone):
    """Tells what an encoder takes: `"audio"`, `"image"` or `"video"`.

    Args:
        backbone: `BridleBackbone`.

    Raises:
        ValueError: if its inputs are none of these.
    """
    found = MODALITIES_BY_RANK.get(len(backbone.input_dims))
    if found is None:
        raise ValueError(
            "There are files for encoders of waveforms, images and clips. Received: "
            f"input_dims={backbone.input_dims}"
        )
    return found


def manifest_of(backbone, source):
    """Lists files of an encoder's modality.

    Args:
        backbone: `BridleBackbone`.
        source: manifest, folder or list of files.

    Returns:
        An `AudioManifest`, `ImageManifest` or `VideoManifest`.
    """
    return MANIFESTS[modality_of(backbone)].from_source(source)


def reading_options(backbone, **options):
    """Fills in how files are read for an encoder.

    Args:
        backbone: `BridleBackbone`.
        **options: what is to be other than the encoder's `input_dims` say, arguments of
            `audio_dataset`, `image_dataset` or `video_dataset`. Those that are `None`
            are filled in.

    Returns:
        A dict of arguments.

    Raises:
        ValueError: if a size is given by neither.
    """
    options = {name: value for name, value in options.items() if value is not None}
    dims = backbone.input_dims
    modality = modality_of(backbone)
    if modality == "audio":
        rate = getattr(backbone.front_end, "sample_rate", 16000)
        defaults = {"sample_rate": rate}
        if not {"seconds", "num_samples"} & options.keys():
            defaults["num_samples"] = dims[0]
            if dims[0] is None:
                raise ValueError(
                    "The encoder takes waveforms of any length: say how many `seconds` "
                    "of each recording to read"
                )
    else:
        defaults = {"image_size": dims[-3:-1], "channels": dims[-1]}
        if modality == "video":
            defaults |= {"num_frames": dims[0], "sampling_rate": 4}
            if dims[0] is None and "num_frames" not in options:
                raise ValueError(
                    "The encoder takes clips of any length: say how many `num_frames` "
                    "of each video to read"
                )
    return {**defaults, **options}


def file_dataset(backbone, manifest, batch_size, **options):
    """Reads files in order, with their places in the list in place of labels.

    Args:
        backbone: `BridleBackbone`.
        manifest: of its modality.
        batch_size: int.
        **options: what `reading_options()` gives, and others of `audio_dataset`,
            `image_dataset` or `video_dataset`.

    Returns:
        A `tf.data.Dataset` of tuples `(inputs, places)`; files that cannot be read are
        left out.
    """
    numbered = type(manifest)(
        manifest.files,
        labels=range(len(manifest)),
        class_names=range(len(manifest)),
        **({"segments": manifest.segments} if hasattr(manifest, "segments") else {}),
    )
    make_dataset = _DATASETS[modality_of(backbone)]
    return make_dataset(numbered, batch_size=batch_size, **options)


def clip_shape(backbone, options):
    """The shape of one input as `reading_options()` has it read."""
    modality = modality_of(backbone)
    if modality == "audio":
        samples = options.get("num_samples")
        if samples is None:
            samples = round(options["seconds"] * options["sample_rate"])
        return (samples,)
    sides = np.broadcast_to(options["image_size"], 2).tolist()
    shape = (*sides, options["channels"])
    return shape if modality == "image" else (options["num_frames"], *shape)


def patch_grid(backbone, shape):
    """Tells how many patches an input of a shape, such as `clip_shape()`, has.

    Args:
        backbone: `BridleBackbone`.
        shape: tuple of ints, without the batch.

    Returns:
        Tuple of ints, the patches along each side.
    """
    shape = (None, *shape)
    if backbone.front_end is not None:
        shape = backbone.front_end.compute_output_shape(shape)
    return backbone.patch_embedding.grid(shape[1:-1])
