"""Data sets of other libraries in `fit()`: of one length, without one, and repeated.

Arrays and functions of the epoch are read in an order of their own.
"""

import functools
import time

import keras
import numpy as np
import PIL.Image
import pytest
import torch.utils.data

from keras_bridle.config import ArgumentError
from keras_bridle.data.files import FileList
from keras_bridle.data.pipeline import file_dataset
from keras_bridle.data.readers import ImageReader, import_tensorflow
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.classifier import BridleImageClassifier
from keras_bridle.models.data_sets import LaterBatches, Opened, TakesAnyData
from keras_bridle.models.inputs import as_batch, as_labels
from keras_bridle.training.batches import (
    ArrayBatches,
    batches_by_epoch,
    first_batches,
    fit_in_order,
)
from keras_bridle.training.interleaved import InterleavedPretraining

grain = pytest.importorskip("grain")

IMAGES = np.random.default_rng(0).random((6, 8, 8, 1), "float32")
LABELS = np.arange(6) % 3
BATCHES = [(IMAGES[i : i + 2], LABELS[i : i + 2]) for i in (0, 2, 4)]


class Indexed(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return BATCHES[index]


class Endless(Indexed):
    num_batches = None

    def __getitem__(self, index):
        return BATCHES[index % 3]


class Iterable:
    def __iter__(self):
        return iter(BATCHES)


def tf_data():
    return (
        import_tensorflow().data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(2)
    )


def map_dataset():
    return grain.MapDataset.source(list(zip(IMAGES, LABELS, strict=True))).batch(2)


def loader():
    tensors = map(torch.from_numpy, (IMAGES, LABELS))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), 2)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(BATCHES)


# By whether they know their length, and end.
KNOWN = {
    "PyDataset": Indexed,
    "tf.data": tf_data,
    "MapDataset": map_dataset,
    "DataLoader": loader,
}
UNKNOWN = {
    "IterDataset": lambda: map_dataset().to_iter_dataset(),
    "unknown tf.data": lambda: tf_data().filter(lambda x, y: True),
}
ITERABLE = {
    "DataLoader of a stream": lambda: torch.utils.data.DataLoader(Stream(), None),
    "iterable": Iterable,
}
ENDLESS = {
    "endless PyDataset": Endless,
    "endless tf.data": lambda: tf_data().repeat(),
    "endless MapDataset": lambda: map_dataset().repeat(),
    "endless IterDataset": lambda: map_dataset().repeat().to_iter_dataset(),
}


def backbone():
    return BridleBackbone(4, 8, 1, 1, 8, input_dims=(8, 8, 1))


class Seen(TakesAnyData, keras.Model):
    """Counts the examples it trains on, and adds up what is seen of them."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.num_classes = num_classes
        self.total = self.add_weight(shape=(2,), initializer="zeros", trainable=False)
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.built = True

    def prepared(self, x, y=None, sample_weight=None):
        y = None if y is None else as_labels(y, self.num_classes)
        return keras.utils.pack_x_y_sample_weight(as_batch(x, (8, 8, 1)), y)

    def call(self, inputs, training=False):
        sums = keras.ops.sum(inputs, (1, 2))
        if training:
            seen = keras.ops.stack([keras.ops.ones_like(sums), sums])
            self.total.assign_add(keras.ops.sum(seen, (1, 2)))
        return self.scale * sums


def seen_by_epoch(data, epochs=3, **options):
    """What each epoch of `fit()` saw: the number of examples, and which."""
    model, found = Seen(), [np.zeros(2)]
    model.compile("sgd", "mse")

    def note(epoch, logs):
        found.append(keras.ops.convert_to_numpy(model.total))

    callback = keras.callbacks.LambdaCallback(on_epoch_end=note)
    model.fit(data, epochs=epochs, callbacks=callback, verbose=0, **options)
    return np.diff(found, axis=0)


def expected(*batches):
    sums = [sum(BATCHES[i][0].sum() for i in epoch) for epoch in batches]
    counts = [2 * len(epoch) for epoch in batches]
    return np.stack([counts, sums], axis=1)


READ_AGAIN = KNOWN | UNKNOWN | ITERABLE | ENDLESS


@pytest.mark.parametrize("make", (KNOWN | UNKNOWN).values(), ids=KNOWN | UNKNOWN)
def test_each_epoch_is_a_reading(make):
    found = seen_by_epoch(make(), shuffle=False)
    np.testing.assert_allclose(found, expected(*3 * [(0, 1, 2)]), rtol=1e-4)


@pytest.mark.parametrize("make", READ_AGAIN.values(), ids=READ_AGAIN)
def test_epochs_of_so_many_steps_go_on_where_the_last_one_stopped(make):
    found = seen_by_epoch(make(), steps_per_epoch=2)
    np.testing.assert_allclose(found, expected((0, 1), (2, 0), (1, 2)), rtol=1e-4)


@pytest.mark.parametrize("make", READ_AGAIN.values(), ids=READ_AGAIN)
def test_pretraining_from_any_batch_on(make):
    """As a resumed run asks for them; k-means sees no batch twice."""

    def numbers(batches, count):
        sums = [batch.sum() for batch, _ in BATCHES]
        found = [batch.sum() for batch in first_batches(batches, count)]
        return [int(np.argmin(np.abs(x - sums))) for x in found]

    by_epoch = functools.partial(batches_by_epoch, make(), (8, 8, 1), 2, seed=0)
    batches = by_epoch(steps_per_epoch=2)
    assert numbers(batches(0), 4) == [0, 1, 2, 0]
    assert numbers(batches(1, first_batch=1), 4) == [0, 1, 2, 0]
    if make not in ENDLESS.values():
        once = by_epoch(steps_per_epoch=None)
        assert numbers(once(1), 9) == [0, 1, 2]
        assert numbers(once(1, first_batch=1), 9) == [1, 2]


@pytest.mark.full_matrix
def test_pretraining():
    def losses(data):
        keras.utils.set_random_seed(0)
        sizes = {"hidden_dim": 8, "num_layers": 1, "num_heads": 1, "mlp_dim": 8}
        pretraining = InterleavedPretraining(
            backbone(), num_levels=1, codebook_size=4, decoder_options=sizes
        )
        history = pretraining.fit(
            data, rounds=0, cold_start_epochs=2, steps_per_epoch=3, verbose=0
        )
        return history["0_cold_start"]["loss"]

    np.testing.assert_allclose(
        losses(UNKNOWN["IterDataset"]()), losses(BATCHES), rtol=1e-4
    )


@pytest.mark.parametrize("make", (ITERABLE | ENDLESS).values(), ids=ITERABLE | ENDLESS)
def test_steps_are_asked_for(make):
    pretraining = InterleavedPretraining(backbone(), num_levels=1, codebook_size=4)
    with pytest.raises(ArgumentError):
        pretraining.fit(make(), rounds=0, cold_start_epochs=1, verbose=0)


@pytest.mark.parametrize(
    "make", [loader, *UNKNOWN.values(), Iterable, ENDLESS["endless MapDataset"]]
)
def test_evaluate_and_predict(make):
    model = Seen()
    model.compile("sgd", "mse")
    same = model.evaluate(IMAGES, LABELS, batch_size=2, verbose=0)
    options = {"steps": 3, "verbose": 0}
    np.testing.assert_allclose(model.evaluate(make(), **options), same, rtol=1e-4)
    scores = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(model.predict(make(), **options), scores, rtol=1e-4)


def test_validation_data():
    model = Seen()
    model.compile("sgd", "mse")
    data = {"validation_data": map_dataset(), "epochs": 2, "verbose": 0}
    found = model.fit(loader(), **data).history
    last = model.evaluate(tf_data(), verbose=0)
    assert found["val_loss"][0] != found["val_loss"][1] == pytest.approx(last, 1e-5)


def test_generators_are_read_once():
    found = seen_by_epoch((x for x in 2 * BATCHES), steps_per_epoch=2)
    np.testing.assert_allclose(found, expected((0, 1), (2, 0), (1, 2)), rtol=1e-4)
    found = seen_by_epoch(iter(BATCHES), epochs=1)
    np.testing.assert_allclose(found, expected((0, 1, 2)), rtol=1e-4)
    with pytest.raises(ArgumentError):
        seen_by_epoch(x for x in BATCHES)
    # TensorFlow makes errors of its own.
    with pytest.raises(Exception, match="6 batches"):
        seen_by_epoch((x for x in BATCHES), steps_per_epoch=2)


def test_no_batch_is_lost_that_keras_looks_at():
    model = Seen()
    model.compile("sgd", "mse")
    batches = LaterBatches(Opened(lambda: iter(2 * BATCHES)))
    fit_in_order(model, batches, [], steps_per_epoch=3)
    expected = sum(batch.sum() for batch, _ in BATCHES[:3])
    total = keras.ops.convert_to_numpy(model.total)[1]
    np.testing.assert_allclose(total, expected, rtol=1e-4)


class Slow(Indexed):
    """Is read for longer than a step takes, and counts how often at this moment."""

    readers = 0

    def __len__(self):
        return 12

    def __getitem__(self, index):
        self.readers += 1
        time.sleep(0.1)
        self.readers -= 1
        return BATCHES[index % 3]


@pytest.mark.every_backend
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", None])
def test_no_thread_reads_after_an_interrupt(method):
    """TensorFlow could not free it without a deadlock."""

    def interrupt(batch, logs=None):
        raise KeyboardInterrupt

    model, batches = Seen(), Slow()
    model.compile("sgd", "mse")
    callback = keras.callbacks.Callback()
    for name in ("train", "test", "predict"):
        setattr(callback, f"on_{name}_batch_end", interrupt)
    in_order = functools.partial(fit_in_order, model)
    with pytest.raises(KeyboardInterrupt):
        (getattr(model, method) if method else in_order)(batches, callbacks=[callback])
    for _ in range(5):
        assert batches.readers == 0
        time.sleep(0.03)


class Nothing(Iterable):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("data", "steps"),
    [
        (lambda: map_dataset().to_iter_dataset().filter(lambda x: False), 1),
        (Nothing, 1),
        (lambda: tf_data().take(0), None),
        (lambda: tf_data().take(0), 1),
    ],
)
def test_an_epoch_without_a_batch_is_an_error(data, steps):
    with pytest.raises(Exception, match="batch"):
        seen_by_epoch(data(), steps_per_epoch=steps)


@pytest.mark.parametrize("make", [tf_data, loader])
def test_labels_of_batches_are_checked(make):
    model = Seen(num_classes=2)
    model.compile("sgd", "mse")
    with pytest.raises(Exception, match="labels"):
        model.fit(make(), epochs=1, shuffle=False, verbose=0)
    assert model.fit(IMAGES, LABELS % 2, verbose=0).history["loss"][0] > 0


@pytest.mark.full_matrix
def test_a_classifier():
    model = BridleImageClassifier(backbone(), class_names=["cat", "dog", "owl"])
    names = np.array(model.class_names)[LABELS]
    data = import_tensorflow().data.Dataset.from_tensor_slices((IMAGES, names))
    model.fit(data.batch(2), steps_per_epoch=2, epochs=2, verbose=0)
    model.fit(map_dataset(), verbose=0)
    model.fit(list(IMAGES), names, verbose=0)
    assert len(model.predict_classes(loader())) == 6


def test_hugging_face(tmp_path):
    """Batches of arrays, and files that it does not decode."""
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": IMAGES.tolist(), "label": LABELS})
    batches = rows.with_format("numpy").batch(2)
    made = batches_by_epoch(batches, (8, 8, 1), 2, 2, seed=0)(1)
    np.testing.assert_allclose(made[0], BATCHES[2][0], rtol=1e-6)
    np.testing.assert_allclose(made[1], BATCHES[0][0], rtol=1e-6)
    for number, image in enumerate(IMAGES):
        pixels = (255 * image[..., 0]).astype("uint8")
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    rows = datasets.Dataset.from_dict({"image": paths, "label": LABELS})
    rows = rows.cast_column("image", datasets.Image(decode=False))
    paths = [image["path"] for image in rows["image"]]
    files = FileList("image", paths, list(rows["label"]), ["cat", "dog", "owl"])
    batches = file_dataset(files, ImageReader((8, 8), channels=1), batch_size=2)
    found = seen_by_epoch(batches, epochs=2, shuffle=False)
    np.testing.assert_array_equal(found[:, 0], 6)


def epoch_of(batches):
    return [batches[index] for index in range(len(batches))]


def test_what_is_left_out_changes():
    """10 examples in batches of 4: 2 sit out, other ones each time."""
    batches = ArrayBatches(np.arange(10), batch_size=4)
    served = []
    for epoch in range(8):
        batches.start_epoch(epoch)
        served.append(np.concatenate(epoch_of(batches)))
        assert len(set(served[-1])) == 8
    assert set(np.concatenate(served)) == set(range(10))
    assert len({tuple(sorted(one)) for one in served}) > 4


def test_processes_share_each_batch_without_overlap_or_loss():
    whole = ArrayBatches(np.arange(20), batch_size=6, seed=2, initial_epoch=1)
    parts = [
        ArrayBatches(np.arange(20), 6, seed=2, initial_epoch=1, shard=(part, 3))
        for part in range(3)
    ]
    assert {len(part) for part in parts} == {len(whole)} == {3}
    for index in range(len(whole)):
        pieces = [part[index] for part in parts]
        assert {len(piece) for piece in pieces} == {2}
        np.testing.assert_array_equal(np.concatenate(pieces), whole[index])


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return np.concatenate(epoch_of(ArrayBatches(np.arange(40), 4, seed, epoch)))

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for i, one in enumerate(orders):
        for other in orders[i + 1 :]:
            assert (one != other).any()
    batches = ArrayBatches(np.arange(40), 4, 1)
    batches.on_epoch_end()
    np.testing.assert_array_equal(np.concatenate(epoch_of(batches)), orders[3])
    # Not sorted through and through, only inside of a batch.
    assert (np.diff(orders[0]) < 0).any()


def test_few_examples_and_dtypes():
    batches = ArrayBatches(np.arange(3.0), batch_size=8)
    assert len(batches) == 1
    assert batches[0].dtype == np.float32
    assert ArrayBatches(np.arange(3, dtype="int16"), 2)[0].dtype == np.int16


def test_arrays():
    inputs = np.arange(13)
    batches = batches_by_epoch(inputs, (), 3, None, seed=5)
    whole, rest = batches(2), batches(2, first_batch=3)
    assert isinstance(rest, ArrayBatches)
    assert (len(whole), len(rest)) == (4, 1)
    np.testing.assert_array_equal(rest[0], whole[3])
    codes = np.arange(13, dtype="uint8")
    pairs = batches(2, codes=codes)
    for index in range(4):
        np.testing.assert_array_equal(pairs[index]["inputs"], whole[index])
        np.testing.assert_array_equal(pairs[index]["codes"], whole[index])
    assert pairs[0]["codes"].dtype == "int32"


def test_functions():
    asked = []

    def first(batches, count):
        return [int(batch[0, 0]) for batch in first_batches(batches, count)]

    def by_epoch(epoch):
        return [np.array([[10.0 * epoch + index]]) for index in range(4)]

    def by_batch(epoch, first_batch=0):
        asked.append((epoch, first_batch))
        return by_epoch(epoch)[first_batch:]

    for function in (by_epoch, by_batch):
        batches = batches_by_epoch(function, (1,), 1, 4, 0)
        assert first(batches(3), 2) == [30, 31]
        assert first(batches(3, first_batch=2), 9) == [32, 33]
    assert asked == [(3, 0), (3, 2)]
