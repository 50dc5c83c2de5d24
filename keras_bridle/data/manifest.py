"""Lists of recordings, from folders, tables and well-known data sets."""

import csv
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_bridle.data.file_manifest import (
    FileManifest,
    existing_file,
    existing_folder,
    number_labels,
    read_labeled_table,
    read_table,
)


@dataclasses.dataclass(frozen=True)
class AudioManifest(FileManifest):
    """A list of audio files, with labels where there are any.

    Usually made by one of the `from_...` methods. They look at names only; the files
    are opened by `audio_dataset`.

    Args:
        files: paths of the recordings.
        labels: `None`; or one class number per file; or, for multi-label data, one
            tuple of class numbers per file.
        class_names: the names that the class numbers index.
        segments: `None`, or one `(start, end)` in seconds per file: the part of the
            file that is the recording. An end of `None` is the end of the file. The
            same file may be listed with several segments.
        missing: names that a data set's table lists and its folder does not hold.

    Raises:
        ValueError: if the list is empty, the lengths do not fit together, a label
            has no class name, or a segment is empty.

    Example:
    ```python
    from keras_bridle.data import AudioManifest

    manifest = AudioManifest(
        files=["a.wav", "b.wav"], labels=[0, 1], class_names=["cat", "dog"]
    )
    print(len(manifest), manifest.class_names)
    ```
    """

    kind = "audio"
    extensions = (".wav", ".flac", ".ogg", ".mp3")

    segments: Sequence[tuple[float, float | None]] | None = None
    missing: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_count("segments", self.segments)
        for file, (start, end) in zip(self.files, self.segments or (), strict=False):
            if start < 0 or (end is not None and end <= start):
                raise ValueError(
                    "A segment must start at 0 s or later and end after its start. "
                    f"Received: {start} s to {end} s for '{file}'"
                )

    def _taken(self, indices: list[int]) -> dict[str, Any]:
        taken = super()._taken(indices)
        if self.segments is not None:
            taken["segments"] = [self.segments[i] for i in indices]
        return taken

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        *,
        root: str | Path | None = None,
        file_column: str = "file",
        label_column: str | None = None,
        label_separator: str | None = None,
        start_column: str | None = None,
        end_column: str | None = None,
        split_column: str = "split",
        split: str | Iterable[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "AudioManifest":
        """Reads a table with a header line and one recording per row.

        Args:
            path: the CSV file, in UTF-8.
            root: folder that relative file names start from. Defaults to the CSV's.
            file_column: column with the file's name.
            label_column: column with the class, or `None` for no labels.
            label_separator: if given, the label column may name several classes, or
                none, with this text between them.
            start_column: column with the second at which the recording starts in its
                file; an empty cell is 0.
            end_column: column with the second at which it ends; an empty cell is the
                end of the file.
            split_column: column that `split` is compared with.
            split: text or texts: only rows with one of them are taken. `None` takes
                all rows.
            class_names: the classes in their order. Defaults to all that occur in the
                table, sorted; rows of other splits count, so that every split
                numbers its classes alike.

        Returns:
            An `AudioManifest` in the table's order.

        Raises:
            FileNotFoundError: if the table, or every file it names, is missing.
            ValueError: if a column is missing, no row is left, a label is unknown or
                a time is no number.

        Example:
        ```python
        import tempfile
        from keras_bridle.data import AudioManifest, extract_samples

        with tempfile.TemporaryDirectory() as folder:
            extract_samples(folder)
            manifest = AudioManifest.from_csv(
                folder + "/mandarin_syllables/mandarin_syllables.csv",
                label_column="tone",
                split="test",
            )
        print(len(manifest), manifest.class_names)
        ```
        """
        path = existing_file(path)
        times = [name for name in (start_column, end_column) if name]
        rows, files, labels, names = read_labeled_table(
            path,
            root=root,
            file_column=file_column,
            label_column=label_column,
            label_separator=label_separator,
            split_column=split_column,
            split=split,
            class_names=class_names,
            other_columns=times,
        )
        segments = None
        if times:
            segments = [
                (
                    _seconds(row, start_column, path) or 0.0,
                    _seconds(row, end_column, path),
                )
                for row in rows
            ]
        return cls(files, labels, names, segments)

    @classmethod
    def from_audioset(
        cls,
        segments_csv: str | Path,
        directory: str | Path,
        *,
        class_labels_csv: str | Path | None = None,
        whole_videos: bool = False,
    ) -> "AudioManifest":
        """Reads one of AudioSet's segment tables, for multi-label classification.

        Videos disappear, so nobody has all of them: those without a file are listed
        in `missing`. A file belongs to a video if its name, without the extension, is
        the 11-character id, with or without a `Y` before it and anything that begins
        with `_` after it (`Y--PJHxphWEs.wav`, `--PJHxphWEs_30.000_40.000.flac`).

        Args:
            segments_csv: `balanced_train_segments.csv`, `eval_segments.csv` or
                `unbalanced_train_segments.csv`.
            directory: folder with the recordings, with all its subfolders.
            class_labels_csv: `class_labels_indices.csv`. Defaults to that file next to
                the segment table.
            whole_videos: bool. Whether the files are whole soundtracks, from which the
                segment is to be cut; by default they are the 10-second clips.

        Returns:
            A multi-label `AudioManifest` in the table's order.

        Raises:
            FileNotFoundError: if a table or the folder is missing.
            ValueError: if a table is not in AudioSet's format, or the folder holds no
                file of the table.

        Reference:
            Gemmeke et al., Audio Set: an ontology and human-labeled dataset for audio
            events (ICASSP 2017).
        """
        segments_csv = existing_file(segments_csv)
        if class_labels_csv is None:
            class_labels_csv = segments_csv.parent / "class_labels_indices.csv"
        classes = read_table(
            existing_file(class_labels_csv), ["index", "mid", "display_name"]
        )
        classes.sort(key=lambda row: int(row["index"]))
        number = {row["mid"]: i for i, row in enumerate(classes)}
        rows = list(_audioset_rows(segments_csv, number))
        root = existing_folder(directory)
        paths = _paths_by_id(cls.list_files(root), {row[0] for row in rows})
        found = [row for row in rows if row[0] in paths]
        if not found:
            raise ValueError(
                f"'{root}' holds no recording of the {len(rows)} that "
                f"'{segments_csv}' lists. Expected names such as '{rows[0][0]}.wav' "
                f"or 'Y{rows[0][0]}.flac'"
            )
        return cls(
            [str(root / paths[row[0]]) for row in found],
            [row[3] for row in found],
            [row["display_name"] for row in classes],
            [(row[1], row[2]) for row in found] if whole_videos else None,
            missing=[row[0] for row in rows if row[0] not in paths],
        )

    @classmethod
    def from_esc50(
        cls, directory: str | Path, *, folds: Sequence[int] | None = None
    ) -> "AudioManifest":
        """Reads ESC-50: 2,000 recordings of 5 s in 50 classes and 5 folds.

        Args:
            directory: the data set's folder, with `meta/esc50.csv` and `audio/`.
            folds: which of the folds 1 to 5 to take; `None` takes all. Published
                results are the mean over five runs, each tested on the fold that it
                was not trained on.

        Returns:
            An `AudioManifest` in the table's order.

        Raises:
            FileNotFoundError: if the folder, its table or its files are missing.
            ValueError: for a fold that the table does not have.

        Reference:
            Piczak, ESC: dataset for environmental sound classification (ACM MM 2015).
        """
        root = existing_folder(directory)
        table = existing_file(root / "meta" / "esc50.csv")
        rows = read_table(table, ["filename", "fold", "target", "category"])
        by_target = {int(row["target"]): row["category"] for row in rows}
        return cls.from_csv(
            table,
            root=root / "audio",
            file_column="filename",
            label_column="category",
            split_column="fold",
            split=None if folds is None else [str(fold) for fold in folds],
            class_names=[by_target[target] for target in sorted(by_target)],
        )

    @classmethod
    def from_speech_commands(
        cls, directory: str | Path, *, split: str
    ) -> "AudioManifest":
        """Reads Speech Commands version 2: one spoken word of 35 per second of audio.

        Folders whose name begins with `_` (the background noise) are no class.

        Args:
            directory: the data set's folder, with one folder per word,
                `validation_list.txt` and `testing_list.txt`.
            split: `"train"` (all that neither list names), `"validation"` or `"test"`.

        Returns:
            An `AudioManifest` sorted by path; classes are the words, sorted.

        Raises:
            FileNotFoundError: if the folder or a list is missing.
            ValueError: for another split, or one without files.

        Reference:
            Warden, Speech Commands: a dataset for limited-vocabulary speech recognition
            (arXiv 1804.03209).
        """
        if split not in ("train", "validation", "test"):
            raise ValueError(
                f"`split` must be 'train', 'validation' or 'test'. Received: {split!r}"
            )
        root = existing_folder(directory)
        held_out = {
            name: set(existing_file(root / list_name).read_text("utf-8").split())
            for name, list_name in (
                ("validation", "validation_list.txt"),
                ("test", "testing_list.txt"),
            )
        }
        paths = [
            path
            for path in cls.list_files(root)
            if len(path.parts) == 2 and not path.parts[0].startswith("_")
        ]
        labels, class_names = number_labels([path.parts[0] for path in paths])
        if split == "train":
            named = held_out["validation"] | held_out["test"]
            kept = [i for i, path in enumerate(paths) if path.as_posix() not in named]
        else:
            named = held_out[split]
            kept = [i for i, path in enumerate(paths) if path.as_posix() in named]
        if not kept:
            raise ValueError(
                f"'{root}' holds no {split} file: {len(paths)} files in "
                f"{len(class_names)} class folders, {len(named)} names in the lists"
            )
        return cls(
            [str(root / paths[i]) for i in kept], [labels[i] for i in kept], class_names
        )


def _seconds(row: dict[str, str], column: str | None, path: Path) -> float | None:
    text = row[column].strip() if column else ""
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(
            f"'{path}': column '{column}' must hold seconds. Received: {text!r}"
        ) from None


_Row = tuple[str, float, float, tuple[int, ...]]


def _audioset_rows(path: Path, number: dict[str, int]) -> Iterator[_Row]:
    """Yields `(id, start, end, classes)` of a table with # comment lines."""
    empty = True
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file, skipinitialspace=True):
            if not row or row[0].startswith("#"):
                continue
            try:
                name, start, end, mids = row
                classes = tuple(number[mid] for mid in mids.split(",") if mid)
                yield name, float(start), float(end), classes
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"'{path}' has a row that is not AudioSet's 'id, start, end, "
                    f'"classes"\', or names an unknown class: {row} ({error!r})'
                ) from None
            empty = False
    if empty:
        raise ValueError(f"'{path}' lists no segments.")


def _paths_by_id(paths: list[Path], wanted: set[str]) -> dict[str, Path]:
    """Maps YouTube ids (11 characters, which may be `_` or `-`) to their files."""
    by_id: dict[str, Path] = {}
    for path in paths:
        # The id itself first: it may begin with a Y of its own.
        for text in (path.stem, path.stem[1:] if path.stem.startswith("Y") else ""):
            if text[:11] in wanted and (len(text) == 11 or text[11] == "_"):
                by_id.setdefault(text[:11], path)
                break
    return by_id
