"""Lists of pictures, from folders and tables."""

import dataclasses

from keras_bridle.data.file_manifest import FileManifest


@dataclasses.dataclass(frozen=True)
class ImageManifest(FileManifest):
    """A list of JPEG, PNG and WebP files, with labels where there are any.

    Usually made by `from_folder` (a flat folder, any tree, or with `class_folders` one
    folder per class, as ImageNet is laid out) or by `from_csv`. They look at names
    only; the files are opened by `image_dataset`.

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
