"""Lists of videos, from folders and tables."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from keras_bridle.data.file_manifest import (
    FileManifest,
    check_some_exist,
    existing_file,
    existing_folder,
    number_labels,
    read_table,
)


@dataclasses.dataclass(frozen=True)
class VideoManifest(FileManifest):
    """A list of video files, with labels where there are any.

    Usually made by `from_folder` (a flat folder, any tree, or with `class_folders` one
    folder per class), by `from_csv` for a table with a header, or by `from_kinetics`
    for that data set's tables and the list without a header that video models are
    usually trained with. They look at names only; the files are opened by
    `video_dataset`.

    Args:
        files: paths of the videos.
        labels: `None`; or one class number per file; or, for multi-label data, one
            tuple of class numbers per file.
        class_names: the names that the class numbers index.
        missing: names that a data set's table lists and its folder does not hold.

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

    missing: Sequence[str] = ()

    @classmethod
    def from_kinetics(
        cls,
        path: str | Path,
        *,
        root: str | Path | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "VideoManifest":
        r"""Reads Kinetics' own tables, or a list of `path label` or `path,label` lines.

        **A table** has a header with `youtube_id`, `time_start` and `time_end` (whole
        seconds) and, but for some test sets, `label`. Its videos may lie anywhere below
        `root` and are named `id_000012_000022.mp4` after their times, or by the id
        alone. Videos disappear, so nobody has all of them: those without a file are
        listed in `missing`.

        **A list** has no header. Lines are split at their last comma if all of them
        have one, else at their last space or tab, so that a path may contain spaces.
        Empty lines are left out.

        Args:
            path: the table or list, in UTF-8.
            root: folder with the videos, that relative file names start from. Defaults
                to the list's.
            class_names: the classes in their order. If the labels are numbers, they
                index it; by default, classes are then named by their numbers. If the
                labels are names, the default is all that occur, sorted.

        Returns:
            A `VideoManifest` in the list's order.

        Raises:
            FileNotFoundError: if the list, or every file it names, is missing.
            ValueError: if the list is empty, a line has no label or a label is unknown,
                or a table's times are no whole seconds.

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
        if "youtube_id" in lines[0].replace('"', "").split(","):
            return cls._from_kinetics_table(path, root, class_names)
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

    @classmethod
    def _from_kinetics_table(
        cls,
        path: Path,
        root: str | Path | None,
        class_names: Sequence[str] | None,
    ) -> "VideoManifest":
        rows = read_table(path, ["youtube_id", "time_start", "time_end"])
        folder = existing_folder(path.parent if root is None else root)
        by_stem = {file.stem: str(folder / file) for file in cls.list_files(folder)}
        stems = [_stem(row, path) for row in rows]
        files = [
            by_stem.get(stem) or by_stem.get(row["youtube_id"])
            for stem, row in zip(stems, rows, strict=True)
        ]
        if not any(files):
            raise FileNotFoundError(
                f"'{folder}' holds none of the {len(rows)} videos that '{path}' lists. "
                f"Expected names such as '{stems[0]}.mp4'; is `root` right?"
            )
        labels, names = None, tuple(class_names or ())
        if "label" in rows[0]:
            numbers, names = number_labels([row["label"] for row in rows], class_names)
            labels = [
                number for number, file in zip(numbers, files, strict=True) if file
            ]
        return cls(
            [file for file in files if file],
            labels,
            names,
            missing=[stem for stem, file in zip(stems, files, strict=True) if not file],
        )


def _stem(row: dict[str, str], path: Path) -> str:
    """The name of a cut-out video's file: the video, start and end in seconds."""
    try:
        start, end = int(row["time_start"]), int(row["time_end"])
    except ValueError:
        raise ValueError(
            f"'{path}': times must be whole seconds. Received: {row['time_start']!r} "
            f"to {row['time_end']!r} for {row['youtube_id']!r}"
        ) from None
    return f"{row['youtube_id']}_{start:06d}_{end:06d}"
