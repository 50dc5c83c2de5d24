import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
from keras_bridle.quantizer.usage import CodeUsage, usage_of_counts
from keras_bridle.training.progress import CodeUsageLogger


def reference(codes, size):
    """Usage, perplexity and dead codes of codes (n, levels), by float64 NumPy."""
    results = {}
    for level, column in enumerate(np.asarray(codes).T, start=1):
        counts = np.bincount(column[column >= 0], minlength=size)
        share = counts[counts > 0] / counts.sum()
        results[f"usage_{level}"] = np.mean(counts > 0)
        results[f"perplexity_{level}"] = np.exp(-np.sum(share * np.log(share)))
        results[f"dead_codes_{level}"] = np.sum(counts == 0)
    return results


def assert_close(ours, expected):
    assert set(ours) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(float(ours[name]), value, rtol=1e-5, err_msg=name)


def random_codes(*shape, size=16, seed=0):
    # Uneven: small codes are frequent, the last ones never occur.
    codes = np.random.default_rng(seed).exponential(2.0, size=shape)
    return np.minimum(codes, size - 4).astype("int32")


def test_usage_of_counts():
    usage = usage_of_counts(np.array([[5, 5, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]))
    np.testing.assert_allclose(ops.convert_to_numpy(usage.usage), [0.5, 1.0, 0.0])
    np.testing.assert_allclose(
        ops.convert_to_numpy(usage.perplexity), [2.0, 4.0, 0.0], rtol=1e-6
    )
    np.testing.assert_allclose(ops.convert_to_numpy(usage.dead_codes), [2, 0, 4])


def test_metric_matches_numpy_and_resets():
    metric = CodeUsage(num_levels=3, codebook_size=16)
    batches = [random_codes(4, 50, 3), random_codes(2, 7, 3, seed=1)]
    for codes in batches:
        metric.update_state(codes)
    everything = np.concatenate([codes.reshape(-1, 3) for codes in batches])
    assert_close(metric.result(), reference(everything, 16))
    metric.reset_state()
    metric.update_state(batches[1])
    assert_close(metric.result(), reference(batches[1].reshape(-1, 3), 16))


def test_metric_leaves_out_masked_and_negative_codes():
    metric = CodeUsage(num_levels=3, codebook_size=16)
    codes = random_codes(40, 3)
    mask = np.arange(40) % 3 > 0
    codes[4, 2] = -1
    metric.update_state(codes, mask)
    assert_close(metric.result(), reference(codes[mask], 16))


def test_metric_config_and_errors():
    metric = CodeUsage(num_levels=3, codebook_size=16, name="codes")
    assert (
        CodeUsage.from_config(metric.get_config()).get_config() == metric.get_config()
    )
    with pytest.raises(ValueError, match="num_levels=3"):
        metric.update_state(np.zeros((5, 2), "int32"))
    with pytest.raises(ValueError, match="at least 1"):
        CodeUsage(0, 16)


@pytest.mark.parametrize("jit_compile", [False, "auto"])
def test_metric_in_a_model(jit_compile):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)
            self.code_usage = CodeUsage(num_levels=2, codebook_size=16)

        def call(self, codes):
            return self.dense(ops.cast(codes, "float32"))

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            self.code_usage.update_state(x)
            return self.get_metrics_result()

    model = Model()
    model.compile("sgd", "mse", jit_compile=jit_compile)
    codes = random_codes(40, 2)
    history = model.fit(codes, np.zeros((40, 1)), batch_size=16, epochs=2, verbose=0)
    expected = reference(codes, 16)
    for epoch in range(2):
        logs = {name: history.history[name][epoch] for name in expected}
        assert_close(logs, expected)


def quantizer_model(num_quantizers=1):
    """Returns a model whose quantizers see its inputs unchanged."""
    inputs = keras.Input((8,))
    vectors = keras.layers.Dense(8, "linear", False, kernel_initializer="identity")(
        inputs
    )
    total = 0.0
    for index in range(num_quantizers):
        quantizer = ResidualQuantizer(
            num_levels=2, codebook_size=16, seed=index, name=f"rq{index}"
        )
        total = total + quantizer(vectors).quantized
    model = keras.Model(inputs, total)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def expected_usage(seed, batches, epochs):
    """Usage by epoch of a quantizer that is trained by hand."""
    quantizer = ResidualQuantizer(num_levels=2, codebook_size=16, seed=seed)
    usages = []
    for _ in range(epochs):
        codes = [
            ops.convert_to_numpy(quantizer(batch, training=True).codes)
            for batch in batches
        ]
        usages.append(reference(np.concatenate(codes), 16))
    return usages


@pytest.mark.parametrize("num_quantizers", [1, 2])
def test_logger_in_fit(num_quantizers, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")
    model = quantizer_model(num_quantizers)
    file = tmp_path / "log.csv"
    history = model.fit(
        vectors,
        vectors,
        batch_size=16,
        epochs=3,
        shuffle=False,
        verbose=0,
        validation_data=(vectors, vectors),
        callbacks=[CodeUsageLogger(), keras.callbacks.CSVLogger(str(file))],
    )
    batches = [vectors[:16], vectors[16:32], vectors[32:]]
    for index in range(num_quantizers):
        prefix = f"rq{index}_" if num_quantizers > 1 else ""
        for epoch, expected in enumerate(expected_usage(index, batches, 3)):
            logs = {name: history.history[prefix + name][epoch] for name in expected}
            assert_close(logs, expected)
    table = np.genfromtxt(file, delimiter=",", names=True)
    np.testing.assert_allclose(table["epoch"], [0, 1, 2])
    name = f"{prefix}perplexity_2"
    np.testing.assert_allclose(table[name], history.history[name], rtol=1e-6)


def test_logger_leaves_out_frozen_quantizers_and_needs_one():
    vectors = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    model = quantizer_model()
    model.get_layer("rq0").trainable = False
    model.compile(keras.optimizers.SGD(0.0), "mse")
    history = model.fit(vectors, vectors, verbose=0, callbacks=[CodeUsageLogger()])
    assert set(history.history) == {"loss"}
    plain = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    plain.compile("sgd", "mse")
    with pytest.raises(ValueError, match="CodeUsageLogger needs"):
        plain.fit(vectors, vectors, verbose=0, callbacks=[CodeUsageLogger()])
