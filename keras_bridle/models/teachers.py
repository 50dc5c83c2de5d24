"""Encoders as teachers of others."""

import math
from pathlib import Path

from keras import ops

from keras_bridle.config import ArgumentError
from keras_bridle.models.arguments import nameless_config
from keras_bridle.models.backbone import BridleBackbone


def as_teacher(teacher, student):
    """Returns the encoder of a given teacher, for the inputs of a student."""
    if isinstance(teacher, (str, Path)):
        teacher = _loaded(teacher, student.input_dims)
    teacher = getattr(teacher, "backbone", teacher)
    if teacher is None:
        return None
    if len(teacher.input_dims) != len(student.input_dims):
        expected = f"an encoder of inputs like {student.input_dims}"
        raise ArgumentError("teacher", expected, f"one of {teacher.input_dims}")
    return _cut_alike(teacher, student)


def _loaded(preset, dims):
    """Loads an encoder for inputs of these dims; converts gray to color."""
    from keras_bridle.conversion import checkpoints

    folder, changes = checkpoints.fetched(preset), {}
    if len(dims) > 1 and checkpoints.is_checkpoint(folder):
        own = checkpoints.encoder_config(folder)["input_dims"]
        changes = {"input_dims": (*dims[:-1], 3)} if len(own) == len(dims) else {}
    try:
        return BridleBackbone.from_preset(folder, **changes)
    except ArgumentError as error:
        if error.argument != "preset":
            raise
        raise ArgumentError("teacher", error.expected, error.received) from error


def _cut_alike(teacher, student):
    """Returns the teacher, or a copy that treats incomplete patches as the student.

    Otherwise their grids could differ by one row.
    """
    name = "multiple_of"
    own, wanted = (getattr(x.front_end, name, None) for x in (teacher, student))
    if own is None or wanted is None or own == wanted or min(own, wanted) > 1:
        return teacher
    config = teacher.get_config()
    config["front_end"]["config"][name] = wanted
    copy = type(teacher).from_config(config)
    copy.set_weights(teacher.get_weights())
    return copy


def see_the_same(one, other):
    """Returns whether encoders cut the same patches from the same maps."""
    one, other = (nameless_config(backbone)["config"] for backbone in (one, other))
    return all(one.get(x) == other.get(x) for x in ("front_end", "patch_size"))


def features_on_grid(backbone, inputs, grid):
    """Computes an encoder's features of patches on the grid of another encoder.

    A feature is repeated for all patches that it covers, or several are averaged: along
    each side, one grid must be the other divided by a whole number, rounded up. Gray
    images are converted to color if the encoder takes color.
    """
    if len(backbone.input_dims) > 1 and inputs.shape[-1] == 1:
        inputs = ops.repeat(inputs, backbone.input_dims[-1], axis=-1)
    maps, padding_mask = backbone.maps(inputs)
    own = backbone.grid(maps)
    tokens = backbone.encode(maps, padding_mask, training=False)
    patches = ops.cast(backbone.drop_class_token(tokens), "float32")
    check_grids(own, grid)
    patches = ops.reshape(patches, (-1, *own, patches.shape[-1]))
    for axis, (count, wanted) in enumerate(zip(own, grid, strict=True), start=1):
        times = -(-max(count, wanted) // min(count, wanted))
        cells = ops.arange(wanted * (times if count > wanted else 1))
        if count < wanted:
            patches = ops.take(patches, cells // times, axis=axis)
        elif count > wanted:
            # Repeat the last one for those that are missing.
            patches = ops.take(patches, ops.minimum(cells, count - 1), axis=axis)
            shape = patches.shape[1:axis], (wanted, times), patches.shape[axis + 1 :]
            patches = ops.reshape(patches, (-1, *shape[0], *shape[1], *shape[2]))
            patches = ops.mean(patches, axis=axis + 1)
    return ops.reshape(patches, (-1, math.prod(grid), patches.shape[-1]))


def check_grids(teacher, student):
    """Raises an `ArgumentError` unless one grid divides the other along each side."""

    def fits(one, other):
        small, large = sorted((one, other))
        return small == -(-large // -(-large // small))

    if len(teacher) != len(student) or not all(map(fits, teacher, student)):
        expected = f"an encoder whose grid divides, or is divided by, {student}"
        raise ArgumentError("teacher", expected, f"one with the grid {teacher}")
