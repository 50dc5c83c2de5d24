from pathlib import Path

import pytest

from keras_bridle.data.image_manifest import ImageManifest
from keras_bridle.data.manifest import AudioManifest


def touch(root, *names):
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def relative(manifest, root):
    return [Path(file).relative_to(root).as_posix() for file in manifest.files]


def test_folder_lists_images_and_nothing_else(tmp_path):
    touch(
        tmp_path, "b.JPG", "a/x.jpeg", "a/y.png", "c.webp", "d.wav", "e.gif", ".f.jpg"
    )
    manifest = ImageManifest.from_folder(tmp_path)
    assert isinstance(manifest, ImageManifest)
    assert relative(manifest, tmp_path) == ["a/x.jpeg", "a/y.png", "b.JPG", "c.webp"]
    assert manifest.labels is None


def test_imagenet_layout(tmp_path):
    touch(tmp_path, "n02/a.JPEG", "n01/b.JPEG", "n02/c.JPEG", "n10/d.JPEG")
    manifest = ImageManifest.from_folder(tmp_path, class_folders=True)
    assert manifest.class_names == ("n01", "n02", "n10")
    assert manifest.labels == [0, 1, 1, 2]


def test_empty_folder_says_what_was_looked_for(tmp_path):
    touch(tmp_path, "a.wav", "b.gif")
    message = r"No image file in .*Looked for .jpg, .jpeg, .png, .webp .*2 \(1 .gif"
    with pytest.raises(ValueError, match=message.replace("1 .gif", r"1 \.")):
        ImageManifest.from_folder(tmp_path)


def test_csv(tmp_path):
    touch(tmp_path, "pictures/a.jpg", "pictures/b.png", "pictures/c.png")
    table = tmp_path / "list.csv"
    table.write_text("file,kind,split\na.jpg,x,train\nb.png,z,test\nc.png,y,train\n")
    manifest = ImageManifest.from_csv(
        table, root=tmp_path / "pictures", label_column="kind", split="train"
    )
    assert relative(manifest, tmp_path / "pictures") == ["a.jpg", "c.png"]
    assert manifest.class_names == ("x", "y", "z") and manifest.labels == [0, 1]
    with pytest.raises(ValueError, match="has no column"):
        ImageManifest.from_csv(table, file_column="path")


def test_a_manifest_of_another_kind_is_no_source():
    with pytest.raises(ValueError, match=r"class ImageManifest. Received: AudioMan"):
        ImageManifest.from_source(AudioManifest(["a.wav"]))
