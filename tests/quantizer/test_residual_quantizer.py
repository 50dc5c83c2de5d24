import keras
import numpy as np
import pytest
from harness import gradients
from keras import ops

from keras_bridle.quantizer.residual_quantizer import (
    ResidualQuantizer,
    ResidualQuantizerOutput,
)

to_numpy = ops.convert_to_numpy
RANDOM = {
    "restart_threshold": 0.5,
    "sampling_temperature": 0.1,
    "quantizer_dropout": True,
}


def random_vectors(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(dim=8, **kwargs):
    quantizer = ResidualQuantizer(**{"seed": 1, **kwargs})
    quantizer.build((None, dim))
    return quantizer


def small(**kwargs):
    return built(**{"num_levels": 2, "codebook_size": 16} | kwargs)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def squared_distances(vectors, table):
    return np.square(vectors[:, None] - table[None]).sum(axis=-1)


def state_of(quantizer):
    return {
        name: to_numpy(weight).copy()
        for name, weight in quantizer._state_weights().items()
    }


def assert_same_state(quantizer, expected, but=()):
    for name, value in state_of(quantizer).items():
        if name not in but:
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


def gradient(function, vectors):
    """Returns the gradient of a scalar function of one tensor."""
    variable = keras.Variable(vectors, dtype="float32")
    def value():
        return function(ops.convert_to_tensor(variable))
    return gradients(value, [variable])[1][0]


class Reference:
    """The layer's defaults in float64 NumPy: input normalization, sums rule."""

    def __init__(self, tables, counts, sums, decay, commitment_weight):
        self.tables = tables.astype("float64")
        self.counts = counts.astype("float64")
        self.sums = sums.astype("float64")
        self.decay = decay
        self.commitment_weight = commitment_weight

    def step(self, vectors):
        residual = unit(vectors.astype("float64"))
        start = residual
        codes, losses = [], []
        for level, table in enumerate(self.tables.copy()):
            chosen = squared_distances(residual, table).argmin(axis=1)
            one_hot = np.eye(len(table))[chosen]
            self.move(level, one_hot.sum(axis=0), one_hot.T @ residual)
            residual = residual - table[chosen]
            codes.append(chosen)
            losses.append((1 + self.commitment_weight) * np.square(residual).mean())
        return start - residual, np.stack(codes, axis=1), np.array(losses)

    def move(self, level, counts, sums):
        decay = self.decay
        self.counts[level] = decay * self.counts[level] + (1 - decay) * counts
        self.sums[level] = decay * self.sums[level] + (1 - decay) * sums
        total = self.counts[level].sum()
        size = len(self.counts[level])
        smoothed = (self.counts[level] + 1e-5) / (total + size * 1e-5) * total
        self.tables[level] = self.sums[level] / smoothed[:, None]


@pytest.mark.parametrize("num_vectors", [64, 2500])
def test_default_steps_match_float64_reference(num_vectors):
    quantizer = built(num_levels=3, codebook_size=16, decay=0.9)
    tables = to_numpy(quantizer.code_vectors)
    reference = Reference(
        tables, np.ones(tables.shape[:2]), tables, decay=0.9, commitment_weight=0.25
    )
    for step in range(3):
        vectors = random_vectors(num_vectors, 8, seed=step)
        out = quantizer(vectors, training=True)
        quantized, codes, losses = reference.step(vectors)
        np.testing.assert_array_equal(to_numpy(out.codes), codes)
        np.testing.assert_allclose(to_numpy(out.quantized), quantized, atol=2e-6)
        np.testing.assert_allclose(to_numpy(out.level_losses), losses, rtol=2e-6)
        np.testing.assert_allclose(to_numpy(out.loss), losses.mean(), rtol=2e-6)
        for ours, expected in (
            (quantizer.code_vectors, reference.tables),
            (quantizer.counts, reference.counts),
            (quantizer.sums, reference.sums),
        ):
            np.testing.assert_allclose(to_numpy(ours), expected, rtol=1e-5, atol=2e-6)


def test_output_shapes_types_and_inference_leaves_the_state():
    quantizer = built(num_levels=3, codebook_size=16)
    before = state_of(quantizer)
    vectors = random_vectors(2, 5, 8)
    out = quantizer(vectors)
    assert isinstance(out, ResidualQuantizerOutput)
    assert tuple(out.quantized.shape) == (2, 5, 8)
    assert tuple(out.codes.shape) == (2, 5, 3)
    assert keras.backend.standardize_dtype(out.codes.dtype) == "int32"
    assert_same_state(quantizer, before)
    np.testing.assert_array_equal(
        to_numpy(quantizer.encode(vectors)), to_numpy(out.codes)
    )
    np.testing.assert_allclose(
        to_numpy(quantizer.decode(out.codes)), to_numpy(out.quantized), atol=1e-6
    )


def test_nearest_codes_of_plain_and_level_normalization():
    vectors = 3.0 * random_vectors(64, 8)
    for normalize in (None, "level"):
        quantizer = small(normalize=normalize)
        tables = to_numpy(quantizer.code_vectors)
        residual, expected = vectors, []
        for table in tables:
            looked_up = unit(residual) if normalize == "level" else residual
            expected.append(squared_distances(looked_up, table).argmin(axis=1))
            residual = residual - table[expected[-1]]
        out = quantizer(vectors)
        np.testing.assert_array_equal(to_numpy(out.codes), np.stack(expected, axis=1))
        np.testing.assert_allclose(
            to_numpy(out.quantized), vectors - residual, atol=1e-5
        )


def test_mean_rule_moves_codes_towards_the_means_of_their_vectors():
    quantizer = small(
        num_levels=1,
        normalize=None,
        codebook_update="mean",
        decay=0.75,
    )
    vectors = random_vectors(64, 8)
    table = to_numpy(quantizer.code_vectors)[0].copy()
    table[3] = 100.0
    quantizer.code_vectors.assign(table[None])
    codes = to_numpy(quantizer(vectors, training=True).codes)[:, 0]
    expected = table.copy()
    for code in np.unique(codes):
        mean = vectors[codes == code].mean(axis=0)
        expected[code] = 0.75 * table[code] + 0.25 * mean
    assert 3 not in codes
    np.testing.assert_allclose(to_numpy(quantizer.code_vectors)[0], expected, atol=1e-6)


@pytest.mark.parametrize("rule", ["sums", "mean", "gradient"])
def test_normalized_codes_stay_on_the_sphere(rule):
    quantizer = small(num_levels=1, normalize_codes=True, codebook_update=rule)
    if rule == "gradient":
        fit(quantizer, random_vectors(64, 8), epochs=2, learning_rate=0.1)
    else:
        quantizer(random_vectors(64, 8), training=True)
    moved = np.abs(
        to_numpy(quantizer.code_vectors)
        - to_numpy(small(num_levels=1, normalize_codes=True).code_vectors)
    ).max()
    assert moved > 1e-3
    lengths = np.linalg.norm(to_numpy(quantizer.code_vectors), axis=-1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-5)


# Gradients.


def test_straight_through_gradient_passes_the_normalization():
    quantizer = small()
    vectors, cotangent = random_vectors(64, 8), random_vectors(64, 8, seed=1)
    tensor = ops.convert_to_tensor(cotangent)
    ours = gradient(lambda v: ops.sum(quantizer(v).quantized * tensor), vectors)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    n = vectors / lengths
    along = (cotangent * n).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours, (cotangent - n * along) / lengths, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_commitment_gradient_comes_from_every_level(training):
    quantizer = built(
        num_levels=3, codebook_size=16, normalize=None, commitment_weight=0.5
    )
    vectors = random_vectors(64, 8)
    tables = to_numpy(quantizer.code_vectors)
    codes = to_numpy(quantizer.encode(vectors))

    def loss(vectors):
        return quantizer.stateless_step(vectors, training=training)[0].loss

    residual, expected = vectors, 0.0
    for level in range(3):
        residual = residual - tables[level][codes[:, level]]
        expected = expected + 0.5 * 2 * residual / vectors.size / 3
    np.testing.assert_allclose(gradient(loss, vectors), expected, atol=1e-7)


def test_gradient_rule_trains_each_codebook_on_its_own_level():
    quantizer = built(
        num_levels=2, codebook_size=4, normalize=None, codebook_update="gradient"
    )
    assert len(quantizer.trainable_variables) == 1
    vectors = random_vectors(32, 8)
    tables = to_numpy(quantizer.code_vectors).copy()
    codes = to_numpy(quantizer.encode(vectors))
    fit(quantizer, vectors, epochs=1, batch_size=32, learning_rate=10.0)
    residual, expected = vectors.astype("float64"), tables.copy()
    for level in range(2):
        error = tables[level][codes[:, level]] - residual
        for code in range(4):
            chosen = error[codes[:, level] == code]
            slope = 2 * chosen.sum(axis=0) / vectors.size / 2
            expected[level, code] -= 10.0 * slope
        residual = -error
    np.testing.assert_allclose(to_numpy(quantizer.code_vectors), expected, atol=1e-5)


def test_zero_vector_has_finite_gradient():
    quantizer = small()
    ours = gradient(lambda v: ops.sum(quantizer(v).quantized), np.zeros((64, 8), "f"))
    np.testing.assert_array_equal(ours, 0.0)


# Under fit().


def fit(quantizer, vectors, epochs=1, batch_size=16, learning_rate=0.0, **kwargs):
    """Runs fit() on the quantizer alone, behind an identity that is not trained."""

    class Trainer(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
            self.quantizer = quantizer

        def call(self, vectors, training=False):
            scale = ops.convert_to_tensor(self.scale)
            return self.quantizer(vectors * scale, training=training).loss

        def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
            return y_pred

    model = Trainer()
    model.compile(optimizer=keras.optimizers.SGD(learning_rate), **kwargs)
    history = model.fit(
        vectors,
        np.zeros(len(vectors)),
        epochs=epochs,
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
    )
    return model, history


def fit_choices():
    """Batches searched at once and in slices, compiled by XLA and not."""
    if keras.backend.backend() == "torch":
        return [(False, 16), (False, 1200)]
    if keras.backend.backend() == "jax":
        return [(True, 1200), (False, 16)]
    return [(True, 16), (True, 1200), (False, 1200)]


@pytest.mark.parametrize(("jit_compile", "rows"), fit_choices())
def test_fit_moves_the_codebooks_as_calls_do(jit_compile, rows):
    options = {}
    if not (jit_compile and keras.backend.backend() == "tensorflow"):
        # TensorFlow draws other random numbers with XLA than without.
        options = RANDOM
    vectors = random_vectors(2 * rows + rows // 2, 8)
    by_hand, fitted = small(**options), small(**options)
    for start in range(0, len(vectors), rows):
        by_hand(vectors[start : start + rows], training=True)
    fit(fitted, vectors, batch_size=rows, jit_compile=jit_compile)
    for name, expected in state_of(by_hand).items():
        np.testing.assert_allclose(
            state_of(fitted)[name], expected, rtol=1e-4, atol=1e-5, err_msg=name
        )


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="for XLA alone")
def test_random_options_compile_with_xla():
    quantizer = small(**RANDOM)
    vectors = random_vectors(4000, 8)
    fit(quantizer, vectors, batch_size=1500, jit_compile=True)
    totals = to_numpy(quantizer.code_histogram).sum(axis=1)
    assert totals[0] == 4000 and totals[1] in (0, 1000, 1500, 2500, 3000, 4000)
    assert np.isfinite(to_numpy(quantizer.code_vectors)).all()


def test_functional_model_and_saving(tmp_path):
    inputs = keras.Input((5, 8))
    mask = keras.Input((5,), dtype="bool")
    quantizer = ResidualQuantizer(
        num_levels=2, codebook_size=16, restart_threshold=0.1, seed=3, name="rq"
    )
    out = quantizer(inputs, padding_mask=mask)
    model = keras.Model([inputs, mask], [out.quantized, out.codes])
    vectors, real = random_vectors(4, 5, 8), np.ones((4, 5), bool)
    quantizer(vectors, training=True)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert loaded.get_layer("rq").get_config() == quantizer.get_config()
    assert_same_state(loaded.get_layer("rq"), state_of(quantizer))
    for ours, theirs in zip(
        model.predict([vectors, real], verbose=0),
        loaded.predict([vectors, real], verbose=0),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    weights = tmp_path / "model.weights.h5"
    model.save_weights(weights)
    quantizer(vectors, training=True)
    model.load_weights(weights)
    assert_same_state(quantizer, state_of(loaded.get_layer("rq")))


# Precision, freezing, bad batches.


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_policy_computes_in_float32(policy):
    vectors = random_vectors(64, 8)
    full = small()
    half = small(dtype=policy)
    for _ in range(2):
        expected = full(vectors, training=True)
        out = half(vectors, training=True)
        np.testing.assert_array_equal(to_numpy(out.codes), to_numpy(expected.codes))
    assert keras.backend.standardize_dtype(out.quantized.dtype) == policy[6:]
    assert keras.backend.standardize_dtype(out.loss.dtype) == "float32"
    assert_same_state(half, state_of(full))
    rounded = ops.cast(vectors, policy[6:])
    np.testing.assert_array_equal(
        to_numpy(half(rounded).codes),
        to_numpy(full(ops.cast(rounded, "float32")).codes),
    )


def test_frozen_layer_stays_as_it_is():
    quantizer = small(**RANDOM)
    quantizer.trainable = False
    before = state_of(quantizer)
    vectors = random_vectors(64, 8)
    out = quantizer(vectors, training=True)
    assert_same_state(quantizer, before)
    np.testing.assert_array_equal(
        to_numpy(out.codes), to_numpy(quantizer.encode(vectors))
    )


@pytest.mark.parametrize(
    ("rule", "bad", "normalize"),
    [("sums", np.nan, "input"), ("mean", np.inf, "level"), ("sums", np.inf, None)],
)
def test_batch_that_is_not_finite_leaves_the_state(rule, bad, normalize):
    quantizer = small(
        codebook_update=rule,
        normalize=normalize,
        restart_threshold=0.5,
    )
    quantizer(random_vectors(64, 8), training=True)
    before = state_of(quantizer)
    vectors = random_vectors(64, 8, seed=1)
    vectors[3, 2] = bad
    quantizer(vectors, training=True)
    assert_same_state(quantizer, before)


# Padding.


@pytest.mark.parametrize(("rule", "garbage"), [("sums", np.nan), ("mean", 1e6)])
def test_padding_changes_nothing(rule, garbage):
    vectors = random_vectors(64, 8)
    padded = np.concatenate([vectors, np.full((64, 8), garbage, "float32")])
    mask = np.arange(128) < 64
    plain, masked = small(codebook_update=rule), small(codebook_update=rule)
    for _ in range(2):
        expected = plain(vectors, training=True)
        out = masked(padded, padding_mask=mask, training=True)
    np.testing.assert_array_equal(to_numpy(out.codes)[:64], to_numpy(expected.codes))
    np.testing.assert_array_equal(to_numpy(out.codes)[64:], -1)
    np.testing.assert_array_equal(to_numpy(out.quantized)[64:], 0.0)
    np.testing.assert_allclose(
        to_numpy(out.level_losses), to_numpy(expected.level_losses), rtol=1e-5
    )
    for name, value in state_of(plain).items():
        np.testing.assert_allclose(
            state_of(masked)[name], value, rtol=1e-5, atol=1e-6, err_msg=name
        )

    def loss(vectors):
        output = masked.stateless_step(vectors, mask, training=False)[0]
        return output.loss + ops.sum(output.quantized)

    def plain_loss(vectors):
        output = masked.stateless_step(vectors, training=False)[0]
        return output.loss + ops.sum(output.quantized)

    slopes = gradient(loss, padded)
    np.testing.assert_array_equal(slopes[64:], 0.0)
    np.testing.assert_allclose(slopes[:64], gradient(plain_loss, vectors), atol=1e-5)


def test_restarts_take_no_padding():
    quantizer = small(normalize=None, restart_threshold=0.9, decay=0.0)
    vectors = random_vectors(64, 8)
    padded = np.concatenate([vectors, np.full((64, 8), 50.0, "float32")])
    quantizer(padded, padding_mask=np.arange(128) < 64, training=True)
    assert np.abs(to_numpy(quantizer.code_vectors)).max() < 10


def test_batch_of_padding_leaves_the_state():
    quantizer = small(restart_threshold=0.5)
    quantizer(random_vectors(64, 8), training=True)
    before = state_of(quantizer)
    out = quantizer(
        random_vectors(64, 8), padding_mask=np.zeros(64, bool), training=True
    )
    assert_same_state(quantizer, before)
    assert float(out.loss) == 0.0


# Restarts.


def test_restarts_revive_a_collapsed_codebook():
    vectors = random_vectors(64, 8)
    far = np.full((2, 16, 8), 100.0, "float32")
    far[:, 0] = 0.0
    perplexities = {}
    for threshold in (None, 0.1):
        quantizer = small(decay=0.9, restart_threshold=threshold)
        quantizer.code_vectors.assign(far)
        quantizer.sums.assign(far)
        for _ in range(40):
            quantizer(vectors, training=True)
        quantizer.reset_usage()
        quantizer(vectors, training=True)
        perplexities[threshold] = quantizer.usage().perplexity
    assert perplexities[None].max() < 1.5
    assert perplexities[0.1].min() > 8


@pytest.mark.parametrize("rule", ["sums", "mean"])
@pytest.mark.parametrize("shared", [False, True])
def test_restarted_codes_are_vectors_of_the_batch(rule, shared):
    quantizer = built(
        num_levels=2,
        codebook_size=32,
        normalize=None,
        codebook_update=rule,
        decay=0.5,
        restart_threshold=0.4,
        shared_codebooks=shared,
    )
    tables = to_numpy(quantizer.codebooks).copy()
    vectors = random_vectors(64, 8)
    codes = to_numpy(quantizer(vectors, training=True).codes)
    residual = vectors - tables[0][codes[:, 0]]
    counts = np.stack([np.bincount(level, minlength=32) for level in codes.T])
    pools = [vectors, residual]
    if shared:
        counts = counts.sum(axis=0, keepdims=True)
        pools = [np.concatenate(pools)]
    taken = []
    for table, pool in enumerate(pools):
        averages = 0.5 + 0.5 * counts[table]
        dead = averages < 0.4 * averages.mean()
        assert dead.sum() > 3
        moved = to_numpy(quantizer.code_vectors)[table]
        distances = squared_distances(moved[dead], pool)
        np.testing.assert_allclose(distances.min(axis=1), 0.0, atol=1e-10)
        taken.extend(distances.argmin(axis=1) % 64)
        alive = squared_distances(moved[~dead], pool).min(axis=1)
        assert (alive > 1e-8).any()
        new_counts = to_numpy(quantizer.counts)[table]
        np.testing.assert_allclose(new_counts[dead], averages.mean(), rtol=1e-6)
        np.testing.assert_allclose(new_counts[~dead], averages[~dead], rtol=1e-6)
        if rule == "sums":
            np.testing.assert_allclose(
                to_numpy(quantizer.sums)[table][dead],
                moved[dead] * averages.mean(),
                rtol=1e-5,
            )
    # No row of the batch is drawn twice, not even for different levels.
    assert len(set(taken)) == len(taken)


def test_restarts_follow_the_seed():
    tables = []
    for seed in (1, 1, 2):
        quantizer = small(restart_threshold=0.9, seed=seed)
        quantizer.code_vectors.assign(random_vectors(2, 16, 8))
        quantizer(random_vectors(64, 8), training=True)
        tables.append(to_numpy(quantizer.code_vectors))
    np.testing.assert_array_equal(tables[0], tables[1])
    assert np.abs(tables[0] - tables[2]).max() > 0.1


# Options.


def test_shared_codebook_moves_once_by_all_levels():
    quantizer = small(normalize=None, shared_codebooks=True, decay=0.9)
    assert tuple(quantizer.code_vectors.shape) == (1, 16, 8)
    assert tuple(quantizer.codebooks.shape) == (2, 16, 8)
    table = to_numpy(quantizer.code_vectors)[0].astype("float64")
    vectors = random_vectors(64, 8)
    codes = to_numpy(quantizer(vectors, training=True).codes)
    residual = vectors - table[codes[:, 0]]
    one_hot = np.eye(16)[codes]
    counts = 0.9 + 0.1 * one_hot.sum(axis=(0, 1))
    sums = one_hot[:, 0].T @ vectors + one_hot[:, 1].T @ residual
    sums = 0.9 * table + 0.1 * sums
    np.testing.assert_allclose(to_numpy(quantizer.counts)[0], counts, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(quantizer.sums)[0], sums, atol=1e-5)


@pytest.mark.parametrize("normalize", ["input", None])
def test_top_k_takes_the_nearest_codes_and_sums_them(normalize):
    quantizer = small(top_k=3, normalize=normalize)
    vectors = random_vectors(2, 32, 8)
    out = quantizer(vectors, training=False)
    assert tuple(out.codes.shape) == (2, 32, 2, 3)
    residual = vectors.reshape(-1, 8)
    residual = unit(residual) if normalize else residual
    codes = to_numpy(out.codes).reshape(64, 2, 3)
    for level, table in enumerate(to_numpy(quantizer.code_vectors)):
        nearest = squared_distances(residual, table).argsort(axis=1)[:, :3]
        np.testing.assert_array_equal(codes[:, level], nearest)
        residual = residual - table[nearest].sum(axis=1)
    np.testing.assert_allclose(
        to_numpy(out.level_losses)[-1], 1.25 * np.square(residual).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        to_numpy(quantizer.decode(out.codes)), to_numpy(out.quantized), atol=1e-6
    )


def test_quantizer_dropout_leaves_out_the_last_levels():
    quantizer = built(num_levels=4, codebook_size=16, quantizer_dropout=True)
    vectors = random_vectors(64, 8)
    seen = []
    for _ in range(20):
        before = state_of(quantizer)
        out = quantizer(vectors, training=True)
        codes = to_numpy(out.codes)
        used = int((codes[0] >= 0).sum())
        seen.append(used)
        assert (codes[:, :used] >= 0).all() and (codes[:, used:] == -1).all()
        losses = to_numpy(out.level_losses)
        assert (losses[:used] > 0).all() and (losses[used:] == 0).all()
        np.testing.assert_allclose(float(out.loss), losses[:used].mean(), rtol=1e-5)
        chosen = sum(
            before["code_vectors"][level][codes[:, level]] for level in range(used)
        )
        np.testing.assert_allclose(to_numpy(out.quantized), chosen, atol=1e-6)
        after = state_of(quantizer)
        for name in before:
            np.testing.assert_array_equal(after[name][used:], before[name][used:])
            assert (after[name][:used] != before[name][:used]).any()
    assert set(seen) == {1, 2, 3, 4}
    assert (to_numpy(quantizer(vectors).codes) >= 0).all()


def test_sampling_follows_the_softmax_of_distances():
    temperature = 0.7
    quantizer = built(
        num_levels=1,
        codebook_size=5,
        dim=3,
        normalize=None,
        sampling_temperature=temperature,
        decay=0.999999,
    )
    vector = random_vectors(1, 3)
    distances = squared_distances(vector, to_numpy(quantizer.code_vectors)[0])[0]
    expected = np.exp(-distances / temperature)
    expected /= expected.sum()
    rows = np.repeat(vector, 20_000, axis=0)
    codes = to_numpy(quantizer(rows, training=True).codes)[:, 0]
    shares = np.bincount(codes, minlength=5) / 20_000
    np.testing.assert_allclose(shares, expected, atol=0.015)
    assert len(np.unique(to_numpy(quantizer(rows).codes))) == 1


# Stateless steps.


def test_stateless_step_assigns_nothing_and_runs_in_a_branch():
    quantizer, reference = small(**RANDOM), small(**RANDOM)
    vectors = random_vectors(64, 8)
    before = state_of(quantizer)

    def run(vectors, go, draws):
        def step():
            output, state = quantizer.stateless_step(vectors, draws=draws)
            return output.loss, state

        return ops.cond(go, step, lambda: (ops.zeros(()), quantizer.state()))

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        run = tf.function(run)
    elif keras.backend.backend() == "jax":
        import jax

        run = jax.jit(run)
    _, state = run(
        ops.convert_to_tensor(vectors), ops.convert_to_tensor(False), quantizer.draws()
    )
    quantizer.assign_state(state)
    assert_same_state(quantizer, before)
    reference.draws()
    draws = quantizer.draws()
    loss, state = run(
        ops.convert_to_tensor(vectors), ops.convert_to_tensor(True), draws
    )
    assert_same_state(quantizer, before)
    quantizer.assign_state(state)
    expected = reference(vectors, training=True)
    np.testing.assert_allclose(float(loss), float(expected.loss), rtol=1e-6)
    for name, value in state_of(reference).items():
        np.testing.assert_allclose(state_of(quantizer)[name], value, atol=1e-6)


# adapt().


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": None},
        {"normalize_codes": True, "num_levels": 1},
        {"shared_codebooks": True},
        {"top_k": 2},
        {"codebook_update": "mean"},
        {"codebook_update": "gradient"},
    ],
    ids=str,
)
def test_each_adapted_level_reduces_the_error(options):
    vectors = random_vectors(600, 8)
    quantizer = ResidualQuantizer(
        **{"num_levels": 3, "codebook_size": 32, "seed": 0} | options
    )
    quantizer.adapt(vectors)
    codes = quantizer.encode(vectors)
    target = vectors if quantizer.normalize is None else unit(vectors)
    errors = [np.square(target).mean()]
    for levels in range(1, quantizer.num_levels + 1):
        coarse = to_numpy(quantizer.decode(codes[:, :levels]))
        errors.append(np.square(target - coarse).mean())
    assert (np.diff(errors) < -0.15 * np.array(errors[:-1])).all(), errors
    if quantizer.codebook_update == "sums":
        np.testing.assert_allclose(
            to_numpy(quantizer.sums),
            to_numpy(quantizer.code_vectors) * to_numpy(quantizer.counts)[..., None],
            rtol=1e-5,
        )
    # Training goes on from there, without a jump.
    before = to_numpy(quantizer.code_vectors).copy()
    quantizer(vectors, training=True)
    assert np.abs(to_numpy(quantizer.code_vectors) - before).max() < 0.2


def test_adapt_gives_the_same_codebooks_on_every_backend():
    quantizer = ResidualQuantizer(num_levels=2, codebook_size=8, seed=5)
    quantizer.adapt(random_vectors(300, 4))
    tables = to_numpy(quantizer.code_vectors)
    expected = [
        [-0.700994, 0.147981, -0.240573, 0.20214],
        [-0.00906, 0.315242, -0.017987, 0.423451],
    ]
    np.testing.assert_allclose(tables[:, 0], expected, atol=1e-5)


def test_adapt_takes_any_data():
    import tensorflow as tf

    vectors = random_vectors(300, 8)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return vectors[index * 100 : (index + 1) * 100]

    tables = []
    for data in (
        vectors,
        vectors.reshape(10, 30, 8),
        ops.convert_to_tensor(vectors),
        np.split(vectors, 3),
        iter(np.split(vectors, 3)),
        tf.data.Dataset.from_tensor_slices(vectors).batch(100),
        Batches(),
    ):
        quantizer = ResidualQuantizer(num_levels=2, codebook_size=16, seed=0)
        quantizer.adapt(data)
        tables.append(to_numpy(quantizer.code_vectors))
    for table in tables:
        np.testing.assert_array_equal(table, tables[0])


def test_adapt_leaves_out_padding():
    vectors = random_vectors(300, 8)
    mask = np.arange(300) % 3 > 0
    padded = np.where(mask[:, None], vectors, np.nan).astype("float32")
    tables = []
    for data, kwargs in (
        (vectors[mask], {}),
        (padded, {"padding_mask": mask}),
        ([(padded[:90], mask[:90]), (padded[90:], mask[90:])], {}),
    ):
        quantizer = ResidualQuantizer(num_levels=2, codebook_size=16, seed=0)
        quantizer.adapt(data, **kwargs)
        tables.append(to_numpy(quantizer.code_vectors))
    np.testing.assert_array_equal(tables[1], tables[0])
    np.testing.assert_array_equal(tables[2], tables[0])


# Usage.


def test_usage_counts_the_training_codes():
    quantizer = small()
    codes = []
    for step in range(3):
        vectors = random_vectors(64, 8, seed=step)
        codes.append(to_numpy(quantizer(vectors, training=True).codes))
        quantizer(vectors)
    usage = quantizer.usage()
    for level in range(2):
        counts = np.bincount(np.concatenate(codes)[:, level], minlength=16)
        shares = counts[counts > 0] / counts.sum()
        np.testing.assert_array_equal(to_numpy(quantizer.code_histogram)[level], counts)
        np.testing.assert_allclose(usage.usage[level], (counts > 0).mean())
        np.testing.assert_allclose(
            usage.perplexity[level], np.exp(-(shares * np.log(shares)).sum()), rtol=1e-5
        )
        assert usage.dead_codes[level] == (counts == 0).sum()
    quantizer.reset_usage()
    np.testing.assert_array_equal(quantizer.usage().usage, 0.0)
    np.testing.assert_array_equal(quantizer.usage().perplexity, 0.0)


# Errors.


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_levels": 0},
        {"codebook_size": 0},
        {"normalize": "both"},
        {"codebook_update": "ema"},
        {"decay": 1.0},
        {"commitment_weight": -1.0},
        {"restart_threshold": -0.1},
        {"sampling_temperature": -1.0},
        {"top_k": 300},
        {"top_k": 2, "sampling_temperature": 1.0},
        {"codebook_update": "gradient", "restart_threshold": 0.1},
    ],
    ids=str,
)
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError):
        ResidualQuantizer(**arguments)


def test_wrong_calls():
    vectors = random_vectors(64, 8)
    quantizer = small()
    for wrong in (
        lambda: ResidualQuantizer(2, 16).encode(vectors),
        lambda: ResidualQuantizer(2, 16).adapt([]),
        lambda: ResidualQuantizer(2, 16).adapt(np.full((10, 8), np.nan)),
        lambda: quantizer(vectors[:, :7]),
        lambda: quantizer.encode(vectors.reshape(32, 16)),
        lambda: quantizer(vectors, padding_mask=np.ones((2, 32), bool)),
        lambda: quantizer.decode(np.zeros((3, 3), "int32")),
        lambda: quantizer.decode(np.zeros((3, 2), "float32")),
        lambda: quantizer.adapt(vectors[:, :7]),
    ):
        with pytest.raises(ValueError):
            wrong()
