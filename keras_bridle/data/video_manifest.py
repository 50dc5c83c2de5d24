"""Lists of videos, from folders and tables."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from keras_bridle.data.file_manifest import (
    FileManifest,
    check_some_exist,
    existing_file,
    number_labels,
)


@dataclasses.dataclass(frozen=True)
class VideoManifest(FileManifest):
    """A list of video files, with labels where there are any.

    Usually made by `from_folder` (a flat folder, any tree, or with `class_folders` one
    folder per class), by `from_csv` for a table with a header, or by `from_kinetics`
    for the list without one that video models are usually trained with. They look at
    names only; the files are opened by `video_dataset`.

    Args:
        files: paths of the videos.
        labels: `None`; or one class number per file; or, for multi-label data, one
            tuple of class numbers per file.
        class_names: the names that the class numbers index.

    Raises:
        ValueError: if the list is empty, the lengths do not fit together or a label
            has no class name.

    Example:
    ```python
    import tempfile
    from keras_bridle.data import VideoManifest, extract_samples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        manifest = VideoManifest.from_folder(folder)
    print(manifest.files)
    ```
    """

    kind = "video"
    extensions = (
        ".mp4",
        ".m4v",
        ".mov",
        ".mpg",
        ".mpeg",
        ".webm",
        ".mkv",
        ".avi",
    )

    @classmethod
    def from_kinetics(
        cls,
        path: str | Path,
        *,
        root: str | Path | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "VideoManifest":
        r"""Reads a list without a header, one `path label` or `path,label` per line.

        Lines are split at their last comma if all of them have one, else at their last
        space or tab, so that a path may contain spaces. Empty lines are left out.

        Args:
            path: the list, in UTF-8.
            root: folder that relative file names start from. Defaults to the list's.
            class_names: the classes in their order. If the labels are numbers, they
                index it; by default, classes are then named by their numbers. If the
                labels are names, the default is all that occur, sorted.

        Returns:
            A `VideoManifest` in the list's order.

        Raises:
            FileNotFoundError: if the list, or every file it names, is missing.
            ValueError: if the list is empty, a line has no label or a label is unknown.

        Example:
        ```python
        import pathlib
        import tempfile
        from keras_bridle.data import VideoManifest, extract_samples

        with tempfile.TemporaryDirectory() as folder:
            extract_samples(folder)
            table = pathlib.Path(folder, "train.csv")
            table.write_text("city.mpg street\nconcert.mp4 concert")
            manifest = VideoManifest.from_kinetics(table, root=folder + "/video")
        print(manifest.labels, manifest.class_names)
        ```
        """
        path = existing_file(path)
        lines = path.read_text("utf-8-sig").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        if not lines:
            raise ValueError(f"'{path}' lists no videos.")
        separator = "," if all("," in line for line in lines) else None
        pairs = [line.rsplit(separator, 1) for line in lines]
        for line, pair in zip(lines, pairs, strict=True):
            if len(pair) < 2 or not all(part.strip() for part in pair):
                raise ValueError(
                    f"'{path}': every line must be 'path label' or 'path,label'. "
                    f"Received: {line!r}"
                )
        folder = Path(root) if root is not None else path.parent
        files = [str(folder / pair[0].strip()) for pair in pairs]
        check_some_exist(files, path)
        texts = [pair[1].strip() for pair in pairs]
        if not all(text.isdecimal() for text in texts):
            return cls(files, *number_labels(texts, class_names))
        labels = [int(text) for text in texts]
        if class_names is None:
            class_names = [str(number) for number in range(max(labels) + 1)]
        return cls(files, labels, tuple(class_names))
