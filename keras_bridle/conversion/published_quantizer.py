"""The quantizers of the published BRIDLE code, quirks included."""

import keras
import numpy as np
from keras import ops

from keras_bridle.engine import nearness
from keras_bridle.layers.base import check
from keras_bridle.quantizer.codebook import (
    choose_codes,
    counts_and_sums,
    moved_tables,
    sum_of_codes,
    unit_vectors,
)
from keras_bridle.quantizer.residual_quantizer import (
    COUNT_OF_EMPTY,
    ResidualQuantizer,
)
from keras_bridle.replicas import num_replicas

KMEANS_ITERATIONS = 10
# Published names of codebook, counts, sums and flag, in residual and plain quantizers.
NAMES_OF_LEVEL = ("weight", "cluster_size_ema", "embed_ema", "initted")
NAMES_OF_VQ = (
    "embedding.weight",
    "cluster_size",
    "embedding.embed_avg",
    "embedding.initted",
)


@keras.saving.register_keras_serializable(package="keras_bridle")
class PublishedResidualQuantizer(ResidualQuantizer):
    """Computes exactly what the published code does, for comparison.

    Use `ResidualQuantizer` for anything else. The differences:

    - Codes are looked up after this step's update, level by level (not for `"vq"`).
    - Counts also change in evaluation. K-means and restarts happen on the first batch
      only, in evaluation, too. Nothing changes if the layer is not trainable.
    - `top_k > 1` chooses the farthest codes.
    - Restarts draw with repeats and leave counts and sums as they are.
    - With `ema=False`, the loss of later levels reaches the codebooks of earlier ones.
    - It does not support padding or replicas.

    Args:
        flavor: `"audio"` (images too), `"video"` or `"vq"` (one level, unit vectors).
        ema: Boolean, whether codebooks follow moving averages rather than gradients.
        restart_unused_codes: Boolean, whether to replace the codes that the first batch
            does not use.
        kmeans_init: Boolean, whether to run k-means on the first batch.
        **kwargs: See `ResidualQuantizer`.
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
        flavors = ("audio", "video", "vq")
        check(flavor in flavors, "flavor", f"one of {flavors}", flavor)
        is_vq = flavor == "vq"
        check(not is_vq or num_levels == 1, "num_levels", "1 for VQ", num_levels)
        self.flavor = flavor
        self.ema = ema
        self.restart_unused_codes = restart_unused_codes
        self.kmeans_init = kmeans_init
        wanted = {"kmeans": kmeans_init, "restart": restart_unused_codes}
        self._drawn = [name for name, is_wanted in wanted.items() if is_wanted]
        rule = "sums" if flavor == "video" else "mean"
        super().__init__(
            num_levels=num_levels,
            codebook_size=codebook_size,
            dim=dim,
            normalize="input" if is_vq else "level",
            normalize_codes=is_vq and ema,
            codebook_update=rule if ema else "gradient",
            decay=decay,
            commitment_weight=commitment_weight,
            shared_codebooks=shared_codebooks,
            top_k=top_k,
            seed=seed,
            **kwargs,
        )

    def _wanted_draws(self):
        return dict.fromkeys(self._drawn, True)

    def build(self, input_shape):
        """Creates the codebooks, their statistics and the flags of what was done."""
        super().build(input_shape)
        for name in self._drawn:
            done = self._add_state(f"{name}_done", (self._num_tables,))
            setattr(self, f"{name}_done", done)

    def _state_weights(self):
        done = {f"{name}_done": getattr(self, f"{name}_done") for name in self._drawn}
        return super()._state_weights() | done

    def draws(self):
        """Draws the vectors for k-means and restarts: vector `floor(u * n)`."""
        shape = (self.num_levels, self.codebook_size)
        return {
            name: keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
            for name in self._drawn
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
        """As in `ResidualQuantizer`, but the state also changes in evaluation."""
        if padding_mask is not None or num_replicas() > 1:
            raise ValueError(
                "PublishedResidualQuantizer supports neither padding nor replicas. "
                "Use ResidualQuantizer there."
            )
        vectors, _, lead = self._flat_vectors(vectors)
        state = self.state() if state is None else state
        draws = self.draws() if draws is None else draws
        tables = {"code_vectors": self._tables()} | state
        histogram = tables.pop("code_histogram")
        tables = [
            {name: tensor[table] for name, tensor in tables.items()}
            for table in range(self._num_tables)
        ]
        residual, codes, counts, losses = vectors, [], [], []
        for level in range(self.num_levels):
            drawn = {name: numbers[level] for name, numbers in draws.items()}
            t = self._table(level)
            found, counted, chosen, tables[t] = self._level(
                residual, tables[t], drawn, training
            )
            codes.append(found)
            counts.append(counted)
            error = ops.mean(ops.square(ops.stop_gradient(residual) - chosen))
            error = ops.stop_gradient(error) if self.ema else error
            commitment = ops.mean(ops.square(residual - ops.stop_gradient(chosen)))
            losses.append(error + self.commitment_weight * commitment)
            residual = residual - (ops.stop_gradient(chosen) if self.ema else chosen)
        if training:
            histogram = histogram + ops.cast(ops.stack(counts), histogram.dtype)
        state = {"code_histogram": histogram} | {
            name: ops.stack([table[name] for table in tables])
            for name in tables[0].keys() & state.keys()
        }
        losses = ops.stack(losses)
        quantized = vectors - ops.stop_gradient(residual)
        codes = ops.stack(codes, axis=1)
        return self._output(quantized, codes, ops.mean(losses), losses, lead), state

    def _level(self, residual, table, drawn, training):
        """Returns codes, their counts, the chosen vectors and the updated table."""
        vectors = ops.stop_gradient(residual)
        vectors = unit_vectors(vectors) if self.normalize == "level" else vectors

        def vectors_of(numbers):
            count = ops.shape(vectors)[0]
            ids = ops.cast(numbers * ops.cast(count, "float32"), "int32")
            return ops.take(vectors, ops.minimum(ids, count - 1), axis=0)

        if self.kmeans_init:
            table = self._after_kmeans(table, vectors, vectors_of(drawn["kmeans"]))
        before = table["code_vectors"]
        fixed = ops.stop_gradient(before)
        scores = nearness(vectors, fixed, 0.5 * ops.sum(ops.square(fixed), axis=-1))
        # The published code takes the farthest codes first.
        codes = choose_codes(-scores if self.top_k > 1 else scores, self.top_k)
        counts, sums = counts_and_sums(vectors, codes, self.codebook_size)
        if self.ema:
            options = self.decay, True, self.normalize_codes
            moved = moved_tables(table, counts, sums, *options)
            # The published code updates the counts in evaluation, too.
            table = table | (moved if training else {"counts": moved["counts"]})
        if self.restart_unused_codes:
            unused = ops.logical_and(counts == 0, table["restart_done"] == 0)
            seats = vectors_of(drawn["restart"])
            seats = ops.where(unused[:, None], seats, table["code_vectors"])
            done = ops.ones_like(table["restart_done"])
            table = table | {"code_vectors": seats, "restart_done": done}
        after = before if self.flavor == "vq" else table["code_vectors"]
        return codes, counts, sum_of_codes(after, codes), table

    def _after_kmeans(self, table, vectors, start):
        def run():
            means = start
            for _ in range(KMEANS_ITERATIONS):
                scores = ops.matmul(vectors, ops.transpose(means))
                codes = choose_codes(scores)
                counts, sums = counts_and_sums(vectors, codes, self.codebook_size)
                means = ops.where(counts[:, None] > 0, unit_vectors(sums), means)
            return means, counts

        old = table["code_vectors"], table.get("counts", ops.zeros(len(start)))
        means, counts = ops.cond(table["kmeans_done"] > 0, lambda: old, run)
        done = ops.ones_like(table["kmeans_done"])
        new = {"code_vectors": means, "kmeans_done": done}
        # The published VQ does not use k-means' counts for its EMA.
        return table | new | ({} if self.flavor == "vq" else {"counts": counts})


def load_published_quantizer(layer, state, prefix=""):
    """Copies the arrays of a published state dict into a quantizer.

    A `ResidualQuantizer` with `"sums"` gets sums that match its counts; codes without
    counts get a small one.

    Args:
        layer: A built `ResidualQuantizer` or `PublishedResidualQuantizer`.
        state: Dict of arrays under the published names: `codebooks.0.weight` (with one
            more row, which is ignored), `codebooks.0.cluster_size_ema`,
            `codebooks.0.embed_ema` and so on, or `embedding.weight` and `cluster_size`.
        prefix: String in front of the names, such as `"tokenizer.quantizer."`.
    """
    is_vq = f"{prefix}embedding.weight" in state
    levels = [f"{prefix}codebooks.{i}.weight" for i in range(layer.num_levels + 1)]
    found = 1 if is_vq else len(state.keys() & levels)
    tables = layer.code_vectors.shape[0]
    expected = f"of {layer.num_levels} codebooks under {prefix!r}"
    check(tables <= found <= layer.num_levels, "state", expected, f"{found} codebooks")
    names = NAMES_OF_VQ if is_vq else NAMES_OF_LEVEL
    stems = [prefix if is_vq else f"{prefix}codebooks.{i}." for i in range(tables)]

    def stacked(name):
        return np.stack([np.float32(state[stem + name]) for stem in stems])

    weights = layer._state_weights()
    codes = stacked(names[0])
    if codes.shape[1] == layer.codebook_size + 1:
        codes = codes[:, :-1]
    layer.code_vectors.assign(codes)
    if "counts" in weights:
        counts = stacked(names[1])
        if "sums" in weights and isinstance(layer, PublishedResidualQuantizer):
            layer.sums.assign(stacked(names[2]))
        elif "sums" in weights:
            counts = np.maximum(counts, COUNT_OF_EMPTY)
            layer.sums.assign(codes * counts[..., None])
        layer.counts.assign(counts)
    if "kmeans_done" in weights:
        done = [np.any(state.get(stem + names[3], 0)) for stem in stems]
        layer.kmeans_done.assign(np.asarray(done, "float32"))
