"""Residual vector quantization as a Keras layer."""

import math
import random
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bridle.engine import argmax_of_rows, nearness, segment_sum
from keras_bridle.quantizer.kmeans import kmeans, sample_vectors
from keras_bridle.quantizer.usage import CodebookUsage, usage_of_counts
from keras_bridle.replicas import (
    all_rows,
    draw_rows,
    num_replicas,
    sum_over_replicas,
    take_rows,
)

# Rows whose distances to all codes exist at one time: large enough for a fast matrix
# product, small enough to stay in the cache and out of the memory's peak.
ROWS_AT_ONCE = 1024
# Added to the EMA counts (Laplace smoothing), so that no code is divided by zero.
SMOOTHING = 1e-5
# The EMA count that k-means gives a code without samples, in shares of an even use:
# small, so that the code moves freely, but far above SMOOTHING.
COUNT_OF_EMPTY = 0.01


class ResidualQuantizerOutput(NamedTuple):
    """What a `ResidualQuantizer` returns.

    Attributes:
        quantized: Tensor of shape `(..., dim)` in the layer's compute dtype, the sum
            of the chosen code vectors. Its gradient goes straight through to the
            (normalized) input. Zero where `padding_mask` is `False`.
        codes: int32 tensor of shape `(..., num_levels)`, or
            `(..., num_levels, top_k)` for `top_k > 1`. -1 means that no code was
            chosen: for padding, and for levels that quantizer dropout left out.
        loss: Float32 scalar, the mean of `level_losses` over the levels in use.
        level_losses: Float32 tensor of shape `(num_levels,)`, each level's codebook
            and commitment loss. Zero for levels left out.
    """

    quantized: Any
    codes: Any
    loss: Any
    level_losses: Any


@keras.saving.register_keras_serializable(package="keras_bridle")
class ResidualQuantizer(keras.layers.Layer):
    """Quantizes vectors as sums of code vectors, one from each level's codebook.

    Level 1 picks the code vector nearest to the input, level 2 the one nearest to what
    is left, and so on. One level is plain vector quantization. In training the
    codebooks follow the vectors assigned to them, without gradients (unless asked);
    call `adapt()` first to start them from k-means.

    Everything is computed in float32 whatever the dtype policy, since rounded
    distances pick other codes. `trainable=False` freezes the codebooks entirely: the
    layer then behaves as in inference. A batch with infinite or NaN vectors leaves the
    layer's state as it is.

    Args:
        num_levels: Integer, number of levels (codes per vector).
        codebook_size: Integer, number of code vectors per level.
        dim: Integer, size of the vectors. `None` takes it from the input.
        normalize: `"input"` brings the vectors to unit length once and then quantizes
            residuals as they are, so that the sum of codes approximates the unit
            vector. `"level"` brings each level's residual to unit length for the
            look-up only and subtracts the code from the raw residual (as the published
            BRIDLE code does; the sum then approximates the vector only if its length
            happens to fit). `None` normalizes nothing.
        normalize_codes: Boolean, whether to keep the code vectors at unit length.
        codebook_update: How the codebooks learn. `"sums"`: exponential moving averages
            of each code's count and of the sum of its vectors; the code is their
            quotient, with Laplace smoothing. `"mean"`: a code moves by `1 - decay`
            towards the mean of its vectors in this batch (brought to unit length where
            the looked-up vectors have unit length); codes without vectors stay.
            `"gradient"`: trainable weights, moved by the optimizer through `loss`.
        decay: Float in `[0, 1)`, of the moving averages.
        commitment_weight: Float, weight of the term that pulls the input towards its
            codes.
        restart_threshold: Float or `None`. A code whose moving-average count falls
            below this share of its level's mean count (0.1: a tenth of an even use) is
            re-seated on a vector that its level looked up in this batch, drawn without
            repeats where the batch is large enough, and given the mean count. `None`
            or 0 never restarts.
        shared_codebooks: Boolean, whether all levels share one codebook. It then moves
            once a step, by the vectors of all levels.
        top_k: Integer, number of codes per level: the `top_k` nearest, summed. Each
            then learns its share, `1 / top_k`, of the vectors (not with
            `normalize="level"`, where lengths have no meaning).
        quantizer_dropout: Boolean. If `True`, each training step uses only the first
            `n` levels, `n` drawn evenly from `1..num_levels`. The other levels have
            code -1 and take no part in the output, the loss and the statistics.
        sampling_temperature: Float. If positive, codes in training are drawn from
            `softmax(-squared distance / sampling_temperature)` rather than the nearest
            taken.
        seed: Integer, seeds the initial code vectors, `adapt()` and every draw.
            `None` draws one.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Call arguments:
        vectors: Float tensor of shape `(..., dim)`.
        padding_mask: Boolean tensor of shape `(...)`, `True` for real vectors. The
            others take no part in the statistics, draws and loss; their codes are -1
            and their quantized vectors 0. `None` means that all are real.
        training: Boolean, whether codebooks move (and dropout and sampling act).

    Returns:
        A `ResidualQuantizerOutput`.

    Raises:
        ValueError: if an argument is out of range or arguments exclude each other.

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
        super().__init__(**kwargs)
        # Inputs come as they are and are cast to float32 in the step: the policy's
        # half precision would round them first.
        self.autocast = False
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.dim = dim
        self.normalize = normalize
        self.normalize_codes = normalize_codes
        self.codebook_update = codebook_update
        self.decay = decay
        self.commitment_weight = commitment_weight
        self.restart_threshold = restart_threshold
        self.shared_codebooks = shared_codebooks
        self.top_k = top_k
        self.quantizer_dropout = quantizer_dropout
        self.sampling_temperature = sampling_temperature
        self.seed = seed
        self._check_arguments()
        # Follows keras.utils.set_random_seed when no seed is given.
        self._seed = random.randrange(2**31) if seed is None else seed
        if self._draws:
            self.seed_generator = keras.random.SeedGenerator(self._seed)

    def _check_arguments(self):
        for name in ("num_levels", "codebook_size", "dim", "top_k"):
            value = getattr(self, name)
            if name == "dim" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"`{name}` must be a positive integer. Received: {name}={value!r}"
                )
        for name, choices in (
            ("normalize", ("input", "level", None)),
            ("codebook_update", ("sums", "mean", "gradient")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"`{name}` must be one of {choices}. Received: {name}={value!r}"
                )
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(
                f"`decay` must be at least 0 and below 1. Received: decay={self.decay}"
            )
        for name in ("commitment_weight", "restart_threshold", "sampling_temperature"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(
                    f"`{name}` must not be negative. Received: {name}={value}"
                )
        if self.top_k > self.codebook_size:
            raise ValueError(
                "`top_k` must not exceed `codebook_size`. Received: "
                f"top_k={self.top_k}, codebook_size={self.codebook_size}"
            )
        if self.top_k > 1 and self.sampling_temperature:
            raise ValueError(
                "`sampling_temperature` draws one code per level, so it needs "
                f"`top_k=1`. Received: top_k={self.top_k}"
            )
        if self.restart_threshold and self.codebook_update == "gradient":
            raise ValueError(
                "`restart_threshold` needs codebooks that follow statistics, so "
                '`codebook_update` must be "sums" or "mean". '
                'Received: codebook_update="gradient"'
            )

    @property
    def _draws(self):
        """Whether training needs random numbers."""
        return bool(
            self.restart_threshold
            or self.quantizer_dropout
            or self.sampling_temperature
        )

    @property
    def _num_tables(self):
        return 1 if self.shared_codebooks else self.num_levels

    def _table(self, level):
        return 0 if self.shared_codebooks else level

    def _looks_up_unit_vectors(self, level):
        if self.normalize == "level":
            return True
        if self.shared_codebooks and self.num_levels > 1:
            return False
        return self.normalize == "input" and level == 0

    def build(self, input_shape):
        """Creates the codebooks and their statistics.

        Args:
            input_shape: Shape of the vectors, `(..., dim)`.
        """
        if len(input_shape) < 2 or input_shape[-1] is None:
            raise ValueError(
                "`vectors` must have a shape `(..., dim)` with at least two axes and a "
                f"known last one. Received shape: {tuple(input_shape)}"
            )
        if self.dim is None:
            self.dim = int(input_shape[-1])
        elif self.dim != input_shape[-1]:
            raise ValueError(
                f"`vectors` must have a last axis of size dim={self.dim}. "
                f"Received shape: {tuple(input_shape)}"
            )
        learns_by_gradient = self.codebook_update == "gradient"
        tables = (self._num_tables, self.codebook_size)
        unit = keras.constraints.UnitNorm(axis=-1)
        self.code_vectors = self._add_float_weight(
            "code_vectors",
            (*tables, self.dim),
            self._initial_code_vectors,
            trainable=learns_by_gradient,
            # The optimizer applies it after each of its steps.
            constraint=unit if learns_by_gradient and self.normalize_codes else None,
        )
        if not learns_by_gradient:
            self.counts = self._add_float_weight("counts", tables, "ones")
        if self.codebook_update == "sums":
            # Counts are one, so consistent sums are the code vectors themselves.
            self.sums = self._add_float_weight(
                "sums", (*tables, self.dim), self._initial_code_vectors
            )
        # Exact, for `usage()`: the EMA counts forget.
        self.code_histogram = self.add_weight(
            name="code_histogram",
            shape=(self.num_levels, self.codebook_size),
            initializer="zeros",
            dtype="int",
            trainable=False,
        )

    def _add_float_weight(self, name, shape, initializer, trainable=False, **kwargs):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype="float32",
            trainable=trainable,
            autocast=False,
            **kwargs,
        )

    def _initial_code_vectors(self, shape, dtype=None):
        """Draws vectors of length about 1 at level 1 and half of it at each next."""
        vectors = np.random.default_rng(self._seed).normal(size=shape)
        if self.normalize_codes:
            vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        else:
            lengths = 0.5 ** np.arange(shape[0]) / math.sqrt(self.dim)
            vectors *= lengths[:, None, None]
        return ops.convert_to_tensor(vectors, dtype=dtype or "float32")

    @property
    def codebooks(self):
        """The code vectors, float32, `(num_levels, codebook_size, dim)`."""
        self._check_built("codebooks")
        shape = (self.num_levels, self.codebook_size, self.dim)
        return ops.broadcast_to(ops.convert_to_tensor(self.code_vectors), shape)

    def _check_built(self, what):
        if not self.built:
            raise ValueError(
                f"`{what}` needs codebooks, but this {type(self).__name__} is not "
                "built. Call it on vectors, or `adapt()` it, first."
            )

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
        codes_shape = (*vectors.shape[:-1], self.num_levels)
        if self.top_k > 1:
            codes_shape = (*codes_shape, self.top_k)
        return ResidualQuantizerOutput(
            quantized=keras.KerasTensor(vectors.shape, dtype=self.compute_dtype),
            codes=keras.KerasTensor(codes_shape, dtype="int32"),
            loss=keras.KerasTensor((), dtype="float32"),
            level_losses=keras.KerasTensor((self.num_levels,), dtype="float32"),
        )

    # State and the pure step.

    def _state_weights(self):
        """The weights that a training step moves, by name."""
        self._check_built("state")
        weights = {"code_histogram": self.code_histogram}
        if self.codebook_update != "gradient":
            weights |= {"code_vectors": self.code_vectors, "counts": self.counts}
        if self.codebook_update == "sums":
            weights["sums"] = self.sums
        return weights

    def state(self):
        """Returns what a training step moves.

        Returns:
            A dict of tensors by weight name.
        """
        return {
            name: ops.convert_to_tensor(weight)
            for name, weight in self._state_weights().items()
        }

    def assign_state(self, state):
        """Takes over a state that `stateless_step` returned.

        Args:
            state: Dict of tensors, as from `state()`.
        """
        for name, weight in self._state_weights().items():
            weight.assign(state[name])

    def draws(self):
        """Draws what one training step needs to draw its random numbers.

        Call it outside `keras.ops.cond`, whose branches must not move a seed.

        Returns:
            A dict of seeds (tensors of shape `(2,)`) by what they are for; empty if the
            layer's options need none.
        """
        wanted = {
            "num_levels": self.quantizer_dropout,
            "choice": self.sampling_temperature,
            "order": self.restart_threshold,
        }
        return {
            name: self.seed_generator.next()
            for name, needed in wanted.items()
            if needed
        }

    def stateless_step(
        self, vectors, padding_mask=None, training=True, draws=None, state=None
    ):
        """Quantizes `vectors` without assigning anything.

        With `draws` given it is a pure function, fit for `keras.ops.cond`.

        Args:
            vectors: Float tensor of shape `(..., dim)`.
            padding_mask: Boolean tensor of shape `(...)`, or `None`.
            training: Boolean, whether to move the state (even if the layer is not
                trainable).
            draws: Dict from `draws()`. `None` draws here.
            state: Dict as from `state()`. `None` takes the layer's own.

        Returns:
            Tuple `(output, new_state)`: a `ResidualQuantizerOutput`, and a dict as from
            `state()`, unchanged if not training.

        Raises:
            ValueError: if the shapes do not fit the layer or each other.

        Example:
        ```python
        import numpy as np
        from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer

        vectors = np.random.default_rng(0).normal(size=(100, 8)).astype("float32")
        quantizer = ResidualQuantizer(2, 16, dim=8, restart_threshold=0.1)
        quantizer.build(vectors.shape)
        draws = quantizer.draws()
        output, state = quantizer.stateless_step(vectors, draws=draws)
        quantizer.assign_state(state)
        ```
        """
        self._check_built("stateless_step")
        vectors, real, lead = self._flat_vectors(vectors, padding_mask)
        state = self.state() if state is None else state
        if not training:
            draws = {}
        elif draws is None:
            draws = self.draws()
        num_vectors = ops.shape(vectors)[0]
        num_used = self._draw_num_used(draws)
        choice = _uniform(draws, "choice", (num_vectors, self.num_levels), _draw_rows)
        # The order is that of the vectors of all replicas.
        order = _uniform(draws, "order", (num_replicas() * num_vectors,))
        tables = state.get("code_vectors", ops.convert_to_tensor(self.code_vectors))
        codes = self._search(vectors, tables, choice)
        codes = self._without_absent(codes, real, num_used)
        absent = real is not None or num_used is not None
        residuals, chosen = self._descend(vectors, tables, codes, absent)
        level_losses = self._level_losses(residuals, chosen, real, num_used)
        loss = ops.sum(level_losses) / (
            self.num_levels if num_used is None else ops.cast(num_used, "float32")
        )
        if training:
            state = self._move(state, residuals, codes, real, num_used, order, loss)
        # What is left after the last level is what the codes' sum lacks.
        quantized = vectors - ops.stop_gradient(residuals[-1])
        output = ResidualQuantizerOutput(
            quantized=ops.cast(
                ops.reshape(quantized, (*lead, self.dim)), self.compute_dtype
            ),
            codes=self._shaped_codes(codes, lead),
            loss=loss,
            level_losses=level_losses,
        )
        return output, state

    def _draw_num_used(self, draws):
        """Draws how many levels quantizer dropout leaves; `None` without dropout."""
        drawn = _uniform(draws, "num_levels", ())
        if drawn is None:
            return None
        drawn = ops.cast(drawn * self.num_levels, "int32")
        return ops.minimum(drawn, self.num_levels - 1) + 1

    def _check_vectors(self, vectors, padding_mask):
        shape = tuple(vectors.shape)
        if len(shape) < 2 or shape[-1] != self.dim:
            raise ValueError(
                f"`vectors` must have shape `(..., {self.dim})` with at least two "
                f"axes. Received shape: {shape}"
            )
        if 0 in shape:
            raise ValueError(f"`vectors` must not be empty. Received shape: {shape}")
        if padding_mask is None:
            return
        mask_shape = tuple(padding_mask.shape)
        fits = len(mask_shape) == len(shape) - 1 and all(
            None in pair or pair[0] == pair[1]
            for pair in zip(mask_shape, shape, strict=False)
        )
        if not fits:
            raise ValueError(
                "`padding_mask` must have the shape of `vectors` without the last "
                f"axis, {shape[:-1]}. Received shape: {mask_shape}"
            )

    def _flat_vectors(self, vectors, padding_mask):
        """Returns vectors `(N, dim)`, mask `(N,)` or `None`, and the leading axes."""
        vectors = ops.convert_to_tensor(vectors)
        if padding_mask is not None:
            padding_mask = ops.convert_to_tensor(padding_mask)
        self._check_vectors(vectors, padding_mask)
        lead = ops.shape(vectors)[:-1]
        vectors = ops.cast(ops.reshape(vectors, (-1, self.dim)), "float32")
        if padding_mask is None:
            return self._normalized_input(vectors), None, lead
        real = ops.cast(ops.reshape(padding_mask, (-1,)), "bool")
        # First, so that not even NaN in the padding gets any further.
        vectors = ops.where(real[:, None], vectors, 0.0)
        return self._normalized_input(vectors), real, lead

    def _normalized_input(self, vectors):
        return unit_vectors(vectors) if self.normalize == "input" else vectors

    def _looked_up(self, residual):
        return unit_vectors(residual) if self.normalize == "level" else residual

    # Search.

    def _search(self, vectors, tables, choice=None):
        """Finds all levels' codes, `(N, num_levels, top_k)`, some rows at a time."""
        vectors = ops.stop_gradient(vectors)
        tables = ops.stop_gradient(tables)
        penalties = 0.5 * ops.sum(ops.square(tables), axis=-1)

        def search_rows(rows):
            residual, choice = rows if isinstance(rows, tuple) else (rows, None)
            codes = []
            for level in range(self.num_levels):
                table = tables[self._table(level)]
                scores = nearness(
                    self._looked_up(residual), table, penalties[self._table(level)]
                )
                drawn = None if choice is None else choice[:, level]
                codes.append(self._choose(scores, drawn))
                if level + 1 < self.num_levels:
                    residual = residual - _sum_of_codes(table, codes[-1])
            return ops.stack(codes, axis=1)

        rows = vectors if choice is None else (vectors, choice)
        return _map_rows(search_rows, rows, ROWS_AT_ONCE)

    def _choose(self, scores, drawn=None):
        """Turns scores `(rows, codebook_size)`, larger is nearer, into codes."""
        if drawn is not None:
            return self._sample(scores, drawn)[:, None]
        if self.top_k > 1:
            return ops.cast(ops.top_k(scores, self.top_k)[1], "int32")
        return argmax_of_rows(scores)[:, None]

    def _sample(self, scores, drawn):
        """Draws codes by inverting the distribution: one random number a vector."""
        # scores = (|x|^2 - squared distance) / 2, and softmax ignores |x|^2.
        shares = ops.softmax(scores * (2.0 / self.sampling_temperature), axis=-1)
        reached = ops.cumsum(shares, axis=-1)
        threshold = drawn[:, None] * reached[:, -1:]
        codes = ops.sum(ops.cast(reached <= threshold, "int32"), axis=-1)
        return ops.minimum(codes, self.codebook_size - 1)

    def _without_absent(self, codes, real, num_used):
        """Splits codes by level and writes -1 for padding and unused levels."""
        levels = []
        for level in range(self.num_levels):
            level_codes = codes[:, level]
            if real is not None:
                level_codes = ops.where(real[:, None], level_codes, -1)
            if num_used is not None:
                level_codes = ops.where(level < num_used, level_codes, -1)
            levels.append(level_codes)
        return levels

    def _shaped_codes(self, codes, lead):
        codes = ops.cast(ops.stack(codes, axis=1), "int32")
        shape = (*lead, self.num_levels)
        return ops.reshape(codes, (*shape, self.top_k) if self.top_k > 1 else shape)

    # Residuals and losses.

    def _descend(self, vectors, tables, codes, absent):
        """Subtracts level by level the vectors that the codes stand for.

        Returns the residuals before, between and after the levels, and the codes'
        vectors where they have a gradient (otherwise none).
        """
        residuals, chosen = [vectors], []
        for level in range(self.num_levels):
            vectors_of_codes = _sum_of_codes(
                tables[self._table(level)], codes[level], absent
            )
            if self.codebook_update == "gradient":
                chosen.append(vectors_of_codes)
            residuals.append(residuals[-1] - ops.stop_gradient(vectors_of_codes))
        return residuals, chosen

    def _level_losses(self, residuals, chosen, real, num_used):
        losses = []
        share = _share_of_real(real)
        for level in range(self.num_levels):
            error = _mean_square(residuals[level + 1], share)
            if chosen:
                target = ops.stop_gradient(residuals[level])
                codebook_error = _mean_square(target - chosen[level], share)
            else:
                codebook_error = ops.stop_gradient(error)
            loss = codebook_error + self.commitment_weight * error
            if num_used is not None:
                loss = ops.where(level < num_used, loss, 0.0)
            losses.append(loss)
        return ops.stack(losses)

    # Statistics.

    def _move(self, state, residuals, codes, real, num_used, order, loss):
        """Returns the state after this batch; the old one if the batch is unfit."""
        targets = [self._target(residual) for residual in residuals[: self.num_levels]]
        batch, loss, num_real = sum_over_replicas(
            (
                [
                    self._statistics(level_targets, level_codes)
                    for level_targets, level_codes in zip(targets, codes, strict=True)
                ],
                loss,
                1.0 if real is None else ops.sum(ops.cast(real, "float32")),
            )
        )
        histogram = ops.stack([counts for counts, _ in batch])
        new_state = {
            "code_histogram": state["code_histogram"]
            + ops.cast(histogram, state["code_histogram"].dtype)
        }
        if self.codebook_update != "gradient":
            new_state |= self._moved_tables(
                state, self._by_table(batch), targets, real, num_used, order
            )
        # The loss holds every vector, so it is finite only if all of them are.
        fit = ops.isfinite(loss)
        if real is not None:
            fit = ops.logical_and(fit, num_real > 0)
        return {name: ops.where(fit, new_state[name], state[name]) for name in state}

    def _target(self, residual):
        """What each code of a vector should be, given the vector."""
        target = self._looked_up(ops.stop_gradient(residual))
        if self.top_k > 1 and self.normalize != "level":
            target = target / self.top_k
        return target

    def _statistics(self, targets, codes):
        """Returns the codes' counts `(codebook_size,)` and sums of targets."""
        counts = sums = 0.0
        for k in range(self.top_k):
            # Codes of -1 go to a segment of their own, which is cut off.
            ids = ops.where(codes[:, k] < 0, self.codebook_size, codes[:, k])
            size = self.codebook_size + 1
            ones = ops.ones_like(targets[:, 0])
            counts = counts + segment_sum(ones, ids, size)[:-1]
            if self.codebook_update != "gradient":
                sums = sums + segment_sum(targets, ids, size)[:-1]
        return counts, sums

    def _by_table(self, batch):
        if not self.shared_codebooks:
            return batch
        counts, sums = zip(*batch, strict=True)
        return [(sum(counts[1:], counts[0]), sum(sums[1:], sums[0]))]

    def _moved_tables(self, state, batch, targets, real, num_used, order):
        seats = None
        if order is not None:
            seats = _Seats(targets, real, num_used, order)
        tables = []
        for table, (batch_counts, batch_sums) in enumerate(batch):
            old = {
                name: state[name][table]
                for name in ("code_vectors", "counts", "sums")
                if name in state
            }
            new = self._moved_table(old, batch_counts, batch_sums, table)
            if seats is not None:
                level = None if self.shared_codebooks else table
                new = self._restarted(new, seats, level)
            if num_used is not None and not self.shared_codebooks:
                new = {
                    name: ops.where(table < num_used, new[name], old[name])
                    for name in old
                }
            tables.append(new)
        return {
            name: ops.stack([table[name] for table in tables]) for name in tables[0]
        }

    def _moved_table(self, table, batch_counts, batch_sums, level):
        """Applies the update rule to one codebook."""
        counts = self.decay * table["counts"] + (1.0 - self.decay) * batch_counts
        if self.codebook_update == "sums":
            sums = self.decay * table["sums"] + (1.0 - self.decay) * batch_sums
            total = ops.sum(counts)
            smoothed = (counts + SMOOTHING) * (
                total / (total + self.codebook_size * SMOOTHING)
            )
            moved = {"code_vectors": sums / smoothed[:, None], "sums": sums}
        else:
            codes = table["code_vectors"]
            means = batch_sums / ops.maximum(batch_counts, 1.0)[:, None]
            if self._looks_up_unit_vectors(level):
                means = unit_vectors(means)
            step = self.decay * codes + (1.0 - self.decay) * means
            moved = {"code_vectors": ops.where(batch_counts[:, None] > 0, step, codes)}
        if self.normalize_codes:
            moved["code_vectors"] = unit_vectors(moved["code_vectors"])
        return moved | {"counts": counts}

    def _restarted(self, table, seats, level):
        """Re-seats the codes of one codebook that are hardly used."""
        mean_count = ops.mean(table["counts"])
        dead = table["counts"] < self.restart_threshold * mean_count
        vectors = seats.draw(dead, level)
        if self.normalize_codes:
            vectors = unit_vectors(vectors)
        restarted = {
            "code_vectors": ops.where(dead[:, None], vectors, table["code_vectors"]),
            "counts": ops.where(dead, mean_count, table["counts"]),
        }
        if "sums" in table:
            restarted["sums"] = ops.where(
                dead[:, None], vectors * mean_count, table["sums"]
            )
        return restarted

    # Codes without training.

    def encode(self, vectors):
        """Returns the codes of `vectors`, without training's dropout and sampling.

        Args:
            vectors: Float tensor of shape `(..., dim)`.

        Returns:
            int32 tensor of shape `(..., num_levels)`, or `(..., num_levels, top_k)` for
            `top_k > 1`.
        """
        self._check_built("encode")
        vectors, _, lead = self._flat_vectors(vectors, None)
        codes = self._search(vectors, ops.convert_to_tensor(self.code_vectors))
        return self._shaped_codes(ops.unstack(codes, self.num_levels, axis=1), lead)

    def decode(self, codes):
        """Returns the sum of the code vectors of `codes`.

        Args:
            codes: Integer tensor of shape `(..., levels)`, or `(..., levels, top_k)`
                for `top_k > 1`. Fewer levels than `num_levels` give a coarser vector.
                Codes of -1 add nothing.

        Returns:
            Tensor of shape `(..., dim)` in the compute dtype. With `normalize="input"`
            it approximates the vector brought to unit length.

        Raises:
            ValueError: if the codes are no integers or their shape does not fit.
        """
        self._check_built("decode")
        codes = ops.convert_to_tensor(codes)
        if "int" not in keras.backend.standardize_dtype(codes.dtype):
            raise ValueError(f"`codes` must be integers. Received dtype: {codes.dtype}")
        if self.top_k == 1:
            codes = codes[..., None]
        if len(codes.shape) < 2 or codes.shape[-1] != self.top_k:
            raise ValueError(
                f"`codes` must end in an axis of size top_k={self.top_k}. "
                f"Received shape: {tuple(codes.shape)}"
            )
        levels = codes.shape[-2]
        if levels is None or not 1 <= levels <= self.num_levels:
            raise ValueError(
                f"`codes` must have 1 to {self.num_levels} levels. "
                f"Received: {levels} levels"
            )
        tables = ops.convert_to_tensor(self.code_vectors)
        vectors = sum(
            _sum_of_codes(tables[self._table(level)], codes[..., level, :], True)
            for level in range(levels)
        )
        return ops.cast(vectors, self.compute_dtype)

    # k-means.

    def adapt(
        self, data, padding_mask=None, max_vectors=65_536, iterations=10, steps=None
    ):
        """Sets the codebooks by k-means on data, level after level.

        The same data and seed give the same codebooks on every backend. A layer that
        is not built yet is built. An evenly used code starts with an EMA count of 1.

        Args:
            data: An array or tensor of shape `(..., dim)`, or any number of them as
                batches: a `tf.data.Dataset`, `keras.utils.PyDataset`, `DataLoader`,
                list or generator. A batch may also be a tuple
                `(vectors, padding_mask)`.
            padding_mask: Boolean array of shape `(...)`, if `data` is one array.
            max_vectors: Integer. If there are more vectors, k-means runs on this many
                drawn from all of them.
            iterations: Integer, k-means iterations per level.
            steps: Integer, number of batches to read. `None` reads all.

        Raises:
            ValueError: if there is no vector, or shapes or numbers are wrong.
        """
        vectors = sample_vectors(
            data, padding_mask, max_vectors, steps, self.dim, self._seed
        )
        if not self.built:
            self.build((None, vectors.shape[1]))
        if self.normalize == "input":
            vectors = _unit_rows(vectors)
        if self.shared_codebooks:
            tables, counts = self._adapted_shared_table(vectors, iterations)
        else:
            tables, counts = self._adapted_tables(vectors, iterations)
        self._set_tables(np.stack(tables), np.stack(counts))

    def _clusters(self, residuals, iterations, level):
        cosine = self.normalize_codes or self.normalize == "level"
        if self.normalize == "level":
            residuals = _unit_rows(residuals)
        result = kmeans(
            residuals,
            self.codebook_size,
            iterations,
            cosine=cosine,
            seed=[self._seed, level],
        )
        # The codes of one vector add up to it, so each is a share.
        scale = 1.0 if cosine else 1.0 / self.top_k
        return result.means * np.float32(scale), result.counts

    def _adapted_tables(self, residual, iterations):
        tables, counts = [], []
        for level in range(self.num_levels):
            means, samples = self._clusters(residual, iterations, level)
            tables.append(means)
            counts.append(samples)
            residual = self._residual_after(residual, means)
        return tables, counts

    def _adapted_shared_table(self, vectors, iterations):
        """Clusters the residuals of all levels, which clustering itself changes."""
        residuals = [vectors]
        for level in range(self.num_levels):
            means, counts = self._clusters(np.concatenate(residuals), iterations, level)
            residuals = [vectors]
            for _ in range(min(level + 1, self.num_levels - 1)):
                residuals.append(self._residual_after(residuals[-1], means))
        return [means], [counts]

    def _residual_after(self, residual, means):
        after = np.empty_like(residual)
        penalties = 0.5 * np.square(means).sum(axis=1)
        for start in range(0, len(residual), ROWS_AT_ONCE):
            rows = residual[start : start + ROWS_AT_ONCE]
            looked_up = _unit_rows(rows) if self.normalize == "level" else rows
            scores = looked_up @ means.T - penalties
            codes = np.argsort(-scores, axis=1)[:, : self.top_k]
            after[start : start + ROWS_AT_ONCE] = rows - means[codes].sum(axis=1)
        return after

    def _set_tables(self, tables, samples):
        self.code_vectors.assign(tables)
        if self.codebook_update == "gradient":
            return
        shares = samples / samples.mean(axis=1, keepdims=True)
        counts = np.maximum(shares, COUNT_OF_EMPTY).astype("float32")
        self.counts.assign(counts)
        if self.codebook_update == "sums":
            self.sums.assign(tables * counts[..., None])

    # Usage.

    def usage(self):
        """Tells how well each codebook was used in training since `reset_usage()`.

        Returns:
            A `CodebookUsage` of float32 NumPy arrays of shape `(num_levels,)`: `usage`,
            `perplexity` and `dead_codes`.
        """
        self._check_built("usage")
        usage = usage_of_counts(self.code_histogram)
        return CodebookUsage(*(ops.convert_to_numpy(numbers) for numbers in usage))

    def reset_usage(self):
        """Forgets the codes counted for `usage()`."""
        self._check_built("reset_usage")
        self.code_histogram.assign(ops.zeros(self.code_histogram.shape, dtype="int32"))

    def get_config(self):
        """Returns the constructor's arguments."""
        names = (
            "num_levels",
            "codebook_size",
            "dim",
            "normalize",
            "normalize_codes",
            "codebook_update",
            "decay",
            "commitment_weight",
            "restart_threshold",
            "shared_codebooks",
            "top_k",
            "quantizer_dropout",
            "sampling_temperature",
            "seed",
        )
        return super().get_config() | {name: getattr(self, name) for name in names}


class _DrawnSeed(keras.random.SeedGenerator):
    """A seed drawn before, in the form that `keras.random` takes."""

    def __init__(self, seed):
        # Without the parent's variable: there is no state to move.
        self._seed = seed

    def next(self, ordered=True):
        """Returns the seed."""
        return self._seed


def _uniform(draws, name, shape, draw=keras.random.uniform):
    if name not in draws:
        return None
    return draw(shape, dtype="float32", seed=_DrawnSeed(draws[name]))


def _draw_rows(shape, **kwargs):
    return draw_rows(keras.random.uniform, shape, **kwargs)


class _Seats:
    """Hands out a batch's vectors in random order, none twice if that can be.

    The batch is that of all replicas: all of them draw the same vectors.
    """

    def __init__(self, targets, real, num_used, order):
        self.targets = targets
        self.num_used = num_used
        if real is None:
            self.num_rows = ops.shape(order)[0]
        else:
            # Padding comes last in the order, out of reach.
            real = all_rows(ops.cast(real, "int32")) > 0
            order = ops.where(real, order, 2.0)
            self.num_rows = ops.maximum(ops.sum(ops.cast(real, "int32")), 1)
        self.rows = ops.cast(ops.argsort(order), "int32")
        self.handed_out = 0

    def draw(self, dead, level):
        """Returns a vector for each dead code (and any for the others).

        `level` is the level whose vectors are asked for, `None` for all in turn.
        """
        rank = self.handed_out + ops.cumsum(ops.cast(dead, "int32")) - 1
        rank = ops.maximum(rank, 0)
        self.handed_out = self.handed_out + ops.sum(ops.cast(dead, "int32"))
        rows = ops.take(self.rows, ops.mod(rank, self.num_rows), axis=0)
        if level is not None:
            return take_rows(self.targets[level], rows)
        num_used = len(self.targets) if self.num_used is None else self.num_used
        levels = ops.mod(rank, num_used)[:, None]
        drawn = take_rows(self.targets[0], rows)
        for other in range(1, len(self.targets)):
            vectors = take_rows(self.targets[other], rows)
            drawn = ops.where(levels == other, vectors, drawn)
        return drawn


def unit_vectors(vectors):
    """Brings vectors to unit length; zero vectors stay zero.

    Args:
        vectors: Float tensor of shape `(..., dim)`.

    Returns:
        Tensor of the same shape.
    """
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    scale = ops.rsqrt(ops.maximum(squares, 1e-24))
    # No gradient at zero either, where it would be 1e12 times too large.
    return vectors * ops.where(squares > 1e-24, scale, 0.0)


def _unit_rows(vectors):
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def _sum_of_codes(table, codes, absent=False):
    """Adds up the code vectors of `codes` `(..., k)`; those of -1 add nothing."""
    total = 0.0
    for k in range(codes.shape[-1]):
        ids = codes[..., k]
        vectors = ops.take(table, ops.maximum(ids, 0) if absent else ids, axis=0)
        if absent:
            vectors = vectors * ops.cast(ids >= 0, vectors.dtype)[..., None]
        total = vectors if k == 0 else total + vectors
    return total


def _mean_square(differences, share):
    """Averages squares over real rows, given that the other rows are zero."""
    return ops.mean(ops.square(differences)) / share


def _share_of_real(real):
    """What the mean over this replica's rows is divided by.

    That is the share of real rows, or more where there are replicas, so that their
    quotients add up to the mean over the real rows of the batch.
    """
    if real is None:
        return float(num_replicas())
    share = sum_over_replicas(ops.mean(ops.cast(real, "float32")))
    return ops.maximum(share, 1e-12)


def _map_rows(function, rows, rows_at_once):
    """Applies `function` to slices of about `rows_at_once` rows, one by one."""
    total = ops.shape(keras.tree.flatten(rows)[0])[0]
    if isinstance(total, int) and total <= rows_at_once:
        return function(rows)
    if isinstance(total, int):
        num_slices = -(-total // rows_at_once)
    else:
        num_slices = ops.maximum((total + rows_at_once - 1) // rows_at_once, 1)
    # Slices of equal size, so that little is padded.
    size = (total + num_slices - 1) // num_slices
    missing = num_slices * size - total
    # Of rows that lie on several devices, each slice takes some from all of them.
    is_spread = keras.distribution.distribution() is not None

    def sliced(array):
        rest = tuple(array.shape[1:])
        array = ops.pad(array, [(0, missing)] + [(0, 0)] * len(rest))
        if is_spread:
            return ops.swapaxes(ops.reshape(array, (size, num_slices, *rest)), 0, 1)
        return ops.reshape(array, (num_slices, size, *rest))

    results = ops.map(function, keras.tree.map_structure(sliced, rows))
    if is_spread:
        results = ops.swapaxes(results, 0, 1)
    return ops.reshape(results, (-1, *results.shape[2:]))[:total]
