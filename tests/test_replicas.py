"""What replicas tell each other, with replicas that are threads of a test.

`tests/distribution` trains on real ones.
"""

import threading

import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle import replicas as module
from keras_bridle.quantizer import residual_quantizer
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer

torch_only = pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="the other backends do not run in threads of a test",
)


class Replicas:
    """Runs a function in threads that take each other for replicas."""

    def __init__(self, count, monkeypatch):
        self.count = count
        self.local = threading.local()
        self.barrier = threading.Barrier(count, timeout=60)
        self.vectors = [None] * count
        for place in (module, residual_quantizer):
            monkeypatch.setattr(place, "num_replicas", lambda: self.count)
        monkeypatch.setattr(module, "_replica_id", lambda: self.local.index)
        monkeypatch.setattr(module, "_sum_vector", self.sum)

    def sum(self, vector):
        self.vectors[self.local.index] = vector
        self.barrier.wait()
        total = sum(self.vectors[1:], self.vectors[0])
        self.barrier.wait()
        return total

    def run(self, function):
        results = [None] * self.count

        def work(index):
            self.local.index = index
            try:
                results[index] = function(index)
            except BaseException:
                self.barrier.abort()
                raise

        threads = [threading.Thread(target=work, args=(i,)) for i in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def numpy(tree):
    return keras.tree.map_structure(ops.convert_to_numpy, tree)


@torch_only
@pytest.mark.parametrize(
    "options",
    [
        {"restart_threshold": 0.6},
        {"restart_threshold": 0.6, "shared_codebooks": True},
        {"sampling_temperature": 0.3, "quantizer_dropout": True},
        {"codebook_update": "mean", "normalize": "level", "top_k": 2},
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_quantizers_of_replicas_move_like_one(options, padded, monkeypatch):
    vectors = np.random.default_rng(1).normal(size=(6, 8, 4)).astype("float32")
    mask = None
    if padded:
        # Some replicas have little, one has nothing but padding.
        mask = np.random.default_rng(2).random((6, 8)) < 0.6
        mask[2:4] = False

    def made():
        quantizer = ResidualQuantizer(3, 8, dim=4, decay=0.5, seed=5, **options)
        quantizer.build((None, None, 4))
        return quantizer

    whole = made()
    expected = [whole(vectors, mask, training=True) for _ in range(3)]
    quantizers = [made() for _ in range(3)]
    replicas = Replicas(3, monkeypatch)

    def of(index):
        rows = slice(2 * index, 2 * index + 2)
        own = None if mask is None else mask[rows]
        return [quantizers[index](vectors[rows], own, training=True) for _ in range(3)]

    outputs = replicas.run(of)
    for step in range(3):
        codes = np.concatenate([numpy(steps[step].codes) for steps in outputs])
        np.testing.assert_array_equal(codes, numpy(expected[step].codes))
        losses = sum(numpy(steps[step].level_losses) for steps in outputs)
        np.testing.assert_allclose(losses, numpy(expected[step].level_losses), 1e-5)
    for quantizer in quantizers:
        for weight, other in zip(quantizer.weights, whole.weights, strict=True):
            np.testing.assert_allclose(
                numpy(weight), numpy(other), 1e-5, 1e-5, err_msg=weight.name
            )


@torch_only
def test_one_bad_replica_keeps_all_codebooks_as_they_are(monkeypatch):
    quantizers = [ResidualQuantizer(2, 8, dim=4, seed=5) for _ in range(3)]
    for quantizer in quantizers:
        quantizer.build((None, 4))
    before = [numpy(weight) for weight in quantizers[0].weights]
    vectors = np.random.default_rng(1).normal(size=(3, 6, 4)).astype("float32")
    vectors[1, 2, 3] = np.inf
    replicas = Replicas(3, monkeypatch)
    replicas.run(lambda index: quantizers[index](vectors[index], training=True) and 0)
    for quantizer in quantizers:
        for weight, other in zip(quantizer.weights, before, strict=True):
            np.testing.assert_array_equal(numpy(weight), other)


def test_one_device_has_nothing_to_sum():
    tree = {"a": ops.ones((2,))}
    assert module.num_replicas() == 1
    assert module.sum_over_replicas(tree) is tree
    values = ops.reshape(ops.arange(6), (3, 2))
    assert module.all_rows(values) is values
    assert module.metric_increment(tree) is tree
    taken = ops.convert_to_numpy(module.take_rows(values, np.int32([2, 0])))
    np.testing.assert_array_equal(taken, [[4, 5], [0, 1]])
