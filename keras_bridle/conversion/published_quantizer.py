"""The quantizers of the published BRIDLE code, quirks included."""

import keras
import numpy as np
from keras import ops

from keras_bridle.engine import nearness
from keras_bridle.quantizer.residual_quantizer import (
    COUNT_OF_EMPTY,
    ResidualQuantizer,
    ResidualQuantizerOutput,
    unit_vectors,
)
from keras_bridle.replicas import num_replicas

KMEANS_ITERATIONS = 10
# What the published video code adds to its counts.
VIDEO_SMOOTHING = 1e-5


@keras.saving.register_keras_serializable(package="keras_bridle")
class PublishedResidualQuantizer(ResidualQuantizer):
    """Computes what the published code computes, for comparison with it.

    Use `ResidualQuantizer` for anything else. The differences:

    - Code vectors are taken after this step's move, level by level (not for `"vq"`).
    - The counts move in evaluation too, k-means and restarts also happen there, on the
      first batch only. Nothing moves if the layer is not trainable.
    - `top_k > 1` takes the farthest codes.
    - Restarts draw with repeats and leave counts and sums as they are.
    - `flavor="video"` divides sums by counts for codes without vectors as well, so that
      codebooks whose sums and counts do not fit each other jump.
    - With `ema=False` later levels pull on the codebooks of earlier ones.

    Padding is unknown to it.

    Args:
        flavor: `"audio"` (images too), `"video"` or `"vq"` (one level, unit vectors).
        num_levels: Integer, number of levels; 1 for `"vq"`.
        codebook_size: Integer, number of code vectors per level.
        dim: Integer, size of the vectors. `None` takes it from the input.
        ema: Boolean, whether codebooks follow moving averages rather than gradients.
        restart_unused_codes: Boolean, whether to replace the codes that the first batch
            does not use.
        kmeans_init: Boolean, whether to run k-means on the first batch.
        decay: Float in `[0, 1)`, of the moving averages.
        commitment_weight: Float, weight of the commitment loss.
        shared_codebooks: Boolean, whether all levels share one codebook.
        top_k: Integer, number of codes per level.
        seed: Integer.
        **kwargs: Further arguments of `keras.layers.Layer`.

    Raises:
        ValueError: if an argument is out of range or arguments exclude each other.

    Example:
    ```python
    import numpy as np
    from keras_bridle.conversion.published_quantizer import PublishedResidualQuantizer

    quantizer = PublishedResidualQuantizer("audio", num_levels=2, codebook_size=16)
    out = quantizer(np.random.normal(size=(4, 10, 8)), training=True)
    print(out.codes.shape)
    ```
    """

    def __init__(
        self,
        flavor="audio",
        num_levels=4,
        codebook_size=256,
        dim=None,
        ema=True,
        restart_unused_codes=False,
        kmeans_init=False,
        decay=0.99,
        commitment_weight=0.25,
        shared_codebooks=False,
        top_k=1,
        seed=None,
        **kwargs,
    ):
        if flavor not in ("audio", "video", "vq"):
            raise ValueError(
                '`flavor` must be "audio", "video" or "vq". '
                f"Received: flavor={flavor!r}"
            )
        if flavor == "vq" and (num_levels, top_k, restart_unused_codes) != (1, 1, 0):
            raise ValueError(
                '`flavor="vq"` has num_levels=1, top_k=1 and '
                f"restart_unused_codes=False. Received: num_levels={num_levels}, "
                f"top_k={top_k}, restart_unused_codes={restart_unused_codes}"
            )
        self.flavor = flavor
        self.ema = ema
        self.restart_unused_codes = restart_unused_codes
        self.kmeans_init = kmeans_init
        rule = "sums" if flavor == "video" else "mean"
        super().__init__(
            num_levels=num_levels,
            codebook_size=codebook_size,
            dim=dim,
            normalize="input" if flavor == "vq" else "level",
            normalize_codes=flavor == "vq" and ema,
            codebook_update=rule if ema else "gradient",
            decay=decay,
            commitment_weight=commitment_weight,
            shared_codebooks=shared_codebooks,
            top_k=top_k,
            seed=seed,
            **kwargs,
        )

    @property
    def _draws(self):
        return self.restart_unused_codes or self.kmeans_init

    def build(self, input_shape):
        """Creates the codebooks, their statistics and what has been done to them."""
        super().build(input_shape)
        for name, there in (
            ("kmeans_done", self.kmeans_init),
            ("restart_done", self.restart_unused_codes),
        ):
            if there:
                weight = self._add_float_weight(name, (self._num_tables,), "zeros")
                setattr(self, name, weight)

    def _state_weights(self):
        weights = super()._state_weights()
        if self.kmeans_init:
            weights["kmeans_done"] = self.kmeans_done
        if self.restart_unused_codes:
            weights["restart_done"] = self.restart_done
        return weights

    def draws(self):
        """Draws the vectors that k-means starts from and restarts take.

        Returns:
            A dict with `"kmeans"` and `"restart"`, each where the layer needs it:
            float32 tensors of shape `(num_levels, codebook_size)`, in `[0, 1)`. A
            number `u` stands for vector `floor(u * num_vectors)`.
        """
        wanted = {"kmeans": self.kmeans_init, "restart": self.restart_unused_codes}
        shape = (self.num_levels, self.codebook_size)
        return {
            name: keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
            for name, needed in wanted.items()
            if needed
        }

    def call(self, vectors, padding_mask=None, training=False):
        """Quantizes `vectors`; see the class."""
        moves = bool(training) and self.trainable
        output, state = self.stateless_step(vectors, padding_mask, training=moves)
        if self.trainable:
            self.assign_state(state)
        return output

    def stateless_step(
        self, vectors, padding_mask=None, training=True, draws=None, state=None
    ):
        """Quantizes `vectors` without assigning anything.

        As in `ResidualQuantizer`, except that the state moves in evaluation too.

        Args:
            vectors: Float tensor of shape `(..., dim)`.
            padding_mask: Must be `None`.
            training: Boolean, whether the codebooks move.
            draws: Dict from `draws()`. `None` draws here.
            state: Dict as from `state()`. `None` takes the layer's own.

        Returns:
            Tuple `(output, new_state)`.

        Raises:
            ValueError: if there is a `padding_mask`, shapes do not fit, or the batch
                is divided among several devices.
        """
        self._check_built("stateless_step")
        if padding_mask is not None:
            raise ValueError(
                "PublishedResidualQuantizer knows no padding, so `padding_mask` must "
                "be None. Use `ResidualQuantizer` for padded vectors."
            )
        if num_replicas() > 1:
            raise ValueError(
                "PublishedResidualQuantizer knows the vectors of one device only. Use "
                "`ResidualQuantizer` where a batch is divided among several."
            )
        vectors, _, lead = self._flat_vectors(vectors, None)
        state = self.state() if state is None else state
        draws = self.draws() if draws is None else draws
        trained = None if self.ema else ops.convert_to_tensor(self.code_vectors)
        tables = [self._one_table(state, trained, t) for t in range(self._num_tables)]
        residual, total, histogram = vectors, 0.0, []
        codes, losses = [], []
        for level in range(self.num_levels):
            table = tables[self._table(level)]
            level_codes, counts, chosen, table = self._level(
                residual, table, draws, level, training
            )
            tables[self._table(level)] = table
            losses.append(self._published_loss(residual, chosen))
            residual = residual - (ops.stop_gradient(chosen) if self.ema else chosen)
            total = total + chosen
            codes.append(level_codes)
            histogram.append(counts)
        if training:
            counted = ops.cast(ops.stack(histogram), state["code_histogram"].dtype)
            state = state | {"code_histogram": state["code_histogram"] + counted}
        level_losses = ops.stack(losses)
        quantized = vectors + ops.stop_gradient(total - vectors)
        output = self._output(quantized, codes, level_losses, lead)
        return output, self._joined(state, tables)

    def _output(self, quantized, codes, level_losses, lead):
        return ResidualQuantizerOutput(
            quantized=ops.cast(
                ops.reshape(quantized, (*lead, self.dim)), self.compute_dtype
            ),
            codes=self._shaped_codes(codes, lead),
            loss=ops.mean(level_losses),
            level_losses=level_losses,
        )

    def _one_table(self, state, trained, table):
        parts = {
            name: tensor[table]
            for name, tensor in state.items()
            if name != "code_histogram"
        }
        return parts if trained is None else parts | {"code_vectors": trained[table]}

    def _joined(self, state, tables):
        joined = {
            name: ops.stack([table[name] for table in tables])
            for name in state
            if name != "code_histogram"
        }
        return state | joined

    def _level(self, residual, table, draws, level, training):
        """Returns codes, their counts, the chosen vectors and the moved table."""
        looked_up = ops.stop_gradient(self._looked_up(residual))
        if self.kmeans_init:
            table = self._after_kmeans(table, looked_up, draws["kmeans"][level])
        before = table["code_vectors"]
        codes = self._search_one(looked_up, ops.stop_gradient(before))
        counts, sums = self._statistics(looked_up, codes)
        if self.ema:
            moved = self._moved_table(table, counts, sums, level)
            # In evaluation only the counts move.
            table = table | (moved if training else {"counts": moved["counts"]})
        if self.restart_unused_codes:
            table = self._after_restart(
                table, counts, looked_up, draws["restart"][level]
            )
        after = before if self.flavor == "vq" else table["code_vectors"]
        chosen = sum(ops.take(after, codes[:, k], axis=0) for k in range(self.top_k))
        return codes, counts, chosen, table

    def _search_one(self, looked_up, table):
        penalty = 0.5 * ops.sum(ops.square(table), axis=-1)
        return self._choose(nearness(looked_up, table, penalty))

    def _choose(self, scores, drawn=None):
        # The farthest come first.
        return super()._choose(-scores if self.top_k > 1 else scores, drawn)

    def _moved_table(self, table, batch_counts, batch_sums, level):
        if self.flavor != "video":
            return super()._moved_table(table, batch_counts, batch_sums, level)
        counts = self.decay * table["counts"] + (1.0 - self.decay) * batch_counts
        sums = self.decay * table["sums"] + (1.0 - self.decay) * batch_sums
        total = ops.sum(counts)
        size = (counts + VIDEO_SMOOTHING) * (
            total / (total + self.codebook_size * VIDEO_SMOOTHING)
        )
        return {"code_vectors": sums / size[:, None], "sums": sums, "counts": counts}

    def _after_kmeans(self, table, samples, drawn):
        def run():
            ids = _indices(drawn, samples)
            means, counts = ops.take(samples, ids, axis=0), 0.0
            for _ in range(KMEANS_ITERATIONS):
                scores = ops.matmul(samples, ops.transpose(means))
                codes = ops.cast(ops.argmax(scores, axis=-1), "int32")
                counts, sums = self._statistics(samples, codes[:, None])
                means = ops.where(counts[:, None] > 0, unit_vectors(sums), means)
            return means, counts

        done = table["kmeans_done"] > 0
        old_counts = table.get("counts", ops.zeros((self.codebook_size,)))
        means, counts = ops.cond(done, lambda: (table["code_vectors"], old_counts), run)
        table = table | {
            "code_vectors": means,
            "kmeans_done": ops.ones_like(table["kmeans_done"]),
        }
        # The published VQ keeps the two kinds of counts apart.
        keeps_counts = self.flavor == "vq" or "counts" not in table
        return table if keeps_counts else table | {"counts": counts}

    def _after_restart(self, table, counts, looked_up, drawn):
        unused = ops.logical_and(counts == 0, table["restart_done"] == 0)
        seats = ops.take(looked_up, _indices(drawn, looked_up), axis=0)
        codes = ops.where(unused[:, None], seats, table["code_vectors"])
        return table | {
            "code_vectors": codes,
            "restart_done": ops.ones_like(table["restart_done"]),
        }

    def _published_loss(self, residual, chosen):
        error = ops.mean(ops.square(ops.stop_gradient(residual) - chosen))
        commitment = ops.mean(ops.square(residual - ops.stop_gradient(chosen)))
        if self.ema:
            error = ops.stop_gradient(error)
        return error + self.commitment_weight * commitment

    def _set_tables(self, tables, samples):
        super()._set_tables(tables, samples)
        if self.kmeans_init:
            self.kmeans_done.assign(ops.ones_like(self.kmeans_done))

    def get_config(self):
        """Returns the constructor's arguments."""
        config = super().get_config()
        for name in (
            "normalize",
            "normalize_codes",
            "codebook_update",
            "restart_threshold",
            "quantizer_dropout",
            "sampling_temperature",
        ):
            del config[name]
        names = ("flavor", "ema", "restart_unused_codes", "kmeans_init")
        return config | {name: getattr(self, name) for name in names}


def _indices(drawn, vectors):
    count = ops.shape(vectors)[0]
    ids = ops.cast(drawn * ops.cast(count, "float32"), "int32")
    return ops.minimum(ids, count - 1)


def load_published_quantizer(layer, state, prefix=""):
    """Copies the arrays of a published state dict into a quantizer.

    A `ResidualQuantizer` whose rule is `"sums"` gets sums that fit its counts; codes
    that were never counted get a small count.

    Args:
        layer: A built `ResidualQuantizer` or `PublishedResidualQuantizer`.
        state: Dict of arrays under the published names: `codebooks.0.weight` (with
            one more row, which is left out), `codebooks.0.cluster_size_ema`,
            `codebooks.0.embed_ema` and so on, or `embedding.weight` and `cluster_size`.
        prefix: String in front of the names, such as `"tokenizer.quantizer."`.

    Raises:
        ValueError: if the layer is not built, an array is missing or has a wrong shape,
            or the state has more levels than the layer.

    Example:
    ```python
    import numpy as np
    from keras_bridle.conversion.published_quantizer import load_published_quantizer
    from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer

    quantizer = ResidualQuantizer(num_levels=1, codebook_size=16)
    quantizer.build((None, 8))
    state = {
        "embedding.weight": np.random.normal(size=(16, 8)),
        "cluster_size": np.ones(16),
    }
    load_published_quantizer(quantizer, state)
    ```
    """
    if not layer.built:
        raise ValueError("`layer` must be built before weights are loaded into it.")
    names = _published_names(layer, state, prefix)
    size, dim = layer.codebook_size, layer.dim
    tables = []
    for part in names:
        weight = _array(state, part["code_vectors"], (size, dim), extra_row=True)
        counts = _array(state, part["counts"], (size,))
        tables.append({"code_vectors": weight, "counts": counts})
        if layer.codebook_update != "sums":
            continue
        if isinstance(layer, PublishedResidualQuantizer):
            tables[-1]["sums"] = _array(state, part["sums"], (size, dim))
        else:
            tables[-1]["counts"] = counts = np.maximum(counts, COUNT_OF_EMPTY)
            tables[-1]["sums"] = weight * counts[:, None]
    weights = layer._state_weights() | {"code_vectors": layer.code_vectors}
    for name in tables[0]:
        if name in weights:
            weights[name].assign(np.stack([table[name] for table in tables]))
    if "kmeans_done" in weights:
        done = [float(_flag(state, part["kmeans_done"])) for part in names]
        weights["kmeans_done"].assign(np.array(done, "float32"))


def _published_names(layer, state, prefix):
    if f"{prefix}embedding.weight" in state:
        if layer.num_levels != 1:
            raise ValueError(
                "`state` holds one codebook, so `layer` must have one level. "
                f"Received: num_levels={layer.num_levels}"
            )
        return [
            {
                "code_vectors": f"{prefix}embedding.weight",
                "counts": f"{prefix}cluster_size",
                "sums": f"{prefix}embedding.embed_avg",
                "kmeans_done": f"{prefix}embedding.initted",
            }
        ]
    if f"{prefix}codebooks.{layer.num_levels}.weight" in state:
        raise ValueError(
            "`state` has more levels than `layer`. "
            f"Received: num_levels={layer.num_levels}"
        )
    levels = 1 if layer.shared_codebooks else layer.num_levels
    return [
        {
            "code_vectors": f"{prefix}codebooks.{level}.weight",
            "counts": f"{prefix}codebooks.{level}.cluster_size_ema",
            "sums": f"{prefix}codebooks.{level}.embed_ema",
            "kmeans_done": f"{prefix}codebooks.{level}.initted",
        }
        for level in range(levels)
    ]


def _array(state, name, shape, extra_row=False):
    if name not in state:
        raise ValueError(f"`state` lacks {name!r}. It has: {sorted(state)[:8]} ...")
    array = np.asarray(state[name], dtype="float32")
    if extra_row and array.shape == (shape[0] + 1, *shape[1:]):
        array = array[:-1]
    if array.shape != shape:
        raise ValueError(
            f"{name!r} in `state` must have shape {shape}. "
            f"Received shape: {array.shape}"
        )
    return array


def _flag(state, name):
    return np.asarray(state[name]).any() if name in state else False
