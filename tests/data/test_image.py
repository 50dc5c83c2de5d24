import itertools

import keras
import numpy as np
import pytest
from image_files import gradient, which, write_gray
from PIL import Image

from keras_bridle.data.files import ReadReport
from keras_bridle.data.layouts import ImageManifest
from keras_bridle.data.pipeline import image_dataset
from keras_bridle.data.readers import ImageReader


def batches(dataset, count=None):
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def epochs(dataset, count):
    return [np.concatenate(batches(dataset)) for _ in range(count)]


def broken(folder, *names):
    for name in names:
        (folder / name).write_text("no picture in here")


def test_evaluation_gives_every_file_once_in_order(tmp_path):
    write_gray(tmp_path, 10)
    result = batches(image_dataset(tmp_path, batch_size=4, image_size=(8, 6)))
    assert [batch.shape[0] for batch in result] == [4, 4, 2]
    assert result[0].shape == (4, 8, 6, 3) and result[0].dtype == np.uint8
    assert which(np.concatenate(result)) == list(range(10))


def test_training_gives_full_static_batches_and_no_file_twice(tmp_path):
    write_gray(tmp_path, 11)
    dataset = image_dataset(
        tmp_path, batch_size=4, image_size=8, channels=1, shuffle=True
    )
    assert dataset.element_spec.shape == (4, 8, 8, 1) and len(dataset) == 2
    orders = [which(np.concatenate(batches(dataset))) for _ in range(6)]
    assert all(len(set(order)) == 8 for order in orders)
    assert len({tuple(order) for order in orders}) == 6


def test_formats_sizes_and_colors_may_be_mixed(tmp_path):
    image = Image.fromarray(gradient(48, 48))
    image.save(tmp_path / "a.jpg", quality=95)
    image.resize((96, 96)).save(tmp_path / "b.webp", quality=95)
    image.convert("L").save(tmp_path / "c.png")
    color, same, gray = batches(image_dataset(tmp_path, batch_size=3, image_size=24))[0]
    assert np.abs(color.astype(int) - same).mean() < 3
    assert (gray[..., 0] == gray[..., 2]).all()
    np.testing.assert_array_equal(color, ImageReader(24)(tmp_path / "a.jpg"))


def test_labels_stay_with_their_files(tmp_path):
    files = write_gray(tmp_path, 12)
    broken(tmp_path, "004.png", "007.png")
    manifest = ImageManifest(files, list(range(12)), [str(i) for i in range(12)])
    for shuffle in (False, True):
        dataset = image_dataset(
            manifest, batch_size=5, image_size=8, shuffle=shuffle, num_parallel=4
        )
        for images, labels in batches(dataset):
            assert labels.dtype == np.int32
            assert which(images) == labels.tolist()
    alone = image_dataset(manifest, batch_size=5, image_size=8, labels=False)
    assert batches(alone)[0].shape == (5, 8, 8, 3)


def test_arrays_are_sources():
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 9), "uint8")
    labels = np.arange(6) % 3
    dataset = image_dataset(
        (images[..., None], labels), batch_size=6, image_size=9, channels=1
    )
    pixels, numbers = batches(dataset)[0]
    np.testing.assert_array_equal(pixels[..., 0], images)
    assert numbers.tolist() == labels.tolist()
    colors = batches(image_dataset(images, batch_size=6, image_size=4))[0]
    assert colors.shape == (6, 4, 4, 3)
    shuffled = image_dataset(
        (images, labels), batch_size=3, image_size=9, shuffle=True, seed=1
    )
    for pixels, numbers in batches(shuffled):
        for picture, label in zip(pixels[..., 0], numbers, strict=True):
            (index,) = np.flatnonzero((images == picture).all(axis=(1, 2)))
            assert labels[index] == label


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 4, 4), "float32"), "must be a uint8 array.*float32"),
        (np.zeros((2, 4, 4, 4), "uint8"), r"must be a uint8 array.*\(2, 4, 4, 4\)"),
        ((np.zeros((2, 4, 4), "uint8"), np.zeros(3, int)), r"ints of shape \(2,\)"),
        ((np.zeros((2, 4, 4), "uint8"), np.zeros(2)), r"ints of shape \(2,\)"),
    ],
)
def test_arrays_are_checked(source, message):
    with pytest.raises(ValueError, match=message):
        image_dataset(source, batch_size=1, image_size=4)


def test_center_and_random_crops(tmp_path):
    # The red of a pixel tells its column.
    Image.fromarray(gradient(20, 256)).save(tmp_path / "a.png")
    source = [str(tmp_path / "a.png")] * 400
    options = {"batch_size": 400, "image_size": 20}
    centered = batches(image_dataset(source, **options))[0][:, 10, 10, 0]
    assert np.abs(centered.astype(int) - 128).max() <= 2
    dataset = image_dataset(source, shuffle=True, **options)
    first, second = (epoch[:, 10, 10, 0] for epoch in epochs(dataset, 2))
    assert (first != second).mean() > 0.9
    # Middles from column 10 to 246, all alike.
    assert 8 <= first.min() < 20 and 236 < first.max() <= 248
    counts = np.histogram(first, bins=4, range=(9, 247))[0]
    assert counts.min() > 70


def test_seed_decides_order_and_crops_however_many_threads_read(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(12):
        pixels = generator.integers(0, 256, (10, 30, 3), "uint8")
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    options = {"batch_size": 4, "image_size": 8, "shuffle": True}
    first = epochs(image_dataset(tmp_path, seed=3, num_parallel=1, **options), 2)
    again = epochs(image_dataset(tmp_path, seed=3, num_parallel=8, **options), 2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    other = epochs(image_dataset(tmp_path, seed=4, **options), 1)[0]
    assert not np.array_equal(first[0], other)
    endless = image_dataset(tmp_path, seed=3, repeat=True, initial_epoch=1, **options)
    np.testing.assert_array_equal(np.concatenate(batches(endless, 3)), first[1])


def test_unreadable_files_are_left_out_or_replaced_and_listed(tmp_path):
    files = write_gray(tmp_path, 12)
    broken(tmp_path, "001.png", "008.png")
    (tmp_path / "005.png").write_bytes(b"")
    for shuffle in (False, True):
        report = ReadReport()
        dataset = image_dataset(
            files, batch_size=4, image_size=8, shuffle=shuffle, report=report
        )
        numbers = which(np.concatenate(batches(dataset)))
        if shuffle:
            assert len(numbers) == 12 and not {1, 5, 8} & set(numbers)
        else:
            assert numbers == [0, 2, 3, 4, 6, 7, 9, 10, 11]
        assert [item.path for item in report.skipped] == [files[i] for i in (1, 5, 8)]
        assert "UnidentifiedImageError" in report.skipped[0].reason
        assert report.read == len(numbers)


def test_strict_names_the_file(tmp_path):
    write_gray(tmp_path, 4)
    broken(tmp_path, "002.png")
    dataset = image_dataset(tmp_path, batch_size=2, image_size=8, strict=True)
    with pytest.raises(Exception, match=r"Cannot read image file '.*002.png'"):
        batches(dataset)


def test_nothing_readable_is_an_error_at_once(tmp_path):
    broken(tmp_path, "a.png", "b.jpg")
    with pytest.raises(ValueError, match=r"None of the 2 image files .*a.png'"):
        image_dataset(tmp_path, batch_size=1, image_size=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "`image_size` must be a positive int"),
        ({"channels": 4}, "`channels` must be 1"),
        ({"crop": "start"}, "`crop` must be one of .*'start'"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"shuffle": True, "batch_size": 3}, r"`batch_size` \(3\) is larger than"),
    ],
)
def test_arguments_are_checked(tmp_path, arguments, message):
    write_gray(tmp_path, 2)
    with pytest.raises(ValueError, match=message):
        image_dataset(tmp_path, **{"batch_size": 2, "image_size": 8, **arguments})


def test_fit(tmp_path):
    files = write_gray(tmp_path, 6)
    manifest = ImageManifest(files, [i % 2 for i in range(6)], ["even", "odd"])
    dataset = image_dataset(manifest, batch_size=3, image_size=8, shuffle=True)
    model = keras.Sequential(
        [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(dataset, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
