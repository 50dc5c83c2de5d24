"""Lists of pictures, from folders and tables."""

import csv
import dataclasses
from pathlib import Path

from keras_bridle.data.file_manifest import (
    FileManifest,
    existing_file,
    existing_folder,
    number_labels,
)


@dataclasses.dataclass(frozen=True)
class ImageManifest(FileManifest):
    """A list of JPEG, PNG and WebP files, with labels where there are any.

    Usually made by `from_folder` (a flat folder, any tree, or with `class_folders` one
    folder per class), by `from_csv` or by `from_imagenet`. They look at names only; the
    files are opened by `image_dataset`.

    Args:
        files: paths of the pictures.
        labels: `None`; or one class number per file; or, for multi-label data, one
            tuple of class numbers per file.
        class_names: the names that the class numbers index.

    Raises:
        ValueError: if the list is empty, the lengths do not fit together or a label
            has no class name.

    Example:
    ```python
    import tempfile
    from keras_bridle.data import ImageManifest, extract_samples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        manifest = ImageManifest.from_folder(
            folder + "/fashion_mnist", class_folders=True
        )
    print(len(manifest), manifest.class_names)
    ```
    """

    kind = "image"
    extensions = (".jpg", ".jpeg", ".png", ".webp")

    @classmethod
    def from_imagenet(
        cls,
        directory: str | Path,
        *,
        split: str = "train",
        ground_truth: str | Path | None = None,
        meta: str | Path | None = None,
    ) -> "ImageManifest":
        """Reads ImageNet-1K: folders `train/` and `val/`.

        In `train/`, each class has a folder named by its synset, such as `n01440764`.
        So may `val/`; or its files lie side by side, as they come in the archive, and
        `ground_truth` tells their classes. Classes are numbered in the order of their
        sorted synsets, those of `train/` if it is there.

        Args:
            directory: folder with `train/` and `val/`, or one of them.
            split: `"train"` or `"val"`.
            ground_truth: only for a `val/` without folders, one of: a CSV file with the
                columns `ImageId` and `PredictionString` (`LOC_val_solution.csv`); a
                list with a file's name and its synset, or the number of its class from
                0, on each line; or the development kit's
                `ILSVRC2012_validation_ground_truth.txt`, which needs `meta`.
            meta: the development kit's `meta.mat`, whose order of classes is not that
                of the synsets.

        Returns:
            An `ImageManifest` sorted by path; class names are synsets.

        Raises:
            FileNotFoundError: if a folder or file is missing.
            ValueError: for another split, or if lists and files do not fit.

        Reference:
            Russakovsky et al., ImageNet large scale visual recognition challenge
            (arXiv 1409.0575).
        """
        if split not in ("train", "val"):
            raise ValueError(f"`split` must be 'train' or 'val'. Received: {split!r}")
        root = existing_folder(Path(existing_folder(directory), split))
        paths = cls.list_files(root)
        trained = Path(directory, "train")
        synsets = _folders(trained) if trained.is_dir() else []
        if all(len(path.parts) > 1 for path in paths):
            names = [path.parts[0] for path in paths]
        elif split == "val" and ground_truth is not None:
            names = _classes_of_flat_files(
                [path.name for path in paths],
                existing_file(ground_truth),
                meta,
                synsets,
            )
        else:
            raise ValueError(
                f"'{root}' has pictures outside any class's folder, such as "
                f"'{next(path for path in paths if len(path.parts) < 2)}'. Expected: "
                "folders named by synsets, or `ground_truth` for a flat `val`"
            )
        labels, class_names = number_labels(names, synsets or None)
        return cls([str(root / path) for path in paths], labels, class_names)


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def _classes_of_flat_files(
    files: list[str], path: Path, meta: str | Path | None, synsets: list[str]
) -> list[str]:
    """Returns the synset of each file, which come sorted by name."""
    lines = [line.split() for line in path.read_text("utf-8-sig").splitlines()]
    lines = [line for line in lines if line]
    if path.suffix == ".csv":
        by_stem = _solution(path)
    elif all(len(line) == 1 for line in lines):
        if meta is None:
            raise ValueError(
                f"'{path}' numbers classes in the development kit's order: pass its "
                "`meta.mat` as `meta`"
            )
        if len(lines) != len(files):
            raise ValueError(
                f"'{path}' must have one line for each of the {len(files)} pictures. "
                f"Received: {len(lines)}"
            )
        number = _synsets_of_kit(existing_file(meta))
        by_stem = {
            Path(file).stem: _lookup(number, line[0], path)
            for file, line in zip(files, lines, strict=True)
        }
    else:
        by_number = {str(index): name for index, name in enumerate(synsets)}
        by_stem = {
            Path(line[0]).stem: _lookup(by_number, line[-1], path)
            if line[-1].isdecimal()
            else line[-1]
            for line in lines
        }
    unlisted = [file for file in files if Path(file).stem not in by_stem]
    if unlisted:
        raise ValueError(
            f"'{path}' does not tell the class of {len(unlisted)} pictures, such as "
            f"'{unlisted[0]}'"
        )
    return [by_stem[Path(file).stem] for file in files]


def _solution(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"ImageId", "PredictionString"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"'{path}' must have the columns ImageId and PredictionString. Its "
                f"columns: {reader.fieldnames}"
            )
        return {
            row["ImageId"]: row["PredictionString"].split()[0]
            for row in reader
            if row["PredictionString"]
        }


def _synsets_of_kit(path: Path) -> dict[str, str]:
    """Maps the kit's numbers to synsets; inner nodes of WordNet's tree are no class."""
    from scipy.io import loadmat

    table = loadmat(path, squeeze_me=True)["synsets"]
    return {
        str(int(row["ILSVRC2012_ID"])): str(row["WNID"])
        for row in table
        if int(row["num_children"]) == 0
    }


def _lookup(names: dict[str, str], number: str, path: Path) -> str:
    if number not in names:
        raise ValueError(
            f"'{path}' names class {number}, of {len(names)} known ones. Class numbers "
            "need the folder `train`, whose synsets they number"
        )
    return names[number]
