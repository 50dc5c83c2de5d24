from pathlib import Path

import numpy as np
import pytest

from keras_bridle.data.layouts import deal_folds, labeled_files


def touch(root, *names):
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def validation(files):
    manifest = files.manifest.take(files.validation)
    names = [Path(file).name for file in manifest.files]
    classes = [manifest.class_names[label] for label in manifest.labels]
    return dict(zip(names, classes, strict=True))


def parts(files, split=0):
    """The file names of training and test with their classes' names."""
    manifest = files.manifest
    return [
        {
            Path(part.files[i]).name: [
                manifest.class_names[n] for n in np.atleast_1d(part.labels[i])
            ]
            for i in range(len(part))
        }
        for part in map(manifest.take, files.splits[split])
    ]


def test_class_folders_are_dealt_to_folds(tmp_path):
    names = [f"{c}/{c}{i}.wav" for c, n in (("x", 9), ("y", 6)) for i in range(n)]
    touch(tmp_path, *names)
    files = labeled_files("audio", tmp_path, folds=3, seed=1)
    assert files.manifest.class_names == ("x", "y") and len(files.splits) == 3
    tested = []
    for index, (train, test) in enumerate(files.splits):
        assert sorted([*train, *test]) == list(range(15))
        held_out = parts(files, index)[1].values()
        assert sorted(held_out) == [["x"]] * 3 + [["y"]] * 2
        tested += test.tolist()
    assert sorted(tested) == list(range(15))
    (only,) = labeled_files("audio", tmp_path, folds=3, fold=2, seed=1).splits
    np.testing.assert_array_equal(only[1], files.splits[1][1])
    other = labeled_files("audio", tmp_path, folds=3, seed=2).splits
    assert any((a[1] != b[1]).any() for a, b in zip(files.splits, other, strict=True))
    with pytest.raises(ValueError, match="`fold` must lie between 1 and 3"):
        labeled_files("audio", tmp_path, folds=3, fold=4)
    with pytest.raises(ValueError, match="between 2 and the 15 files"):
        labeled_files("audio", tmp_path, folds=16)
    with pytest.raises(ValueError, match="no folders `train` and `test`"):
        labeled_files("audio", tmp_path, test_split="test")


def test_folder_with_parts(tmp_path):
    touch(tmp_path, "train/x/1.png", "train/z/2.png", "val/z/3.png", "val/y/4.png")
    files = labeled_files("image", tmp_path)
    assert parts(files) == [
        {"1.png": ["x"], "2.png": ["z"]},
        {"3.png": ["z"], "4.png": ["y"]},
    ]
    touch(tmp_path, "test/x/5.png")
    three = labeled_files("image", tmp_path)
    assert parts(three)[1] == {"5.png": ["x"]}
    assert validation(three) == {"3.png": "z", "4.png": "y"}
    assert files.validation is None
    found = labeled_files("image", tmp_path, test_split="val")
    assert parts(found) == parts(files)


@pytest.mark.parametrize("train", ["train", "training"])
@pytest.mark.parametrize("name", ["testing", "valid", "dev", "eval"])
def test_other_names_of_the_parts(tmp_path, train, name):
    touch(tmp_path, f"{train}/x/1.png", f"{train}/y/2.png", f"{name}/x/3.png")
    assert parts(labeled_files("image", tmp_path))[1] == {"3.png": ["x"]}
    table = tmp_path / "t.csv"
    rows = [f"{train}/x/1.png,x,{train}", f"{train}/y/2.png,y,{train}"]
    table.write_text("\n".join(["file,label,split", *rows, f"{name}/x/3.png,x,{name}"]))
    assert parts(labeled_files("image", table))[1] == {"3.png": ["x"]}


def test_evaluation_is_tested_on_and_development_is_not(tmp_path):
    touch(tmp_path, "train/x/1.png", "train/y/2.png", "val/x/3.png", "eval/y/4.png")
    found = labeled_files("image", tmp_path)
    assert parts(found)[1] == {"4.png": ["y"]}
    assert validation(found) == {"3.png": "x"}
    table = tmp_path / "t.csv"
    table.write_text("file,label,split\ntrain/x/1.png,x,dev\neval/y/4.png,y,eval\n")
    with pytest.raises(ValueError, match=r"no row to train on: .* 'dev', 'eval'"):
        labeled_files("image", table)


@pytest.mark.parametrize("names", [("Train", "Test"), ("dev", "eval"), ("train",)])
def test_parts_that_cannot_be_told_are_no_classes(tmp_path, names):
    for name in names:
        touch(tmp_path, f"{name}/x/1.png", f"{name}/y/2.png")
    with pytest.raises(ValueError, match="has no folders `train` and"):
        labeled_files("image", tmp_path)


def test_a_part_alone_is_no_class(tmp_path):
    touch(tmp_path, "train/x/1.png", "train/y/2.png", "holdout/x/3.png")
    with pytest.raises(ValueError, match=r"folders `train` and .* \['holdout', 'tr"):
        labeled_files("image", tmp_path)
    found = labeled_files("image", tmp_path, test_split="holdout")
    assert parts(found)[1] == {"3.png": ["x"]}


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, "train/1.png", "train/2.png", "ship/3.png", "ship/4.png")
    found = labeled_files("image", tmp_path, folds=2)
    assert found.manifest.class_names == ("ship", "train")
    touch(tmp_path, "ship/tug/5.png", "train/6.png")
    found = labeled_files("image", tmp_path, folds=2)
    assert found.manifest.class_names == ("ship", "train")


def test_one_class_is_none(tmp_path):
    touch(tmp_path, "x/1.png", "x/2.png")
    with pytest.raises(ValueError, match=r"two or more classes\. Found only 'x'"):
        labeled_files("image", tmp_path, folds=2)


def test_parts_in_two_folders(tmp_path):
    touch(tmp_path, "a/x/1.png", "a/y/2.png", "b/y/3.png")
    files = labeled_files("image", tmp_path / "a", test_data=tmp_path / "b")
    assert parts(files) == [{"1.png": ["x"], "2.png": ["y"]}, {"3.png": ["y"]}]


def test_tables(tmp_path):
    touch(tmp_path, "1.wav", "2.wav", "3.wav", "4.wav")
    table = tmp_path / "t.csv"
    rows = ["1.wav,x ,train ,1", "2.wav,y,val,2", "3.wav,x,test,1", "4.wav,x,train,3"]
    table.write_text("\n".join(["file,label,split,fold", *rows]))
    train = {"1.wav": ["x"], "4.wav": ["x"]}
    files = labeled_files("audio", table)
    assert parts(files) == [train, {"3.wav": ["x"]}]
    assert validation(files) == {"2.wav": "y"}
    rest = files.without_validation()
    assert len(rest.manifest) == 3 and parts(rest) == parts(files)
    assert rest.without_validation() is rest
    files = labeled_files("audio", table, test_split="val")
    assert parts(files) == [train, {"2.wav": ["y"]}] and files.validation is None
    numbered = labeled_files("audio", table, split_column="fold", test_split="1")
    assert parts(numbered) == [
        {"2.wav": ["y"], "4.wav": ["x"]},
        {"1.wav": ["x"], "3.wav": ["x"]},
    ]
    folds = labeled_files("audio", table, split_column="none", folds=2)
    assert len(folds.splits) == 2
    with pytest.raises(ValueError, match=r"no part dev .* but \['test', 'train', 'val"):
        labeled_files("audio", table, test_split="dev")
    with pytest.raises(ValueError, match="no column 'none'"):
        labeled_files("audio", table, split_column="none", test_split="dev")
    table.write_text("file,label,split\n" + "".join(f"{x}.wav,a,test\n" for x in "123"))
    with pytest.raises(ValueError, match="no row to train on: its column 'split' has"):
        labeled_files("audio", table)


def test_table_with_several_labels(tmp_path):
    touch(tmp_path, "1.wav", "2.wav")
    for name, row in (("train", "1.wav,b"), ("test", "2.wav,a;c;b")):
        (tmp_path / f"{name}.csv").write_text(f"file,label\n{row}\n")
    files = labeled_files(
        "audio",
        tmp_path / "train.csv",
        test_data=tmp_path / "test.csv",
        label_separator=";",
    )
    assert files.manifest.multi_label
    assert parts(files) == [{"1.wav": ["b"]}, {"2.wav": ["a", "c", "b"]}]


def test_audioset(tmp_path):
    touch(tmp_path / "wav", "Yaaaaaaaaaaa.wav", "Ybbbbbbbbbbb.wav")
    (tmp_path / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/1,"Speech"\n1,/m/2,"Music"\n'
    )
    (tmp_path / "train.csv").write_text('aaaaaaaaaaa, 0.0, 10.0, "/m/1,/m/2"\n')
    (tmp_path / "eval.csv").write_text(
        'bbbbbbbbbbb, 0.0, 10.0, "/m/2"\nccccccccccc, 0.0, 10.0, "/m/2"\n'
    )
    files = labeled_files(
        "audio",
        tmp_path / "wav",
        "audioset",
        segments=tmp_path / "train.csv",
        test_segments=tmp_path / "eval.csv",
    )
    assert parts(files) == [
        {"Yaaaaaaaaaaa.wav": ["Speech", "Music"]},
        {"Ybbbbbbbbbbb.wav": ["Music"]},
    ]
    assert files.manifest.missing == ["ccccccccccc"]
    with pytest.raises(ValueError, match="needs `segments` and `test_segments`"):
        labeled_files("audio", tmp_path / "wav", "audioset")


def test_esc50_has_its_own_folds(tmp_path):
    names = [f"{fold}-{i}-A-{i}.wav" for fold in range(1, 6) for i in range(2)]
    touch(tmp_path / "audio", *names)
    (tmp_path / "meta").mkdir()
    rows = [
        f"{name},{name[0]},{i % 2},{('dog', 'cat')[i % 2]}"
        for i, name in enumerate(names)
    ]
    (tmp_path / "meta" / "esc50.csv").write_text(
        "\n".join(["filename,fold,target,category", *rows])
    )
    files = labeled_files("audio", tmp_path, "esc50")
    assert len(files.splits) == 5 and files.manifest.class_names == ("dog", "cat")
    tested = []
    for index, places in enumerate(files.splits):
        train, test = parts(files, index)
        assert all(name[0] == str(index + 1) for name in test) and len(test) == 2
        assert all(name[0] != str(index + 1) for name in train) and len(train) == 8
        assert sorted(np.concatenate(places)) == list(range(10))
        tested += places[1].tolist()
    # Each clip is tested once.
    assert sorted(tested) == list(range(10))
    (third,) = labeled_files("audio", tmp_path, "esc50", fold=3).splits
    np.testing.assert_array_equal(third[1], files.splits[2][1])


def test_speech_commands(tmp_path):
    touch(tmp_path, "yes/a.wav", "yes/b.wav", "no/c.wav", "no/d.wav", "no/e.wav")
    touch(tmp_path, "_background_noise_/white_noise.wav")
    (tmp_path / "validation_list.txt").write_text("no/c.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/b.wav\nno/d.wav\n")
    train = {"a.wav": ["yes"], "e.wav": ["no"]}
    files = labeled_files("audio", tmp_path, "speech_commands")
    assert parts(files) == [train, {"b.wav": ["yes"], "d.wav": ["no"]}]
    assert validation(files) == {"c.wav": "no"}
    files = labeled_files("audio", tmp_path, "speech_commands", test_split="validation")
    assert parts(files) == [train, {"c.wav": ["no"]}]


def test_imagenet(tmp_path):
    touch(tmp_path, "train/n01/a.JPEG", "train/n02/b.JPEG", "val/c.JPEG")
    (tmp_path / "val.txt").write_text("c.JPEG 1\n")
    files = labeled_files(
        "image", tmp_path, "imagenet", ground_truth=tmp_path / "val.txt"
    )
    assert parts(files)[1] == {"c.JPEG": ["n02"]} and len(files.splits[0][0]) == 2


def test_kinetics(tmp_path):
    touch(tmp_path / "videos", "a_000001_000011.mp4", "b_000002_000012.mp4")
    header = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "train.csv").write_text(f"{header}archery,a,1,11,train\n")
    (tmp_path / "val.csv").write_text(f"{header}dancing,b,2,12,validate\n")
    files = labeled_files(
        "video",
        tmp_path / "train.csv",
        "kinetics",
        test_data=tmp_path / "val.csv",
        root=tmp_path / "videos",
    )
    assert parts(files) == [
        {"a_000001_000011.mp4": ["archery"]},
        {"b_000002_000012.mp4": ["dancing"]},
    ]
    (tmp_path / "list.txt").write_text("videos/a_000001_000011.mp4\n" * 2)
    with pytest.raises(ValueError, match="every line must be"):
        labeled_files("video", tmp_path / "list.txt", "kinetics")


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="of 'image' must be one of folder, imagenet"):
        labeled_files("image", tmp_path, "esc50")
    with pytest.raises(ValueError, match=r"must be one of \. Received"):
        labeled_files("smell", tmp_path)
    with pytest.raises(FileNotFoundError):
        labeled_files("image", tmp_path / "none.csv")


def test_arguments_that_would_change_nothing(tmp_path):
    def refused(message, *arguments, **more):
        with pytest.raises(ValueError, match=message):
            labeled_files(*arguments, **more)

    touch(tmp_path, "train/x/1.png", "train/y/2.png", "test/x/3.png")
    refused("`test_data` would .* layout 'esc50'", "audio", ".", "esc50", test_data="x")
    refused("`test_split` .* 'imagenet'", "image", ".", "imagenet", test_split="val")
    refused("`folds` .* 'speech_commands'", "audio", ".", "speech_commands", folds=3)
    refused("`fold` .* there is a test part", "image", tmp_path, fold=1)
    refused(
        "`label_column`, `root` .* folders",
        "image",
        tmp_path,
        root="r",
        label_column="c",
    )
    parts = {"data": tmp_path / "train", "test_data": tmp_path / "test"}
    refused("`test_split` .* with `test_data`", "image", **parts, test_split="val")
    (tmp_path / "t.csv").write_text(
        "file,label,split\ntrain/x/1.png,x,train\ntest/x/3.png,y,test\n"
    )
    refused("`fold` .* there is a test part", "image", tmp_path / "t.csv", fold=1)


def test_folds_of_rows_with_several_labels():
    labels = [(0, 1)] * 6 + [()] * 4 + [(2,)] * 5
    folds = deal_folds(labels, 2)
    assert np.bincount(folds).tolist() == [8, 7]
    assert np.bincount(folds[:6]).tolist() == [3, 3]
