"""Lists of files that tests make and look at."""

from pathlib import Path

from keras_bridle.data.layouts import list_files, splits_of


def touch(root, *names):
    """Lists look at names only, so the files may be empty."""
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def relative(files, root):
    return [Path(file).relative_to(root).as_posix() for file in files.files]


def labels_by_name(files, indices):
    some = files.take(indices)
    return {Path(x).name: y for x, y in zip(some.files, some.classes(), strict=True)}


def read(kind, data, layout="folder", *, more=(), **options):
    """The files' names with their classes, of training, test and validation."""
    files = list_files(kind, data, layout, labels=True, **options)
    test_split = options.get("test_split")
    ((train, test),), validation = splits_of(files, test_split, **dict(more))
    parts = [train, test, *([] if validation is None else [validation])]
    return [labels_by_name(files, part) for part in parts]
