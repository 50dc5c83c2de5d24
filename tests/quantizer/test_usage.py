import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
from keras_bridle.quantizer.usage import CodeUsage, CodeUsageLogger


def reference(codes, size=16):
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
    ours = {name: float(ours[name]) for name in expected}
    assert ours == pytest.approx(expected, rel=1e-5)


def test_metric_counts_until_it_is_reset():
    metric = CodeUsage(num_levels=3, codebook_size=16)
    assert CodeUsage.from_config(metric.get_config()).codebook_size == 16
    # Uneven: small codes are frequent, the last ones never occur.
    codes = np.random.default_rng(0).exponential(2.0, size=(4, 50, 3))
    codes = np.minimum(codes, 12).astype("int32")
    for batch in (codes[:3], codes[3:]):
        metric.update_state(batch)
    codes = codes.reshape(-1, 3)
    assert_close(metric.result(), reference(codes))
    metric.reset_state()
    # Masked and negative codes do not count.
    codes[4, 2], mask = -1, np.arange(200) % 3 > 0
    metric.update_state(codes, mask)
    assert_close(metric.result(), reference(codes[mask]))


VECTORS = np.random.default_rng(0).normal(size=(40, 8)).astype("float32")


def fit(num_quantizers, **kwargs):
    """Trains a model whose quantizers see its inputs unchanged."""
    inputs = keras.Input((8,))
    vectors = keras.layers.Dense(8, use_bias=False, kernel_initializer="identity")
    total = vectors(inputs)
    for index in range(num_quantizers):
        quantizer = ResidualQuantizer(2, 16, seed=index, name=f"rq{index}")
        quantizer.trainable = kwargs.pop("trainable", True)
        total = total + quantizer(vectors(inputs)).quantized
    model = keras.Model(inputs, total)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    callbacks = [CodeUsageLogger(), *kwargs.pop("callbacks", [])]
    kwargs = {"batch_size": 16, "shuffle": False, "verbose": 0} | kwargs
    return model.fit(VECTORS, VECTORS, callbacks=callbacks, **kwargs).history


@pytest.mark.parametrize("num_quantizers", [1, 2])
def test_logger_in_fit(num_quantizers, tmp_path):
    file = tmp_path / "log.csv"
    history = fit(
        num_quantizers,
        epochs=2,
        validation_data=(VECTORS, VECTORS),
        callbacks=[keras.callbacks.CSVLogger(str(file))],
    )
    for index in range(num_quantizers):
        prefix = f"rq{index}_" if num_quantizers > 1 else ""
        by_hand = ResidualQuantizer(num_levels=2, codebook_size=16, seed=index)
        for epoch in range(2):
            batches = np.split(VECTORS, [16, 32])
            codes = [by_hand(batch, training=True).codes for batch in batches]
            codes = np.concatenate([ops.convert_to_numpy(x) for x in codes])
            expected = reference(codes)
            logs = {name: history[prefix + name][epoch] for name in expected}
            assert_close(logs, expected)
    table = np.genfromtxt(file, delimiter=",", names=True)
    name = f"{prefix}perplexity_2"
    np.testing.assert_allclose(table[name], history[name], rtol=1e-6)


def test_logger_leaves_out_frozen_quantizers_and_needs_one():
    assert set(fit(1, trainable=False)) == {"loss"}
    with pytest.raises(ValueError):
        fit(0)
