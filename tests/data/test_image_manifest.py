from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from keras_bridle.data.layouts import AudioManifest, ImageManifest


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


# ImageNet-1K, in the layouts it comes in


def imagenet(tmp_path, *val):
    touch(tmp_path / "train", *(f"n0{i}/n0{i}_{i}{i}.JPEG" for i in (3, 1, 2)))
    touch(tmp_path / "val", *val)
    return tmp_path


FLAT = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3)]


def test_imagenet_with_folders(tmp_path):
    root = imagenet(tmp_path, "n02/ILSVRC2012_val_00000009.JPEG", "n03/x.JPEG")
    train = ImageManifest.from_imagenet(root)
    assert relative(train, root / "train") == [
        "n01/n01_11.JPEG",
        "n02/n02_22.JPEG",
        "n03/n03_33.JPEG",
    ]
    assert train.class_names == ("n01", "n02", "n03") and train.labels == [0, 1, 2]
    # Numbered as in training, though one class has no picture here.
    val = ImageManifest.from_imagenet(root, split="val")
    assert val.class_names == train.class_names and val.labels == [1, 2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\n"
            "ILSVRC2012_val_00000003,n02 85 1 499 272 \n"
            "ILSVRC2012_val_00000001,n03 1 2 3 4 n03 5 6 7 8 \n"
            "ILSVRC2012_val_00000002,n01 131 0 499 254 \n",
        ),
        ("val.txt", f"{FLAT[1]} 0\n{FLAT[0]} 2\n{FLAT[2]} 1\n"),
        ("synsets.txt", f"{FLAT[0]} n03\n{FLAT[1]} n01\n{FLAT[2]} n02\n"),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n3\n2\n"),
    ],
)
def test_imagenet_with_flat_validation(tmp_path, name, text):
    root = imagenet(tmp_path, *FLAT)
    (tmp_path / name).write_text(text)
    # The development kit has an order of its own, and inner nodes behind the classes.
    kit = np.array(
        [
            (1, "n03", "owl", "", 0),
            (2, "n02", "dog", "", 0),
            (3, "n01", "cat", "", 0),
            (4, "n00", "animal", "", 3),
        ],
        dtype=[
            ("ILSVRC2012_ID", "O"),
            ("WNID", "O"),
            ("words", "O"),
            ("gloss", "O"),
            ("num_children", "O"),
        ],
    )
    savemat(tmp_path / "meta.mat", {"synsets": kit[:, None]})
    val = ImageManifest.from_imagenet(
        root, split="val", ground_truth=tmp_path / name, meta=tmp_path / "meta.mat"
    )
    assert relative(val, root / "val") == FLAT
    assert [val.class_names[label] for label in val.labels] == ["n03", "n01", "n02"]
    assert val.class_names == ("n01", "n02", "n03")


def test_imagenet_errors(tmp_path):
    root = imagenet(tmp_path, *FLAT)

    def fails(message, text=None, **options):
        if text is not None:
            (tmp_path / "list.txt").write_text(text)
            options["ground_truth"] = tmp_path / "list.txt"
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            ImageManifest.from_imagenet(root, **{"split": "val", **options})

    fails("must be 'train' or 'val'. Received: 'test'", split="test")
    fails(r"outside any class's folder, such as 'ILSVRC2012_val_00000001.JPEG'")
    fails("pass its `meta.mat` as `meta`", "1\n2\n3\n")
    fails("3 pictures. Received: 2", "1\n2\n", meta=tmp_path / "meta.mat")
    fails("the class of 2 pictures", f"{FLAT[1]} 0\n")
    fails("names class 7, of 3 known ones", f"{FLAT[1]} 7\n")
    fails(r"lacks 1 classes that occur: \['n09'\]", "".join(f"{x} n09\n" for x in FLAT))
    fails("does not exist", ground_truth="none.txt")


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


def test_take(tmp_path):
    manifest = ImageManifest(["a.png", "b.png", "c.png"], [1, 0, 1], ["x", "y"])
    taken = manifest.take(np.array([2, 1]))
    assert taken == ImageManifest(["c.png", "b.png"], [1, 0], ["x", "y"])
    assert ImageManifest(["a.png", "b.png"]).take([1]).labels is None
    sounds = AudioManifest(["a.wav", "b.wav"], segments=[(0, 1), (2, None)])
    assert sounds.take([1]).segments == [(2, None)]
