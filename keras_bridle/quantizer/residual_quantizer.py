"""Residual vector quantization as a Keras layer."""

import functools
import math
import random
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bridle.engine import nearness
from keras_bridle.layers.base import ConfiguredLayer, check
from keras_bridle.quantizer.codebook import (
    choose_codes,
    counts_and_sums,
    map_rows,
    moved_tables,
    restarted_tables,
    sum_of_codes,
    uniform,
    unit_vectors,
)
from keras_bridle.quantizer.kmeans import ROUNDING, residual_kmeans, sample_vectors
from keras_bridle.quantizer.usage import CodebookUsage, usage_of_counts
from keras_bridle.replicas import draw_rows, num_replicas, sum_over_replicas

# The EMA count after k-means of a code without samples, relative to uniform usage:
# small, so that the code moves freely, but far above the smoothing.
COUNT_OF_EMPTY = 0.01
NORMALIZATIONS = ("input", "level", None)
# The rules by which codebooks learn, and the weights that each updates.
RULES: dict[str, tuple] = {
    "sums": ("code_vectors", "counts", "sums"),
    "mean": ("code_vectors", "counts"),
    "gradient": (),
}


class ResidualQuantizerOutput(NamedTuple):
    """What a `ResidualQuantizer` returns.

    Attributes:
        quantized: Tensor of shape `(..., dim)` in the compute dtype, the sum of the
            chosen code vectors. Its gradient passes straight through to the
            (normalized) input. Zero where `padding_mask` is `False`.
        codes: int32 tensor of shape `(..., num_levels)`, or `(..., num_levels, top_k)`
            for `top_k > 1`. -1 means no code: for padding, and for levels that
            quantizer dropout skipped.
        loss: Float32 scalar, the mean of `level_losses` over the levels in use.
        level_losses: Float32 tensor of shape `(num_levels,)`, each level's codebook and
            commitment loss. Zero for skipped levels.
    """

    quantized: Any
    codes: Any
    loss: Any
    level_losses: Any


@keras.saving.register_keras_serializable(package="keras_bridle")
class ResidualQuantizer(ConfiguredLayer):
    """Quantizes vectors as sums of code vectors, one from each level's codebook.

    Level 1 chooses the code vector nearest to the input, level 2 the one nearest to the
    residual, and so on. In training, codebooks follow the vectors assigned to them;
    call `adapt()` first to initialize them by k-means.

    Everything is computed in float32 whatever the dtype policy, as rounded distances
    would choose other codes. `trainable=False` freezes the codebooks: the layer then
    behaves as in inference. A batch with infinite or NaN vectors changes nothing.

    Args:
        num_levels: Integer, number of levels (codes per vector).
        codebook_size: Integer, number of code vectors per level.
        dim: Integer, size of the vectors. `None` takes it from the input.
        normalize: `"input"` normalizes the vectors to unit length once, so that the sum
            of codes approximates the unit vector. `"level"` normalizes each level's
            residual for the look-up only, as the published BRIDLE code does; the sum
            then approximates the vector only if its length happens to fit. `None` does
            not normalize.
        normalize_codes: Boolean, whether to keep the code vectors at unit length.
        codebook_update: How the codebooks learn. `"sums"`: a code is the quotient of
            moving averages of the sum and the count of its vectors, with Laplace
            smoothing. `"mean"`: a code moves by `1 - decay` towards the mean of its
            vectors in this batch (of unit length if the looked-up vectors are).
            `"gradient"`: trainable weights, updated by the optimizer through `loss`.
        decay: Float in `[0, 1)`, of the moving averages.
        commitment_weight: Float, weight of the term that pulls inputs towards their
            codes.
        restart_threshold: Float or `None`. A code whose moving-average count falls
            below this share of its level's mean count (0.1: a tenth of uniform usage)
            gets the mean count and a vector that its level looked up in this batch.
            `None` or 0 never restarts.
        shared_codebooks: Boolean, whether all levels share one codebook. It is then
            updated once a step, with the vectors of all levels.
        top_k: Integer, number of codes per level: the `top_k` nearest, summed. Each
            learns `1 / top_k` of the vectors (all with `normalize="level"`, where
            lengths have no meaning).
        quantizer_dropout: Boolean. If `True`, each training step uses only the first
            `n` levels, `n` uniform in `1..num_levels`. The others have code -1 and do
            not contribute to the output, the loss and the statistics.
        sampling_temperature: Float. If positive, codes in training are drawn from
            `softmax(-squared distance / sampling_temperature)`.
        seed: Integer, seeds the initial code vectors, `adapt()` and every draw.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        vectors: Float tensor of shape `(..., dim)`.
        padding_mask: Boolean tensor of shape `(...)`, `True` for real vectors. Others
            are ignored in statistics, draws and loss; their codes are -1.
        training: Boolean, whether codebooks learn (and dropout and sampling are
            active).

    Returns:
        A `ResidualQuantizerOutput`.

    Raises:
        ValueError: if an argument is out of range or arguments conflict.

    Example:
    ```python
    import numpy as np
    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer

    vectors = np.random.default_rng(0).normal(size=(1000, 16)).astype("float32")
    quantizer = ResidualQuantizer(num_levels=4, codebook_size=32, seed=0)
    quantizer.adapt(vectors)
    out = quantizer(vectors, training=True)
    print(out.codes.shape, float(out.loss), quantizer.usage().perplexity)
    approximation = quantizer.decode(out.codes)
    coarse = quantizer.decode(out.codes[:, :2])
    ```

    Reference:
        - [BRIDLE](https://arxiv.org/abs/2502.02118)
        - [SoundStream](https://arxiv.org/abs/2107.03312) (residual quantization,
          quantizer dropout)
        - [Neural Discrete Representation Learning](https://arxiv.org/abs/1711.00937),
          appendix A.1 (`"sums"`)
    """

    dim: Any

    def __init__(
        self,
        num_levels=4,
        codebook_size=256,
        dim=None,
        normalize="input",
        normalize_codes=False,
        codebook_update="sums",
        decay=0.99,
        commitment_weight=0.25,
        restart_threshold=None,
        shared_codebooks=False,
        top_k=1,
        quantizer_dropout=False,
        sampling_temperature=0.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(locals())
        # The step casts inputs to float32. Autocasting would round them to half
        # precision first.
        self.autocast = False
        threshold = restart_threshold or 0.0
        keeps_counts = codebook_update != "gradient"
        most = 1 if sampling_temperature else codebook_size
        rules = {
            "num_levels": (num_levels >= 1, "at least 1"),
            "normalize": (normalize in NORMALIZATIONS, f"one of {NORMALIZATIONS}"),
            "codebook_update": (codebook_update in RULES, f"one of {tuple(RULES)}"),
            "decay": (0.0 <= decay < 1.0, "at least 0 and below 1"),
            "commitment_weight": (commitment_weight >= 0.0, "at least 0"),
            "restart_threshold": (
                threshold == 0.0 or (threshold > 0.0 and keeps_counts),
                "at least 0, and None with the update 'gradient'",
            ),
            "sampling_temperature": (sampling_temperature >= 0.0, "at least 0"),
            "top_k": (
                1 <= top_k <= most,
                "1 to `codebook_size`, and 1 with `sampling_temperature`",
            ),
        }
        for name, (is_right, expected) in rules.items():
            check(is_right, name, expected, getattr(self, name))
        # Without a seed, it follows `keras.utils.set_random_seed()`.
        self._seed = random.randrange(2**31) if seed is None else seed
        if any(self._wanted_draws().values()):
            self.seed_generator = keras.random.SeedGenerator(self._seed)

    def _wanted_draws(self):
        """Returns what training draws random numbers for, by name."""
        return {
            "num_levels": self.quantizer_dropout,
            "choice": self.sampling_temperature,
            "order": self.restart_threshold,
        }

    @property
    def _num_tables(self):
        return 1 if self.shared_codebooks else self.num_levels

    def _table(self, level):
        return 0 if self.shared_codebooks else level

    def build(self, input_shape):
        """Creates the codebooks and their statistics."""
        if self.dim is None:
            self.dim = input_shape[-1]
        by_gradient = self.codebook_update == "gradient"
        tables = (self._num_tables, self.codebook_size)
        vectors, draw = (*tables, self.dim), self._initial_code_vectors
        # The optimizer applies the constraint after each step.
        unit = keras.constraints.UnitNorm(-1) if self.normalize_codes else None
        learned = {"trainable": True, "constraint": unit} if by_gradient else {}
        self.code_vectors = self._add_state("code_vectors", vectors, draw, **learned)
        if not by_gradient:
            self.counts = self._add_state("counts", tables, "ones")
        if self.codebook_update == "sums":
            # With counts of 1, consistent sums are the code vectors.
            self.sums = self._add_state("sums", vectors, draw)
        # Exact counts for `usage()`, as EMA counts decay.
        shape = (self.num_levels, self.codebook_size)
        self.code_histogram = self._add_state("code_histogram", shape, dtype="int")

    def _add_state(self, name, shape, initializer="zeros", **kwargs):
        options = {"trainable": False, "dtype": "float32", "autocast": False} | kwargs
        return self.add_weight(shape, initializer, name=name, **options)

    def _initial_code_vectors(self, shape, dtype=None):
        """Draws vectors of length about 1 at level 1, and half as long at each next."""
        vectors = np.random.default_rng(self._seed).normal(size=shape)
        if self.normalize_codes:
            vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        else:
            lengths = 0.5 ** np.arange(shape[0]) / math.sqrt(self.dim)
            vectors *= lengths[:, None, None]
        return ops.convert_to_tensor(vectors, dtype=dtype or "float32")

    def _tables(self):
        """All codebooks, a tensor of shape `(num_tables, codebook_size, dim)`."""
        if not self.built:
            raise ValueError(
                f"{self.name} has no codebooks yet. Call it on vectors, or `adapt()` "
                "it, first."
            )
        return ops.convert_to_tensor(self.code_vectors)

    @property
    def codebooks(self):
        """The code vectors, float32, `(num_levels, codebook_size, dim)`."""
        shape = (self.num_levels, self.codebook_size, self.dim)
        return ops.broadcast_to(self._tables(), shape)

    def call(self, vectors, padding_mask=None, training=False):
        """Quantizes `vectors`; see the class."""
        moves = bool(training) and self.trainable
        output, state = self.stateless_step(vectors, padding_mask, training=moves)
        if moves:
            self.assign_state(state)
        return output

    def compute_output_spec(self, vectors, padding_mask=None, training=False):
        """Describes the output for symbolic inputs."""
        self._check_vectors(vectors, padding_mask)
        codes_shape = self._codes_shape(vectors.shape[:-1])
        return ResidualQuantizerOutput(
            quantized=keras.KerasTensor(vectors.shape, dtype=self.compute_dtype),
            codes=keras.KerasTensor(codes_shape, dtype="int32"),
            loss=keras.KerasTensor((), dtype="float32"),
            level_losses=keras.KerasTensor((self.num_levels,), dtype="float32"),
        )

    # The state, and a step as a pure function of it.

    def _state_weights(self):
        """Returns the weights that a training step updates, by name."""
        names = ("code_histogram", *RULES[self.codebook_update])
        return {name: getattr(self, name) for name in names}

    def state(self):
        """Returns the state that a training step updates, tensors by weight name."""
        return {
            name: ops.convert_to_tensor(weight)
            for name, weight in self._state_weights().items()
        }

    def assign_state(self, state):
        """Assigns a state that `stateless_step()` returned."""
        for name, weight in self._state_weights().items():
            weight.assign(state[name])

    def draws(self):
        """Draws a step's seeds by purpose; within branches it is not allowed."""
        wanted = self._wanted_draws()
        return {name: self.seed_generator.next() for name in wanted if wanted[name]}

    def stateless_step(
        self, vectors, padding_mask=None, training=True, draws=None, state=None
    ):
        """Quantizes `vectors` without assigning anything.

        Args:
            vectors: Float tensor of shape `(..., dim)`.
            padding_mask: Boolean tensor of shape `(...)`, or `None`.
            training: Boolean, whether to update the state.
            draws: Dict from `draws()`, which makes this a pure function for
                `keras.ops.cond`. `None` draws new seeds.
            state: Dict as from `state()`. `None` uses the layer's state.

        Returns:
            A `ResidualQuantizerOutput` and the new state, a dict as from `state()`.
        """
        tables = self._tables()
        vectors, real, lead = self._flat_vectors(vectors, padding_mask)
        state = self.state() if state is None else state
        tables = state.get("code_vectors", tables)
        if not training:
            draws = {}
        elif draws is None:
            draws = self.draws()
        rows, levels = ops.shape(vectors)[0], self.num_levels
        draw_each = functools.partial(draw_rows, keras.random.uniform)
        choice = uniform(draws.get("choice"), (rows, levels), draw_each)
        # The order covers the vectors of all replicas.
        order = uniform(draws.get("order"), (num_replicas() * rows,))
        num_used = uniform(draws.get("num_levels"), ())
        codes = self._search(vectors, tables, choice)
        absent = real is not None or num_used is not None
        is_used = None
        if num_used is not None:
            num_used = ops.minimum(ops.cast(num_used * levels, "int32"), levels - 1) + 1
            is_used = ops.arange(levels, dtype="int32") < num_used
            codes = ops.where(is_used[:, None], codes, -1)
        # Means are over the real rows of all replicas: their shares add up.
        share = float(num_replicas())
        if real is not None:
            codes = ops.where(real[:, None, None], codes, -1)
            share = sum_over_replicas(ops.mean(ops.cast(real, "float32")))
            share = ops.maximum(share, 1e-12)
        residual, residuals, level_losses = vectors, [], []
        for level in range(levels):
            residuals.append(residual)
            chosen = sum_of_codes(tables[self._table(level)], codes[:, level], absent)
            residual = residual - ops.stop_gradient(chosen)
            error = ops.mean(ops.square(residual)) / share
            codebook_error = ops.stop_gradient(error)
            if self.codebook_update == "gradient":
                codebook_error = ops.stop_gradient(residuals[-1]) - chosen
                codebook_error = ops.mean(ops.square(codebook_error)) / share
            level_losses.append(codebook_error + self.commitment_weight * error)
        level_losses, num_losses = ops.stack(level_losses), levels
        if num_used is not None:
            level_losses = ops.where(is_used, level_losses, 0.0)
            num_losses = ops.cast(num_used, "float32")
        loss = ops.sum(level_losses) / num_losses
        if training:
            state = self._moved(state, residuals, codes, real, num_used, order, loss)
        # The residual after the last level is the error of the codes' sum.
        quantized = vectors - ops.stop_gradient(residual)
        return self._output(quantized, codes, loss, level_losses, lead), state

    def _output(self, quantized, codes, loss, level_losses, lead):
        quantized = ops.reshape(quantized, (*lead, self.dim))
        return ResidualQuantizerOutput(
            quantized=ops.cast(quantized, self.compute_dtype),
            codes=self._shaped_codes(codes, lead),
            loss=loss,
            level_losses=level_losses,
        )

    def _codes_shape(self, lead):
        shape = (*lead, self.num_levels)
        return (*shape, self.top_k) if self.top_k > 1 else shape

    def _shaped_codes(self, codes, lead):
        return ops.reshape(ops.cast(codes, "int32"), self._codes_shape(lead))

    def _check_vectors(self, vectors, padding_mask=None):
        shape = tuple(vectors.shape)
        fits = len(shape) >= 2 and shape[-1] == self.dim
        check(fits, "vectors", f"of shape (..., {self.dim})", shape)
        if padding_mask is None:
            return
        mask_shape = tuple(padding_mask.shape)
        fits = len(mask_shape) == len(shape) - 1 and all(
            None in pair or pair[0] == pair[1]
            for pair in zip(mask_shape, shape, strict=False)
        )
        check(fits, "padding_mask", f"of shape {shape[:-1]}", mask_shape)

    def _flat_vectors(self, vectors, padding_mask=None):
        """Returns vectors `(N, dim)`, mask `(N,)` or `None`, and the leading axes."""
        vectors, real = ops.convert_to_tensor(vectors), None
        if padding_mask is not None:
            padding_mask = ops.convert_to_tensor(padding_mask)
        self._check_vectors(vectors, padding_mask)
        lead = ops.shape(vectors)[:-1]
        vectors = ops.cast(ops.reshape(vectors, (-1, self.dim)), "float32")
        if padding_mask is not None:
            real = ops.cast(ops.reshape(padding_mask, (-1,)), "bool")
            # First, so that not even NaN in the padding spreads.
            vectors = ops.where(real[:, None], vectors, 0.0)
        if self.normalize == "input":
            vectors = unit_vectors(vectors)
        return vectors, real, lead

    def _looked_up(self, residual, vectors):
        """Returns the vectors to look up for a residual of `vectors`."""
        if self.normalize != "level":
            return residual
        squares, floor = (
            ops.sum(ops.square(x), axis=-1, keepdims=True) for x in (residual, vectors)
        )
        # Rounding errors would have another direction on each machine.
        return unit_vectors(ops.where(squares > floor * ROUNDING, residual, 1.0))

    def _search(self, vectors, tables, choice=None):
        """Finds the codes of all levels, `(N, num_levels, top_k)`, in row chunks."""
        vectors = ops.stop_gradient(vectors)
        tables = ops.stop_gradient(tables)
        penalties = 0.5 * ops.sum(ops.square(tables), axis=-1)

        def search_rows(rows):
            rows, choice = rows if isinstance(rows, tuple) else (rows, None)
            residual, codes = rows, []
            for level in range(self.num_levels):
                table = tables[self._table(level)]
                penalty = penalties[self._table(level)]
                scores = nearness(self._looked_up(residual, rows), table, penalty)
                drawn = None if choice is None else choice[:, level]
                found = choose_codes(
                    scores, self.top_k, self.sampling_temperature, drawn
                )
                codes.append(found)
                if level + 1 < self.num_levels:
                    residual = residual - sum_of_codes(table, codes[-1])
            return ops.stack(codes, axis=1)

        return map_rows(search_rows, vectors if choice is None else (vectors, choice))

    def _moved(self, state, residuals, codes, real, num_used, order, loss):
        """Returns the state after this batch, or the old one if it is not finite."""
        # The target of each code of a vector.
        residuals = [ops.stop_gradient(x) for x in residuals]
        targets = [self._looked_up(x, residuals[0]) for x in residuals]
        if self.top_k > 1 and self.normalize != "level":
            targets = [target / self.top_k for target in targets]
        statistics = [
            counts_and_sums(target, codes[:, level], self.codebook_size)
            for level, target in enumerate(targets)
        ]
        num_real = 1.0 if real is None else ops.sum(ops.cast(real, "float32"))
        statistics, loss, num_real = sum_over_replicas((statistics, loss, num_real))
        counts, sums = zip(*statistics, strict=True)
        tables = dict(state)
        histogram = tables.pop("code_histogram")
        counted = ops.cast(ops.stack(counts), histogram.dtype)
        if tables:
            if self.shared_codebooks:
                counts, sums = (sum(counts),), (sum(sums),)
            batch, unit = (ops.stack(counts), ops.stack(sums)), self.normalize_codes
            tables = moved_tables(tables, *batch, self.decay, self._unit_means(), unit)
            if order is not None:
                seats = (targets, order, self.restart_threshold, real, num_used)
                tables = restarted_tables(tables, *seats, unit)
        # The loss holds every vector, so it is finite only if all of them are.
        fit = ops.isfinite(loss)
        if real is not None:
            fit = ops.logical_and(fit, num_real > 0)
        if num_used is not None and not self.shared_codebooks:
            is_used = ops.arange(self.num_levels, dtype="int32") < num_used
            fit = ops.logical_and(fit, is_used)
        new = tables | {"code_histogram": histogram + counted}

        def kept(name, old):
            axes = (-1,) + (1,) * (len(old.shape) - 1)
            return ops.where(ops.reshape(fit, axes), new[name], old)

        return {name: kept(name, old) for name, old in state.items()}

    def _unit_means(self):
        """Returns which codebooks only look up unit vectors."""
        if self.normalize == "level":
            return True
        is_first = np.arange(self._num_tables)[:, None, None] == 0
        has_residuals = self.shared_codebooks and self.num_levels > 1
        return is_first & (self.normalize == "input" and not has_residuals)

    # Inference: codes and decoding.

    def encode(self, vectors):
        """Returns the codes of `vectors`, without training's dropout and sampling.

        Args:
            vectors: Float tensor of shape `(..., dim)`.

        Returns:
            int32 tensor of shape `(..., num_levels)`, or `(..., num_levels, top_k)` for
            `top_k > 1`.
        """
        tables = self._tables()
        vectors, _, lead = self._flat_vectors(vectors)
        return self._shaped_codes(self._search(vectors, tables), lead)

    def decode(self, codes):
        """Returns the sum of the code vectors of `codes`.

        Args:
            codes: Integer tensor of shape `(..., levels)`, or `(..., levels, top_k)`
                for `top_k > 1`. Fewer levels than `num_levels` give a coarser vector.
                Codes of -1 add nothing.

        Returns:
            Tensor of shape `(..., dim)` in the compute dtype. With `normalize="input"`
            it approximates the vector normalized to unit length.
        """
        tables = self._tables()
        codes = ops.convert_to_tensor(codes)
        dtype = keras.backend.standardize_dtype(codes.dtype)
        levels, top_k = ((*codes.shape, 1) if self.top_k == 1 else codes.shape)[-2:]
        check(
            "int" in dtype and top_k == self.top_k and levels <= self.num_levels,
            "codes",
            f"integers of at most {self.num_levels} levels with {self.top_k} codes",
            f"{dtype} of shape {tuple(codes.shape)}",
        )
        if self.top_k == 1:
            codes = codes[..., None]
        vectors = sum(
            sum_of_codes(tables[self._table(level)], codes[..., level, :], True)
            for level in range(levels)
        )
        return ops.cast(vectors, self.compute_dtype)

    def adapt(self, data, padding_mask=None, max_vectors=65_536, iterations=10):
        """Initializes the codebooks by k-means on data, equally on every backend.

        Args:
            data: An array or tensor of shape `(..., dim)`, or batches of them: a
                `tf.data.Dataset`, `keras.utils.PyDataset`, `DataLoader`, list or
                generator. A batch may also be a tuple `(vectors, padding_mask)`.
            padding_mask: Boolean array of shape `(...)`, if `data` is one array.
            max_vectors: Integer, the largest number of vectors; of more, a uniform
                sample is used.
            iterations: Integer, k-means iterations per level.
        """
        if padding_mask is not None:
            data = [(data, padding_mask)]
        vectors = sample_vectors(data, max_vectors, self._seed)
        if not self.built:
            self.build(vectors.shape)
        self._check_vectors(vectors)
        tables, samples = residual_kmeans(self, vectors, iterations, self._seed)
        self.code_vectors.assign(tables)
        if self.codebook_update == "gradient":
            return
        # A code with uniform usage starts with a count of 1.
        shares = samples / samples.mean(axis=1, keepdims=True)
        counts = np.maximum(shares, COUNT_OF_EMPTY).astype("float32")
        self.counts.assign(counts)
        if self.codebook_update == "sums":
            self.sums.assign(tables * counts[..., None])

    def usage(self):
        """Returns how training has used each codebook since `reset_usage()`.

        Returns:
            A `CodebookUsage` of float32 NumPy arrays of shape `(num_levels,)`.
        """
        usage = usage_of_counts(self.code_histogram)
        return CodebookUsage(*map(ops.convert_to_numpy, usage))

    def reset_usage(self):
        """Forgets the codes counted for `usage()`."""
        self.code_histogram.assign(ops.zeros_like(self.code_histogram))
