"""`ResidualQuantizer` against a float64 statement of its rules, and under `fit()`.

Shapes are those of `small()` and `VECTORS` where they can be: JAX then compiles the
operations of all tests once.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer

to_numpy = ops.convert_to_numpy
RANDOM = {
    "restart_threshold": 0.5,
    "sampling_temperature": 0.1,
    "quantizer_dropout": True,
}


def random_vectors(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


VECTORS = random_vectors(64, 8)


def small(**kwargs):
    """A built quantizer of vectors of size 8."""
    arguments = {"num_levels": 2, "codebook_size": 16, "seed": 1} | kwargs
    quantizer = ResidualQuantizer(**arguments)
    quantizer.build((None, 8))
    return quantizer


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def squared_distances(vectors, table):
    return np.square(vectors[:, None] - table[None]).sum(axis=-1)


def state_of(quantizer):
    weights = [w for w in quantizer.weights if "seed" not in w.name]
    return {weight.name: to_numpy(weight).copy() for weight in weights}


def assert_same_state(quantizer, expected, **tolerance):
    for name, value in state_of(quantizer).items():
        np.testing.assert_allclose(
            value, expected[name], **{"rtol": 0.0, "err_msg": name} | tolerance
        )


class Reference:
    """The layer without its random options, in float64 NumPy."""

    def __init__(self, layer):
        self.layer = layer
        self.tables = to_numpy(layer.code_vectors).astype("float64")
        self.counts = np.ones(self.tables.shape[:2])
        self.sums = self.tables.copy()

    def step(self, vectors):
        layer, rest = self.layer, vectors.astype("float64")
        rest = unit(rest) if layer.normalize == "input" else rest
        self.start, tables = rest, self.tables.copy()
        counts, sums = np.zeros_like(self.counts), np.zeros_like(self.sums)
        codes, losses = [], []
        for level in range(layer.num_levels):
            table = 0 if layer.shared_codebooks else level
            looked_up = unit(rest) if layer.normalize == "level" else rest
            order = squared_distances(looked_up, tables[table]).argsort(axis=1)
            codes.append(order[:, : layer.top_k])
            for chosen in codes[-1].T:
                np.add.at(counts[table], chosen, 1.0)
                share = 1.0 if layer.normalize == "level" else 1.0 / layer.top_k
                np.add.at(sums[table], chosen, looked_up * share)
            rest = rest - tables[table][codes[-1]].sum(axis=1)
            losses.append((1.0 + layer.commitment_weight) * np.square(rest).mean())
        for table in range(len(tables)):
            self.move(table, counts[table], sums[table])
        return self.start - rest, np.stack(codes, axis=1), np.array(losses)

    def move(self, table, counts, sums):
        layer, decay = self.layer, self.layer.decay
        self.counts[table] = decay * self.counts[table] + (1 - decay) * counts
        if layer.codebook_update == "sums":
            self.sums[table] = decay * self.sums[table] + (1 - decay) * sums
            total, size = self.counts[table].sum(), len(counts)
            smoothed = (self.counts[table] + 1e-5) / (total + size * 1e-5) * total
            self.tables[table] = self.sums[table] / smoothed[:, None]
        else:
            found = counts > 0
            means = sums[found] / counts[found, None]
            if layer.normalize == "level" or (layer.normalize and table == 0):
                means = unit(means)
            old = self.tables[table, found]
            self.tables[table, found] = decay * old + (1 - decay) * means
        if layer.normalize_codes:
            self.tables[table] = unit(self.tables[table])

    def check(self):
        state = {"code_vectors": self.tables, "counts": self.counts, "sums": self.sums}
        for name, expected in state.items():
            if hasattr(self.layer, name):
                ours = to_numpy(getattr(self.layer, name))
                np.testing.assert_allclose(ours, expected, 1e-5, 2e-6, err_msg=name)


@pytest.mark.parametrize(
    ("options", "num_vectors"),
    [
        ({}, 64),
        ({}, 2500),
        ({"normalize": None}, 64),
        ({"normalize": "level"}, 64),
        ({"normalize": None, "codebook_update": "mean"}, 64),
        ({"normalize_codes": True, "codebook_update": "mean"}, 64),
        ({"normalize_codes": True, "normalize": "level"}, 64),
        ({"shared_codebooks": True, "normalize": None}, 64),
        ({"top_k": 3}, 64),
        ({"top_k": 3, "normalize": "level"}, 64),
    ],
    ids=str,
)
def test_steps_match_float64_reference(options, num_vectors):
    quantizer = small(decay=0.9, **options)
    reference = Reference(quantizer)
    for step in range(2):
        # Some rows are padding, which changes nothing.
        vectors = random_vectors(2, num_vectors, 8, seed=step)
        vectors[1] = np.nan
        mask = np.arange(2)[:, None] * np.ones(num_vectors) == 0
        masked = step == 1
        out = quantizer(
            vectors if masked else vectors[:1],
            padding_mask=mask if masked else None,
            training=True,
        )
        quantized, codes, losses = reference.step(vectors[0])
        ours = to_numpy(out.codes)
        assert ours.dtype == "int32"
        np.testing.assert_array_equal(ours[0].reshape(codes.shape), codes)
        np.testing.assert_array_equal(ours[1:], -1)
        quantized_ours = to_numpy(out.quantized)
        np.testing.assert_allclose(quantized_ours[0], quantized, atol=4e-6)
        np.testing.assert_array_equal(quantized_ours[1:], 0.0)
        np.testing.assert_allclose(to_numpy(out.level_losses), losses, rtol=4e-6)
        np.testing.assert_allclose(to_numpy(out.loss), losses.mean(), rtol=4e-6)
        reference.check()
    assert to_numpy(quantizer.codebooks).shape == (2, 16, 8)
    # In inference nothing moves, and codes are those of encode().
    before = state_of(quantizer)
    out = quantizer(VECTORS)
    assert_same_state(quantizer, before)
    np.testing.assert_array_equal(
        to_numpy(quantizer.encode(VECTORS)), to_numpy(out.codes)
    )
    np.testing.assert_allclose(
        to_numpy(quantizer.decode(out.codes)), to_numpy(out.quantized), atol=2e-6
    )


@pytest.mark.parametrize(
    ("rule", "bad", "normalize"),
    [("sums", np.nan, "input"), ("mean", np.inf, "level"), ("sums", np.inf, None)],
)
def test_batches_that_are_unfit_leave_the_state(rule, bad, normalize):
    quantizer = small(codebook_update=rule, normalize=normalize, restart_threshold=0.5)
    quantizer(VECTORS, training=True)
    before = state_of(quantizer)
    vectors = VECTORS.copy()
    vectors[3, 2] = bad
    quantizer(vectors, training=True)
    assert_same_state(quantizer, before)
    # Nothing but padding.
    out = quantizer(VECTORS, padding_mask=np.zeros(64, bool), training=True)
    assert_same_state(quantizer, before)
    assert float(out.loss) == 0.0


# Gradients.


@pytest.mark.parametrize("unit_codes", [False, True])
def test_gradient_rule_trains_each_codebook_on_its_own_level(unit_codes):
    quantizer = small(
        normalize=None, normalize_codes=unit_codes, codebook_update="gradient"
    )
    assert len(quantizer.trainable_variables) == 1
    tables = to_numpy(quantizer.code_vectors).copy()
    codes = to_numpy(quantizer.encode(VECTORS))
    fit(quantizer, VECTORS, batch_size=64, learning_rate=10.0)
    residual, expected = VECTORS.astype("float64"), tables.copy()
    for level in range(2):
        error = tables[level][codes[:, level]] - residual
        for code in range(16):
            chosen = error[codes[:, level] == code]
            expected[level, code] -= 10.0 * chosen.sum(axis=0) / VECTORS.size
        residual = -error
    expected = unit(expected) if unit_codes else expected
    np.testing.assert_allclose(to_numpy(quantizer.code_vectors), expected, atol=1e-5)


# Under fit().


def fit(quantizer, vectors, batch_size, learning_rate=0.0, **kwargs):
    """Runs fit() on the quantizer alone, behind a factor of 1."""

    class Trainer(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
            self.quantizer = quantizer

        def call(self, vectors, training=False):
            scale = ops.stop_gradient(ops.convert_to_tensor(self.scale))
            return self.quantizer(vectors * scale, training=training).loss

        def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
            return y_pred + 0.0 * ops.convert_to_tensor(self.scale)

    model = Trainer()
    model.compile(optimizer=keras.optimizers.SGD(learning_rate), **kwargs)
    model.fit(vectors, batch_size=batch_size, shuffle=False, verbose=0)


def fit_choices():
    """Batches searched at once and in slices, compiled by XLA and not."""
    return {
        "torch": [(False, 16), (False, 1200)],
        "jax": [(True, 1200)],
        "tensorflow": [(True, 16), (False, 1200)],
    }[keras.backend.backend()]


@pytest.mark.every_backend
@pytest.mark.parametrize(("jit_compile", "rows"), fit_choices())
def test_fit_moves_the_codebooks_as_calls_do(jit_compile, rows):
    # TensorFlow draws other random numbers with XLA than without.
    draws_alike = not (jit_compile and keras.backend.backend() == "tensorflow")
    options = RANDOM if draws_alike else {}
    vectors = random_vectors(2 * rows + rows // 2, 8)
    by_hand, fitted = small(**options), small(**options)
    for start in range(0, len(vectors), rows):
        by_hand(vectors[start : start + rows], training=True)
    fit(fitted, vectors, batch_size=rows, jit_compile=jit_compile)
    assert_same_state(fitted, state_of(by_hand), rtol=1e-4, atol=1e-5)


# Random options.


@pytest.mark.every_backend
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="for XLA alone")
def test_random_options_compile_with_xla():
    quantizer = small(**RANDOM)
    fit(quantizer, random_vectors(3000, 8), batch_size=1500, jit_compile=True)
    totals = to_numpy(quantizer.code_histogram).sum(axis=1)
    assert totals[0] == 3000 and totals[1] in (0, 1500, 3000)
    assert np.isfinite(to_numpy(quantizer.code_vectors)).all()


@pytest.mark.parametrize(("rule", "shared"), [("sums", False), ("mean", True)])
def test_restarted_codes_are_vectors_of_the_batch(rule, shared):
    quantizer = small(
        normalize=None,
        codebook_update=rule,
        decay=0.5,
        restart_threshold=0.6,
        shared_codebooks=shared,
    )
    tables = to_numpy(quantizer.codebooks).copy()
    # Far away as padding is, no code lands on it.
    padded = np.concatenate([VECTORS, np.full((64, 8), 50.0, "float32")])
    out = quantizer(padded, padding_mask=np.arange(128) < 64, training=True)
    codes = to_numpy(out.codes)[:64]
    residual = VECTORS - tables[0][codes[:, 0]]
    counts = np.stack([np.bincount(level, minlength=16) for level in codes.T])
    pools = [VECTORS, residual]
    if shared:
        counts, pools = counts.sum(axis=0, keepdims=True), [np.concatenate(pools)]
    taken = []
    for table, pool in enumerate(pools):
        averages = 0.5 + 0.5 * counts[table]
        dead = averages < 0.6 * averages.mean()
        assert dead.sum() > 1
        moved = to_numpy(quantizer.code_vectors)[table]
        distances = squared_distances(moved, pool)
        np.testing.assert_allclose(distances[dead].min(axis=1), 0.0, atol=1e-10)
        assert (distances[~dead].min(axis=1) > 1e-8).any()
        taken.extend(distances[dead].argmin(axis=1) % 64)
        expected = np.where(dead, averages.mean(), averages)
        counts_now = to_numpy(quantizer.counts)[table]
        np.testing.assert_allclose(counts_now, expected, rtol=1e-6)
        if rule == "sums":
            sums = to_numpy(quantizer.sums)[table][dead]
            np.testing.assert_allclose(sums, moved[dead] * averages.mean(), rtol=1e-5)
    # No row of the batch is drawn twice, not even for different levels.
    assert len(set(taken)) == len(taken)


def test_quantizer_dropout_leaves_out_the_last_levels():
    quantizer = small(num_levels=3, quantizer_dropout=True)
    seen = set()
    for _ in range(15):
        before = state_of(quantizer)
        out = quantizer(VECTORS, training=True)
        codes, losses = to_numpy(out.codes), to_numpy(out.level_losses)
        used = int((codes[0] >= 0).sum())
        seen.add(used)
        assert (codes[:, :used] >= 0).all() and (codes[:, used:] == -1).all()
        assert (losses[:used] > 0).all() and (losses[used:] == 0).all()
        np.testing.assert_allclose(float(out.loss), losses[:used].mean(), rtol=1e-5)
        tables = before["code_vectors"]
        chosen = sum(tables[level][codes[:, level]] for level in range(used))
        np.testing.assert_allclose(to_numpy(out.quantized), chosen, atol=1e-6)
        for name, value in state_of(quantizer).items():
            np.testing.assert_array_equal(value[used:], before[name][used:])
            assert (value[:used] != before[name][:used]).any()
    assert seen == {1, 2, 3}
    assert (to_numpy(quantizer(VECTORS).codes) >= 0).all()


@pytest.mark.every_backend
def test_stateless_step_assigns_nothing_and_runs_in_a_branch():
    quantizer, reference = small(**RANDOM), small(**RANDOM)
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
    vectors = ops.convert_to_tensor(VECTORS)
    _, state = run(vectors, ops.convert_to_tensor(False), quantizer.draws())
    quantizer.assign_state(state)
    assert_same_state(quantizer, before)
    reference.draws()
    loss, state = run(vectors, ops.convert_to_tensor(True), quantizer.draws())
    assert_same_state(quantizer, before)
    quantizer.assign_state(state)
    expected = reference(VECTORS, training=True)
    np.testing.assert_allclose(float(loss), float(expected.loss), rtol=1e-6)
    assert_same_state(quantizer, state_of(reference), atol=1e-6)


# adapt() and usage().


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": None},
        {"normalize_codes": True, "num_levels": 1, "codebook_update": "gradient"},
        {"shared_codebooks": True, "codebook_update": "mean"},
        {"top_k": 2},
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
    # Training goes on from there, without a jump.
    before = to_numpy(quantizer.code_vectors).copy()
    quantizer(vectors, training=True)
    assert np.abs(to_numpy(quantizer.code_vectors) - before).max() < 0.2


@pytest.mark.every_backend
def test_adapt_gives_the_same_codebooks_on_every_backend():
    quantizer = ResidualQuantizer(num_levels=2, codebook_size=8, seed=5)
    quantizer.adapt(random_vectors(300, 4))
    expected = [
        [-0.700994, 0.147981, -0.240573, 0.20214],
        [-0.00906, 0.315242, -0.017987, 0.423451],
    ]
    tables = to_numpy(quantizer.code_vectors)
    np.testing.assert_allclose(tables[:, 0], expected, atol=1e-5)


def test_adapt_takes_any_data():
    tf = pytest.importorskip("tensorflow")

    vectors = random_vectors(300, 8)
    mask = np.arange(600) % 2 > 0
    padded = np.full((600, 8), np.nan, "float32")
    padded[mask] = vectors

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return vectors[index * 100 : (index + 1) * 100]

    tables = []
    for data, padding_mask in (
        (vectors, None),
        (vectors.reshape(10, 30, 8), None),
        (ops.convert_to_tensor(vectors), None),
        (iter(np.split(vectors, 3)), None),
        (tf.data.Dataset.from_tensor_slices(vectors).batch(100), None),
        (Batches(), None),
        (padded, mask),
        ([(padded[:90], mask[:90]), (padded[90:], mask[90:])], None),
    ):
        quantizer = ResidualQuantizer(num_levels=2, codebook_size=16, seed=0)
        quantizer.adapt(data, padding_mask)
        tables.append(to_numpy(quantizer.code_vectors))
    for table in tables:
        np.testing.assert_array_equal(table, tables[0])


def test_wrong_calls():
    quantizer = small()
    for wrong in (
        lambda: ResidualQuantizer(2, 16).encode(VECTORS),
        lambda: ResidualQuantizer(2, 16).adapt([]),
        lambda: ResidualQuantizer(2, 16).adapt(np.full((10, 8), np.nan)),
        lambda: quantizer(VECTORS[:, :7]),
        lambda: quantizer(VECTORS, padding_mask=np.ones((2, 32), bool)),
        lambda: quantizer.decode(np.zeros((3, 3), "int32")),
        lambda: quantizer.decode(np.zeros((3, 2), "float32")),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_residuals_that_are_rounding_errors():
    """Vectors that their first code is equal to but for rounding get the same codes."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 8)).astype("float32")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    noise = 1 + rng.uniform(-1, 1, (5, *vectors.shape)).astype("float32") * 2e-7
    quantizer = ResidualQuantizer(2, 16, dim=8, normalize="level", seed=0)
    quantizer.build((None, 8))
    quantizer.adapt(vectors)
    codes = [to_numpy(quantizer.encode(vectors * x)) for x in noise]
    for one in codes:
        np.testing.assert_array_equal(one, codes[0])
    # k-means, too, sees no direction in them.
    tables = []
    for factor in noise:
        quantizer.adapt(vectors * factor)
        tables.append(to_numpy(quantizer.code_vectors))
    np.testing.assert_allclose(tables, [tables[0]] * len(tables), atol=1e-5)
